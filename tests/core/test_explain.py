# SPDX-License-Identifier: GPL-3.0-only
"""What people read. Each test is a situation and its sentences, word for word."""

from __future__ import annotations

from dataclasses import replace

from core.play import Play, arrive, batch, gone, i, loaded, r, spec
from modeld.core.messages import (
    InstanceFailed,
    InstanceReady,
    LeaseFailed,
    LoadRequested,
    ModelTableReplaced,
    SettingsReplaced,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import HOST, LOCAL, DeviceId, ModelId, Priority
from modeld.errors import LoadFailed

A, B, C = ModelId("a"), ModelId("b"), ModelId("c")


def says(play: Play, model: str) -> str:
    return play.scheduler.explain(play.now).models[ModelId(model)]


def why(play: Play, request: str) -> str:
    return next(one.why for one in play.scheduler.explain(play.now).requests if one.request == request)


def busy(slots: int = 2, **more: object) -> Play:
    """a runs two requests, b and c would have to wait for its memory."""
    play = loaded(Play({"a": 100, "b": 100, "c": 100, "d": 100}, budget=150, slots=slots, **more), "a")
    return play.at(1, arrive("r1", "a"), arrive("r2", "a"))


def test_who_waits_for_a_busy_one_and_when_that_ends():
    play = busy()
    assert says(play, "a") == "a is ready: 2 requests running, 0 slots free"
    play.at(2, arrive("b1", "b"))
    play.at(6.1, Wakeup())
    assert says(play, "b") == "b waits 4.1 s for a: 2 requests running, due in 5.9 s"
    assert why(play, "b1") == "b1 (b, normal) waits 4.1 s, number 1 in line, for a: 2 requests running, due in 5.9 s"
    play.at(12, Wakeup())
    assert says(play, "b") == "b waits 10.0 s for a: 2 requests running, due"
    assert says(play, "a") == "a takes nothing new: it gives way to b, 2 requests running"
    play.at(13, arrive("c1", "c"), arrive("a1", "a"))
    assert says(play, "a") == "a waits 0.0 s for its turn: it gives way to b, 2 requests running, due in 10.0 s"
    play.at(23, Wakeup())
    assert says(play, "c") == "c waits 10.0 s for b, due before it, due"


def test_who_waits_on_a_ready_one():
    play = busy(slots=1)
    assert says(play, "a") == "a waits 0.0 s for a free slot: all 1 are taken"
    play.at(2, LeaseFailed(r("r1"), before_first_byte=True))
    assert why(play, "r1") == (
        "r1 (a, normal) waits 1.0 s, number 1 in line, for a look whether its model server lives: "
        "a request just failed there, after its model server failed once"
    )
    assert why(play, "r2").startswith("r2 (a, normal) waits 1.0 s, number 2 in line, for a look")


def test_who_waits_for_a_check_a_load_and_memory_that_comes_back():
    play = Play({"a": 100, "b": 100}, budget=150, checks=False)
    play.at(0, arrive("r1", "a"))
    assert says(play, "a") == "a waits 0.0 s for its file to be checked, due in 10.0 s"
    play = Play({"a": 100, "b": 100}, budget=150)
    play.at(0, arrive("r1", "a"))
    play.at(1, arrive("r2", "b"))
    assert says(play, "a") == "a waits 1.0 s for its model to load: 1.0 s of about 5.0 s"
    assert says(play, "b") == "b waits 0.0 s for a: 0 requests running, 1 load in progress, due in 10.0 s"
    play.at(11, Wakeup())
    assert says(play, "b") == "b waits 10.0 s for a: 0 requests running, 1 load in progress, due"
    play.at(12, UnloadRequested(A))
    assert says(play, "b") == "b waits 11.0 s for memory that comes back from a, due"
    assert says(play, "a") == "a waits 12.0 s for its old instance, which is stopping, due"


def test_what_runs_and_nobody_waits_for():
    play = loaded(Play({"a": 100}), "a")
    play.at(3, Wakeup())
    assert says(play, "a") == "a is ready and idle for 3.0 s"
    play.at(3, UnloadRequested(A))
    assert says(play, "a") == "a is stopping (unload)"
    play = Play([spec("a", 100, pinned=True)])
    play.at(0, LoadRequested(A))
    play.at(2, Wakeup())
    assert says(play, "a") == "a loads: 2.0 s of about 5.0 s"
    play.at(2, InstanceReady(i(1, "a")))
    assert says(play, "a") == "a is ready and idle for 0.0 s, pinned"


def test_what_is_kept_for_its_next_request_says_so():
    play = Play({"a": 100, "b": 100}, budget=150, min_residency_seconds=5.0)
    play.at(0, LoadRequested(A))
    play.at(3, InstanceReady(i(1, "a")))
    play.at(4, Wakeup())
    assert says(play, "a") == "a is ready and idle for 1.0 s, kept for its next request for 2.0 s"


def test_what_failed_and_what_is_wished_for():
    play = busy()
    play.at(2, LoadRequested(B))
    assert says(play, "b") == "b is to be loaded and waits for a: 2 requests running"
    play = Play({"a": 100})
    play.at(0, arrive("r1", "a"), InstanceFailed(i(1, "a"), LoadFailed("the file is odd.")), *gone(1, "a"))
    assert says(play, "a").startswith("a failed (the file is odd); the next try is allowed in ")
    play.at(0, LoadRequested(A))
    assert says(play, "a").startswith("a failed")
    play.at(90, Wakeup()).gives("start 2/a")
    play = loaded(Play({"a": 100}), "a")
    play.at(1, *gone(1, "a", code=-9))
    assert says(play, "a") == "a is not loaded and nobody waits for it"  # it died once: the next request starts it


def test_many_models_are_named_up_to_three():
    play = Play(dict.fromkeys("abcd", 50) | {"big": 200}, budget=200)
    loaded(play, *"abcd")
    play.at(1, *(arrive(f"r{name}", name) for name in "abcd"), arrive("b1", "big"))
    assert says(play, "big") == "big waits 0.0 s for a, b, c and 1 more: 4 requests running, due in 10.0 s"


def test_waiting_requests_are_listed_in_the_order_of_arrival_with_class_and_principal():
    play = busy(slots=1)
    play.at(2, batch("b1", "a", by="robot"), arrive("i1", "a", by="me"))
    views = play.scheduler.explain(2).requests
    assert [(view.request, view.position, view.priority, view.principal, view.waited_seconds) for view in views] == [
        ("r2", 1, Priority.NORMAL, "anonymous", 1),
        ("b1", 2, Priority.BATCH, "robot", 0),
        ("i1", 3, Priority.NORMAL, "me", 0),
    ]
    assert views[2].estimate_seconds > views[1].estimate_seconds > views[0].estimate_seconds > 0


# --- the snapshot -----------------------------------------------------------------------------------------------------


def test_lines_in_the_snapshot_say_who_waits_how_long_and_when_it_is_due():
    play = busy(slots=1)
    play.at(2, batch("b1", "a"), arrive("c1", "c"))
    lines = {line.model: line for line in play.snapshot.lines}
    assert (lines[A].length, lines[A].oldest_wait_seconds, lines[A].by_class) == (2, 1, {Priority.NORMAL: 1, Priority.BATCH: 1})
    assert (lines[A].due_in_seconds, lines[C].due_in_seconds) == (None, 10)
    play.at(14, Wakeup())
    assert {line.model: line.due_in_seconds for line in play.snapshot.lines} == {A: 0, C: 0}  # a is closed for c
    assert (play.instance("a").closed_for, play.snapshot.fairness_closings_total) == ("c", 1)


def test_devices_in_the_snapshot_are_summed_without_host_memory():
    one, two = DeviceId("local/gpu0"), DeviceId("local/gpu1")
    play = Play([spec("a", 150, split=True, host_mb=30)], budget_mb={one: 100, two: 100, HOST: 64}, margin_mb=5)
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    assert {view.id: (view.budget_mb, view.used_mb) for view in play.snapshot.devices} == {one: (100, 75), two: (100, 75), HOST: (64, 30)}
    assert (play.snapshot.budget_mb, play.snapshot.used_mb, play.snapshot.margin_mb) == (200, 150, 5)
    assert (play.instance("a").need_mb, play.instance("a").devices_mb) == (150, {one: 75, two: 75, HOST: 30})


def test_a_device_that_is_taken_out_of_the_settings_is_shown_until_it_is_empty():
    play = loaded(Play({"a": 100}, budget=150), "a")
    other = DeviceId("local/gpu0")
    play.at(1, SettingsReplaced(replace(play.limits, budget_mb={other: 300})))
    assert {view.id: view.used_mb for view in play.snapshot.devices} == {other: 0, LOCAL: 100}


def test_a_model_that_failed_is_shown_although_no_instance_is_left():
    play = Play({"a": 100, "b": 100})
    play.at(0, arrive("r1", "a"), InstanceFailed(i(1, "a"), LoadFailed("no")), *gone(1, "a"))
    assert (play.instance("a").id, play.instance("a").state, play.snapshot.error) == ("0/a", "failed", "a: no")
    play.at(1, ModelTableReplaced({B: play.models[B]}))
    assert (play.snapshot.instances, play.snapshot.error, play.snapshot.last_error) == ((), None, "a: no")
