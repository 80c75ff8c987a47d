# SPDX-License-Identifier: GPL-3.0-only
"""Strict first come, first served, played in the world."""

from __future__ import annotations

from dataclasses import replace

from core.play import spec
from modeld.core.model import LOCAL, Limits, ModelId, RequestId
from modeld.simulation.faults import ChildFate, Faults, LoadEnd
from modeld.simulation.fifo import FIFO, Fifo
from modeld.simulation.shipped import shipped
from modeld.simulation.workload import Ask, History, SimModel, Workload
from modeld.simulation.world import World


def workload(*asks: tuple[float, str, float], budget: int = 150, slots: int = 1, **more: object) -> Workload:
    """Models a, b and c of 100 MB, two of which fit together only where `budget` says so; a load takes 5 s, a stop 0.2 s."""
    models = tuple(SimModel(spec(name, 100, slots=slots, **more), 5.0) for name in "abc")
    told = tuple(Ask(at, RequestId(f"r{number}"), ModelId(model), seconds) for number, (at, model, seconds) in enumerate(asks))
    return Workload("story", models, told, Limits(budget_mb={LOCAL: budget}))


def run(one: Workload, faults: Faults | None = None) -> History:
    return World(one, faults=faults or Faults(), checks=frozenset(), policy=FIFO, make=Fifo, requeues=False).run()


def granted(history: History) -> list[float | None]:
    return [one.granted and round(one.granted, 3) for one in sorted(history.served, key=lambda one: one.ask.request)]


def test_nobody_overtakes_even_where_the_model_is_ready_and_free():
    history = run(workload((0, "a", 1), (1, "b", 1), (1.5, "a", 1), budget=150))
    # b waits for a's end at 6, its stop and its own load; the second a, whose model was free at 6, waits behind b
    assert granted(history) == [5.0, 11.2, 17.4]
    assert (history.loads, history.swap_seconds) == (3, 15.0)
    assert [(stay.model, stay.why) for stay in history.stays][:2] == [("a", "evicted for b"), ("b", "evicted for a")]


def test_slots_are_honoured():
    assert granted(run(workload((0, "a", 3), (0, "a", 3), (0, "a", 3), slots=2))) == [5.0, 5.0, 8.0]


def test_the_least_recently_used_goes_and_the_busy_one_is_waited_for():
    history = run(workload((0, "a", 1), (0, "b", 20), (12, "c", 1), (13, "a", 1), budget=250))
    # at 12 a is idle since 6 and goes for c; at 13 b is the least recently used, and busy until 30
    assert granted(history) == [5.0, 10.0, 17.2, 35.2]
    assert [stay.model for stay in sorted(history.stays, key=lambda stay: stay.stopping)][:2] == ["a", "b"]


def test_a_pinned_model_stays_and_what_never_fits_is_refused():
    story = workload((0, "a", 1), (1, "b", 1), budget=150)
    pinned = replace(story.models[0], spec=replace(story.models[0].spec, pinned=True))
    history = run(replace(story, models=(pinned, *story.models[1:])))
    assert {one.ask.request: one.outcome for one in history.served} == {"r0": "done", "r1": "cannot_ever_fit"}


def test_who_leaves_does_not_hold_up_the_line():
    story = workload((0, "a", 10), (1, "b", 1), (2, "a", 1), budget=150, slots=2)
    leaves = replace(story.asks[1], leaves_at=8.0)
    history = run(replace(story, asks=(story.asks[0], leaves, story.asks[2])))
    assert granted(history) == [5.0, None, 8.0]


def test_a_failed_load_refuses_the_head_and_the_next_one_goes_on():
    faults = Faults(children=(ChildFate(ModelId("a"), 1, load=LoadEnd.FAILS),))
    history = run(workload((0, "a", 1), (1, "b", 1), budget=150), faults)
    assert sorted(one.outcome for one in history.served) == ["done", "load_failed"]


def test_in_every_shipped_workload_grants_are_in_the_order_of_arrival():
    story = shipped("crowd")
    history = run(story)
    order = [one.ask.at for one in sorted(history.served, key=lambda one: (one.granted or 0.0, one.ask.at))]
    assert order == sorted(order)
    assert {one.outcome for one in history.served} == {"done"}
