# SPDX-License-Identifier: GPL-3.0-only
"""The figures to show are the ledger's, and add up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modeld.core.estimate import need
from modeld.core.footprint import MIB, Footprint, Known, Learned, Source, launch_key
from modeld.core.inspection import Inspection, inspection, layers_by_kind
from modeld.core.memory import context_bytes
from modeld.core.model import AttentionLayers, KvType, LaunchOptions, MemoryShape, ModelId, ModelKind, ModelSpec, RecurrentLayers

SHAPE = MemoryShape(
    weights_bytes=100 * MIB,
    tied_bytes=10 * MIB,
    attention=(AttentionLayers(4, 128, 128), AttentionLayers(20, 128, 128, window=1024)),
    recurrent=(RecurrentLayers(5, 64, 64),),
    value_elements_max=128,
    certain=True,
    layers=32,
)
SPEC = ModelSpec(ModelId("a.gguf"), "/a.gguf", size_bytes=101 * MIB, memory=SHAPE, options=LaunchOptions(ctx=8192), header_hash="h")


def sums(seen: Inspection) -> int:
    return seen.weights_bytes + seen.kv_bytes + seen.compute_bytes + seen.host_bytes


def test_the_parts_add_up_to_what_the_ledger_reserves():
    seen = inspection(SPEC, Known())
    outside = sum(part.bytes for part in seen.outside)
    assert seen.total_bytes + outside == sums(seen) + outside == sum(part.bytes for part in need(SPEC, one_pool=False).parts)
    assert {part.name for part in seen.outside} == {"process", "device context"}
    assert (seen.weights_bytes, seen.kv_bytes) == (100 * MIB, context_bytes(SHAPE, SPEC.options))
    assert seen.host_bytes >= 10 * MIB  # the second copy of the token table is no weight: llama.cpp counts each tensor once
    assert seen.compute_bytes > 0


@pytest.mark.parametrize(
    "change",
    [
        {"mmproj": "/mmproj.gguf", "mmproj_bytes": 7 * MIB},
        {"options": LaunchOptions(ctx=8192, cache_ram_mb=7)},
    ],
)
def test_what_lies_beside_is_host(change: dict[str, object]):
    more = inspection(replace(SPEC, **change), Known())  # type: ignore[arg-type]
    assert more.host_bytes == inspection(SPEC, Known()).host_bytes + 7 * MIB
    assert more.total_bytes == sums(more)


def test_what_an_embedding_model_computes_in_is_compute():
    embeds = replace(SPEC, kind=ModelKind.EMBED, pooling="mean", embedding_length=384, logits=False)
    assert inspection(embeds, Known()).compute_bytes > inspection(SPEC, Known()).compute_bytes


def test_a_smaller_cache_is_a_smaller_kv_and_nothing_else():
    small = inspection(replace(SPEC, options=replace(SPEC.options, kv_type=KvType.Q8_0)), Known())
    whole = inspection(SPEC, Known())
    assert small.kv_bytes < whole.kv_bytes
    assert (small.weights_bytes, small.compute_bytes) == (whole.weights_bytes, whole.compute_bytes)


def test_a_header_without_tensor_sizes_leaves_the_file():
    unknown = replace(SPEC, memory=replace(SHAPE, weights_bytes=0, certain=False))
    seen = inspection(unknown, Known())
    assert (seen.weights_bytes, seen.certain, seen.source) == (101 * MIB, False, Source.FORMULA)


def test_what_was_measured_decides_the_sum():
    known = Known()
    known.learned[launch_key(SPEC)] = Learned(SPEC.id, Footprint({}, 500 * MIB))
    seen = inspection(SPEC, known)
    assert seen.source is Source.LEARNED
    assert seen.total_bytes == sums(seen)


def test_layers_are_told_by_kind_most_first():
    assert [(one.count, one.kind) for one in layers_by_kind(SPEC)] == [
        (20, "attention over 1024 tokens"),
        (5, "recurrent"),
        (4, "full attention"),
        (3, "no cache"),
    ]


def test_a_model_of_which_nothing_is_known_has_no_layers_to_tell():
    assert layers_by_kind(replace(SPEC, memory=MemoryShape())) == ()
