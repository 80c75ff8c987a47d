# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.core.eviction import Candidate, in_order
from modeld.core.model import HOST, LOCAL, DeviceId, InstanceId, ModelId
from modeld.core.placement import CHECKING, COMING, LOADS, OTHERS, VICTIMS, Demand, Plan, Room, Vector, places, plan

GPU0, GPU1 = DeviceId("local/gpu0"), DeviceId("local/gpu1")


def demand(model: str, *where: int | Vector, due: bool = True, checked: bool = True, may_evict: bool = True) -> Demand:
    """`where`: MiB of the one device, or whole vectors."""
    return Demand(ModelId(model), tuple({LOCAL: one} if isinstance(one, int) else one for one in where), due, checked, may_evict)


def resident(name: str, mb: int | Vector, *, keep: float = 0, idle: bool = True, **more: bool) -> Candidate:
    frees = {LOCAL: mb} if isinstance(mb, int) else mb
    flags = {"busy": False, "closed": False, "later": False, **more}
    return Candidate(InstanceId(name), frees, keep, idle and not any(flags.values()), **flags)


def decide(demands: list[Demand], residents: list[Candidate], free: int | dict[DeviceId, int] = 0, coming: int = 0) -> Plan:
    room = Room({LOCAL: free} if isinstance(free, int) else free, {LOCAL: coming} if isinstance(free, int) else dict.fromkeys(free, 0))
    return plan(demands, in_order(residents), room)


# --- one device -------------------------------------------------------------------------------------------------------


def test_without_a_limit_all_are_started():
    result = plan([demand("a", 10**9), demand("b", 10**9, due=False)], [], Room({}, {}))
    assert list(result.start) == ["a", "b"]


def test_what_fits_is_started_and_its_room_is_taken():
    result = decide([demand("a", 60), demand("b", 60), demand("c", 40)], [], free=100)
    assert result.start == {"a": {LOCAL: 60}}  # b is due and waits, so that c may not overtake it
    assert result.waits == {"b": LOADS, "c": COMING}


def test_memory_on_its_way_back_is_waited_for_and_promised_once():
    result = decide([demand("a", 100), demand("b", 100)], [resident("x", 100)], coming=100)
    assert (result.waits, result.evict) == ({"a": COMING, "b": VICTIMS}, {"x": "b"})


def test_a_victim_serves_one_demand_and_what_is_left_over_the_next():
    result = decide([demand("a", 60), demand("b", 30), demand("c", 30, due=False)], [resident("x", 100)])
    assert (result.evict, result.waits) == ({"x": "a"}, {"a": VICTIMS, "b": COMING, "c": OTHERS})


def test_only_for_a_due_one_are_busy_or_protected_ones_in_reach():
    for one in (resident("x", 100, busy=True), resident("x", 100, idle=False)):
        assert decide([demand("a", 100, due=False)], [one]).evict == {}
        assert decide([demand("a", 100)], [one]).evict == {"x": "a"}


def test_those_that_can_go_are_closed_already_while_another_still_loads():
    loading = resident("l", 60, later=True)
    result = decide([demand("a", 100)], [resident("x", 60, busy=True), loading])
    assert (result.evict, result.waits) == ({"x": "a"}, {"a": LOADS})
    assert decide([demand("a", 100, due=False)], [resident("x", 60), loading]).evict == {}


def test_a_load_or_a_turn_is_only_waited_for_when_nobody_else_suffices():
    result = decide([demand("a", 60)], [resident("l", 60, later=True), resident("x", 60, busy=True)])
    assert (result.evict, result.waits) == ({"x": "a"}, {"a": VICTIMS})


def test_a_due_one_that_cannot_be_helped_keeps_everything_from_younger_ones():
    result = decide([demand("big", 500), demand("due", 10), demand("small", 10, due=False)], [resident("x", 100)], free=50, coming=50)
    assert (result.start, result.evict) == ({}, {})
    assert set(result.waits.values()) == {OTHERS}


def test_one_that_is_not_due_and_cannot_be_helped_keeps_nothing():
    result = decide([demand("big", 500, due=False), demand("small", 10, due=False)], [resident("x", 100)], free=50)
    assert (list(result.start), result.evict) == (["small"], {})


