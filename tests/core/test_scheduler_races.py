# SPDX-License-Identifier: GPL-3.0-only
"""Races published about other swapping servers, each told as a story here, with both orders of the events that race."""

from __future__ import annotations

from core.play import Play, arrive, gone, i, loaded, r, spec
from modeld.core.messages import InstanceReady, LeaseReleased, LoadRequested, RequestWithdrawn, UnloadRequested, Wakeup
from modeld.core.model import ModelId

A = ModelId("a")


def test_an_idle_unload_that_races_a_request():
    """llama-swap #946: the ttl timer fires behind the scheduler's back and stops what was just given a request. Here one of the two comes
    first, and the other sees it."""
    for request_first in (True, False):
        play = loaded(Play([spec("a", 100, ttl_seconds=10.0)]), "a")
        if request_first:
            play.at(10, arrive("r1", "a"), Wakeup()).gives("grant r1 1/a")
            continue
        play.at(10, Wakeup(), arrive("r1", "a")).gives("stop 1/a ttl")  # no grant on what stops
        play.at(11, *gone(1, "a")).gives("start 2/a")
        play.at(12, InstanceReady(i(2, "a"))).gives("grant r1 2/a")


def test_an_unload_between_a_grant_and_its_first_byte_waits_for_the_answer():
    """A victim or an unloaded model is never stopped under a request that was granted, however short a time ago."""
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), UnloadRequested(A), arrive("r2", "b")).gives("grant r1 1/a")
    play.at(2, LeaseReleased(r("r1"))).gives("stop 1/a unload")


def test_two_loads_that_race_for_the_last_mib():
    """Memory is booked when a load is decided, not when it shows: the second one sees the first, also within one instant."""
    play = Play({"a": 100, "b": 100}, budget=199)
    play.at(0, arrive("r1", "a"), arrive("r2", "b")).gives("start 1/a")
    assert play.snapshot.used_mb == 100
    play = Play({"a": 100, "b": 100}, budget=200)
    play.at(0, arrive("r1", "a"), arrive("r2", "b")).gives("start 1/a", "start 2/b")


def test_memory_that_comes_back_is_given_once():
    """Two models wait for the same stopping child: one gets its memory, the other waits on."""
    play = loaded(Play({"x": 100, "a": 100, "b": 100}, budget=100), "x")
    play.at(1, UnloadRequested(ModelId("x")), arrive("r1", "a"), arrive("r2", "b")).gives("stop 1/x unload")
    play.at(2, *gone(1, "x")).gives("start 2/a")
    assert play.snapshot.used_mb == 100


def test_a_load_in_progress_is_not_killed_for_a_rival_while_it_is_awaited():
    """Ollama unloads what another client is just loading, and both start over. Here an awaited load ends, serves, and then gives way."""
    play = Play({"a": 100, "b": 100}, budget=150, wait_max_seconds=1000)
    play.at(0, arrive("a1", "a")).gives("start 1/a")
    play.at(1, *(arrive(f"b{n}", "b") for n in range(20))).gives()
    for now in range(10, 60, 10):
        play.at(now, Wakeup()).gives()
    play.at(60, InstanceReady(i(1, "a"))).gives("grant a1 1/a")
    play.at(61, LeaseReleased(r("a1"))).gives("stop 1/a evicted for b")


def test_two_simultaneous_loads_of_which_neither_waits_for_ever():
    """Two clients ask for two models that do not fit together, again and again: they are served in turns."""
    play = Play({"a": 100, "b": 100}, budget=150, wait_max_seconds=1000)
    play.at(0, arrive("a1", "a"), arrive("b1", "b")).gives("start 1/a")
    number, now, served = 1, 0.0, []
    for swap in range(1, 7):
        now += 20
        one, other = ("a", "b") if swap % 2 else ("b", "a")
        play.at(now, Wakeup(), InstanceReady(i(number, one))).gives(f"grant {one}{(swap + 1) // 2} {number}/{one}")
        served.append(one)
        play.at(now + 1, arrive(f"{one}{(swap + 1) // 2 + 1}", one)).gives()  # the next one of the same client stands in line
        done = r(f"{one}{(swap + 1) // 2}")
        play.at(now + 2, LeaseReleased(done)).gives(f"stop {number}/{one} evicted for {other}")
        play.at(now + 3, *gone(number, one)).gives(f"start {number + 1}/{other}")
        number += 1
    assert served == ["a", "b"] * 3


def test_a_second_request_during_the_load_joins_it_and_starts_nothing_else():
    """Two simultaneous first requests for one model: one load, both served."""
    play = Play({"a": 100}, slots=2)
    play.at(0, arrive("r1", "a"), arrive("r2", "a")).gives("start 1/a")
    play.at(0, RequestWithdrawn(r("r1")), arrive("r3", "a")).gives()
    play.at(5, InstanceReady(i(1, "a"))).gives("grant r2 1/a", "grant r3 1/a")


def test_a_model_just_loaded_is_not_evicted_before_its_own_request_got_its_slot():
    """vLLM's and Ollama's reports of a model that loads, is evicted by a rival at once, and loads again. Ready and granted are one step."""
    play = Play({"a": 100, "b": 100}, budget=150, turn_max_seconds=0, wait_max_seconds=1000)
    play.at(0, arrive("a1", "a"), arrive("b1", "b")).gives("start 1/a")
    play.at(500, Wakeup()).gives()
    play.at(500, InstanceReady(i(1, "a"))).gives("grant a1 1/a")
    assert (play.instance("a").inflight, play.instance("a").closed_for) == (1, "b")


def test_a_preloaded_model_is_not_evicted_while_it_loads():
    play = Play({"a": 100, "b": 100}, budget=150)
    play.at(0, LoadRequested(A)).gives("start 1/a")
    play.at(1, arrive("b1", "b")).gives()
    play.at(11, Wakeup()).gives()
    play.at(12, InstanceReady(i(1, "a"))).gives("stop 1/a evicted for b")  # then nobody waits for it


def test_the_queue_limit_holds_for_a_loaded_model_too():
    """A server that counts only who waits for a load lets a loaded model's line grow without end."""
    play = loaded(Play({"a": 100}, queue_depth_max=2), "a")
    play.at(1, *(arrive(f"r{n}", "a") for n in range(5))).gives("grant r0 1/a", "refuse r3 queue_full", "refuse r4 queue_full")
    play.at(2, LeaseReleased(r("r0")), arrive("r5", "a"), arrive("r6", "a")).gives("grant r1 1/a", "refuse r6 queue_full")


def test_a_newcomer_does_not_slip_past_the_line_in_the_moment_a_slot_is_free():
    """The slot that a release frees is given in the same step: who comes next finds it taken."""
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "a")).gives("grant r1 1/a")
    play.at(2, LeaseReleased(r("r1")), arrive("r3", "a")).gives("grant r2 1/a")


def test_a_crash_report_that_comes_after_the_stop_was_decided_is_no_second_ending():
    """A victim that dies by itself while it is told to stop: its memory comes back once."""
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("b1", "b")).gives("stop 1/a evicted for b")
    play.at(2, *gone(1, "a", code=-11)).gives("start 2/b")
    assert play.snapshot.crashes_total == 0
