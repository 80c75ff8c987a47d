# SPDX-License-Identifier: GPL-3.0-only
"""The world makes data happen: the same story is the same trace, whatever goes wrong is told the scheduler, and the history is complete."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from modeld.core.model import LOCAL, LaunchOptions, Limits, ModelId, ModelSpec, RequestId
from modeld.simulation import generate
from modeld.simulation.faults import Act, CheckFate, ChildFate, Deed, Faults, LeaseFate, LoadEnd
from modeld.simulation.seen import Asked
from modeld.simulation.workload import Ask, History, SimModel, Workload
from modeld.simulation.world import World

SEEDS = (2, 5, 7, 11, 12, 15)
DIGEST = """
from modeld.simulation import generate
from modeld.simulation.world import World
for seed in (3, 4):
    story = generate.story(seed)
    world = World(story.workload, faults=story.faults, seed=seed, checks=frozenset(), traced=True)
    world.run()
    print(world.events, world.digest)
"""


def model(name: str, mb: int = 100, slots: int = 1, **more: object) -> SimModel:
    spec = ModelSpec(id=ModelId(name), path=f"/{name}", fingerprint="v1", vram_mb=mb, options=LaunchOptions(parallel=slots))
    return SimModel(replace(spec, **more), load_seconds=2.0, stop_seconds=0.5)  # type: ignore[arg-type]


def ask(at: float, number: int, name: str = "a", **more: object) -> Ask:
    return replace(Ask(at, RequestId(f"r{number}"), ModelId(name), service_seconds=1.0), **more)  # type: ignore[arg-type]


def play(*asks: Ask, faults: Faults = Faults(), models: tuple[SimModel, ...] = (), **limits: object) -> tuple[World, History]:  # noqa: B008 - frozen
    settings = replace(Limits(budget_mb={LOCAL: 150}, inter_token_seconds=5.0, first_token_seconds=5.0), **limits)  # type: ignore[arg-type]
    world = World(Workload("test", models or (model("a"), model("b")), asks, settings), faults=faults)
    return world, world.run()


def outcomes(history: History) -> dict[str, str]:
    return {served.ask.request: served.outcome for served in history.served}


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_holds(seed: int) -> None:
    story = generate.story(seed)
    world = World(story.workload, faults=story.faults, seed=seed)
    history = world.run()
    assert len(history.served) == len(story.workload.asks)
    assert len(history.stays) == world.counts["loads"]


def test_the_same_seed_is_the_same_trace_in_any_process() -> None:
    def trace(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    first = trace("1")
    assert len(set(first.split())) == 4
    assert first == trace("2")


def test_a_request_is_loaded_for_and_served() -> None:
    world, history = play(ask(1, 1))
    (served,) = history.served
    assert (served.granted, served.ended, served.outcome) == (3.0, 4.0, "done")
    (stay,) = history.stays
    assert (stay.started, stay.ready, stay.why) == (1.0, 3.0, "shutdown")
    assert world.counts["requests"] == 1


def test_a_client_leaves_at_every_stage() -> None:
    waits = ask(0, 1, leaves_at=1.0)
    at_grant, streams, again = ask(5, 2), ask(10, 3, leaves_at=10.5), ask(15, 4)
    fates = (LeaseFate(RequestId("r2"), leaves_granted=True), LeaseFate(RequestId("r4"), fails_before=1, leaves_requeued=True))
    world, history = play(waits, at_grant, streams, again, faults=Faults(leases=fates))
    assert set(outcomes(history).values()) == {"left"}
    kinds = ("left while waiting", "left at the grant", "left while streaming", "left after requeued")
    assert [world.happened[kind] for kind in kinds] == [1, 1, 1, 1]


def test_a_request_that_fails_before_its_first_byte_is_asked_again_once() -> None:
    fates = (
        LeaseFate(RequestId("r1"), fails_before=1),
        LeaseFate(RequestId("r2"), fails_before=2),
        LeaseFate(RequestId("r3"), fails_after=True),
    )
    _, history = play(ask(0, 1), ask(10, 2), ask(20, 3), faults=Faults(leases=fates))
    assert outcomes(history) == {"r1": "done", "r2": "upstream_unreachable", "r3": "bad_upstream_reply"}


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (LoadEnd.FAILS, "load_failed"),
        (LoadEnd.CRASHES, "instance_died"),
        (LoadEnd.STALLS, "load_stalled"),
        (LoadEnd.OUT_OF_MEMORY, "out_of_memory"),
    ],
)
def test_a_load_that_does_not_end_well(end: LoadEnd, kind: str) -> None:
    world, history = play(ask(0, 1), faults=Faults(children=(ChildFate(ModelId("a"), 1, load=end),)))
    assert outcomes(history) == {"r1": kind}
    assert world.happened[f"load {end}"] == 1
    assert history.stays[0].ready is None


def test_a_rejected_launch_and_a_slow_check() -> None:
    fates = (CheckFate(ModelId("a"), 1, rejected=True), CheckFate(ModelId("b"), 1, seconds=3.0))
    _, history = play(ask(0, 1), ask(0, 2, "b"), faults=Faults(checks=fates))
    assert outcomes(history) == {"r1": "load_failed", "r2": "done"}
    assert history.stays[0].started == 3.0


def test_a_crash_ends_what_has_begun_and_repeats_what_has_not() -> None:
    asks = [ask(0, 1, service_seconds=9.0), ask(2.4, 2, service_seconds=9.0)]
    fate = ChildFate(ModelId("a"), 1, dies_after=1.0)
    world, history = play(*asks, models=(model("a", slots=2),), faults=Faults(children=(fate,)))
    assert outcomes(history) == {"r1": "instance_died", "r2": "done"}
    assert world.happened["crash while streaming"] == 1


def test_a_child_that_hangs_is_found_out() -> None:
    fate = ChildFate(ModelId("a"), 1, hangs_after=0.5)
    world, history = play(ask(0, 1, service_seconds=2.0), faults=Faults(children=(fate,)))
    assert outcomes(history) == {"r1": "instance_stuck"}
    assert (world.happened["child hangs"], history.stays[0].why) == (1, "stuck")


def test_term_is_ignored_and_memory_comes_late() -> None:
    fate = ChildFate(ModelId("a"), 1, deaf_seconds=4.0, freed_seconds=2.0)
    _, history = play(ask(0, 1), ask(1, 2, "b"), faults=Faults(children=(fate,)), fairness_wait_seconds=0.0)
    first, second = history.stays
    assert (first.stopping, first.gone) == (3.0, 3.0 + 0.5 + 4.0 + 2.0)
    assert second.started == first.gone


def test_the_operator_is_heard() -> None:
    acts = (Act(0.0, Deed.LOAD, ModelId("b")), Act(5.0, Deed.UNLOAD, ModelId("b")), Act(6.0, Deed.REMOVE, ModelId("a")))
    _, history = play(ask(7, 1), faults=Faults(acts=acts))
    assert outcomes(history) == {"r1": "unknown_model"}
    assert [stay.why for stay in history.stays] == ["unload"]


def test_a_shutdown_in_the_middle() -> None:
    acts = (Act(2.5, Deed.SHUTDOWN, ModelId("a")),)
    world, history = play(ask(0, 1), ask(1, 2), ask(3, 3), faults=Faults(acts=acts))
    assert outcomes(history) == {"r1": "unloaded", "r2": "draining", "r3": "draining"}
    assert not world.outside.instances


def test_a_load_takes_as_long_whatever_came_before_it() -> None:
    """The n-th load of a model is drawn from a stream of its own: policies can be compared on the same luck."""

    def loads(*asks: Ask) -> list[float]:
        models = tuple(replace(model(name), load_sigma=0.5) for name in ("a", "b"))
        _, history = play(*asks, models=models, budget_mb={LOCAL: 0})
        return [stay.ready - stay.started for stay in history.stays if stay.model == "a" and stay.ready is not None]

    assert loads(ask(0, 1)) == pytest.approx(loads(ask(0, 2, "b"), ask(20, 1)))


def test_who_waits_is_seen_by_the_hook() -> None:
    seen: list[str] = []

    def note(world: World, asked: Asked) -> None:
        seen.append(asked.request.id)
        assert world.scheduler.snapshot(world.now).lines

    workload = Workload("test", (model("a"),), (ask(0, 1), ask(5, 2)), Limits(budget_mb={LOCAL: 150}))
    World(workload, on_wait=note).run()
    assert seen == ["r1"]