def test_an_unchecked_model_touches_nobody_and_what_is_free_is_kept_for_it():
    result = decide([demand("a", 100, checked=False), demand("b", 50)], [resident("x", 100)], free=60)
    assert (result.start, result.evict, result.waits) == ({}, {"x": "b"}, {"a": CHECKING, "b": VICTIMS})


def test_who_may_evict_nobody_waits_for_room():
    result = decide([demand("a", 100, due=False, may_evict=False)], [resident("x", 100)])
    assert (result.evict, result.waits) == ({}, {"a": OTHERS})


def test_a_model_that_fits_nowhere_waits_and_keeps_nothing():
    result = decide([demand("never"), demand("b", 50)], [], free=60)
    assert (result.waits, list(result.start)) == ({"never": OTHERS}, ["b"])


def test_over_a_budget_that_shrank_the_shortage_counts_what_is_owed():
    result = decide([demand("a", 100)], [resident("x", 100), resident("y", 100, keep=1)], free=-50)
    assert result.evict == {"x": "a", "y": "a"}


def test_when_nothing_is_left_for_anybody_nobody_else_is_looked_at():
    seen: list[str] = []

    def demands():  # type: ignore[no-untyped-def]
        for name in "abc":
            seen.append(name)
            yield demand(name, 100, due=False)

    result = plan(demands(), [], Room({LOCAL: 150}, {LOCAL: 0}), least_mb=100)
    assert (list(result.start), seen) == (["a"], ["a", "b"])


# --- several devices --------------------------------------------------------------------------------------------------


def either(name: str, mb: int, **more: bool) -> Demand:
    return demand(name, {GPU0: mb}, {GPU1: mb}, **more)


def test_it_goes_where_least_is_left_over():
    result = decide([either("a", 50), either("b", 90)], [], {GPU0: 100, GPU1: 60})
    assert result.start == {"a": {GPU1: 50}, "b": {GPU0: 90}}


def test_the_device_where_fewest_busy_ones_must_go_is_chosen_then_where_fewest():
    busy = [resident("x", {GPU0: 100}, busy=True), resident("y", {GPU1: 50}), resident("z", {GPU1: 50})]
    assert decide([either("a", 100)], busy, {GPU0: 0, GPU1: 0}).evict == {"y": "a", "z": "a"}
    idle = [resident("x", {GPU0: 100}), resident("y", {GPU1: 50}), resident("z", {GPU1: 50})]
    assert decide([either("a", 100)], idle, {GPU0: 0, GPU1: 0}).evict == {"x": "a"}


def test_a_decision_taken_again_is_the_same_decision():
    """A victim that is closed stays the choice, although by itself the other device would be as good, or better by now."""
    residents = [resident("x", {GPU0: 100}, busy=True, keep=1), resident("y", {GPU1: 100}, busy=True, closed=True, keep=9)]
    assert decide([either("a", 100)], residents, {GPU0: 0, GPU1: 0}).evict == {"y": "a"}


def test_who_can_go_at_once_is_better_than_who_still_drains_on_another_device():
    residents = [resident("x", {GPU0: 100}, busy=True, closed=True), resident("y", {GPU1: 100})]
    assert decide([either("a", 100)], residents, {GPU0: 0, GPU1: 0}).evict == {"y": "a"}


def test_a_due_one_counts_on_a_load_that_starts_in_the_same_plan():
    """As on any other load in progress: what else it needs is made ready already."""
    split = demand("big", {GPU0: 100, GPU1: 100})
    result = decide([demand("first", {GPU0: 100}), split], [resident("x", {GPU1: 100}, busy=True)], {GPU0: 100, GPU1: 0})
    assert (list(result.start), result.evict, result.waits) == (["first"], {"x": "big"}, {"big": LOADS})


def test_a_due_one_that_cannot_be_helped_keeps_its_own_devices_only():
    result = decide([demand("a", {GPU0: 100}), either("b", 50, due=False)], [], {GPU0: 60, GPU1: 70})
    assert (result.waits, result.start) == ({"a": OTHERS}, {"b": {GPU1: 50}})


def test_what_is_kept_for_an_unchecked_one_is_where_it_fits():
    result = decide([either("a", 100, checked=False), either("b", 100)], [], {GPU0: 0, GPU1: 100})
    assert result.start == {}


