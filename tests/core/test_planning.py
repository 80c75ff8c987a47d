# SPDX-License-Identifier: GPL-3.0-only
"""From the book to a plan: who asks in which order, who may be evicted and in which order, and when to look again."""

from __future__ import annotations

from core.play import Play, arrive, batch, i, loaded, r, spec
from modeld.core.messages import (
    InstanceReady,
    LeaseReleased,
    LoadRequested,
    ModelTableReplaced,
    RequestWithdrawn,
    Wakeup,
)
from modeld.core.model import EvictionPolicy, ModelId, Priority


def asked(play: Play) -> list[str]:
    """The demands in the order in which they are decided, the due ones marked."""
    due = play.scheduler._book.due_count(play.now)
    return [f"{one.model}{'!' if one.due else ''}" for one in play.scheduler._planner._demands(due, play.now)]


def full(models: str = "abcd", **limits: object) -> Play:
    """x is busy and holds all there is."""
    specs = [spec(name, 100) for name in models]
    play = loaded(Play([spec("x", 100), *specs], budget=100, **limits), "x")
    return play.at(0, arrive("rx", "x"))


def test_due_demands_go_by_age_then_the_others_by_class_and_age_then_wishes():
    play = full("abcdef")
    play.at(1, batch("r1", "b"), arrive("r2", "a"))
    play.at(5, LoadRequested(ModelId("f")), batch("r3", "c"), arrive("r4", "d"), arrive("r5", "e", priority=Priority.NORMAL))
    assert asked(play) == ["a", "d", "e", "b", "c", "f"]
    play.at(11, Wakeup())
    assert asked(play) == ["b!", "a!", "d", "e", "c", "f"]


def test_a_more_urgent_request_brings_its_model_forward_at_once():
    play = full()
    play.at(1, batch("r1", "a"), batch("r2", "b"))
    assert asked(play) == ["a", "b"]
    play.at(2, arrive("r3", "b"))
    assert asked(play) == ["b", "a"]
    play.at(3, LeaseReleased(r("rx"))).gives("stop 1/x evicted for b")


def test_a_class_asked_for_can_lower_the_one_of_the_model_and_never_raise_it():
    play = full()
    table = play.models | {ModelId("a"): spec("a", 100, priority=Priority.BATCH), ModelId("b"): spec("b", 100)}
    play.at(1, ModelTableReplaced(table))
    play.at(1, arrive("r1", "a", priority=Priority.INTERACTIVE), arrive("r2", "b"), batch("r3", "c"))
    assert asked(play) == ["b", "a", "c"]


def test_a_demand_held_back_after_a_failure_asks_for_nothing():
    play = full()
    play.at(1, arrive("r1", "a"), arrive("r2", "b"))
    play.scheduler._book.breaker.load_failed(ModelId("a"), "v1", RuntimeError("no"), 1)  # type: ignore[arg-type]
    assert asked(play) == ["b"]


def test_the_least_recently_used_goes_first_or_the_least_worth():
    def play_of(policy: EvictionPolicy) -> Play:
        play = Play({"quick": 100, "slow": 100, "new": 100}, budget=200, eviction=policy)
        play.at(0, LoadRequested(ModelId("slow")))
        play.at(60, InstanceReady(i(1, "slow")), LoadRequested(ModelId("quick")))
        play.at(61, InstanceReady(i(2, "quick")))
        for n, model in enumerate(("slow", "quick")):
            play.at(62 + n, arrive(f"r{n}", model))
            play.at(62 + n, LeaseReleased(r(f"r{n}")))
        return play

    play_of(EvictionPolicy.LRU).at(70, arrive("x", "new")).gives("stop 1/slow evicted for new")
    play_of(EvictionPolicy.COST).at(70, arrive("x", "new")).gives("stop 2/quick evicted for new")


def test_who_is_never_a_candidate():
    play = Play([spec("pinned", 100, pinned=True), spec("far", 0, external=True), spec("a", 100), spec("b", 100)], budget=200)
    loaded(play, "pinned", "far", "a")
    assert [one.id for one in play.scheduler._planner._candidates(0)] == ["3/a"]


def test_the_next_look_is_when_the_next_one_becomes_due():
    play = full()
    play.at(1, arrive("r1", "a"))
    play.at(3, arrive("r2", "b"))
    assert play.scheduler.next_wakeup() == 11
    play.at(11, Wakeup())
    assert play.scheduler.next_wakeup() == 13
    play.at(13, Wakeup(), RequestWithdrawn(r("r1")), RequestWithdrawn(r("r2")))
    assert play.scheduler.next_wakeup() is None
