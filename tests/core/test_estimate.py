# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

from dataclasses import replace

import pytest

from modeld.core.estimate import MIB, embedding_bytes, need
from modeld.core.memory import cells, context_bytes
from modeld.core.model import AttentionLayers, FlashAttention, KvType, LaunchOptions, MemoryShape, ModelId, ModelKind, ModelSpec

SMOLLM2 = ModelSpec(
    id=ModelId("starter.gguf"),
    path="/starter.gguf",
    size_bytes=98_362_432,
    options=LaunchOptions(ctx=8192, parallel=4, kv_unified=True),
    memory=MemoryShape(attention=(AttentionLayers(30, 192, 192),), value_elements_max=192),
)


def test_the_kv_cache_of_a_real_model_to_the_byte():
    """SmolLM2-135M at 8192 cells, f16: llama.cpp prints "KV buffer size = 180.00 MiB"."""
    assert context_bytes(SMOLLM2.memory, SMOLLM2.options) == 180 * MIB


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
    ("kv_type", "share"), [(KvType.F32, 2.0), (KvType.F16, 1.0), (KvType.BF16, 1.0), (KvType.Q8_0, 34 / 64), (KvType.Q4_0, 18 / 64)]
)
def test_quantised_rows_take_their_blocks(kv_type: KvType, share: float):
    quantised = replace(SMOLLM2, options=replace(SMOLLM2.options, kv_type=kv_type))
    assert context_bytes(quantised.memory, quantised.options) == int(180 * MIB * share)


def test_layers_may_differ_and_layers_without_attention_cost_nothing():
    layers = (AttentionLayers(1, 192, 192), AttentionLayers(1, 64, 64))
    mixed = MemoryShape(attention=layers, value_elements_max=192)
    assert context_bytes(mixed, SMOLLM2.options) == 8192 * (3 + 1) * 2 * 64 * 2


def test_the_sum_has_its_parts_and_its_source():
    cost = need(SMOLLM2)
    assert cost.source == "formula"
    assert [part.name for part in cost.parts] == ["weights", "context", "compute and process"]
    assert cost.total_mb == -(-sum(part.bytes for part in cost.parts) // MIB)
    assert cost.total_mb == 343  # 93.8 + 180 + 64 + 4.7


def test_an_attached_projector_counts():
    sighted = replace(SMOLLM2, mmproj="/mmproj.gguf", mmproj_bytes=900 * MIB)
    assert need(sighted).total_mb == need(SMOLLM2).total_mb + 900
    assert "projector" in [part.name for part in need(sighted).parts]


def test_a_declared_figure_wins_and_what_is_not_ours_costs_nothing():
    assert (need(replace(SMOLLM2, vram_mb=7)).total_mb, need(replace(SMOLLM2, vram_mb=7)).source) == (7, "declared")
    assert (need(replace(SMOLLM2, external=True)).total_mb, need(replace(SMOLLM2, external=True)).source) == (0, "external")


@pytest.mark.parametrize(
    ("width", "ubatch", "flash", "printed_mb"),
    [
        (768, 512, FlashAttention.AUTO, 14.02),
        (768, 2048, FlashAttention.AUTO, 62.08),
        (768, 2048, FlashAttention.OFF, 250.08),
        (1024, 2048, FlashAttention.AUTO, 80.08),
        (1024, 2048, FlashAttention.OFF, 328.08),
        (1024, 8192, FlashAttention.AUTO, 416.31),
    ],
)
def test_an_encoders_batch_covers_what_llama_cpp_prints(width: int, ubatch: int, flash: FlashAttention, printed_mb: float):
    """ "compute buffer size" of a BERT of that embedding length, feed-forward of four times that."""
    options = LaunchOptions(ubatch=ubatch, flash_attn=flash)
    spec = ModelSpec(ModelId("a"), "a", kind=ModelKind.EMBED, options=options, embedding_length=width, vocabulary=30_000, logits=False)
    assert printed_mb <= embedding_bytes(spec) / MIB <= 2.2 * printed_mb


@pytest.mark.parametrize(("ubatch", "printed_mb"), [(512, 109.64 + 96), (2048, 438.61 + 384)])
def test_a_decoder_that_embeds_pays_for_its_logits_twice(ubatch: int, printed_mb: float):
    """SmolLM2-135M: the compute buffer, and the output buffer that grows with the first long text."""
    spec = replace(SMOLLM2, kind=ModelKind.EMBED, options=replace(SMOLLM2.options, ubatch=ubatch), embedding_length=576, vocabulary=49_152)
    assert printed_mb <= embedding_bytes(spec) / MIB <= 1.1 * printed_mb
    assert need(spec).total_mb - need(SMOLLM2).total_mb == pytest.approx(embedding_bytes(spec) / MIB, abs=1)
    assert "embedding" in [part.name for part in need(spec).parts]
