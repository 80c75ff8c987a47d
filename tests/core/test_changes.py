# SPDX-License-Identifier: GPL-3.0-only
"""What the scheduler says of what has changed: each move once, lines when their length is another one, and never more than is kept."""

from __future__ import annotations

from dataclasses import replace

from core.play import Play, arrive, gone, i, loaded, r, spec
from modeld.core.changes import CHANGES_MAX, Change, Changes, InstanceMoved, LineMoved, LoadMoved, PinMoved, TableMoved, WishDropped
from modeld.core.messages import (
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    LaunchRejected,
    LeaseReleased,
    LoadProgressed,
    LoadRequested,
    ModelTableReplaced,
    PinChanged,
    RequestWithdrawn,
    SettingsReplaced,
    ShutdownRequested,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import LOCAL, ModelId
from modeld.errors import LoadFailed

A, B = ModelId("a"), ModelId("b")


def told(play: Play) -> list[str]:
    return [tell(change) for change in play.scheduler.take_changes()]


def tell(change: Change) -> str:
    match change:
        case InstanceMoved(_, instance, state, why, error):
            return f"{instance} {state}" + (f" {why}" if why else "") + (f" ({error.kind})" if error is not None else "")
        case LoadMoved(_, instance, fraction):
            return f"{instance} loaded {fraction:g}"
        case LineMoved(model, length):
            return f"{length} wait for {model}"
        case PinMoved(model, pinned):
            return f"{model} {'pinned' if pinned else 'unpinned'}"
        case WishDropped(model, error):
            return f"{model} dropped ({error.kind})"
        case TableMoved(models):
            return f"{models} models"


def test_a_life_is_told_move_by_move():
    play = Play({"a": 100}, budget=150)
    play.at(0, arrive("r1", "a"))
    assert told(play) == ["1/a loading", "1 wait for a"]
    play.at(1, InstanceReady(i(1, "a")))
    assert told(play) == ["1/a ready", "0 wait for a"]
    play.at(2, LeaseReleased(r("r1")), UnloadRequested(A))
    assert told(play) == ["1/a draining unload", "1/a stopping unload"]
    play.at(3, *gone(1, "a"))
    assert told(play) == ["1/a gone"]
    assert told(play) == []


def test_a_request_that_goes_straight_through_tells_nothing():
    play = loaded(Play({"a": 100}, slots=2), "a")
    told(play)
    play.at(1, arrive("r1", "a"))
    play.at(2, LeaseReleased(r("r1")), arrive("r2", "a"), RequestWithdrawn(r("r2")))
    assert told(play) == []


def test_a_line_is_told_with_the_length_it_came_to():
    play = loaded(Play({"a": 100}), "a")
    told(play)
    play.at(1, arrive("r1", "a"), arrive("r2", "a"), arrive("r3", "a"))
    assert told(play) == ["2 wait for a"]
    play.at(2, LeaseReleased(r("r1")), arrive("r4", "a"))
    assert told(play) == []  # one came, one went
    play.at(40, Wakeup())
    assert told(play) == ["0 wait for a"]  # max_wait


def test_closing_and_opening_are_told():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b"))
    told(play)
    play.at(11, Wakeup())
    assert told(play) == ["1/a draining evicted for b"]
    play.at(12, RequestWithdrawn(r("r2")))
    assert told(play) == ["1/a ready", "0 wait for b"]
    play.at(13, arrive("r3", "b"), LeaseReleased(r("r1")))
    assert told(play) == ["1/a stopping evicted for b", "1 wait for b"]


def test_an_order_to_unload_what_is_closed_already_is_told():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b"))
    play.at(11, Wakeup())
    told(play)
    play.at(12, UnloadRequested(A), UnloadRequested(A))
    assert told(play) == ["1/a draining unload"]


def test_failures_carry_their_error():
    play = Play({"a": 100})
    play.at(0, LoadRequested(A), InstanceFailed(i(1, "a"), LoadFailed("the file is damaged")))
    assert told(play) == ["1/a loading", "1/a failed the file is damaged (load_failed)"]
    play.at(1, *gone(1, "a", 1))
    assert told(play) == ["1/a gone"]
    play.at(10, LoadRequested(A), InstanceExited(i(2, "a"), code=-9))
    assert told(play)[1].endswith("(instance_died)")
    play = loaded(Play({"a": 100}), "a")
    told(play)
    play.at(1, *gone(1, "a", -9))
    assert [one.split()[:2] for one in told(play)] == [["1/a", "failed"], ["1/a", "gone"]]


def test_a_late_report_of_a_failure_tells_nothing():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, UnloadRequested(A))
    told(play)
    play.at(2, InstanceExited(i(1, "a"), code=-15))
    assert told(play) == []


def test_a_launch_that_is_rejected_is_told_as_a_failure_without_an_instance():
    play = Play({"a": 100}, checks=False)
    play.at(0, LoadRequested(A), LaunchRejected(A, "v1", LoadFailed("no such flag")))
    assert told(play) == ["0/a failed no such flag (load_failed)"]


def test_progress_is_told_in_steps_of_a_hundredth():
    play = Play({"a": 100})
    play.at(0, LoadRequested(A))
    told(play)
    for fraction in (0.004, 0.009, 0.012, 0.02, 0.5, 0.5, 0.995, 0.999, 1.0, 1.0):
        play.at(1, LoadProgressed(i(1, "a"), fraction))
    assert told(play) == [f"1/a loaded {fraction:g}" for fraction in (0.012, 0.5, 0.995, 1.0)]


def test_pins_and_the_catalogue_are_told():
    play = Play({"a": 100})
    play.at(0, PinChanged(A, True), PinChanged(A, True), ModelTableReplaced({}), PinChanged(A, False))
    assert told(play) == ["a pinned", "0 models"]


def test_a_wish_that_will_not_come_true_is_told_with_the_reason():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    play.at(1, arrive("r1", "a"), LoadRequested(B), UnloadRequested(B), UnloadRequested(B))
    assert told(play)[-1] == "b dropped (unloaded)"
    play.at(2, LoadRequested(B), SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 90})))
    assert "b dropped (cannot_ever_fit)" in told(play)
    play.at(3, SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 150})), LoadRequested(B))
    play.at(3, ModelTableReplaced({A: play.models[A], B: spec("b", 1, unavailable="x")}))
    assert "b dropped (model_unavailable)" in told(play)
    play.at(4, ModelTableReplaced(play.models), LoadRequested(B), ShutdownRequested())
    assert "b dropped (draining)" in told(play)


def test_a_wish_that_came_true_is_not_told_as_dropped():
    play = Play({"a": 100})
    play.at(0, LoadRequested(A))
    play.at(1, InstanceReady(i(1, "a")))
    assert told(play) == ["1/a loading", "1/a ready"]


def test_nobody_takes_them_and_the_newest_are_kept():
    changes = Changes()
    for number in range(CHANGES_MAX + 10):
        changes.note(TableMoved(number))
    taken = changes.take(lambda _: 0)
    assert (len(taken), taken[0], taken[-1]) == (CHANGES_MAX, TableMoved(10), TableMoved(CHANGES_MAX + 9))
