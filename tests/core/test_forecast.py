# SPDX-License-Identifier: GPL-3.0-only
"""Waits that can be computed by hand. In these stories a load takes 4 s, an answer 6 s, a stop 1 s, and fairness_wait is 10 s."""

from __future__ import annotations

from dataclasses import replace

from core.play import Play, arrive, gone, i, r, spec
from modeld.core.forecast import Forecast, forecast
from modeld.core.messages import (
    InstanceExited,
    InstanceReady,
    LeaseFailed,
    LeaseReleased,
    LoadRequested,
    MemoryFreed,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import LOCAL, ModelId
from modeld.core.pace import FIRST_LOAD_SECONDS

A, B, C = ModelId("a"), ModelId("b"), ModelId("c")
LOAD, ANSWER, STOP = 4.0, 6.0, 1.0


def play_of(budget: int = 150, *, slots: int = 1, **more: object) -> Play:
    play = Play({"a": 100, "b": 100, "c": 100}, budget=budget, slots=slots, wait_max_seconds=1000, **more)
    pace = play.scheduler._book.pace
    for model in (A, B, C):
        pace.loaded(model, LOAD, 100)
        pace.served(model, ANSWER)
    pace.stopped(STOP)
    return play


def resident(play: Play, model: str = "a", number: int = 1, at: float = 0) -> Play:
    play.at(at, LoadRequested(ModelId(model))).gives(f"start {number}/{model}")
    play.at(at, InstanceReady(i(number, model)))
    play.scheduler._book.pace._load[ModelId(model)] = LOAD  # not what this one took
    return play


def parts(play: Play, model: ModelId, ahead: int = 0) -> tuple[float, float, float]:
    found = forecast(play.scheduler._book, model, play.now, ahead=ahead)
    assert not found.guessed
    return found.room_seconds, found.load_seconds, found.line_seconds


def test_the_parts_add_up():
    assert Forecast(1, 2, 4).seconds == 7


def test_with_room_only_the_load_and_the_line_count():
    play = play_of(slots=2)
    assert parts(play, A) == (0, LOAD, 0)
    assert [parts(play, A, ahead)[2] for ahead in (1, 2, 3, 4)] == [0, ANSWER, ANSWER, 2 * ANSWER]
    assert play.scheduler.expected_wait(A, 0) == LOAD


def test_what_was_never_measured_is_marked():
    play = Play({"a": 100})
    found = forecast(play.scheduler._book, A, 0, ahead=0)
    assert found == Forecast(0, FIRST_LOAD_SECONDS, 0, guessed=True)
    external = Play([spec("a", 0, external=True)])
    assert not forecast(external.scheduler._book, A, 0, ahead=0).guessed


def test_a_load_in_progress_counts_for_what_is_left_of_it_and_a_late_one_for_a_quarter():
    play = play_of()
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(1, Wakeup())
    assert parts(play, A) == (0, 3, 0)
    play.at(50, Wakeup())
    assert parts(play, A) == (0, 1, 0)


def test_a_free_slot_costs_nothing_and_a_taken_one_what_is_left_of_its_answer():
    play = resident(play_of(slots=2))
    assert parts(play, A) == (0, 0, 0)
    play.at(1, arrive("r1", "a"))
    assert parts(play, A) == (0, 0, 0)
    play.at(3, arrive("r2", "a"))
    play.at(4, Wakeup())
    assert parts(play, A) == (0, 0, 3)
    assert [parts(play, A, ahead)[2] for ahead in (1, 2, 3)] == [5, 9, 11]  # the slots end at 3 and 5, then 6 later each


def test_an_instance_in_doubt_costs_the_doubt():
    play = resident(play_of())
    play.at(1, arrive("r1", "a"))
    play.at(2, LeaseFailed(r("r1"), before_first_byte=False))
    assert parts(play, A) == (0.25, 0, 0)


def test_an_idle_rival_costs_its_stop_and_a_protected_one_the_rest_of_it():
    play = resident(play_of())
    assert parts(play, B) == (STOP, LOAD, 0)
    play = resident(play_of(min_residency_seconds=60))  # a keeps it for as long as its load took
    book = play.scheduler._book
    until = book.protected_until(book.by_model[A], 0)
    assert until > 0
    assert parts(play, B) == (until + STOP, LOAD, 0)


def test_a_busy_rival_costs_the_rest_of_its_answer():
    play = resident(play_of())
    play.at(1, arrive("r1", "a"))
    play.at(3, Wakeup())
    assert parts(play, B) == (4 + STOP, LOAD, 0)


def test_a_rival_that_never_goes_idle_costs_the_time_until_one_is_due_and_its_drain():
    play = resident(play_of(slots=2))
    for n in range(6):
        play.at(n, arrive(f"r{n}", "a"))
    play.at(6, Wakeup())
    half = ANSWER / 2  # of those that will run then
    assert parts(play, B) == (10 + half + STOP, LOAD, 0)
    play.at(6, arrive("b", "b"))
    play.at(14, Wakeup())
    assert parts(play, B, ahead=1) == (2 + half + STOP, LOAD, 0)


def test_memory_that_comes_back_costs_a_stop():
    play = resident(play_of())
    play.at(1, UnloadRequested(A)).gives("stop 1/a unload")
    assert parts(play, B) == (STOP, LOAD, 0)


def test_a_due_demand_ahead_costs_its_load_its_turn_and_its_stop():
    play = resident(play_of())
    play.at(1, arrive("r1", "a"), arrive("r2", "b"), arrive("r3", "c"))
    play.at(11, Wakeup())
    assert play.instance("a").closed_for == "b"
    rest = ANSWER * 0.25  # r1 has taken longer than usual
    assert parts(play, B, ahead=1)[0] == rest + STOP
    assert parts(play, C, ahead=1)[0] == LOAD + ANSWER + STOP + rest + STOP


def test_an_instance_on_its_way_out_ends_first():
    play = resident(play_of(drain_timeout_seconds=3))
    play.at(1, arrive("r1", "a"), UnloadRequested(A))
    assert parts(play, A) == (3 + STOP, LOAD, 0)  # it may run 6 s and is cut after 3
    play.at(2, LeaseReleased(r("r1"))).gives("stop 1/a unload")
    play.at(2.5, Wakeup())
    assert parts(play, A) == (STOP, LOAD, 0)  # its own memory, as of any child that ends
    play.at(3, *gone(1, "a"))
    assert parts(play, A) == (0, LOAD, 0)


def test_a_closed_instance_counts_for_its_own_model_like_room_to_be_made():
    play = resident(play_of())
    play.at(1, arrive("r1", "a"), arrive("r2", "b"))
    play.at(11, Wakeup(), arrive("r3", "a"))
    room, load, line = parts(play, A)
    assert (load, line) == (LOAD, 0)
    assert room >= ANSWER * 0.25 + STOP


def test_a_pause_after_failures_is_waited_for():
    play = play_of()
    for number in range(1, 4):
        play.at(0, arrive(f"r{number}", "a"))
        play.at(0, InstanceReady(i(number, "a")))
        play.at(0, InstanceExited(i(number, "a"), code=-9), LeaseFailed(r(f"r{number}"), before_first_byte=False))
        play.at(0, MemoryFreed(i(number, "a")))
    pause = play.scheduler._book.breaker.blocked_until(A)
    assert 0 < pause < 2
    assert parts(play, A)[0] == pause


def test_pinned_and_foreign_instances_make_no_room():
    play = Play([replace(spec("p", 100), pinned=True), spec("b", 100), spec("x", 0, external=True)], budget=250)
    play.at(0, LoadRequested(ModelId("p")), InstanceReady(i(1, "p")), LoadRequested(ModelId("x")), InstanceReady(i(2, "x")))
    assert forecast(play.scheduler._book, B, 0, ahead=0).room_seconds == 0
    assert play.scheduler._book.places(B) == ({LOCAL: 100},)
