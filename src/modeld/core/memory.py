# SPDX-License-Identifier: GPL-3.0-only
"""Weights and context of a model in bytes, as llama.cpp's own dry pass adds them up; rule: exact, or flagged in `MemoryShape.certain`.

What grows with neither layers nor cells (compute buffers, output rows) is not here. Sources: llama-context.cpp for the number of cells,
llama-kv-cache.cpp, llama-kv-cache-iswa.cpp and llama-memory-recurrent.cpp for the rows, ggml-alloc.c for the padding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from modeld.core.model import AttentionLayers, FlashAttention, KvType, LaunchOptions, MemoryShape, RecurrentLayers

CELL_PADDING: Final = 256
"""llama.cpp rounds the number of cache cells up to this."""
TENSOR_PADDING: Final = 32
"""Each tensor in host memory starts at a multiple of this."""
STATE_ELEMENT_BYTES: Final = 4
"""Recurrent state is F32 whatever the type of the attention cache."""

ROW_BYTES: Final[dict[KvType, tuple[int, int]]] = {
    KvType.F32: (1, 4),
    KvType.F16: (1, 2),
    KvType.BF16: (1, 2),
    KvType.Q8_0: (32, 34),
    KvType.Q5_1: (32, 24),
    KvType.Q5_0: (32, 22),
    KvType.Q4_1: (32, 20),
    KvType.Q4_0: (32, 18),
    KvType.IQ4_NL: (32, 18),
}
"""(elements per block, bytes per block) of ggml's types (ggml-common.h)."""


def weights_bytes(shape: MemoryShape) -> int:
    """Bytes of the tensors that are loaded, each once, whatever the buffer; 0 = the header does not say."""
    return shape.weights_bytes


def head_bytes(shape: MemoryShape, options: LaunchOptions) -> int:
    """Bytes of the output head's own copy of the token table. The table stays in host memory, the head goes to the device."""
    return shape.tied_bytes if options.ngl else 0


def host_share(shape: MemoryShape, options: LaunchOptions) -> float:
    """The part of the layers that computes in host memory. The output head goes to the device first, then the last layers."""
    if options.ngl == 0:
        return 1.0
    if options.ngl < 0 or not shape.layers:
        return 0.0
    return max(0.0, (shape.layers + 1 - options.ngl) / shape.layers)


def host_weights_bytes(shape: MemoryShape, options: LaunchOptions) -> int:
    """Bytes of the weights that lie in host memory: the token table always does, blocks where not all are on the device."""
    if options.ngl == 0:
        return shape.weights_bytes
    blocks = max(0, shape.weights_bytes - shape.table_bytes - shape.head_bytes)
    return min(shape.weights_bytes, shape.table_bytes + int(host_share(shape, options) * blocks))


def context_bytes(shape: MemoryShape, options: LaunchOptions) -> int:
    """Bytes of all that is kept of what was read: key and value rows of the attention layers, states of the recurrent ones."""
    attention = sum(attention_bytes(layers, shape, options) for layers in shape.attention)
    return attention + sum(state_bytes(layers, options) for layers in shape.recurrent)


def attention_bytes(layers: AttentionLayers, shape: MemoryShape, options: LaunchOptions) -> int:
    """Bytes of the caches of these layers. Without flash attention a value row is as long as the longest of any layer."""
    value = layers.value_elements
    if value and not flash(shape, options):
        value = shape.value_elements_max
    rows = cells(options, layers.window)
    key_bytes, value_bytes = row_bytes(layers.key_elements, options.kv_type), row_bytes(value, options.kv_type)
    return layers.count * (_pad(rows * key_bytes, TENSOR_PADDING) + _pad(rows * value_bytes, TENSOR_PADDING))


def state_bytes(layers: RecurrentLayers, options: LaunchOptions) -> int:
    """Bytes of the states of these layers, one for each slot, whatever the context."""
    rows = STATE_ELEMENT_BYTES * options.parallel
    return layers.count * (_pad(rows * layers.conv_elements, TENSOR_PADDING) + _pad(rows * layers.state_elements, TENSOR_PADDING))


def checkpoint_bytes(shape: MemoryShape, options: LaunchOptions) -> int:
    """Bytes of one context checkpoint of one slot: the states of the recurrent layers and the cells of the sliding windows."""
    one = replace(options, parallel=1, kv_unified=True)
    windows = sum(attention_bytes(layers, shape, one) for layers in shape.attention if layers.window)
    return windows + sum(state_bytes(layers, one) for layers in shape.recurrent)


def flash(shape: MemoryShape, options: LaunchOptions) -> bool:
    """Whether flash attention is on. `auto` is on where the device has it, as all do that llama.cpp was compared on."""
    return options.flash_attn is not FlashAttention.OFF and not shape.no_flash


def refused(shape: MemoryShape, options: LaunchOptions) -> bool:
    """Whether llama.cpp makes no such context: quantised values need flash attention, and heads of whole blocks."""
    block = ROW_BYTES[options.kv_type][0]
    whole = not shape.attention or not (shape.key_length % block or shape.value_length % block)
    return quantised(options.kv_type) and not (flash(shape, options) and whole)


def quantised(kv_type: KvType) -> bool:
    """Whether the cache is stored in blocks."""
    return ROW_BYTES[kv_type][0] > 1


def cells(options: LaunchOptions, window: int = 0) -> int:
    """Cache cells over all streams. Unified: one stream of ctx cells; otherwise one stream per slot, each padded by itself.

    With a sliding window a stream has the window of each of its slots and one physical batch, and never more than without.
    """
    streams = 1 if options.kv_unified else options.parallel
    full = _pad(_pad(options.ctx, CELL_PADDING) // streams, CELL_PADDING)
    if window:
        slots = options.parallel if options.kv_unified else 1
        batch = min(options.ubatch, options.batch, options.ctx)
        full = _pad(min(full, window * slots + batch), CELL_PADDING)
    return full * streams


def _pad(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def row_bytes(elements: int, kv_type: KvType) -> int:
    """Bytes of a row of so many elements."""
    block, size = ROW_BYTES[kv_type]
    return -(-elements // block) * size
