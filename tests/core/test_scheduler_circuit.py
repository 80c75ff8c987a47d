# SPDX-License-Identifier: GPL-3.0-only
"""A model that dies again and again: started again at once, then more slowly, then not at all until a probe succeeds."""

from __future__ import annotations

from dataclasses import replace

from core.play import Play, arrive, gone, i, loaded, r
from modeld.core.breaker import DEATHS_FREE, DEATHS_MAX, JITTER, OPEN_FIRST_SECONDS
from modeld.core.messages import InstanceExited, InstanceReady, LeaseFailed, LeaseReleased, MemoryFreed, ModelTableReplaced, Wakeup
from modeld.core.model import ModelId

A = ModelId("a")


def crash(play: Play, number: int, at: float) -> None:
    """Instance `number` serves one request and dies under it, after its first byte."""
    play.at(at, arrive(f"r{number}", "a")).gives(f"grant r{number} {number}/a")
    play.at(at, InstanceExited(i(number, "a"), code=-11)).gives(f"revoke r{number} instance_died")
    play.at(at, LeaseFailed(r(f"r{number}"), before_first_byte=False), MemoryFreed(i(number, "a"))).gives()


def crash_loop(times: int = DEATHS_MAX - 1) -> Play:
    """It has died so many times, as soon as it could; instance `times` + 1 is ready."""
    play = loaded(Play({"a": 100}), "a")
    for number in range(1, times + 1):
        crash(play, number, play.now)
        at = max(play.now, play.scheduler._book.breaker.blocked_until(A))
        play.at(at, arrive(f"x{number}", "a")).gives(f"start {number + 1}/a")
        play.at(at, InstanceReady(i(number + 1, "a"))).gives(f"grant x{number} {number + 1}/a")
        play.at(at, LeaseReleased(r(f"x{number}"))).gives()
    return play


def test_the_first_deaths_cost_no_pause_and_the_next_one_does():
    play = crash_loop(DEATHS_FREE)
    assert play.now == 0
    crash(play, DEATHS_FREE + 1, 0)
    play.at(0.5, arrive("x", "a")).gives("refuse x backing_off")


def test_when_the_circuit_opens_all_who_wait_are_told_in_whatever_order_the_reports_come():
    for memory_first in (False, True):
        play = crash_loop()
        now, last = play.now, i(DEATHS_MAX, "a")
        play.at(now, arrive("r", "a"), arrive("w", "a")).gives(f"grant r {last}")
        play.at(now, InstanceExited(last, code=-11)).gives("revoke r instance_died", "refuse w instance_died")
        reports = [LeaseFailed(r("r"), before_first_byte=True), MemoryFreed(last)]
        play.at(now, *(reversed(reports) if memory_first else reports)).gives("refuse r instance_died")
        play.at(now, arrive("late", "a")).gives("refuse late backing_off")
        assert play.scheduler.next_wakeup() is None


def opened() -> tuple[Play, float]:
    """The circuit is open; until when."""
    play = crash_loop()
    crash(play, DEATHS_MAX, play.now)
    until = play.scheduler._book.breaker.blocked_until(A)
    assert (1 - JITTER) * OPEN_FIRST_SECONDS <= until - play.now <= (1 + JITTER) * OPEN_FIRST_SECONDS
    return play, until


def test_a_probe_that_answers_closes_the_circuit():
    play, until = opened()
    play.at(until, arrive("probe", "a")).gives("start 6/a")
    play.at(until + 1, InstanceReady(i(6, "a")), LeaseReleased(r("probe"), tokens=3)).gives("grant probe 6/a")
    assert not play.scheduler._book.breaker.is_open(A)


def test_a_probe_that_dies_opens_it_for_longer():
    play, until = opened()
    play.at(until, arrive("probe", "a")).gives("start 6/a")
    play.at(until, InstanceReady(i(6, "a"))).gives("grant probe 6/a")
    play.at(until, InstanceExited(i(6, "a"), code=-11)).gives("revoke probe instance_died")
    longer = play.scheduler._book.breaker.blocked_until(A) - until
    assert longer >= (1 - JITTER) * 2 * OPEN_FIRST_SECONDS
    play.at(until, LeaseFailed(r("probe"), before_first_byte=True)).gives("refuse probe instance_died")


def test_half_open_is_one_load_however_many_ask():
    play, until = opened()
    play.at(until, *(arrive(f"p{n}", "a") for n in range(5))).gives("start 6/a")


def test_a_request_that_comes_back_while_the_probe_lives_keeps_its_place():
    play, until = opened()
    play.at(until, arrive("p1", "a"), arrive("p2", "a")).gives("start 6/a")
    play.at(until, InstanceReady(i(6, "a"))).gives("grant p1 6/a")
    play.at(until + 1, LeaseFailed(r("p1"), before_first_byte=True)).gives()
    play.at(until + 2, Wakeup()).gives("grant p1 6/a")


def test_while_a_crashed_model_backs_off_who_stood_in_line_waits_for_the_next_try():
    play = crash_loop(DEATHS_FREE)
    number = DEATHS_FREE + 1
    play.at(1, arrive("r", "a"), arrive("w", "a")).gives(f"grant r {number}/a")
    play.at(2, *gone(number, "a", code=-9)).gives("revoke r instance_died")
    play.at(2, LeaseFailed(r("r"), before_first_byte=True)).gives()
    until = play.scheduler._book.breaker.blocked_until(A)
    assert play.scheduler.next_wakeup() == until > 2
    play.at(until, Wakeup()).gives(f"start {number + 1}/a")
    play.at(until + 1, InstanceReady(i(number + 1, "a"))).gives(f"grant r {number + 1}/a")  # in its old place


def test_a_replaced_file_closes_the_circuit():
    play, _ = opened()
    play.at(play.now, ModelTableReplaced({A: replace(play.models[A], fingerprint="v2")})).gives()
    play.at(play.now, arrive("x", "a")).gives("start 6/a")
