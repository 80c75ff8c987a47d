# SPDX-License-Identifier: GPL-3.0-only
"""What a request may wait, by our setting and by its own; and the classes, which may be lowered."""

from __future__ import annotations

import pytest

from core.play import Play, arrive, batch, gone, i, loaded, r, spec
from modeld.core.messages import InstanceReady, LeaseFailed, LeaseReleased, UnloadRequested, Wakeup
from modeld.core.model import ModelId, Priority
from modeld.errors import DeadlineUnreachable, ModeldError, WaitTimeout

A = ModelId("a")


def test_the_clients_own_limit_holds_while_it_stands_in_line():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a", timeout_seconds=5)).gives("grant r1 1/a")
    assert play.scheduler.next_wakeup() == 6
    play.at(6, Wakeup()).gives("refuse r2 wait_timeout")
    assert "waited 5.0 s (X-Modeld-Timeout) for a free slot" in str(play.refused("r2"))


@pytest.mark.parametrize("timeout", [4, 40])
def test_the_clients_own_limit_does_not_stop_while_its_model_loads(timeout: float):
    """Whether it comes before max_wait or after it."""
    play = Play({"a": 100}, wait_max_seconds=10)
    play.at(0, arrive("r1", "a"), arrive("r2", "a", timeout_seconds=timeout)).gives("start 1/a")
    while (wakeup := play.scheduler.next_wakeup()) is not None and wakeup < timeout:
        play.at(wakeup, Wakeup()).gives()
    assert wakeup == timeout
    play.at(timeout, Wakeup()).gives("refuse r2 wait_timeout")
    play.at(50, InstanceReady(i(1, "a"))).gives("grant r1 1/a")


def test_a_limit_that_is_granted_in_time_ends_nothing_later():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a", timeout_seconds=2)).gives("grant r1 1/a")
    play.at(50, Wakeup()).gives()
    assert play.scheduler.next_wakeup() is None


def test_a_request_whose_limit_has_passed_when_its_instance_fails_is_not_asked_again():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a", timeout_seconds=2)).gives("grant r1 1/a")
    play.at(4, LeaseFailed(r("r1"), before_first_byte=True)).gives("refuse r1 wait_timeout")


def test_a_limit_that_cannot_be_kept_is_refused_at_the_door():
    play = loaded(Play({"a": 100}), "a")
    for n in range(3):
        play.at(10 * n, arrive(f"r{n}", "a"))
        play.at(10 * n + 8, LeaseReleased(r(f"r{n}")))
    play.at(100, arrive("x", "a"), arrive("y", "a")).gives("grant x 1/a")
    play.at(101, arrive("z", "a", timeout_seconds=14)).gives("refuse z deadline_unreachable")
    error = play.refused("z")
    assert isinstance(error, DeadlineUnreachable)
    assert error.retry_after_seconds == 15  # 7 s of x, 8 s of y
    play.at(101, arrive("z2", "a", timeout_seconds=16)).gives()


def test_a_limit_shorter_than_a_load_that_was_never_measured_is_let_in():
    play = Play({"a": 100})
    play.at(0, arrive("r1", "a", timeout_seconds=1)).gives("start 1/a")


def test_max_wait_goes_on_where_it_stopped_also_after_a_second_try():
    """2 s in line, a grant that failed, 3 s more in line: five of eight."""
    play = loaded(Play({"a": 100}, wait_max_seconds=8, drain_timeout_seconds=1000), "a")
    play.at(0, arrive("r0", "a"), arrive("r1", "a")).gives("grant r0 1/a")
    play.at(2, LeaseReleased(r("r0"))).gives("grant r1 1/a")
    play.at(100, arrive("other", "a"), LeaseFailed(r("r1"), before_first_byte=True), UnloadRequested(A)).gives("stop 1/a unload")
    play.at(103, Wakeup()).gives()
    play.at(106, Wakeup()).gives("refuse r1 wait_timeout")
    assert isinstance(play.refused("r1"), WaitTimeout)


def test_a_line_that_alone_takes_far_longer_than_max_wait_is_refused_at_the_door():
    play = loaded(Play({"a": 100}, wait_max_seconds=10, queue_depth_max=1000), "a")
    play.at(0, arrive("r0", "a"))
    play.at(6, LeaseReleased(r("r0"))).gives()
    play.at(7, *(arrive(f"x{n}", "a") for n in range(5))).gives("grant x0 1/a")
    play.at(7, arrive("late", "a")).gives("refuse late deadline_unreachable")
    error = play.refused("late")
    assert isinstance(error, ModeldError)
    assert error.retry_after_seconds == 30


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_in_a_line():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r0", "a"), batch("b1", "a"), arrive("n1", "a")).gives("grant r0 1/a")
    play.at(2, LeaseReleased(r("r0"))).gives("grant n1 1/a")
    play.at(3, arrive("n2", "a"), LeaseReleased(r("n1"))).gives("grant n2 1/a")
    play.at(11, arrive("n3", "a"), arrive("n4", "a"), LeaseReleased(r("n2"))).gives("grant b1 1/a")  # it is old enough now
    play.at(12, LeaseReleased(r("b1"))).gives("grant n3 1/a")


def test_a_request_may_lower_the_class_of_its_model_and_not_raise_it():
    play = loaded(Play([spec("a", 100, priority=Priority.NORMAL)]), "a")
    play.at(1, arrive("r0", "a"), batch("low", "a"), arrive("plain", "a"), arrive("high", "a", priority=Priority.INTERACTIVE))
    waits = {one.request: one.priority for one in play.scheduler.explain(1).requests}
    assert waits == {"low": Priority.BATCH, "plain": Priority.NORMAL, "high": Priority.NORMAL}


def test_who_shares_a_model_gets_as_much_of_it_as_the_other():
    """A flood of one principal, and another that asks one after the other: they alternate."""
    play = loaded(Play({"a": 100}, queue_depth_max=100), "a")
    play.at(0, arrive("r0", "a"), *(arrive(f"flood{n}", "a", by="flood", work=100.0) for n in range(20)))
    running, got = "r0", []
    for n in range(10):
        play.at(0.1 * n, arrive(f"one{n}", "a", by="one", work=100.0)).gives()
        for _ in range(2):
            play.at(0.1 * n, LeaseReleased(r(running)))
            running = next(iter(play.scheduler._book.leases))
            got.append(running.rstrip("0123456789"))
    assert got.count("one") == got.count("flood") == 10


def test_after_a_swap_the_oldest_goes_first_whatever_its_class():
    play = loaded(Play({"a": 100, "b": 100}, budget=150, wait_max_seconds=1000), "b")
    play.at(0, arrive("b1", "b"), batch("old", "a"))
    play.at(9, arrive("new", "a"))
    play.at(20, Wakeup(), LeaseReleased(r("b1"))).gives("stop 1/b evicted for a")
    play.at(21, *gone(1, "b")).gives("start 2/a")
    play.at(22, InstanceReady(i(2, "a"))).gives("grant old 2/a")
