# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

from dataclasses import replace

import pytest

from modeld.core.estimate import DEVICE_CONTEXT_MB, MIB, PROCESS_MB, embedding_bytes, need
from modeld.core.model import (
    AttentionLayers,
    Companion,
    FlashAttention,
    KvType,
    LaunchOptions,
    MemoryShape,
    ModelId,
    ModelKind,
    ModelSpec,
    RecurrentLayers,
)

SMOLLM2 = ModelSpec(
    id=ModelId("starter.gguf"),
    path="/starter.gguf",
    size_bytes=98_362_432,
    options=LaunchOptions(ctx=8192, parallel=4, kv_unified=True),
    memory=MemoryShape(attention=(AttentionLayers(30, 192, 192),), certain=True),
)


def test_the_sum_has_its_parts_and_its_source():
    cost = need(SMOLLM2)
    assert cost.source == "formula"
    assert [part.name for part in cost.parts] == ["weights", "context", "compute", "process"]
    assert cost.total_mb == -(-sum(part.bytes for part in cost.parts) // MIB)
    assert cost.total_mb == 343  # 93.8 + 180 + 4.7 + 64


def test_the_header_knows_the_weights_and_a_head_on_the_device_has_a_copy_of_its_own():
    known = replace(SMOLLM2, memory=replace(SMOLLM2.memory, weights_bytes=90 * MIB, tied_bytes=15 * MIB))
    assert [(part.name, part.bytes >> 20) for part in need(known).parts][:2] == [("weights", 90), ("output head", 15)]
    on_host = replace(known, options=replace(known.options, ngl=0))
    assert "output head" not in [part.name for part in need(on_host).parts]


def test_a_family_never_compared_is_not_certain():
    assert need(SMOLLM2).certain and not need(replace(SMOLLM2, memory=replace(SMOLLM2.memory, certain=False))).certain


def test_an_attached_projector_counts():
    sighted = replace(SMOLLM2, mmproj="/mmproj.gguf", mmproj_bytes=900 * MIB)
    assert need(sighted).total_mb == need(SMOLLM2).total_mb + 900
    assert "projector" in [part.name for part in need(sighted).parts]


def test_what_stands_beside_a_model_counts_with_a_context_of_its_own():
    shape = MemoryShape(100 * MIB, attention=(AttentionLayers(10, 512, 512),), value_elements_max=512)
    drafted = replace(SMOLLM2, draft=Companion("/d", 100 * MIB, shape), lora=(Companion("/l", 3 * MIB), Companion("/m", 4 * MIB)))
    parts = {part.name: part.bytes for part in need(drafted).parts}
    assert parts["lora"] == 7 * MIB
    context = 8192 * 10 * 1024 * 2
    assert parts["draft model"] == 100 * MIB + context + 32 * MIB + 5 * MIB
    small = replace(drafted, options=replace(drafted.options, kv_type=KvType.Q8_0))
    assert {part.name: part.bytes for part in need(small).parts}["draft model"] == parts["draft model"]
    assert need(drafted).total_mb - need(SMOLLM2).total_mb in range(144 + 160, 144 + 160 + 2)


def test_context_checkpoints_are_what_a_slot_looks_back_on_and_host_memory():
    windowed = MemoryShape(attention=(AttentionLayers(5, 512, 512, window=512), AttentionLayers(5, 512, 512)), value_elements_max=512)
    recurrent = replace(windowed, recurrent=(RecurrentLayers(2, 1 << 18, 1 << 20),))
    for shape, one in ((windowed, 5 * 1024 * 2048), (recurrent, 5 * 1024 * 2048 + 2 * 5 * MIB)):
        spec = replace(SMOLLM2, memory=shape, options=replace(SMOLLM2.options, ctx_checkpoints=3))
        [part] = [part for part in need(spec, one_pool=False).parts if part.name == "context checkpoints"]
        assert (part.bytes, part.on_host) == (3 * 4 * one, True)
    full = replace(SMOLLM2, options=replace(SMOLLM2.options, ctx_checkpoints=3))
    assert need(full).total_mb == need(SMOLLM2).total_mb  # nothing is kept where all is in the cache


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


def test_beside_a_device_of_its_own_memory_the_token_table_and_the_process_are_host_memory():
    shape = MemoryShape(weights_bytes=1000 * MIB, table_bytes=100 * MIB, head_bytes=60 * MIB, layers=4)
    spec = ModelSpec(ModelId("a"), "/a", size_bytes=1000 * MIB, memory=shape, options=LaunchOptions(ngl=-1))
    cost = need(spec, one_pool=False)
    parts = {(part.name, part.on_host): part.bytes // MIB for part in cost.parts}
    assert (parts["weights", False], parts["weights on host", True]) == (900, 100)
    assert (parts["device context", False], parts["process", True]) == (DEVICE_CONTEXT_MB, PROCESS_MB)
    some = need(replace(spec, options=LaunchOptions(ngl=4)), one_pool=False)
    assert cost.total_mb - some.total_mb == 210  # one of four blocks
    nothing = need(replace(spec, options=LaunchOptions(ngl=0)), one_pool=False)
    assert nothing.host_mb >= 1000 + PROCESS_MB
    assert nothing.total_mb == 0


def test_where_host_and_device_are_one_pool_a_part_is_told_once():
    shape = MemoryShape(weights_bytes=1000 * MIB, table_bytes=100 * MIB, layers=4)
    cost = need(ModelSpec(ModelId("a"), "/a", size_bytes=1000 * MIB, memory=shape, options=LaunchOptions(ngl=-1)))
    assert [part.bytes for part in cost.parts if part.name.startswith("weights")] == [1000 * MIB]
    assert "device context" not in [part.name for part in cost.parts]
    assert cost.host_mb == 0
