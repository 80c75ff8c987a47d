# SPDX-License-Identifier: GPL-3.0-only
"""A machine gives what is there and no more, and shows what a look at it would show."""

from __future__ import annotations

from modeld.core.footprint import MIB, DeviceMemory, Footprint
from modeld.core.model import HOST, LOCAL, DeviceId, InstanceId
from modeld.simulation.machine import Child, Machine, Truth

GPU0, GPU1 = DeviceId("local/CUDA0"), DeviceId("local/CUDA1")
TRUTH = Truth(steps_mb=(60, 20, 11), host_mb=5, growth_mb=9)


def child(machine: Machine, place: dict[DeviceId, int]) -> Child:
    made = machine.children[InstanceId("1/a")] = Child(InstanceId("1/a"), TRUTH, place)
    return made


def test_what_there_is_not_is_not_given() -> None:
    machine = Machine({LOCAL: 100}, one_pool=True)
    one = child(machine, {LOCAL: 50})
    assert machine.give(one, 60)
    assert machine.take_foreign(LOCAL, 30) == 30
    assert not machine.give(one, 20)
    assert (one.holds_mb, machine.free_mb(LOCAL)) == ({LOCAL: 60}, 10)
    assert machine.take_foreign(LOCAL, 30) == 10  # as much as there is
    assert machine.look().devices == {LOCAL: DeviceMemory(100, 0, 60)}
    assert machine.look().devices[LOCAL].foreign_mb == 40


def test_a_model_takes_where_it_was_booked_in_the_same_shares() -> None:
    machine = Machine({GPU0: 100, GPU1: 100}, one_pool=False)
    one = child(machine, {GPU0: 30, GPU1: 10, HOST: 5})
    assert machine.give(one, 81)
    machine.give_host(one)
    assert one.holds_mb == {GPU0: 61, GPU1: 20, HOST: 5}
    assert not machine.give(one, 60)  # there is room on one of both only
    assert one.holds_mb == {GPU0: 61, GPU1: 20, HOST: 5}
    assert machine.footprint(one, complete=True) == Footprint({"CUDA0": 61 * MIB, "CUDA1": 20 * MIB}, 5 * MIB)


def test_host_memory_is_the_same_memory_in_one_pool() -> None:
    machine = Machine({LOCAL: 100}, one_pool=True)
    one = child(machine, {LOCAL: 50})
    machine.give_host(one)
    assert one.holds_mb == {}


def test_at_the_most() -> None:
    assert TRUTH.device_mb == 100
