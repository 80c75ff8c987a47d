# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import math

from modeld.core.eviction import Candidate
from modeld.core.model import InstanceId, ModelId
from modeld.core.placement import Demand, Resident, plan


def demand(model: str, mb: int, since: float = 1, *, checked: bool = True, may_evict: bool = True, may_drain: bool = True) -> Demand:
    return Demand(ModelId(model), mb, since, checked, may_evict, may_drain)


def resident(name: str, mb: int, *, busy: bool = False, line_since: float | None = None) -> Resident:
    return Resident(Candidate(InstanceId(name), mb, 0.0, busy), line_since)


def test_unlimited_room_starts_all():
    assert plan([demand("a", 10**9), demand("b", 10**9)], [], None, 0).start == ["a", "b"]


def test_an_unchecked_model_is_checked_and_its_room_kept():
    result = plan([demand("a", 100, checked=False), demand("b", 100)], [resident("x", 100)], 100, 0)
    assert (result.check, result.start) == (["a"], [])
    assert result.evict == {"x": "b"}


def test_memory_on_its_way_back_is_waited_for_and_promised_once():
    result = plan([demand("a", 100, 1), demand("b", 100, 2)], [resident("x", 100)], 0, 100)
    assert result.waits["a"] == "memory that is being given back"
    assert result.evict == {"x": "b"}


def test_a_victim_serves_one_demand_and_its_left_over_the_next():
    result = plan([demand("a", 60, 1), demand("b", 30, 2), demand("c", 30, 3)], [resident("x", 100)], 0, 0)
    assert result.evict == {"x": "a"}
    assert result.waits["b"] == "memory that is being given back"
    assert result.waits["c"] == "memory that other models still need"


def test_an_instance_with_an_older_line_is_not_a_candidate():
    assert plan([demand("a", 100, 5)], [resident("x", 100, line_since=4)], 0, 0).evict == {}
    assert plan([demand("a", 100, 5)], [resident("x", 100, line_since=6)], 0, 0).evict == {"x": "a"}


def test_a_wish_drains_nobody_and_a_preload_evicts_nobody():
    assert plan([demand("a", 100, math.inf, may_drain=False)], [resident("x", 100, busy=True)], 0, 0).evict == {}
    assert plan([demand("a", 100, math.inf, may_evict=False)], [resident("x", 100)], 0, 0).evict == {}


def test_loads_in_progress_that_stand_in_the_way_keep_nobody_waiting_for_ever():
    """What is in reach is kept for the older demand until the loads are ready and can give way."""
    result = plan([demand("big", 280, 1), demand("small", 90, 2)], [resident("x", 100)], 100, 0, loading_mb=90)
    assert (result.start, result.evict) == ([], {})
    result = plan([demand("big", 280, 1), demand("small", 90, 2)], [resident("x", 100)], 100, 0, loading_mb=10)
    assert result.start == ["small"]


def test_who_cannot_be_helped_now_keeps_no_room_from_others():
    result = plan([demand("big", 500, 1), demand("small", 10, 2)], [resident("x", 100)], 50, 0)
    assert result.start == ["small"]
    assert result.evict == {}
