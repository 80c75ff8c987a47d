# SPDX-License-Identifier: GPL-3.0-only
"""Settings and the catalogue change under what runs and waits."""

from __future__ import annotations

from dataclasses import replace

from core.play import Play, arrive, gone, i, loaded, r, spec
from modeld.core.messages import (
    InstanceReady,
    LeaseReleased,
    LoadRequested,
    ModelTableReplaced,
    ProgressChecked,
    SettingsReplaced,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import LOCAL, ModelId, ModelSpec
from modeld.errors import CannotEverFit

A, B = ModelId("a"), ModelId("b")


def test_a_budget_that_shrinks_while_the_old_instance_ends_is_told_to_who_waits():
    play = loaded(Play({"a": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), UnloadRequested(A), arrive("r2", "a")).gives("grant r1 1/a")
    play.at(2, SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 50}))).gives()
    play.at(3, LeaseReleased(r("r1"))).gives("stop 1/a unload")
    play.at(4, *gone(1, "a")).gives("refuse r2 cannot_ever_fit")


def test_a_budget_that_shrinks_refuses_who_waits_for_what_cannot_fit_any_more():
    play = loaded(Play({"a": 100, "b": 140}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")
    play.at(2, SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 120}))).gives("refuse r2 cannot_ever_fit")
    assert isinstance(play.refused("r2"), CannotEverFit)


def test_a_budget_that_grows_makes_room_at_once():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")
    play.at(2, SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 200}))).gives("start 2/b")


def test_a_shorter_fairness_wait_holds_for_who_waits_already_and_a_longer_one_opens_again():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")
    play.at(4, SettingsReplaced(replace(play.limits, fairness_wait_seconds=2))).gives()
    assert play.instance("a").closed_for == "b"
    play.at(5, SettingsReplaced(replace(play.limits, fairness_wait_seconds=20))).gives()
    assert play.instance("a").state == "ready"
    play.at(20.9, Wakeup()).gives()
    assert play.instance("a").state == "ready"
    play.at(21, Wakeup()).gives()
    assert play.instance("a").closed_for == "b"


def test_stuck_detection_switched_on_holds_for_what_runs_already():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a")
    assert play.scheduler.next_wakeup() is None
    play.at(2, SettingsReplaced(replace(play.limits, first_token_seconds=30))).gives()
    play.at(31, Wakeup()).gives("check progress of 1/a")
    play.at(31, ProgressChecked(i(1, "a"), {r("r1"): 1.0})).gives("stop 1/a stuck", "revoke r1 instance_stuck")


def test_a_pin_that_is_taken_off_lets_others_in():
    play = loaded(Play([spec("a", 100, pinned=True), spec("b", 100)], budget=150), "a")
    play.at(1, arrive("r1", "b")).gives("refuse r1 cannot_ever_fit")
    play.at(2, ModelTableReplaced({A: spec("a", 100), B: play.models[B]}), arrive("r2", "b")).gives("stop 1/a evicted for b")


def test_a_pin_that_comes_while_others_wait_refuses_only_who_can_never_fit_beside_it():
    play = loaded(Play({"a": 100, "b": 100, "c": 40}, budget=150, fairness_wait_seconds=5), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")
    pinned = play.models | {A: spec("a", 100, pinned=True)}
    play.at(2, ModelTableReplaced(pinned), arrive("r3", "c")).gives("refuse r2 cannot_ever_fit", "start 2/c")
    play.at(100, Wakeup()).gives()
    assert play.instance("a").state == "ready"


def test_a_pinned_model_of_a_due_rival_is_not_closed():
    play = Play([spec("p", 60, pinned=True), spec("a", 60), spec("b", 60)], budget=120)
    loaded(play, "p", "a")
    play.at(1, arrive("r1", "p"), arrive("r2", "a"), arrive("r3", "b")).gives("grant r1 1/p", "grant r2 2/a")
    play.at(11, Wakeup()).gives()
    assert (play.instance("p").state, play.instance("a").closed_for) == ("ready", "b")


def replaced(play: Play, fingerprint: str = "v2") -> dict[ModelId, ModelSpec]:
    return play.models | {A: replace(play.models[A], fingerprint=fingerprint)}


def test_a_file_replaced_while_its_instance_is_closed_is_loaded_anew_when_there_is_room():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")
    play.at(11, Wakeup()).gives()
    play.at(12, ModelTableReplaced(replaced(play)), LeaseReleased(r("r1"))).gives("stop 1/a replaced")
    play.at(13, *gone(1, "a")).gives("start 2/b")
    play.at(14, InstanceReady(i(2, "b"))).gives("grant r2 2/b")
    play.at(15, LeaseReleased(r("r2"))).gives()  # nobody asks for a: b stays
    play.at(16, UnloadRequested(B)).gives("stop 2/b unload")
    play.at(17, *gone(2, "b")).gives("start 3/a")


def test_a_file_replaced_while_it_loads_stops_the_load_and_keeps_the_line():
    play = Play({"a": 100})
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(1, ModelTableReplaced(replaced(play))).gives("stop 1/a replaced")
    play.at(2, *gone(1, "a")).gives("start 2/a")
    play.at(3, InstanceReady(i(2, "a"))).gives("grant r1 2/a")


def test_a_file_replaced_past_the_drain_deadline_ends_what_runs():
    play = loaded(Play({"a": 100}, drain_timeout_seconds=5), "a")
    play.at(1, arrive("r1", "a"), ModelTableReplaced(replaced(play))).gives("grant r1 1/a")
    play.at(6, Wakeup()).gives("revoke r1 unloaded")


def test_a_model_made_unavailable_refuses_its_line_and_a_wish_is_forgotten():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b"), LoadRequested(B)).gives("grant r1 1/a")
    play.at(2, ModelTableReplaced(play.models | {B: spec("b", 100, unavailable="the file is truncated")})).gives(
        "refuse r2 model_unavailable"
    )
    assert play.scheduler.next_wakeup() is None
