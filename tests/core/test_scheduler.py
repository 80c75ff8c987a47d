# SPDX-License-Identifier: GPL-3.0-only
"""Stories about decisions: each test is one, told in events and the commands they give."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.play import Play, arrive, spec
from modeld.core.messages import (
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    InstanceSpawned,
    LaunchChecked,
    LaunchRejected,
    LeaseFailed,
    LeaseReleased,
    LoadProgressed,
    LoadRequested,
    MemoryFreed,
    ModelTableReplaced,
    RequestWithdrawn,
    SettingsReplaced,
    ShutdownRequested,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import LOCAL, InstanceId, ModelId, RequestId
from modeld.errors import InvariantError, LoadFailed, ModeldError, ModelUnavailable


def i(number: int, model: str) -> InstanceId:
    return InstanceId(f"{number}/{model}")


def r(name: str) -> RequestId:
    return RequestId(name)


A, B, C = ModelId("a"), ModelId("b"), ModelId("c")


def loaded(play: Play, *models: str, at: float = 0.0) -> Play:
    """Load models one after another by the operator's wish."""
    for model in models:
        play.at(at, LoadRequested(ModelId(model)))
        number = len(play.snapshot.instances)
        play.at(at, InstanceReady(i(number, model), pid=100 + number))
    return play


# --- load on demand ---------------------------------------------------------------------------------------------------


def test_the_first_request_loads_and_is_granted_when_ready():
    play = Play({"a": 100})
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(2, InstanceReady(i(1, "a"), pid=7)).gives("grant r1 1/a")
    play.at(3, LeaseReleased(r("r1"))).gives()
    play.at(4, arrive("r2", "a")).gives("grant r2 1/a")
    assert play.snapshot.loads_total == 1


def test_a_launch_is_checked_before_anything_is_started():
    play = Play({"a": 100}, checks=False)
    play.at(0, arrive("r1", "a")).gives("check a")
    play.at(0, arrive("r2", "a")).gives()
    play.at(1, LaunchChecked(A, "v1")).gives("start 1/a")


def test_a_rejected_launch_evicts_nobody_and_tells_every_waiter():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.checks = False
    play.at(1, arrive("r1", "b"), arrive("r2", "b")).gives("check b")
    error = ModelUnavailable("the file is gone")
    play.at(2, LaunchRejected(B, "v1", error)).gives("refuse r1 model_unavailable", "refuse r2 model_unavailable")
    assert play.instance("a").state == "ready"


def test_a_check_of_a_file_that_was_replaced_meanwhile_counts_for_nothing():
    play = Play({"a": 100}, checks=False)
    play.at(0, arrive("r1", "a")).gives("check a")
    newer = {A: replace(play.models[A], fingerprint="v2")}
    play.at(1, ModelTableReplaced(newer)).gives("check a")
    play.at(2, LaunchChecked(A, "v1")).gives()
    play.at(3, LaunchChecked(A, "v2")).gives("start 1/a")


def test_a_rejection_about_a_file_that_was_replaced_meanwhile_fails_nobody():
    play = Play({"a": 100}, checks=False)
    play.at(0, arrive("r1", "a")).gives("check a")
    play.at(1, ModelTableReplaced({A: replace(play.models[A], fingerprint="v2")})).gives("check a")
    play.at(2, LaunchRejected(A, "v1", ModelUnavailable("the file is gone"))).gives()
    play.at(3, LaunchChecked(A, "v2")).gives("start 1/a")


def test_one_load_however_many_wait():
    play = Play({"a": 100}, queue_depth_max=1000, slots=4)
    play.at(0, *[arrive(f"r{n}", "a") for n in range(1000)]).gives("start 1/a")
    play.at(1, InstanceReady(i(1, "a"))).gives(*[f"grant r{n} 1/a" for n in range(4)])


def test_a_load_belongs_to_the_daemon_not_to_who_asked_first():
    play = Play({"a": 100})
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(1, RequestWithdrawn(r("r1"))).gives()
    play.at(2, InstanceReady(i(1, "a"))).gives()
    assert play.instance("a").state == "ready"


