# SPDX-License-Identifier: GPL-3.0-only
"""Nobody sleeps too long: each story has a moment at which an alarm could be lost. Play itself checks every step for it."""

from __future__ import annotations

from core.play import Play, arrive, i, loaded, r, spec
from modeld.core.messages import LeaseFailed, LeaseReleased, LoadRequested, ProgressChecked, RequestWithdrawn, Wakeup
from modeld.core.model import DeviceId, ModelId


def test_a_demand_that_left_does_not_take_the_alarm_of_the_next_one_along():
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")
    assert play.scheduler.next_wakeup() == 11
    play.at(3, RequestWithdrawn(r("r2"))).gives()
    assert play.scheduler.next_wakeup() is None
    play.at(4, arrive("r3", "c")).gives()
    assert play.scheduler.next_wakeup() == 14
    play.at(14, Wakeup()).gives()
    assert play.instance("a").closed_for == "c"


def test_an_instance_that_was_idle_for_a_while_is_watched_again():
    play = loaded(Play({"a": 100}, first_token_seconds=60), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, LeaseReleased(r("r1"), tokens=5)).gives()
    play.at(3, arrive("r2", "a")).gives("grant r2 1/a")
    play.at(61, Wakeup()).gives()
    assert play.scheduler.next_wakeup() == 63
    play.at(63, Wakeup()).gives("check progress of 1/a")
    play.at(63, ProgressChecked(i(1, "a"), {r("r2"): 3.0})).gives("stop 1/a stuck", "revoke r2 instance_stuck")


def test_who_comes_right_after_a_failure_is_granted_when_the_doubt_is_over():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, LeaseFailed(r("r1"), before_first_byte=False)).gives()
    play.at(2.1, arrive("r2", "a")).gives()
    assert play.scheduler.next_wakeup() == 2.25
    play.at(2.25, Wakeup()).gives("grant r2 1/a")


def test_who_leaves_the_line_of_a_doubted_instance_leaves_it_idle():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a"), arrive("r3", "b")).gives("grant r1 1/a")
    play.at(2, LeaseFailed(r("r1"), before_first_byte=False)).gives()
    play.at(2.1, RequestWithdrawn(r("r2"))).gives("stop 1/a evicted for b")


def test_a_device_without_a_limit_has_room_although_the_limited_one_is_full():
    one, two = DeviceId("local/gpu0"), DeviceId("local/gpu1")
    play = Play({"a": 100, "b": 100}, budget_mb={one: 100, two: 0})
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(0, arrive("r2", "b")).gives("start 2/b")


def test_memory_of_a_stuck_one_opens_again_who_was_closed_for_the_same():
    play = Play({"x": 100, "y": 100, "b": 100}, budget=200, slots=2, wait_max_seconds=1000, first_token_seconds=30)
    loaded(play, "x", "y")
    play.at(0, arrive("x1", "x"), arrive("y1", "y"), arrive("b1", "b"))
    play.at(6, arrive("y2", "y"))
    play.at(10, Wakeup()).gives()
    assert play.instance("x").closed_for == "b"
    play.at(20, arrive("x2", "x")).gives()
    play.at(30, Wakeup()).gives("check progress of 1/x", "check progress of 2/y")
    play.at(30, ProgressChecked(i(1, "x"), {r("x1"): 29.0}, frozenset({r("x1")}))).gives()
    stuck = ProgressChecked(i(2, "y"), {r("y1"): 0.0, r("y2"): 6.0})
    play.at(30, stuck).gives("stop 2/y stuck", "revoke y1 instance_stuck", "revoke y2 instance_stuck", "grant x2 1/x")


def test_a_pin_that_takes_the_only_place_of_another_model_tells_who_waits_for_it():
    """On several devices a pin counts where it is, once it is there."""
    one, two = DeviceId("local/gpu0"), DeviceId("local/gpu1")
    specs = [spec("x", 60), spec("big", 90), spec("pin", 40, pinned=True)]
    play = loaded(Play(specs, budget_mb={one: 100, two: 50}), "x")
    play.at(1, arrive("x1", "x"), arrive("g1", "big")).gives("grant x1 1/x")
    play.at(2, LoadRequested(ModelId("pin"))).gives("start 2/pin", "refuse g1 cannot_ever_fit")


def test_a_ttl_is_not_lost_when_the_line_empties_while_an_instance_is_in_doubt():
    play = loaded(Play([spec("a", 100, ttl_seconds=3.0)]), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a")).gives("grant r1 1/a")
    play.at(2, LeaseFailed(r("r1"), before_first_byte=True)).gives()
    play.at(2.1, RequestWithdrawn(r("r1")), RequestWithdrawn(r("r2"))).gives()
    play.at(5, Wakeup()).gives("stop 1/a ttl")