def test_host_memory_is_one_more_thing_that_can_be_short():
    needy = demand("a", {GPU0: 10, HOST: 100})
    residents = [resident("x", {GPU0: 100}), resident("y", {GPU0: 10, HOST: 80})]
    result = decide([needy], residents, {GPU0: 50, HOST: 30})
    assert result.evict == {"y": "a"}
    assert decide([needy], residents, {GPU0: 50}).start == {"a": {GPU0: 10, HOST: 100}}  # no budget for it: it does not count


def test_a_due_one_keeps_its_host_memory_too_while_it_waits_for_a_device():
    result = decide([demand("a", {GPU0: 100, HOST: 10}), demand("b", {GPU1: 10, HOST: 10}, due=False)], [], {GPU0: 0, GPU1: 50, HOST: 10})
    assert list(result.start) == []


@pytest.mark.parametrize(
    ("need", "host", "capacity", "split", "expected"),
    [
        (100, 0, {LOCAL: 100}, False, [{LOCAL: 100}]),
        (101, 0, {LOCAL: 100}, False, []),
        (10**9, 0, {LOCAL: None}, False, [{LOCAL: 10**9}]),
        (50, 0, {GPU0: 100, GPU1: 60}, True, [{GPU0: 50}, {GPU1: 50}]),  # one device is enough: no split
        (150, 0, {GPU0: 100, GPU1: 100}, False, []),
        (150, 0, {GPU0: 100, GPU1: 100}, True, [{GPU0: 75, GPU1: 75}]),
        (120, 0, {GPU0: 100, GPU1: 50}, True, [{GPU0: 80, GPU1: 40}]),
        (151, 0, {GPU0: 100, GPU1: 50}, True, []),
        (101, 0, {GPU0: 100, GPU1: 0}, True, []),
        (100, 7, {LOCAL: 100, HOST: 7}, False, [{LOCAL: 100, HOST: 7}]),
        (100, 8, {LOCAL: 100, HOST: 7}, False, []),
        (100, 8, {LOCAL: 100, HOST: None}, False, [{LOCAL: 100, HOST: 8}]),
        (100, 8, {LOCAL: 100}, False, [{LOCAL: 100, HOST: 8}]),
        (150, 5, {GPU0: 100, GPU1: 100, HOST: 9}, True, [{GPU0: 75, GPU1: 75, HOST: 5}]),
    ],
)
def test_where_a_model_could_run(need: int, host: int, capacity: Mapping[DeviceId, int | None], split: bool, expected: list[Vector]):
    assert list(places(need, host, capacity, split=split)) == expected


@given(st.integers(1, 500), st.lists(st.integers(0, 200), min_size=2, max_size=5))
def test_a_split_is_the_whole_need_and_no_share_exceeds_its_device(need: int, limits: list[int]):
    capacity: dict[DeviceId, int | None] = {DeviceId(f"local/gpu{n}"): limit for n, limit in enumerate(limits)}
    found = places(need, 0, capacity, split=True)
    assert bool(found) == (need <= sum(limits))
    for place in found:
        assert sum(place.values()) == need
        assert all(0 < amount <= (capacity[device] or 0) for device, amount in place.items())


ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 100), st.booleans(), st.booleans()), max_size=6)


@given(ROWS, st.lists(st.tuples(st.integers(1, 120), st.booleans(), st.booleans()), max_size=5), st.integers(0, 150), st.integers(0, 150))
def test_no_plan_promises_more_than_there_is(
    residents: list[tuple[int, int, bool, bool]], wanted: list[tuple[int, bool, bool]], free0: int, free1: int
):
    pool = [resident(f"x{n}", {(GPU0, GPU1)[gpu]: mb}, busy=busy, later=later) for n, (gpu, mb, busy, later) in enumerate(residents)]
    asked = [either(f"m{n}", mb, due=due, checked=checked) for n, (mb, due, checked) in enumerate(wanted)]
    asked.sort(key=lambda one: not one.due)
    result = decide(asked, pool, {GPU0: free0, GPU1: free1})
    for device, free in ((GPU0, free0), (GPU1, free1)):
        assert sum(place.get(device, 0) for place in result.start.values()) <= free
    by_model = {one.model: one for one in asked}
    flags = {one.id: one for one in pool}
    for victim, model in result.evict.items():
        assert not flags[victim].later
        assert by_model[model].checked
        assert by_model[model].due or flags[victim].idle
    assert not result.start.keys() & result.waits.keys()
