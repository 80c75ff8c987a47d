# SPDX-License-Identifier: GPL-3.0-only
"""A request whose instance failed before the first byte stands in its old place again, once."""

from __future__ import annotations

from core.play import Play, arrive, gone, i, loaded, r
from modeld.core.messages import (
    InstanceExited,
    InstanceReady,
    LeaseFailed,
    LeaseReleased,
    MemoryFreed,
    ModelTableReplaced,
    PinChanged,
    RequestWithdrawn,
    ShutdownRequested,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import ModelId
from modeld.errors import BadUpstreamReply

A = ModelId("a")


def failed(request: str, *, begun: bool = False) -> LeaseFailed:
    return LeaseFailed(r(request), before_first_byte=not begun, error=BadUpstreamReply("it hung up"))


def busy(slots: int = 1, **limits: object) -> Play:
    play = loaded(Play({"a": 100, "b": 100}, budget=150, slots=slots, **limits), "a")
    return play.at(1, arrive("r1", "a"), arrive("r2", "a"), arrive("r3", "a"))


def test_it_stands_where_it_stood_and_the_second_time_hears_why():
    play = busy()
    play.at(2, failed("r1")).gives()
    play.at(2.25, Wakeup()).gives("grant r1 1/a")
    play.at(3, failed("r1")).gives("refuse r1 bad_upstream_reply")
    play.at(3.25, Wakeup()).gives("grant r2 1/a")
    assert play.snapshot.requeued_total == 1


def test_what_had_begun_is_over():
    play = busy()
    play.at(2, failed("r1", begun=True)).gives()
    play.at(2.25, Wakeup()).gives("grant r2 1/a")


def test_with_its_instance_gone_it_waits_for_the_successor():
    play = busy(slots=2)
    play.at(2, failed("r1"), *gone(1, "a", code=-9)).gives("revoke r2 instance_died", "start 2/a")
    play.at(2, failed("r2")).gives()
    play.at(3, InstanceReady(i(2, "a"))).gives("grant r1 2/a", "grant r2 2/a")


def test_its_client_may_leave_meanwhile():
    play = busy()
    play.at(2, failed("r1"), RequestWithdrawn(r("r1"))).gives()
    play.at(2.25, Wakeup()).gives("grant r2 1/a")


def test_it_is_not_put_back_where_it_cannot_be_served_any_more():
    play = busy()
    play.at(2, ModelTableReplaced({}), failed("r1")).gives(
        "refuse r2 unknown_model", "refuse r3 unknown_model", "refuse r1 bad_upstream_reply", "stop 1/a replaced"
    )


def test_it_is_not_put_back_when_it_was_told_to_end():
    play = busy(drain_timeout_seconds=5)
    play.at(2, UnloadRequested(A)).gives()
    play.at(7, Wakeup()).gives("revoke r1 unloaded")
    play.at(7, failed("r1")).gives("refuse r1 unloaded", "stop 1/a unload")


def test_it_is_not_put_back_in_a_shutdown():
    play = busy()
    play.at(2, ShutdownRequested()).gives("refuse r2 draining", "refuse r3 draining", "revoke r1 unloaded", "stop 1/a shutdown")
    play.at(2, failed("r1")).gives("refuse r1 unloaded")


def test_it_is_not_put_back_past_infer_timeout():
    play = busy(infer_timeout_seconds=3)
    play.at(4, Wakeup()).gives("revoke r1 deadline_exceeded")
    play.at(4, failed("r1")).gives("refuse r1 deadline_exceeded")


def test_a_failure_reported_twice_counts_once():
    play = busy()
    play.at(2, failed("r1"), failed("r1"), LeaseReleased(r("r1"))).gives()
    play.at(2.25, Wakeup()).gives("grant r1 1/a")


def test_it_makes_its_model_due_by_its_own_arrival():
    """Its instance was evicted for nobody: it crashed. The old request is due at once when its time has come."""
    play = loaded(Play({"a": 100, "b": 100}, budget=150, slots=1, wait_max_seconds=1000), "a")
    play.at(1, arrive("r1", "a"))
    play.at(30, *gone(1, "a", code=-9)).gives("revoke r1 instance_died")
    play.at(30, arrive("b1", "b")).gives("start 2/b")
    play.at(31, failed("r1")).gives()
    play.at(32, InstanceReady(i(2, "b"))).gives("grant b1 2/b")
    assert play.instance("b").closed_for == "a"


def test_who_comes_back_to_a_model_that_fits_no_more_hears_so_at_once():
    """b was pinned while a's request ran: when a dies there is no room for it any more, whoever went."""
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, PinChanged(ModelId("b"), True)).gives()
    play.at(3, InstanceExited(i(1, "a"), code=-9), MemoryFreed(i(1, "a"))).gives("revoke r1 instance_died")
    play.at(4, failed("r1")).gives("refuse r1 cannot_ever_fit")
