# SPDX-License-Identifier: GPL-3.0-only
"""The operator's word at run time: who is pinned is never evicted, and what is pinned together fits together."""

from __future__ import annotations

from dataclasses import replace

from core.play import Play, arrive, gone, i, loaded, r, spec
from modeld.core.messages import (
    InstanceReady,
    LeaseReleased,
    LoadRequested,
    ModelTableReplaced,
    PinChanged,
    RequestWithdrawn,
    SettingsReplaced,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import HOST, LOCAL, DeviceId, ModelId
from modeld.errors import CannotEverFit, ModelUnavailable, UnknownModel

A, B, C = ModelId("a"), ModelId("b"), ModelId("c")
ONE, TWO = DeviceId("local/gpu0"), DeviceId("local/gpu1")


def pinned(play: Play) -> set[str]:
    return set(play.snapshot.pinned)


def why_not(play: Play, model: str) -> str:
    """The refusal of a pin, which handle() must then ignore."""
    before = pinned(play)
    refusal = play.scheduler.pin_refusal(ModelId(model))
    assert isinstance(refusal, CannotEverFit), refusal
    play.at(play.now, PinChanged(ModelId(model), True)).gives()
    assert pinned(play) == before
    return refusal.message


def test_a_pin_loads_nothing_and_keeps_what_is_loaded_from_eviction():
    play = Play({"a": 100, "b": 100}, budget=220, slots=1)
    play.at(0, PinChanged(A, True)).gives()
    assert (pinned(play), play.snapshot.instances) == ({"a"}, ())
    loaded(play, "a", "b", at=1)
    assert (play.instance("a").pinned, play.instance("b").pinned) == (True, False)
    play.at(2, ModelTableReplaced(play.models | {C: spec("c", 100)})).gives()
    play.at(3, arrive("r1", "c")).gives("stop 2/b evicted for c")  # not a, which was used no later


def test_an_unpin_frees_for_eviction_whom_somebody_waits_for():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "b")).gives("stop 1/a evicted for b")
    play.at(2, *gone(1, "a")).gives("start 2/b")
    play.at(3, InstanceReady(i(2, "b"))).gives("grant r1 2/b")
    play.at(4, LeaseReleased(r("r1")), PinChanged(B, True)).gives()
    play.at(5, LoadRequested(A)).gives()  # it can never be had beside b
    assert play.snapshot.wished == frozenset()
    play.at(6, PinChanged(B, False), LoadRequested(A)).gives("stop 2/b evicted for a")


def test_who_waits_and_no_longer_fits_beside_a_pin_is_told_at_once():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")
    play.at(2, PinChanged(A, True)).gives("refuse r2 cannot_ever_fit")


def test_who_was_closed_for_another_is_opened_again_when_it_is_pinned():
    play = loaded(Play({"a": 100, "b": 100, "c": 20}, budget=220), "a", "b")
    play.at(1, arrive("r1", "a"), arrive("r2", "b"), ModelTableReplaced(play.models | {C: spec("c", 110)}), arrive("r3", "c"))
    play.at(11.5, Wakeup())
    closed = next(view.model for view in play.snapshot.instances if view.closed_for)
    play.at(12, PinChanged(closed, True))
    assert play.instance(closed).state == "ready"
    assert play.instance("b" if closed == "a" else "a").closed_for == "c"


def test_the_word_stands_over_settings_and_catalogue_read_again():
    play = loaded(Play([spec("a", 100, pinned=True), spec("b", 100)], budget=250), "a", "b")
    play.at(1, PinChanged(A, False), PinChanged(B, True))
    play.at(2, ModelTableReplaced(dict(play.models)), SettingsReplaced(play.limits)).gives()
    assert pinned(play) == {"b"}
    play.at(3, ModelTableReplaced({A: play.models[A]})).gives("stop 2/b replaced")
    play.at(4, *gone(2, "b"), ModelTableReplaced(dict(play.models))).gives()
    assert pinned(play) == {"b"}


def test_what_the_settings_say_holds_where_the_operator_said_nothing():
    play = Play([spec("a", 100, pinned=True), spec("b", 100)], budget=250)
    assert pinned(play) == {"a"}
    play.at(1, ModelTableReplaced({A: replace(play.models[A], pinned=False), B: play.models[B]}))
    assert pinned(play) == set()


