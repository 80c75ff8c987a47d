# SPDX-License-Identifier: GPL-3.0-only
"""The clairvoyant: what it is told of a run, what it may ignore, and how good modeld is beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.play import spec
from modeld.core.model import HOST, LOCAL, DeviceId, Limits, ModelId, RequestId
from modeld.simulation.clairvoyant import foresee, room_mb, wait_bound
from modeld.simulation.report import CLAIRVOYANT_BAR
from modeld.simulation.shipped import shipped
from modeld.simulation.workload import Ask, History, Served, SimModel, Stay, Workload
from modeld.simulation.world import World


def story(*asks: tuple[float, str, float], wait: float = 10.0, budget: int = 150) -> Workload:
    """Models a and b of 100 MB with loads of 5 s; a and b together need 200 MB."""
    models = tuple(SimModel(spec(name, 100), 5.0) for name in "ab")
    told = tuple(Ask(at, RequestId(f"r{number}"), ModelId(model), seconds) for number, (at, model, seconds) in enumerate(asks))
    return Workload("story", models, told, Limits(budget_mb={LOCAL: budget}, fairness_wait_seconds=wait))


def run(one: Workload) -> History:
    return World(one, checks=frozenset()).run()


def test_it_collects_what_may_wait():
    """a at 0 and 13, b at 6 in between: with a wait of 10 + 1 + 5 s everything of a can be met by one stay, which ends for b."""
    found = foresee(run(story((0, "a", 0.5), (6, "b", 1), (13, "a", 0.5))))
    assert (found.loads, found.swap_seconds, found.exact, found.label) == (2, 10.0, True, "exact")
    assert [(stay.model, stay.ready) for stay in found.stays] == [("a", 13.0), ("b", 20.0)] or found.stays[0].model == "a"


def test_it_cannot_collect_what_must_not_wait():
    found = foresee(run(story((0, "a", 0.5), (6, "b", 1), (40, "a", 0.5), (46, "b", 1))))
    assert found.loads == 3  # b stays, or a does, for the second half


def test_what_runs_is_ended_before_the_memory_is_had():
    """As above, but b runs for 30 s: a cannot be back in time for the third, which the scheduler lets wait for longer."""
    history = run(story((0, "a", 0.5), (6, "b", 30), (13, "a", 0.5)))
    found = foresee(history)
    assert found.exact
    assert found.swap_seconds <= history.swap_seconds


def test_with_room_for_all_each_is_loaded_once():
    found = foresee(run(story((0, "a", 1), (6, "b", 1), (50, "a", 1), (56, "b", 1), budget=0)))
    assert (found.loads, found.exact) == (2, True)


def test_a_request_that_was_not_served_need_not_be():
    one = story((0, "a", 1), (1, "b", 1))
    ours = History(one, "x", (Served(one.asks[0], 5.0, 6.0, "done"), Served(one.asks[1], None, 9.0, "left")), (), 10.0)
    stays = (Stay(ModelId("a"), 0.0, 5.0, 10.0, 10.0), Stay(ModelId("b"), 6.0, None, 9.0, 9.0))
    assert foresee(replace(ours, stays=stays)).loads == 1


def test_too_few_points_are_said():
    found = foresee(run(shipped("crowd")), points_max=1, chain_max=1)
    assert not found.exact
    assert 0 < found.at_least_seconds < found.swap_seconds
    assert found.label == f"heuristic: best found, at least {found.at_least_seconds:.1f} s"


def test_all_devices_are_one_room():
    assert room_mb(Limits(budget_mb={DeviceId("x/0"): 100, DeviceId("x/1"): 50, HOST: 7}, margin_mb=10)) == 130
    assert room_mb(Limits(budget_mb={DeviceId("x/0"): 100, DeviceId("x/1"): 0})) is None


def test_the_bound_is_the_wait_the_drain_and_the_load():
    one = story((0, "a", 3), (1, "b", 2))
    assert wait_bound(one.models[0], one) == pytest.approx(10 + 3 + 0.2 + 5)


@pytest.mark.parametrize("name", ["rotation", "agents", "batch"])
def test_modeld_is_near_the_clairvoyant(name: str):
    history = run(shipped(name))
    found = foresee(history)
    assert found.exact
    assert found.swap_seconds <= history.swap_seconds + 1e-6 <= CLAIRVOYANT_BAR * found.swap_seconds
