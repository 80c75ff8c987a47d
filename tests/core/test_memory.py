# SPDX-License-Identifier: GPL-3.0-only
"""What the formulas say for shapes written here; whether llama.cpp says the same is asked in runtime/test_probe_grid.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modeld.core.memory import cells, context_bytes, head_bytes, host_share, host_weights_bytes, refused, weights_bytes
from modeld.core.model import AttentionLayers, FlashAttention, KvType, LaunchOptions, MemoryShape, RecurrentLayers

MIB = 1 << 20
OPTIONS = LaunchOptions(ctx=8192, parallel=4, kv_unified=True)
SMOLLM2 = MemoryShape(attention=(AttentionLayers(30, 192, 192),), value_elements_max=192)


def test_the_cache_of_a_real_model_to_the_byte():
    """SmolLM2-135M at 8192 cells, f16: llama.cpp prints "KV buffer size = 180.00 MiB"."""
    assert context_bytes(SMOLLM2, OPTIONS) == 180 * MIB


@pytest.mark.parametrize(
    ("ctx", "parallel", "unified", "expected"),
    [
        (8192, 4, True, 8192),
        (8192, 4, False, 8192),
        (1000, 4, True, 1024),
        (1000, 4, False, 1024),
        (1000, 3, False, 1536),
        (1, 1, True, 256),
    ],
)
def test_cells_are_padded_as_llama_cpp_pads_them(ctx: int, parallel: int, unified: bool, expected: int):
    assert cells(LaunchOptions(ctx=ctx, parallel=parallel, kv_unified=unified)) == expected


@pytest.mark.parametrize(
    ("window", "parallel", "unified", "ubatch", "expected"),
    [
        (1024, 1, True, 512, 1536),
        (1024, 4, True, 512, 4608),
        (1024, 4, False, 512, 4 * 1536),
        (1024, 1, True, 2048, 1536),  # never more than one logical batch
        (100, 1, True, 512, 768),
        (9000, 1, True, 512, 8192),  # never more than without a window
        (4096, 4, False, 512, 4 * 2048),
    ],
)
def test_a_window_bounds_the_cells(window: int, parallel: int, unified: bool, ubatch: int, expected: int):
    assert cells(replace(OPTIONS, parallel=parallel, kv_unified=unified, ubatch=ubatch), window) == expected


@pytest.mark.parametrize(
    ("kv_type", "share"), [(KvType.F32, 2.0), (KvType.F16, 1.0), (KvType.BF16, 1.0), (KvType.Q8_0, 34 / 64), (KvType.Q4_0, 18 / 64)]
)
def test_quantised_rows_take_their_blocks(kv_type: KvType, share: float):
    assert context_bytes(SMOLLM2, replace(OPTIONS, kv_type=kv_type)) == int(180 * MIB * share)


def test_without_flash_attention_every_value_row_is_as_long_as_the_longest():
    mixed = MemoryShape(attention=(AttentionLayers(2, 128, 128), AttentionLayers(1, 512, 256)), value_elements_max=256)
    off = replace(OPTIONS, flash_attn=FlashAttention.OFF)
    assert context_bytes(mixed, OPTIONS) == 8192 * 2 * (2 * 256 + 768)
    assert context_bytes(mixed, off) == 8192 * 2 * (2 * 384 + 768)
    assert context_bytes(replace(mixed, no_flash=True), OPTIONS) == context_bytes(mixed, off)


def test_a_compressed_row_has_no_values_also_without_flash_attention():
    latent = MemoryShape(attention=(AttentionLayers(27, 576, 0),))
    for flash in FlashAttention:
        assert context_bytes(latent, replace(OPTIONS, flash_attn=flash)) == 27 * 8192 * 576 * 2


def test_a_state_grows_with_slots_and_not_with_the_context():
    recurrent = MemoryShape(recurrent=(RecurrentLayers(64, 15360, 81920),))
    assert context_bytes(recurrent, OPTIONS) == context_bytes(recurrent, replace(OPTIONS, ctx=100)) == 64 * 4 * 4 * (15360 + 81920)
    assert context_bytes(recurrent, replace(OPTIONS, parallel=1, kv_type=KvType.Q4_0)) == 64 * 4 * (15360 + 81920)


def test_each_layer_is_padded_by_itself():
    odd = MemoryShape(attention=(AttentionLayers(3, 1, 0),), recurrent=(RecurrentLayers(5, 1, 0),))
    assert context_bytes(odd, replace(OPTIONS, ctx=1, parallel=1)) == 3 * 512 + 5 * 32


def test_a_tied_head_is_a_second_copy_only_away_from_the_host():
    tied = MemoryShape(weights_bytes=1000, tied_bytes=400)
    assert weights_bytes(tied) == 1000
    assert (head_bytes(tied, OPTIONS), head_bytes(tied, replace(OPTIONS, ngl=0))) == (400, 0)


def test_llama_cpp_refuses_quantised_values_without_flash_attention():
    off = replace(OPTIONS, flash_attn=FlashAttention.OFF)
    assert [kv_type for kv_type in KvType if not refused(SMOLLM2, replace(off, kv_type=kv_type))] == [KvType.F32, KvType.F16, KvType.BF16]
    assert not any(refused(SMOLLM2, replace(OPTIONS, kv_type=kv_type)) for kv_type in KvType)
    assert refused(replace(SMOLLM2, no_flash=True), replace(OPTIONS, kv_type=KvType.Q8_0))


def test_llama_cpp_refuses_quantised_heads_that_are_no_whole_blocks():
    """phi-2 has heads of 80."""
    odd = replace(SMOLLM2, key_length=80, value_length=80)
    assert refused(odd, replace(OPTIONS, kv_type=KvType.Q8_0)) and not refused(odd, OPTIONS)
    assert not refused(replace(odd, attention=()), replace(OPTIONS, kv_type=KvType.Q8_0))


SHARED = MemoryShape(weights_bytes=1000, table_bytes=100, head_bytes=60, layers=4)
"""Four blocks of 210, a token table of 100 and an output head of 60."""


ON_HOST = [(-1, 0.0, 100), (5, 0.0, 100), (99, 0.0, 100), (4, 0.25, 310), (1, 1.0, 940), (0, 1.0, 1000)]


@pytest.mark.parametrize(("ngl", "share", "on_host"), ON_HOST)
def test_the_output_head_goes_to_the_device_first_and_the_token_table_never(ngl: int, share: float, on_host: int):
    options = LaunchOptions(ngl=ngl)
    assert (host_share(SHARED, options), host_weights_bytes(SHARED, options)) == (share, on_host)