def test_as_many_in_flight_as_there_are_slots_then_first_in_first_out():
    play = loaded(Play({"a": 100}, slots=2), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a"), arrive("r3", "a"), arrive("r4", "a")).gives("grant r1 1/a", "grant r2 1/a")
    play.at(2, LeaseReleased(r("r2"))).gives("grant r3 1/a")
    play.at(3, LeaseReleased(r("r1"))).gives("grant r4 1/a")


def test_after_a_failure_nothing_is_granted_until_the_report_of_a_death_had_time_to_come():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a")).gives("grant r1 1/a")
    play.at(2, LeaseFailed(r("r1"), before_first_byte=False), arrive("r3", "a")).gives()
    assert play.scheduler.next_wakeup() == 2.25
    play.at(2.1, InstanceExited(i(1, "a"), code=-9), MemoryFreed(i(1, "a"))).gives("start 2/a")
    play.at(3, InstanceReady(i(2, "a"))).gives("grant r2 2/a")
    play.at(4, LeaseFailed(r("r2"), before_first_byte=False)).gives()
    play.at(4.25, Wakeup()).gives("grant r3 2/a")  # it lives


def test_two_models_that_fit_load_at_the_same_time():
    play = Play({"a": 100, "b": 100}, budget=200)
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(0, arrive("r2", "b")).gives("start 2/b")
    play.at(1, InstanceReady(i(2, "b"))).gives("grant r2 2/b")


# --- budget and eviction ----------------------------------------------------------------------------------------------


def test_an_idle_rival_is_evicted_and_counts_until_its_memory_is_free():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "b")).gives("stop 1/a evicted for b")
    assert play.snapshot.used_mb == 100
    play.at(2, InstanceExited(i(1, "a"), code=0)).gives()
    assert play.snapshot.used_mb == 100
    play.at(3, MemoryFreed(i(1, "a"))).gives("start 2/b")
    assert play.snapshot.evictions_total == 1


def test_the_least_recently_used_goes_and_no_more_than_needed():
    play = Play({"a": 100, "b": 100, "c": 100, "d": 100}, budget=300)
    loaded(play, "a", at=0)
    loaded(play, "b", at=1)
    loaded(play, "c", at=2)
    play.at(3, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(4, LeaseReleased(r("r1"))).gives()
    play.at(5, arrive("r2", "d")).gives("stop 2/b evicted for d")


def test_a_victim_that_turns_out_unnecessary_is_spared():
    play = Play({"small": 50, "big": 200, "c": 200}, budget=260)
    loaded(play, "small", at=0)
    loaded(play, "big", at=1)
    play.at(2, arrive("r1", "c")).gives("stop 2/big evicted for c")


def test_a_waiting_model_closes_its_rival_after_fairness_wait():
    play = loaded(Play({"a": 100, "b": 100}, budget=150, slots=2), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, arrive("r2", "b")).gives()
    play.at(9, arrive("r3", "a")).gives("grant r3 1/a")  # b is not due yet
    assert play.scheduler.next_wakeup() == 12
    play.at(12, Wakeup()).gives()
    assert (play.instance("a").state, play.instance("a").closed_for) == ("draining", "b")
    play.at(13, LeaseReleased(r("r1")), arrive("r4", "a")).gives()
    play.at(20, LeaseReleased(r("r3"))).gives("stop 1/a evicted for b")
    play.at(21, InstanceExited(i(1, "a"), code=-15), MemoryFreed(i(1, "a"))).gives("start 2/b")
    play.at(22, InstanceReady(i(2, "b"))).gives("grant r2 2/b")
    play.at(22.5, LeaseReleased(r("r2"))).gives("stop 2/b evicted for a")
    assert play.snapshot.fairness_closings_total == 1


def test_a_closing_that_nobody_needs_any_more_ends():
    play = loaded(Play({"a": 100, "b": 100}, budget=150, slots=2), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, arrive("r2", "b")).gives()
    play.at(12, Wakeup(), arrive("r3", "a")).gives()
    play.at(13, RequestWithdrawn(r("r2"))).gives("grant r3 1/a")
    assert (play.instance("a").state, play.instance("a").closed_for) == ("ready", "")


def test_older_requests_in_the_rivals_line_go_first():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a")).gives("grant r1 1/a")
    play.at(2, arrive("r3", "b")).gives()
    play.at(3, LeaseReleased(r("r1"))).gives("grant r2 1/a")
    assert play.instance("a").state == "ready"
    play.at(4, LeaseReleased(r("r2"))).gives("stop 1/a evicted for b")


def test_idle_ones_go_before_busy_ones():
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=200), "a", "b")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, arrive("r2", "c")).gives("stop 2/b evicted for c")
    assert play.instance("a").state == "ready"


