# SPDX-License-Identifier: GPL-3.0-only
"""The operator's word and the devices there are, and what the ledger may give out then."""

from __future__ import annotations

import pytest

from core.play import Play
from modeld.core.budget import Budget, DeviceFacts, Wish, host_margin_mb, resolve, seen
from modeld.core.footprint import DeviceMemory
from modeld.core.messages import MemorySeen, SettingsReplaced
from modeld.core.model import HOST, LOCAL, DeviceId, Limits
from modeld.errors import ConfigError

FIRST, SECOND = DeviceFacts("uuid-1", "CUDA0", 24_000), DeviceFacts("uuid-2", "CUDA1", 8_000)
SHARED = DeviceFacts("pci-1", "Vulkan0", 60_000, shares_host=True)
CUDA0, CUDA1 = DeviceId("local/CUDA0"), DeviceId("local/CUDA1")


def test_without_a_device_of_its_own_memory_everything_is_one_pool() -> None:
    for devices in ([], [SHARED]):
        found = resolve(Wish(), devices, 16_000)
        assert (found.budget_mb, found.one_pool, found.margin_mb) == ({LOCAL: 16_000}, True, 800)
        assert resolve(Wish(4_000), devices, 16_000) == Budget({LOCAL: 4_000}, names=found.names, cpu_only=found.cpu_only)
    assert resolve(Wish(), [SHARED], 16_000).names == {LOCAL: ("Vulkan0",)}


def test_one_device_is_the_pool_and_host_memory_stands_beside_it() -> None:
    found = resolve(Wish(), [SHARED, FIRST], 64_000)
    assert found.budget_mb == {LOCAL: 24_000, HOST: 64_000}
    assert (found.one_pool, found.margin_mb, found.host_margin_mb) == (False, 256, 2048)
    assert found.names == {LOCAL: ("CUDA0",)}


def test_several_devices_have_a_budget_each() -> None:
    found = resolve(Wish(), [FIRST, SECOND], 64_000)
    assert found.budget_mb == {CUDA0: 24_000, CUDA1: 8_000, HOST: 64_000}
    assert found.names == {CUDA0: ("CUDA0",), CUDA1: ("CUDA1",)}
    named = resolve(Wish({"CUDA1": 7_000}, host_mb=0), [FIRST, SECOND], 64_000)
    assert named == Budget({CUDA1: 7_000}, one_pool=False, names={CUDA1: ("CUDA1",)})


def test_one_number_is_for_all_devices_together() -> None:
    found = resolve(Wish(30_000, 100, 9_000), [FIRST, SECOND], 64_000)
    assert found == Budget({LOCAL: 30_000, HOST: 9_000}, 100, 0, False, {LOCAL: ("CUDA0", "CUDA1")})


def test_the_operators_margin_stands_before_ours() -> None:
    assert resolve(Wish(margin_mb=7), [FIRST], 64_000).margin_mb == 7
    assert resolve(Wish(margin_mb=7), [], 64_000).margin_mb == 7


def test_unlimited_is_unlimited() -> None:
    nothing = resolve(Wish(0, host_mb=0), [FIRST], 64_000)
    assert (nothing.budget_mb, nothing.is_limited) == ({LOCAL: 0}, False)
    assert resolve(Wish(0), [], 64_000).is_limited is False
    assert resolve(Wish(0), [FIRST], 64_000).budget_mb == {LOCAL: 0, HOST: 64_000}


def test_a_total_that_is_unknown_is_no_limit() -> None:
    assert resolve(Wish(), [], 0) == Budget({LOCAL: 0}, names={LOCAL: ()}, cpu_only=True)
    unknown = DeviceFacts("x", "CUDA0", 0)
    assert resolve(Wish(), [unknown], 0).budget_mb == {LOCAL: 0}


@pytest.mark.parametrize(
    ("wish", "devices", "text"),
    [
        ({"CUDA2": 1}, [FIRST, SECOND], "names CUDA2, which is not here; there is CUDA0, CUDA1"),
        ({"CUDA0": 1, "Vulkan0": 1}, [FIRST, SHARED], "names Vulkan0, which is not here; there is CUDA0"),
        ({"CUDA0": 1}, [SHARED], "no device here has memory of its own; write one number"),
    ],
)
def test_a_device_that_is_not_there_is_named(wish: dict[str, int], devices: list[DeviceFacts], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Wish(wish), devices, 16_000)
    assert text in caught.value.message


@pytest.mark.parametrize(("total", "margin"), [(0, 0), (600, 300), (2_000, 512), (16_000, 800), (100_000, 2048)])
def test_the_margin_of_host_memory(total: int, margin: int) -> None:
    assert host_margin_mb(total) == margin


def test_what_is_seen_is_told_by_device_of_the_ledger() -> None:
    host, first, second = DeviceMemory(64_000, 50_000, 4_000), DeviceMemory(24_000, 20_000, 1_000), DeviceMemory(8_000, 8_000, 0)
    looks = {"CUDA0": first, "CUDA1": second}
    assert seen(resolve(Wish(), [FIRST, SECOND], 64_000), looks, host) == {CUDA0: first, CUDA1: second, HOST: host}
    assert seen(resolve(Wish(9), [FIRST, SECOND], 64_000), looks, None) == {LOCAL: DeviceMemory(32_000, 28_000, 1_000)}
    assert seen(resolve(Wish(9), [FIRST, SECOND], 64_000), {"CUDA0": first}, host) == {HOST: host}
    assert seen(resolve(Wish(), [SHARED], 64_000), {"Vulkan0": first}, host) == {LOCAL: host}


def test_the_limits_follow_and_both_margins_are_kept_free() -> None:
    play = Play({"a": 100}, budget=150)
    limits = resolve(Wish(), [FIRST], 64_000).put_into(Limits(queue_depth_max=7))
    assert limits.queue_depth_max == 7
    play.at(1, SettingsReplaced(limits))
    play.at(2, MemorySeen({HOST: DeviceMemory(64_000, 54_000, 0), LOCAL: DeviceMemory(24_000, 23_000, 0)}))
    room = {view.id: view.room_mb for view in play.scheduler.snapshot(play.now).devices}
    assert room == {LOCAL: 24_000 - 1_000 - 256, HOST: 64_000 - 10_000 - 2048}
    play.scheduler.check_invariants()
