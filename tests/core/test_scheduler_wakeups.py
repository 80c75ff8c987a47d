# SPDX-License-Identifier: GPL-3.0-only
"""Nobody sleeps too long: each story has a moment at which an alarm could be lost. Play itself checks every step for it."""

from __future__ import annotations

from core.play import Play, arrive, i, loaded, r
from modeld.core.messages import LeaseFailed, LeaseReleased, ProgressChecked, RequestWithdrawn, Wakeup
from modeld.core.model import DeviceId


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