def test_what_can_never_fit_is_refused_with_the_numbers_and_evicts_nothing():
    play = loaded(Play({"a": 100, "big": 200}, budget=220, margin_mb=30), "a")
    play.at(1, arrive("r1", "big")).gives("refuse r1 cannot_ever_fit")
    message = str(play.refused("r1"))
    assert "200 MB" in message
    assert "190 MB" in message
    assert play.instance("a").state == "ready"


def test_the_margin_is_kept_free():
    play = loaded(Play({"a": 100, "b": 100}, budget=210, margin_mb=20), "a")
    play.at(1, arrive("r1", "b")).gives("stop 1/a evicted for b")


def test_a_pinned_model_is_never_a_victim_and_its_room_is_not_promised():
    play = loaded(Play([spec("a", 100, pinned=True), spec("b", 100)], budget=150), "a")
    play.at(1, arrive("r1", "b")).gives("refuse r1 cannot_ever_fit")
    assert "50 MB" in str(play.refused("r1"))


def test_a_pinned_model_stays_where_a_younger_one_can_go():
    play = Play([spec("a", 100, pinned=True), spec("b", 100), spec("c", 100)], budget=250)
    loaded(play, "a", at=0)
    loaded(play, "b", at=1)
    play.at(2, arrive("r1", "c")).gives("stop 2/b evicted for c")


def test_no_more_is_evicted_than_what_is_not_on_its_way_back_already():
    play = Play({"a": 50, "b": 50, "c": 50, "d": 100}, budget=150)
    loaded(play, "a", at=0)
    loaded(play, "b", at=1)
    loaded(play, "c", at=2)
    play.at(3, UnloadRequested(C)).gives("stop 3/c unload")
    play.at(4, arrive("r1", "d")).gives("stop 1/a evicted for d")


def test_the_memory_of_a_failed_child_is_waited_for_before_anybody_is_evicted():
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=200), "a")
    play.at(1, arrive("r1", "b")).gives("start 2/b")
    play.at(2, InstanceFailed(i(2, "b"), LoadFailed("no"))).gives("refuse r1 load_failed")
    play.at(3, arrive("r2", "c")).gives()
    play.at(4, InstanceExited(i(2, "b"), code=1), MemoryFreed(i(2, "b"))).gives("start 3/c")


def test_a_load_in_progress_that_is_awaited_is_never_a_victim():
    play = Play({"a": 100, "b": 100}, budget=150)
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(1, arrive("r2", "b")).gives()
    play.at(20, Wakeup()).gives()  # b is due, and a load is not stopped for it
    play.at(21, InstanceReady(i(1, "a"))).gives("grant r1 1/a")
    assert play.instance("a").state == "draining"
    play.at(22, LeaseReleased(r("r1"))).gives("stop 1/a evicted for b")


def test_a_load_nobody_waits_for_gives_way():
    play = Play({"a": 100, "b": 100}, budget=150)
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(1, RequestWithdrawn(r("r1"))).gives()
    play.at(2, arrive("r2", "b")).gives("stop 1/a evicted for b")
    play.at(3, InstanceReady(i(1, "a"))).gives()
    play.at(4, InstanceExited(i(1, "a")), MemoryFreed(i(1, "a"))).gives("start 2/b")


def test_requests_that_come_while_an_unwanted_load_stops_still_age():
    play = Play({"a": 100, "b": 100}, budget=150, wait_max_seconds=10)
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(1, RequestWithdrawn(r("r1")))
    play.at(2, arrive("r2", "b"), arrive("r3", "a")).gives("stop 1/a evicted for b")
    play.at(12, Wakeup()).gives("refuse r2 wait_timeout", "refuse r3 wait_timeout")


def test_memory_on_its_way_back_is_not_asked_for_twice():
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=200), "a", "b")
    play.at(1, arrive("r1", "c")).gives("stop 1/a evicted for c")
    play.at(2, arrive("r2", "c"), Wakeup()).gives()
    assert play.instance("b").state == "ready"


def test_a_smaller_model_starts_beside_one_that_waits_for_room():
    play = loaded(Play({"a": 100, "big": 140, "s": 20}, budget=170), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, arrive("r2", "big")).gives()
    play.at(3, arrive("r3", "s")).gives("start 2/s")
    play.at(4, LeaseReleased(r("r1"))).gives("stop 1/a evicted for big")
    play.at(5, InstanceExited(i(1, "a")), MemoryFreed(i(1, "a"))).gives("start 3/big")