def test_pins_that_exceed_the_budget_together_are_refused_with_the_numbers():
    play = Play({"a": 100, "b": 60, "c": 50}, budget=170, margin_mb=5)
    play.at(0, PinChanged(A, True), PinChanged(B, True)).gives()
    assert pinned(play) == {"a", "b"}
    text = why_not(play, "c")
    assert all(part in text for part in ('"c" (50 MB)', "a 100 MB, b 60 MB", "together they need 210 MB", "165 MB can be had"))
    play.at(1, PinChanged(B, False), PinChanged(C, True)).gives()
    assert pinned(play) == {"a", "c"}


def test_a_pin_of_what_is_pinned_is_no_pin_too_many():
    play = Play({"a": 100}, budget=150)
    play.at(0, PinChanged(A, True), SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 50})))
    assert play.scheduler.pin_refusal(A) is None


def test_who_can_never_fit_cannot_be_pinned():
    play = Play({"a": 200}, budget=150)
    assert "200 MB" in why_not(play, "a")


def test_who_is_not_there_cannot_be_pinned():
    play = Play([spec("a", 100, unavailable="the file is truncated")], budget=150)
    assert isinstance(play.scheduler.pin_refusal(A), ModelUnavailable)
    assert isinstance(play.scheduler.pin_refusal(B), UnknownModel)
    play.at(0, PinChanged(A, True), PinChanged(B, True), PinChanged(B, False)).gives()
    assert pinned(play) == set()


def test_what_runs_elsewhere_takes_no_room():
    play = Play([spec("a", 100), spec("b", 0, external=True)], budget=100)
    play.at(0, PinChanged(A, True), PinChanged(B, True))
    assert pinned(play) == {"a", "b"}


def test_without_a_budget_everything_may_be_pinned():
    play = Play({"a": 1000, "b": 1000})
    play.at(0, PinChanged(A, True), PinChanged(B, True))
    assert pinned(play) == {"a", "b"}


def test_pins_on_several_devices_need_a_device_each():
    specs = [spec("a", 60), spec("b", 60), spec("c", 60)]
    play = Play(specs)
    play.at(0, SettingsReplaced(replace(play.limits, budget_mb={ONE: 100, TWO: 100})))
    play.at(1, PinChanged(A, True), PinChanged(B, True)).gives()
    assert "together they need 180 MB, 200 MB can be had" in why_not(play, "c")
    split = play.models | {C: replace(play.models[C], split=True)}
    play.at(2, ModelTableReplaced(split), PinChanged(C, True))
    assert pinned(play) == {"a", "b", "c"}


def test_host_memory_of_pins_is_limited_too():
    play = Play([spec("a", 10, host_mb=60), spec("b", 10, host_mb=60)])
    play.at(0, SettingsReplaced(replace(play.limits, budget_mb={ONE: 100, HOST: 100})), PinChanged(A, True))
    assert why_not(play, "b")


def test_a_pinned_model_that_is_loaded_counts_where_it_is():
    """It stands on the device that the other one would need whole."""
    play = Play([spec("a", 30), spec("b", 100)])
    play.at(0, SettingsReplaced(replace(play.limits, budget_mb={ONE: 100, TWO: 40})), LoadRequested(B)).gives("start 1/b")
    play.at(1, InstanceReady(i(1, "b")), UnloadRequested(B)).gives("stop 1/b unload")
    play.at(2, *gone(1, "b")).gives()
    play.at(3, SettingsReplaced(replace(play.limits, budget_mb={ONE: 100, TWO: 20})), LoadRequested(A)).gives("start 2/a")
    play.at(4, InstanceReady(i(2, "a")), PinChanged(A, True)).gives()
    play.at(5, SettingsReplaced(replace(play.limits, budget_mb={ONE: 100, TWO: 40}))).gives()
    assert why_not(play, "b")


def test_an_operator_may_unload_what_is_pinned():
    play = loaded(Play({"a": 100}, budget=150), "a")
    play.at(1, PinChanged(A, True), UnloadRequested(A)).gives("stop 1/a unload")
    play.at(2, *gone(1, "a"), RequestWithdrawn(r("r0"))).gives()
    assert pinned(play) == {"a"}
