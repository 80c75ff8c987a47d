# SPDX-License-Identifier: GPL-3.0-only
"""Marks that only rise, keys that change with what moves memory and with nothing else, bytes that become MiB where they were booked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modeld.core.footprint import MIB, DeviceMemory, Footprint, as_vector, launch_key, mib, probe_key
from modeld.core.model import HOST, LOCAL, DeviceId, FlashAttention, KvType, LaunchOptions, ModelId, ModelKind, ModelSpec

GPU0, GPU1 = DeviceId("local/CUDA0"), DeviceId("local/CUDA1")
SPEC = ModelSpec(ModelId("m"), "/m", header_hash="h", options=LaunchOptions(ctx=4096))


def footprint(host: int = 0, *, complete: bool = True, **devices: int) -> Footprint:
    return Footprint({name: mb * MIB for name, mb in devices.items()}, host * MIB, complete)


def test_a_mark_keeps_the_higher_figure_of_each() -> None:
    assert footprint(5, CUDA0=10, CUDA1=3).at_least(footprint(7, CUDA0=8)) == footprint(7, CUDA0=10, CUDA1=3)
    assert footprint(5).at_least(None) == footprint(5)


def test_a_mark_is_complete_once_anything_was() -> None:
    assert footprint(5, complete=False).at_least(footprint(4)).complete
    assert not footprint(5, complete=False).at_least(footprint(4, complete=False)).complete


def test_the_peak_of_two_launches_on_two_devices_is_not_their_sum() -> None:
    peak = footprint(5, CUDA1=90).peak(footprint(7, CUDA0=100))
    assert peak == footprint(7, CUDA0=100)
    assert footprint(5, CUDA1=90).peak(None) == footprint(5, CUDA1=90)


def test_of_two_equal_peaks_the_later_one_says_where() -> None:
    assert footprint(CUDA0=60, CUDA1=40).peak(footprint(CUDA0=100)) == footprint(CUDA0=60, CUDA1=40)


def test_what_others_hold_is_never_negative() -> None:
    assert DeviceMemory(total_mb=100, free_mb=60, ours_mb=30).foreign_mb == 10
    assert DeviceMemory(total_mb=100, free_mb=60, ours_mb=50).foreign_mb == 0


@pytest.mark.parametrize(
    "options",
    [
        {"ctx": 8192},
        {"parallel": 2},
        {"ngl": 10},
        {"batch": 1024},
        {"ubatch": 256},
        {"kv_type": KvType.Q8_0},
        {"flash_attn": FlashAttention.OFF},
        {"kv_unified": False},
        {"cache_ram_mb": 64},
        {"ctx_checkpoints": 8},
        {"extra_args": ("--mlock",)},
    ],
    ids=str,
)
def test_each_option_that_moves_memory_is_in_the_launch_key(options: dict[str, object]) -> None:
    assert launch_key(replace(SPEC, options=replace(SPEC.options, **options))) != launch_key(SPEC)  # type: ignore[arg-type]


def test_the_launch_key_is_that_of_the_header_not_of_the_name_or_the_threads() -> None:
    elsewhere = replace(SPEC.options, threads=9, devices=("CUDA1",), ctx_max=True)
    assert launch_key(replace(SPEC, id=ModelId("copy"), path="/copy", fingerprint="other", options=elsewhere)) == launch_key(SPEC)
    assert launch_key(replace(SPEC, header_hash="other")) != launch_key(SPEC)
    assert launch_key(replace(SPEC, mmproj="/p", mmproj_bytes=9)) != launch_key(SPEC)
    assert launch_key(replace(SPEC, kind=ModelKind.EMBED)) != launch_key(SPEC)


def test_one_probe_holds_for_all_contexts_slots_and_batches() -> None:
    same = replace(SPEC.options, ctx=32768, parallel=1, batch=64, ubatch=64, kv_unified=False)
    assert probe_key(replace(SPEC, options=same)) == probe_key(SPEC)
    assert probe_key(replace(SPEC, options=replace(SPEC.options, kv_type=KvType.Q4_0))) != probe_key(SPEC)
    assert probe_key(replace(SPEC, options=replace(SPEC.options, ngl=0))) != probe_key(SPEC)


def test_without_a_header_there_is_no_key() -> None:
    unknown = replace(SPEC, header_hash="")
    assert (launch_key(unknown), probe_key(unknown)) == ("", "")


def test_whole_mib_are_rounded_up() -> None:
    assert [mib(size) for size in (0, 1, MIB, MIB + 1)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("place", "one_pool", "expected"),
    [
        ({LOCAL: 50}, True, {LOCAL: 19}),
        ({LOCAL: 50, HOST: 4}, True, {LOCAL: 19}),
        ({GPU0: 50}, False, {GPU0: 12, HOST: 7}),
        ({GPU1: 50, HOST: 4}, False, {GPU1: 12, HOST: 7}),
        ({GPU0: 50, GPU1: 20, HOST: 4}, False, {GPU0: 12, GPU1: 20, HOST: 7}),
        ({}, True, {}),
    ],
    ids=["one pool", "one pool, host named", "one device", "whatever it is called", "each has what its name says", "nothing"],
)
def test_where_the_bytes_count(place: dict[DeviceId, int], one_pool: bool, expected: dict[DeviceId, int]) -> None:
    assert as_vector(footprint(7, CUDA0=12), place, HOST, one_pool=one_pool) == expected