def test_room_kept_for_a_due_request_is_not_given_to_a_younger_one():
    play = loaded(Play({"a": 100, "big": 140, "s": 20}, budget=150), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, arrive("r2", "big")).gives()
    play.at(12, arrive("r3", "s")).gives()
    play.at(13, RequestWithdrawn(r("r2"))).gives("start 2/s")


def test_an_external_model_costs_nothing_and_is_never_evicted():
    play = Play([spec("far", 0, external=True), spec("a", 100), spec("b", 100)], budget=100)
    play.at(0, arrive("r1", "far")).gives("start 1/far")
    play.at(0, InstanceReady(i(1, "far"))).gives("grant r1 1/far")
    play.at(1, LeaseReleased(r("r1")), arrive("r2", "a")).gives("start 2/a")
    play.at(2, InstanceReady(i(2, "a")), LeaseReleased(r("r2"))).gives("grant r2 2/a")
    play.at(2, arrive("r3", "b")).gives("stop 2/a evicted for b")
    assert play.instance("far").state == "ready"


def test_with_an_unlimited_budget_nobody_is_evicted():
    play = loaded(Play({"a": 10**6, "b": 10**6}), "a")
    play.at(1, arrive("r1", "b")).gives("start 2/b")


def test_a_big_model_is_served_although_small_ones_load_one_after_another():
    """Small models whose loads overlap would hold the memory for ever, were nothing kept for the one that is due."""
    play = Play({"big": 280, "s1": 90, "s2": 90, "s3": 90, "s4": 90}, budget=300)
    play.at(0, arrive("r1", "s1"), arrive("r2", "s2")).gives("start 1/s1", "start 2/s2")
    play.at(1, arrive("rb", "big"), arrive("r3", "s3")).gives("start 3/s3")  # big is not due
    play.at(2, InstanceReady(i(1, "s1"))).gives("grant r1 1/s1")
    play.at(11, Wakeup()).gives()
    assert play.instance("s1").closed_for == "big"  # already now, although the others still load
    play.at(12, InstanceReady(i(2, "s2")), arrive("r4", "s4")).gives("grant r2 2/s2")
    play.at(13, LeaseReleased(r("r1"))).gives("stop 1/s1 evicted for big")
    play.at(14, LeaseReleased(r("r2"))).gives("stop 2/s2 evicted for big")
    gone = [event for one in ("1/s1", "2/s2") for event in (InstanceExited(InstanceId(one)), MemoryFreed(InstanceId(one)))]
    play.at(15, *gone).gives()  # s4 would fit, and is younger
    play.at(16, InstanceReady(i(3, "s3"))).gives("grant r3 3/s3")
    play.at(17, LeaseReleased(r("r3"))).gives("stop 3/s3 evicted for big")
    play.at(18, InstanceExited(i(3, "s3")), MemoryFreed(i(3, "s3"))).gives("start 4/big")


def test_pins_that_do_not_fit_do_not_refuse_everybody_else():
    play = Play([spec("huge", 400, pinned=True), spec("a", 100)], budget=300)
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play = Play([spec("p", 200, pinned=True), spec("q", 200, pinned=True), spec("a", 100)], budget=300)
    play.at(0, arrive("r1", "a")).gives("start 1/a")


def test_a_resident_model_is_served_although_a_pin_came_later():
    play = loaded(Play([spec("a", 200)], budget=300), "a")
    play.at(1, ModelTableReplaced(play.models | {B: spec("b", 150, pinned=True)})).gives()
    play.at(2, arrive("r1", "a")).gives("grant r1 1/a")


# --- lines, limits, deadlines -----------------------------------------------------------------------------------------


