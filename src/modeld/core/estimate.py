# SPDX-License-Identifier: GPL-3.0-only
"""What a model will cost, in MiB, with the parts of the sum; rule: a figure without its source is not given out.

Declared figures win. Otherwise: file size (and that of an attached projector) + KV cache from the header + (64 MiB + 5 % of the file) for
compute buffers and the process; for a model that embeds or reranks also what `embedding_bytes` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modeld.core.model import FlashAttention, KvType, LaunchOptions, ModelKind, ModelSpec

MIB: Final = 1 << 20
CELL_PADDING: Final = 256
"""llama.cpp rounds the number of cache cells up to this (llama-context.cpp, `GGML_PAD(n_ctx, 256)`)."""

OVERHEAD_MB: Final = 64
OVERHEAD_SHARE: Final = 0.05

EMBEDDING_WIDTH: Final = 18
"""Numbers per token in an encoder's widest step, in embedding lengths: BERT has 9, a gated feed-forward of 4 lengths 17."""
HEAD_ELEMENTS: Final = 64
"""Elements per attention head of the encoder families."""

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


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Need:
    """`total_mb` is the sum of the parts, rounded up. `source` is "declared", "formula" or "external"."""

    total_mb: int
    source: str
    parts: tuple[Part, ...] = ()


def need(spec: ModelSpec) -> Need:
    """MiB the ledger reserves for one instance of `spec`."""
    if spec.external:
        return Need(0, "external")
    if spec.vram_mb is not None:
        return Need(spec.vram_mb, "declared")
    parts = (
        Part("weights", spec.size_bytes),
        Part("kv cache", kv_bytes(spec)),
        *([Part("projector", spec.mmproj_bytes)] if spec.mmproj is not None else []),
        *([Part("embedding", embedding_bytes(spec))] if spec.kind is not ModelKind.GENERATE else []),
        Part("compute and process", OVERHEAD_MB * MIB + int(spec.size_bytes * OVERHEAD_SHARE)),
    )
    total = sum(part.bytes for part in parts)
    return Need(-(-total // MIB), "formula", parts)


def kv_bytes(spec: ModelSpec) -> int:
    """Bytes of the attention cache: sum over layers of cells * (key row + value row)."""
    shape, options = spec.kv_shape, spec.options
    per_head = _row_bytes(shape.key_length, options.kv_type), _row_bytes(shape.value_length, options.kv_type)
    return sum(cells(options) * heads * sum(per_head) for heads in shape.heads_kv)


def embedding_bytes(spec: ModelSpec) -> int:
    """Bytes that a model which embeds or reranks takes for one physical batch, in which every token has a result.

    Measured with llama.cpp b11434: BERT 4 * ubatch * (feed-forward + 5 * embedding length) + 2 * ubatch^2 (the mask), and without
    flash attention 4 * ubatch^2 for each head. A decoder computes logits for every token, in the graph and again in the output.
    """
    tokens = spec.options.ubatch
    width = EMBEDDING_WIDTH * spec.embedding_length + (2 * spec.vocabulary if spec.logits else 0)
    heads = spec.embedding_length // HEAD_ELEMENTS if spec.options.flash_attn is FlashAttention.OFF else 0
    return 4 * tokens * width + (2 + 4 * heads) * tokens * tokens


def cells(options: LaunchOptions) -> int:
    """Cache cells over all streams. Unified: one stream of ctx cells; otherwise one stream per slot, each padded by itself."""
    if options.kv_unified:
        return _pad(options.ctx)
    return _pad(options.ctx // options.parallel) * options.parallel


def _pad(count: int) -> int:
    return -(-count // CELL_PADDING) * CELL_PADDING


def _row_bytes(elements: int, kv_type: KvType) -> int:
    block, size = ROW_BYTES[kv_type]
    return -(-elements // block) * size
