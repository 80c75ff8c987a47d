# SPDX-License-Identifier: GPL-3.0-only
"""A child that lives and gives nothing: when it is asked, when it is believed, what becomes of its requests."""

from __future__ import annotations

from core.play import Play, arrive, gone, i, loaded, r
from modeld.core.breaker import DEATHS_MAX
from modeld.core.messages import InstanceReady, LeaseFailed, LeaseReleased, ProgressChecked, RequestWithdrawn, UnloadRequested, Wakeup
from modeld.core.model import ModelId, RequestId

A = ModelId("a")


def play_of(slots: int = 2, **more: object) -> Play:
    defaults: dict[str, object] = {"first_token_seconds": 60.0, "prompt_token_seconds": 0.25, "inter_token_seconds": 20.0}
    return loaded(Play({"a": 100, "b": 100}, budget=150, slots=slots, wait_max_seconds=1000, **{**defaults, **more}), "a")


def checked(moved: dict[str, float], *began: str) -> ProgressChecked:
    return ProgressChecked(i(1, "a"), {RequestId(one): at for one, at in moved.items()}, frozenset(map(RequestId, began)))


def test_nothing_moved_it_is_stopped_and_what_had_not_begun_is_asked_of_its_successor():
    play = play_of()
    play.at(0, arrive("r1", "a"), arrive("r2", "a"), arrive("r3", "a")).gives("grant r1 1/a", "grant r2 1/a")
    assert play.scheduler.next_wakeup() == 60
    play.at(60, Wakeup()).gives("check progress of 1/a")
    play.at(60, checked({"r1": 0, "r2": 0}, "r1")).gives("stop 1/a stuck", "revoke r1 instance_stuck", "revoke r2 instance_stuck")
    play.at(61, LeaseFailed(r("r1"), before_first_byte=False), LeaseFailed(r("r2"), before_first_byte=True)).gives()
    play.at(62, *gone(1, "a")).gives("start 2/a")
    play.at(63, InstanceReady(i(2, "a"))).gives("grant r2 2/a", "grant r3 2/a")
    assert (play.snapshot.stuck_total, play.snapshot.crashes_total, play.snapshot.requeued_total) == (1, 0, 1)
    assert "nothing came from it" in str(play.snapshot.last_error)


def test_slow_but_moving_is_left_alone_for_ever():
    play = play_of()
    play.at(0, arrive("r1", "a")).gives("grant r1 1/a")
    for _ in range(20):
        wakeup = play.scheduler.next_wakeup()
        assert wakeup is not None
        play.at(wakeup, Wakeup()).gives("check progress of 1/a")
        play.at(wakeup, checked({"r1": wakeup - 19}, "r1")).gives()
        assert play.scheduler.next_wakeup() == wakeup + 1
    assert play.snapshot.stuck_total == 0


def test_one_that_moves_vouches_for_the_others_of_its_instance():
    play = play_of()
    play.at(0, arrive("r1", "a"), arrive("r2", "a"))
    play.at(60, Wakeup()).gives("check progress of 1/a")
    play.at(60, checked({"r1": 59, "r2": 0}, "r1")).gives()
    assert play.scheduler.next_wakeup() == 59 + 60  # r2 has not begun


def test_a_long_prompt_is_given_the_time_to_be_read():
    play = play_of()
    play.at(0, arrive("r1", "a", prompt_tokens=400), arrive("r2", "a", prompt_tokens=200))
    assert play.scheduler.next_wakeup() == 60 + 400 * 0.25 == 160  # as long as the first one was alone
    play.at(160, Wakeup()).gives()
    assert play.scheduler.next_wakeup() == 60 + 600 * 0.25 == 210


def test_an_answer_in_one_piece_is_given_the_time_of_the_whole():
    play = play_of()
    play.at(0, arrive("r1", "a", answer_tokens=101))
    assert play.scheduler.next_wakeup() == 160


def test_clients_that_come_and_go_do_not_hide_a_hung_child():
    """Each gives up before its own time is over, and another is there already: silence counts from the last movement."""
    play = play_of()
    play.at(0, arrive("r0", "a")).gives("grant r0 1/a")
    for n in range(1, 6):
        play.at(10 * n, arrive(f"r{n}", "a"), RequestWithdrawn(r(f"r{n - 1}"))).gives(f"grant r{n} 1/a")
    play.at(60, Wakeup()).gives("check progress of 1/a")
    play.at(60, checked({"r5": 50})).gives("stop 1/a stuck", "revoke r5 instance_stuck")


def test_an_answer_that_ended_well_is_a_movement():
    play = play_of()
    play.at(0, arrive("r1", "a"), arrive("r2", "a"))
    play.at(50, LeaseReleased(r("r1"), tokens=9)).gives()
    play.at(60, Wakeup()).gives()
    assert play.scheduler.next_wakeup() == 110


def test_an_instance_nobody_uses_is_never_asked():
    play = play_of()
    play.at(0, arrive("r1", "a"))
    play.at(1, LeaseReleased(r("r1"), tokens=3)).gives()
    play.at(1000, Wakeup()).gives()
    assert play.scheduler.next_wakeup() is None


def test_a_closed_instance_is_watched_too_or_it_would_hold_its_memory_for_ever():
    play = play_of()
    play.at(0, arrive("r1", "a"), arrive("b1", "b"))
    play.at(10, Wakeup()).gives()
    assert play.instance("a").closed_for == "b"
    play.at(60, Wakeup()).gives("check progress of 1/a")
    play.at(60, checked({"r1": 0})).gives("stop 1/a stuck", "revoke r1 instance_stuck")
    play.at(61, LeaseFailed(r("r1"), before_first_byte=True)).gives()
    play.at(62, *gone(1, "a")).gives("start 2/b")  # r1 is older, and its model gave way
    play.at(63, InstanceReady(i(2, "b"))).gives("grant b1 2/b")


def test_a_report_about_one_that_is_on_its_way_out_changes_nothing():
    play = play_of()
    play.at(0, arrive("r1", "a"))
    play.at(60, Wakeup()).gives("check progress of 1/a")
    play.at(60, RequestWithdrawn(r("r1")), UnloadRequested(A), checked({"r1": 0})).gives("stop 1/a unload")
    play.at(61, *gone(1, "a"), checked({"r1": 0})).gives()


def test_without_limits_nothing_is_watched():
    play = play_of(first_token_seconds=0.0)
    play.at(0, arrive("r1", "a"))
    assert play.scheduler.next_wakeup() is None


def test_getting_stuck_counts_as_a_death_and_opens_the_circuit():
    play = play_of()
    now, number = 0.0, 1
    for n in range(DEATHS_MAX):
        play.at(now, arrive(f"r{n}", "a"))
        if not any(view.state == "ready" for view in play.snapshot.instances):
            play.at(now, InstanceReady(i(number, "a")))
        play.at(now + 60, Wakeup()).gives(f"check progress of {number}/a")
        play.at(now + 60, ProgressChecked(i(number, "a"), {r(f"r{n}"): now}))
        play.at(now + 60, LeaseFailed(r(f"r{n}"), before_first_byte=False), *gone(number, "a"))
        now, number = max(now + 60, play.scheduler._book.breaker.blocked_until(A)), number + 1
    assert play.scheduler._book.breaker.is_open(A)
    play.at(play.now, arrive("x", "a")).gives("refuse x backing_off")
    assert play.snapshot.stuck_total == DEATHS_MAX