def test_a_full_line_refuses_with_a_retry_after():
    play = loaded(Play({"a": 100}, queue_depth_max=1), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a"), arrive("r3", "a")).gives("grant r1 1/a", "refuse r3 queue_full")
    error = play.refused("r3")
    assert isinstance(error, ModeldError)
    assert error.retry_after_seconds is not None
    assert error.retry_after_seconds >= 1


def test_with_depth_zero_a_free_slot_still_serves():
    play = loaded(Play({"a": 100}, queue_depth_max=0), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a")).gives("grant r1 1/a", "refuse r2 queue_full")


def test_waiting_bodies_are_capped_together():
    play = Play({"a": 100, "b": 100}, waiting_bytes_max=1000)
    play.at(0, arrive("r1", "a", 600), arrive("r2", "b", 600)).gives("start 1/a", "refuse r2 queue_full")
    play.at(1, RequestWithdrawn(r("r1")), arrive("r3", "b", 600)).gives("start 2/b")


def test_who_waits_too_long_is_refused_on_time():
    play = loaded(Play({"a": 100}, wait_max_seconds=5), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a")).gives("grant r1 1/a")
    assert play.scheduler.next_wakeup() == 6
    play.at(5.9, Wakeup()).gives()
    play.at(6, Wakeup()).gives("refuse r2 wait_timeout")
    assert "a free slot" in str(play.refused("r2"))


def test_the_clock_stops_while_the_own_model_loads_and_goes_on_after():
    play = loaded(Play({"a": 100, "b": 100}, budget=150, wait_max_seconds=10), "a")
    play.at(1, arrive("r1", "b"), arrive("r2", "b")).gives("stop 1/a evicted for b")
    play.at(5, InstanceExited(i(1, "a")), MemoryFreed(i(1, "a"))).gives("start 2/b")
    play.at(499, Wakeup()).gives()
    play.at(500, InstanceReady(i(2, "b"))).gives("grant r1 2/b")
    assert play.scheduler.next_wakeup() == 506
    play.at(506, Wakeup()).gives("refuse r2 wait_timeout")


def test_infer_timeout_ends_a_running_request():
    play = loaded(Play({"a": 100}, infer_timeout_seconds=3), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    assert play.scheduler.next_wakeup() == 4
    play.at(4, Wakeup()).gives("revoke r1 deadline_exceeded")
    play.at(4, Wakeup()).gives()
    play.at(5, LeaseReleased(r("r1"))).gives()


def test_a_withdrawal_frees_the_slot_also_between_grant_and_use():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a")).gives("grant r1 1/a")
    play.at(2, RequestWithdrawn(r("r1"))).gives("grant r2 1/a")
    play.at(3, LeaseReleased(r("r1")), RequestWithdrawn(r("r1"))).gives()


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_load_tells_every_waiter_releases_memory_and_backs_off():
    play = Play({"a": 100}, budget=100)
    play.at(0, arrive("r1", "a"), arrive("r2", "a")).gives("start 1/a")
    play.at(1, InstanceFailed(i(1, "a"), LoadFailed("no"))).gives("refuse r1 load_failed", "refuse r2 load_failed")
    assert play.snapshot.used_mb == 100
    play.at(1, InstanceExited(i(1, "a"), code=1), MemoryFreed(i(1, "a"))).gives()
    assert play.snapshot.used_mb == 0
    assert play.instance("a").state == "failed"
    assert play.snapshot.error == "a: no"
    play.at(1.1, arrive("r3", "a")).gives("refuse r3 backing_off")
    play.at(3, arrive("r4", "a")).gives("start 2/a")


def test_the_backoff_grows_with_each_failure_and_ends_with_a_success():
    play = Play({"a": 100})
    waits = []
    now = 0.0
    for attempt in range(1, 4):
        play.at(now, arrive(f"r{attempt}", "a"))
        play.at(now, InstanceFailed(i(attempt, "a"), LoadFailed("no")), InstanceExited(i(attempt, "a")), MemoryFreed(i(attempt, "a")))
        play.at(now, arrive(f"x{attempt}", "a")).gives(f"refuse x{attempt} backing_off")
        error = play.refused(f"x{attempt}")
        assert isinstance(error, ModeldError)
        assert error.retry_after_seconds is not None
        waits.append(error.retry_after_seconds)
        now += error.retry_after_seconds
    assert waits == sorted(waits)
    assert waits[-1] > waits[0]
    play.at(now, arrive("ok", "a")).gives("start 4/a")
    play.at(now, InstanceReady(i(4, "a"))).gives("grant ok 4/a")
    assert play.snapshot.error is None
    play.at(now, UnloadRequested(A), LeaseReleased(r("ok")), InstanceExited(i(4, "a")), MemoryFreed(i(4, "a")), arrive("new", "a"))
    play.at(now, InstanceFailed(i(5, "a"), LoadFailed("no")), arrive("x", "a"))
    error = play.refused("x")
    assert isinstance(error, ModeldError)
    assert error.retry_after_seconds == waits[0]  # counted from the beginning again


def test_a_replaced_file_ends_the_backoff():
    play = Play({"a": 100})
    play.at(0, arrive("r1", "a"))
    play.at(0, InstanceFailed(i(1, "a"), LoadFailed("no")), InstanceExited(i(1, "a")), MemoryFreed(i(1, "a")))
    play.at(0, ModelTableReplaced({A: replace(play.models[A], fingerprint="v2")}), arrive("r2", "a")).gives("start 2/a")


def test_a_child_that_ends_while_loading_is_a_failed_load_also_when_the_exit_is_seen_first():
    play = Play({"a": 100})
    play.at(0, arrive("r1", "a"), InstanceSpawned(i(1, "a"), 42), LoadProgressed(i(1, "a"), 0.5))
    assert (play.instance("a").pid, play.instance("a").progress) == (42, 0.5)
    play.at(1, InstanceExited(i(1, "a"), code=-9)).gives("refuse r1 instance_died")
    play.at(1, InstanceFailed(i(1, "a"), LoadFailed("no")), MemoryFreed(i(1, "a"))).gives()


def test_a_crash_ends_its_requests_with_an_error_and_the_next_one_starts_it_again():
    play = loaded(Play({"a": 100}, slots=2), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a"), arrive("r3", "a")).gives("grant r1 1/a", "grant r2 1/a")
    play.at(2, InstanceExited(i(1, "a"), code=-11)).gives("revoke r1 instance_died", "revoke r2 instance_died")
    assert "signal 11" in str(play.refused("r1"))
    play.at(2, MemoryFreed(i(1, "a"))).gives("start 2/a")
    play.at(3, LeaseFailed(r("r1"), before_first_byte=False), LeaseReleased(r("r2"))).gives()
    play.at(4, InstanceReady(i(2, "a"))).gives("grant r3 2/a")
    assert play.snapshot.crashes_total == 1


def test_a_report_about_nobody_is_our_bug_and_changes_nothing():
    play = loaded(Play({"a": 100}), "a")
    with pytest.raises(InvariantError, match="9/a"):
        play.at(1, InstanceReady(i(9, "a")))
    with pytest.raises(InvariantError, match="became_ready"):
        play.at(1, InstanceReady(i(1, "a")))
    assert play.instance("a").state == "ready"


# --- the operator -----------------------------------------------------------------------------------------------------


def test_an_unload_drains_and_past_the_deadline_ends_the_requests():
    play = loaded(Play({"a": 100}, drain_timeout_seconds=30), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, UnloadRequested(A)).gives()
    assert play.scheduler.next_wakeup() == 32
    play.at(32, Wakeup()).gives("revoke r1 unloaded")
    play.at(33, LeaseReleased(r("r1"))).gives("stop 1/a unload")


def test_past_the_drain_deadline_there_is_nothing_more_to_wake_up_for():
    play = loaded(Play({"a": 100}, drain_timeout_seconds=5), "a")
    play.at(1, arrive("r1", "a"), UnloadRequested(A)).gives("grant r1 1/a")
    play.at(6, Wakeup()).gives("revoke r1 unloaded")
    assert play.scheduler.next_wakeup() is None


def test_an_unload_is_not_undone_by_a_file_that_changes():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a"), UnloadRequested(A)).gives("grant r1 1/a")
    play.at(2, ModelTableReplaced({A: replace(play.models[A], fingerprint="v2")}), LeaseReleased(r("r1"))).gives("stop 1/a unload")
    play.at(3, InstanceExited(i(1, "a")), MemoryFreed(i(1, "a"))).gives()


def test_a_wish_for_a_model_that_is_there_is_granted_and_gone():
    play = loaded(Play([spec("a", 100, ttl_seconds=10.0)]), "a")
    play.at(1, LoadRequested(A)).gives()
    play.at(10, Wakeup()).gives("stop 1/a ttl")
    play.at(11, InstanceExited(i(1, "a")), MemoryFreed(i(1, "a"))).gives()


def test_a_ttl_unloads_an_idle_model_and_a_request_in_time_keeps_it():
    play = loaded(Play([spec("a", 100, ttl_seconds=10.0)]), "a")
    assert play.scheduler.next_wakeup() == 10
    play.at(9, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(12, LeaseReleased(r("r1"))).gives()
    play.at(20, Wakeup()).gives()
    play.at(22, Wakeup()).gives("stop 1/a ttl")


def test_a_request_at_the_moment_of_the_ttl_wins():
    play = loaded(Play([spec("a", 100, ttl_seconds=10.0)]), "a")
    play.at(10, arrive("r1", "a")).gives("grant r1 1/a")


def test_a_replaced_file_is_drained_and_loaded_again():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, ModelTableReplaced({A: replace(play.models[A], fingerprint="v2")}), arrive("r2", "a")).gives()
    play.at(3, LeaseReleased(r("r1"))).gives("stop 1/a replaced")
    play.at(4, InstanceExited(i(1, "a")), MemoryFreed(i(1, "a"))).gives("start 2/a")
    play.at(5, InstanceReady(i(2, "a"))).gives("grant r2 2/a")


def test_a_model_taken_away_refuses_who_waits_and_drains_who_runs():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a")).gives("grant r1 1/a")
    play.at(2, ModelTableReplaced({})).gives("refuse r2 unknown_model")
    play.at(3, LeaseReleased(r("r1"))).gives("stop 1/a replaced")
    play.at(4, InstanceExited(i(1, "a")), MemoryFreed(i(1, "a"))).gives()


def test_preload_loads_what_fits_and_evicts_nobody_for_it():
    play = Play({"a": 100, "b": 100}, budget=150)
    play.at(0, LoadRequested(A, may_evict=False), LoadRequested(B, may_evict=False)).gives("start 1/a")
    play.at(1, InstanceReady(i(1, "a"))).gives()
    assert play.instance("a").state == "ready"


def test_an_operators_load_evicts_idle_ones_but_drains_nobody():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    play.at(2, LoadRequested(B)).gives()
    assert play.instance("a").state == "ready"
    play.at(3, LeaseReleased(r("r1"))).gives("stop 1/a evicted for b")


def test_a_wish_that_can_never_come_true_is_dropped_with_the_reason():
    play = Play({"a": 100}, budget=50)
    play.at(0, LoadRequested(A)).gives()
    assert "100 MB" in str(play.snapshot.last_error)


def test_a_smaller_budget_holds_for_what_comes_next():
    play = loaded(Play({"a": 100, "b": 100}, budget=300), "a")
    play.at(1, SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 150}))).gives()
    play.at(2, arrive("r1", "b")).gives("stop 1/a evicted for b")


def test_an_unavailable_model_is_refused_with_its_reason():
    play = Play([spec("a", 100, unavailable="the file is truncated")])
    play.at(0, arrive("r1", "a")).gives("refuse r1 model_unavailable")
    assert "truncated" in str(play.refused("r1"))


def test_a_shutdown_does_not_wait_for_a_back_off():
    play = Play({"a": 100})
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(0, InstanceFailed(i(1, "a"), LoadFailed("no")), InstanceExited(i(1, "a")), MemoryFreed(i(1, "a"))).gives(
        "refuse r1 load_failed"
    )
    assert [view.state for view in play.snapshot.instances] == ["failed"]
    assert play.snapshot.instances[0].last_used == 0
    play.at(0, ShutdownRequested()).gives()
    assert play.snapshot.instances == ()
    assert play.scheduler.is_empty()


def test_a_check_that_ends_after_the_shutdown_leaves_nothing_behind():
    play = Play({"a": 100}, checks=False)
    play.at(0, arrive("r1", "a")).gives("check a")
    play.at(1, ShutdownRequested()).gives("refuse r1 draining")
    play.at(2, LaunchRejected(ModelId("a"), "v1", LoadFailed("torn"))).gives()
    assert play.snapshot.instances == ()


def test_shutdown_refuses_the_waiting_ends_the_running_and_stops_all():
    play = loaded(Play({"a": 100, "b": 100}), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a"), arrive("r3", "b")).gives("grant r1 1/a", "start 2/b")
    play.at(2, ShutdownRequested()).gives(
        "refuse r2 draining", "refuse r3 draining", "revoke r1 unloaded", "stop 1/a shutdown", "stop 2/b shutdown"
    )
    play.at(2, arrive("r4", "a")).gives("refuse r4 draining")
    play.at(3, LeaseReleased(r("r1")), InstanceExited(i(1, "a")), MemoryFreed(i(1, "a"))).gives()
    play.at(3, InstanceReady(i(2, "b")), InstanceExited(i(2, "b")), MemoryFreed(i(2, "b"))).gives()
    assert play.snapshot.instances == ()
    assert play.snapshot.used_mb == 0
