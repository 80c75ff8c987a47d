# SPDX-License-Identifier: GPL-3.0-only
"""The arithmetic on figures written here; what llama.cpp says is compared in runtime/test_probe_grid.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modeld.core.compute import CELLS_ASKED, bound_bytes, compute_by, compute_bytes, is_host_buffer, lattice, output_bytes
from modeld.core.footprint import Point, Probe
from modeld.core.model import (
    AttentionLayers,
    FlashAttention,
    KvType,
    LaunchOptions,
    MemoryShape,
    ModelId,
    ModelKind,
    ModelSpec,
    RecurrentLayers,
    Widths,
)

MIB = 1 << 20
WIDTHS = Widths(embedding=4096, feed_forward=14336, heads=32, head=128, vocabulary=128_256)
LLAMA = ModelSpec(
    ModelId("a"),
    "a",
    memory=MemoryShape(attention=(AttentionLayers(32, 1024, 1024),), value_elements_max=1024, certain=True, key_length=128, widths=WIDTHS),
    options=LaunchOptions(ctx=8192, parallel=4, batch=2048, ubatch=512),
)
"""Llama 3.1 8B. llama.cpp b11549 says 138430496 for these options, all on the CPU."""


def asked(spec: ModelSpec, floats: float, *, per_slot: float = 0.0, name: str = "CPU") -> Probe:
    """A dry pass in which each token takes so many numbers and the mask, and each slot so many."""
    mask = 2 if spec.options.flash_attn is not FlashAttention.OFF else 4
    points = []
    for one in lattice(spec):
        tokens = min(one.ubatch, one.ctx)
        cells = one.ctx // (1 if one.kv_unified else one.parallel)
        points.append(
            Point(
                one.ctx,
                one.parallel,
                one.ubatch,
                one.batch,
                one.kv_unified,
                {name: round(tokens * (4 * floats + mask * cells) + 4 * per_slot * one.parallel)},
            )
        )
    return Probe(spec.options.ctx, spec.options.parallel, spec.options.ubatch, 0, 0, 0, points=tuple(points))


def with_options(spec: ModelSpec, **options: object) -> ModelSpec:
    return replace(spec, options=replace(spec.options, **options))


def test_the_launch_itself_is_asked_about_first_and_nothing_twice():
    found = lattice(LLAMA)
    assert found[0] == LLAMA.options and len(set(found)) == len(found) <= 1 + len(CELLS_ASKED)
    recurrent = replace(LLAMA, memory=replace(LLAMA.memory, recurrent=(RecurrentLayers(1, 1, 1),)))
    assert len(lattice(recurrent)) <= 25
    assert len(lattice(with_options(LLAMA, flash_attn=FlashAttention.OFF))) <= 14
    assert {one.ubatch for one in lattice(replace(LLAMA, memory=MemoryShape()))} == {128, 512, 2048}
    for spec in (LLAMA, recurrent):
        for one in lattice(spec):
            assert one.ctx >= one.ubatch <= one.batch and one.kv_type is spec.options.kv_type


@pytest.mark.parametrize("ctx", [1024, 4096, 6144, 8192, 50_176, 131_072])
@pytest.mark.parametrize("ubatch", [128, 512, 1024])
@pytest.mark.parametrize(("parallel", "unified"), [(1, True), (4, True), (4, False)])
def test_other_contexts_batches_and_slots_follow(ctx: int, ubatch: int, parallel: int, unified: bool):
    probe = asked(LLAMA, 63_497)
    other = with_options(LLAMA, ctx=ctx, ubatch=ubatch, parallel=parallel, kv_unified=unified)
    cells = ctx if unified else ctx // parallel
    assert compute_bytes(other, probe) == pytest.approx(ubatch * (4 * 63_497 + 2 * cells), abs=64)


def test_what_was_asked_is_given_back_as_it_is():
    probe = asked(LLAMA, 63_497)
    odd = replace(probe, points=(replace(probe.points[0], compute_bytes={"CPU": 7}), *probe.points[1:]))
    assert compute_by(LLAMA, odd) == {"CPU": 7}


def test_states_count_by_slots_per_token():
    spec = replace(LLAMA, memory=replace(LLAMA.memory, recurrent=(RecurrentLayers(1, 1000, 50_000),)))
    probe = asked(spec, 40_000, per_slot=100_000)
    for parallel, ubatch in ((1, 512), (2, 512), (8, 512), (4, 128), (16, 256)):
        other = with_options(spec, parallel=parallel, ubatch=ubatch)
        exact = ubatch * (4 * 40_000 + 2 * 8192) + 400_000 * parallel
        assert compute_bytes(other, probe) == pytest.approx(exact, rel=1e-4)


def test_each_buffer_is_followed_by_itself_and_an_empty_one_stays_empty():
    probe = asked(LLAMA, 63_497)
    points = tuple(replace(point, compute_bytes={"CUDA0": point.compute_bytes["CPU"], "CUDA_Host": 0}) for point in probe.points)
    found = compute_by(with_options(LLAMA, ctx=16_384, ubatch=128), replace(probe, points=points))
    assert found == {"CUDA0": pytest.approx(128 * (4 * 63_497 + 2 * 16_384), abs=64), "CUDA_Host": 0}
    assert [is_host_buffer(name) for name in ("CPU", "CPU_REPACK", "CUDA_Host", "CUDA0", "Metal")] == [True, True, True, False, False]


def test_quantised_rows_are_rotated_by_matrices_of_their_own():
    exact = asked(with_options(LLAMA, kv_type=KvType.Q8_0), 63_497)
    rotated = 4 * (128 * 128 + 64 * 64)
    points = tuple(replace(point, compute_bytes={"CPU": point.compute_bytes["CPU"] + rotated}) for point in exact.points)
    other = with_options(LLAMA, kv_type=KvType.Q8_0, ubatch=64)
    assert compute_bytes(other, replace(exact, points=points)) == pytest.approx(64 * (4 * 63_497 + 2 * 8192) + rotated, abs=64)


def test_the_bound_covers_what_llama_cpp_says_and_not_much_more():
    said = 138_430_496
    assert said <= bound_bytes(LLAMA) <= 1.08 * said
    assert bound_bytes(with_options(LLAMA, flash_attn=FlashAttention.OFF)) >= 608_188_448
    assert bound_bytes(replace(LLAMA, memory=replace(LLAMA.memory, certain=False))) == pytest.approx(1.5 * bound_bytes(LLAMA), abs=2)


@pytest.mark.parametrize(
    "wider",
    [
        {"feed_forward": 30_000},
        {"experts": 8, "expert": 4096},
        {"side": 60_000},
        {"inner": 20_000},
        {"heads": 400},
        {"indexer": 64, "heads": 128, "head": 200},
        {"vocabulary": 20_000_000},
    ],
)
def test_each_width_can_be_the_widest(wider: dict[str, int]):
    assert bound_bytes(replace(LLAMA, memory=replace(LLAMA.memory, widths=replace(WIDTHS, **wider)))) > bound_bytes(LLAMA)


def test_rows_of_output_are_one_for_each_slot_or_for_each_token():
    assert output_bytes(LLAMA) == 4 * 4 * 128_256
    assert output_bytes(replace(LLAMA, kind=ModelKind.EMBED)) == 4 * 512 * (128_256 + 4096)
    assert output_bytes(replace(LLAMA, kind=ModelKind.EMBED, logits=False)) == 4 * 512 * 4096
