# SPDX-License-Identifier: GPL-3.0-only
"""Models wanted without a request: by preload, by the operator, or because the file of a resident one was replaced."""

from __future__ import annotations

from dataclasses import replace

from core.play import Play, arrive, gone, i, loaded, r, spec
from modeld.core.messages import (
    InstanceReady,
    LaunchChecked,
    LeaseReleased,
    LoadRequested,
    ModelTableReplaced,
    RequestWithdrawn,
    SettingsReplaced,
    ShutdownRequested,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import LOCAL, ModelId

A, B = ModelId("a"), ModelId("b")


def test_a_resident_model_whose_file_was_replaced_is_loaded_again_although_nobody_asks():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, ModelTableReplaced({A: replace(play.models[A], fingerprint="v2")})).gives("stop 1/a replaced")
    play.at(2, *gone(1, "a")).gives("start 2/a")


def test_a_wish_while_the_old_instance_still_ends_comes_true_after_it():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, UnloadRequested(A)).gives("stop 1/a unload")
    play.at(2, LoadRequested(A)).gives()
    play.at(3, *gone(1, "a")).gives("start 2/a")


def test_a_wish_whose_file_is_replaced_while_it_is_checked_is_checked_anew():
    play = Play({"a": 100}, checks=False)
    play.at(0, LoadRequested(A)).gives("check a")
    play.at(1, ModelTableReplaced({A: replace(play.models[A], fingerprint="v2")})).gives("check a")
    play.at(2, LaunchChecked(A, "v1")).gives()
    play.at(3, LaunchChecked(A, "v2")).gives("start 1/a")


def test_a_wish_for_a_model_that_is_closed_is_fulfilled_when_it_opens_again():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")
    play.at(11, Wakeup(), LoadRequested(A)).gives()
    assert play.instance("a").closed_for == "b"
    play.at(12, RequestWithdrawn(r("r2"))).gives()
    assert play.instance("a").state == "ready"
    play.at(13, LeaseReleased(r("r1")), arrive("r3", "b")).gives("stop 1/a evicted for b")
    play.at(14, *gone(1, "a")).gives("start 2/b")  # not a again: nobody wishes for it any more


def test_an_unload_takes_the_wish_back():
    play = Play({"a": 100, "b": 100}, budget=150)
    play.at(0, LoadRequested(A)).gives("start 1/a")
    play.at(1, LoadRequested(B)).gives()  # a is awaited by its own wish
    play.at(2, UnloadRequested(B), InstanceReady(i(1, "a"))).gives()
    assert play.instance("a").state == "ready"


def test_a_wish_for_a_model_the_catalogue_lost_is_dropped():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), LoadRequested(B)).gives("grant r1 1/a")
    play.at(2, ModelTableReplaced({A: play.models[A], B: spec("b", 100, unavailable="the file is truncated")})).gives()
    play.at(3, LeaseReleased(r("r1")), LoadRequested(B), LoadRequested(ModelId("nobody"))).gives()
    assert play.instance("a").state == "ready"
    assert play.scheduler.next_wakeup() is None


def test_a_wish_that_a_smaller_budget_makes_impossible_is_dropped_with_the_reason():
    play = loaded(Play({"a": 100, "b": 140}, budget=150), "a")
    play.at(1, arrive("r1", "a"), LoadRequested(B)).gives("grant r1 1/a")
    play.at(2, SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 120}))).gives()
    assert "140 MB" in str(play.snapshot.last_error)
    play.at(3, LeaseReleased(r("r1"))).gives()


def test_nobody_is_closed_for_a_wish_however_long_it_stands():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), LoadRequested(B)).gives("grant r1 1/a")
    play.at(1000, Wakeup(), arrive("r2", "a")).gives()
    assert play.instance("a").state == "ready"
    assert play.scheduler.explain(1000).models[B] == "b is to be loaded and waits for a: 1 request running"


def test_a_request_goes_before_a_wish():
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), LoadRequested(B)).gives("grant r1 1/a")
    play.at(2, arrive("r2", "c"), LeaseReleased(r("r1"))).gives("stop 1/a evicted for c")
    play.at(3, *gone(1, "a")).gives("start 2/c")
    play.at(4, InstanceReady(i(2, "c"))).gives("grant r2 2/c")
    play.at(5, LeaseReleased(r("r2"))).gives("stop 2/c evicted for b")


def test_an_unload_while_it_loads_stops_it_at_once_and_nobody_loads_it_again():
    play = Play({"a": 100})
    play.at(0, LoadRequested(A)).gives("start 1/a")
    play.at(1, UnloadRequested(A)).gives("stop 1/a unload")
    play.at(2, *gone(1, "a")).gives()


def test_an_unload_while_requests_wait_for_the_load_starts_it_anew_for_them():
    play = Play({"a": 100})
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(1, UnloadRequested(A)).gives("stop 1/a unload")
    play.at(2, *gone(1, "a")).gives("start 2/a")
    play.at(3, InstanceReady(i(2, "a"))).gives("grant r1 2/a")


def test_a_wish_may_evict_who_is_idle_and_waits_for_who_is_not():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), LoadRequested(B)).gives("grant r1 1/a")
    play.at(2, LeaseReleased(r("r1"))).gives("stop 1/a evicted for b")
    play.at(3, *gone(1, "a")).gives("start 2/b")


def test_a_wish_in_the_shutdown_is_none():
    play = Play({"a": 100})
    play.at(0, ShutdownRequested(), LoadRequested(A)).gives()
    assert play.snapshot.wished == frozenset()
