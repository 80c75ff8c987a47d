# SPDX-License-Identifier: GPL-3.0-only
"""The bound: before anybody is due nothing is closed; who is due is served after drain, load and turn of those ahead, oldest first."""

from __future__ import annotations

from core.play import Play, arrive, batch, gone, i, loaded, r, spec
from modeld.core.messages import InstanceReady, LeaseFailed, LeaseReleased, LoadRequested, RequestWithdrawn, Wakeup
from modeld.core.model import DeviceId, ModelId, Priority


def swap(play: Play, at: float, old: str, new: str) -> None:
    """The child of `old` (like "1/a") ends, its memory comes back, `new` is started."""
    number, model = old.split("/")
    play.at(at, *gone(int(number), model)).gives(f"start {new}")


def busy(slots: int = 2, **more: object) -> Play:
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=150, slots=slots, wait_max_seconds=1000, **more), "a")
    return play.at(1, arrive("a1", "a"), arrive("a2", "a"))


def test_the_story_of_the_bound():
    """Closing at fairness_wait, drain, load, turn; and then the one that was closed is due in its turn."""
    play = busy(fairness_wait_seconds=10, turn_max_seconds=4)
    play.at(2, arrive("b1", "b")).gives()
    play.at(3, LeaseReleased(r("a1")), arrive("a3", "a")).gives("grant a3 1/a")  # collation: what is loaded goes on
    play.at(11.9, Wakeup()).gives()
    assert play.instance("a").state == "ready"
    play.at(12, Wakeup(), arrive("a4", "a"), arrive("b2", "b")).gives()  # closed: nothing new, nothing cut
    play.at(14, LeaseReleased(r("a2"))).gives()
    play.at(16, LeaseReleased(r("a3"))).gives("stop 1/a evicted for b")
    swap(play, 17, "1/a", "2/b")
    play.at(20, InstanceReady(i(2, "b")), arrive("b3", "b")).gives("grant b1 2/b", "grant b2 2/b")
    play.at(21, LeaseReleased(r("b1"))).gives("grant b3 2/b")  # a is not due yet: collation again
    play.at(22, Wakeup(), arrive("b4", "b")).gives()  # now it is
    assert play.instance("b").closed_for == "a"
    play.at(23, LeaseReleased(r("b2")), LeaseReleased(r("b3"))).gives("stop 2/b evicted for a")
    swap(play, 24, "2/b", "3/a")
    play.at(25, InstanceReady(i(3, "a"))).gives("grant a4 3/a")


def test_before_anybody_is_due_nothing_is_closed_whoever_waits():
    play = busy()
    play.at(2, *(arrive(f"b{n}", "b") for n in range(9)), *(arrive(f"c{n}", "c", priority=Priority.INTERACTIVE) for n in range(9))).gives()
    for n in range(9):
        play.at(3 + n, Wakeup()).gives()
        assert play.instance("a").state == "ready"


def test_two_due_models_the_one_whose_request_is_oldest_first():
    play = busy(slots=1)
    play.at(2, batch("b1", "b"))
    play.at(3, arrive("c1", "c", priority=Priority.INTERACTIVE))
    play.at(12, Wakeup()).gives()
    assert play.instance("a").closed_for == "b"
    play.at(13, Wakeup(), LeaseReleased(r("a1"))).gives("stop 1/a evicted for b")
    swap(play, 14, "1/a", "2/b")
    play.at(15, InstanceReady(i(2, "b"))).gives("grant b1 2/b")
    assert play.instance("b").closed_for == "a"  # a2 came before c1
    play.at(16, LeaseReleased(r("b1"))).gives("stop 2/b evicted for a")
    swap(play, 17, "2/b", "3/a")
    play.at(18, InstanceReady(i(3, "a"))).gives("grant a2 3/a")
    play.at(19, LeaseReleased(r("a2"))).gives("stop 3/a evicted for c")
    swap(play, 20, "3/a", "4/c")


def turn(turn_max: float = 30) -> Play:
    """b has become ready with three requests that made it due, one slot, and c due as well."""
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=150, wait_max_seconds=1000, turn_max_seconds=turn_max), "a")
    play.at(0, arrive("a1", "a"), *(arrive(f"b{n}", "b") for n in range(3)))
    play.at(1, arrive("c1", "c"))
    play.at(12, Wakeup(), LeaseReleased(r("a1"))).gives("stop 1/a evicted for b")
    swap(play, 13, "1/a", "2/b")
    play.at(20, arrive("b9", "b"), InstanceReady(i(2, "b"))).gives("grant b0 2/b")
    assert play.instance("b").state == "ready"
    return play


def test_a_turn_ends_when_those_that_made_it_due_are_granted():
    play = turn()
    play.at(21, LeaseReleased(r("b0")), arrive("b10", "b", priority=Priority.INTERACTIVE)).gives("grant b1 2/b")
    play.at(22, LeaseReleased(r("b1"))).gives("grant b2 2/b")  # the oldest first, whatever came meanwhile
    assert play.instance("b").closed_for == "c"
    play.at(23, LeaseReleased(r("b2"))).gives("stop 2/b evicted for c")


def test_a_turn_ends_when_those_that_made_it_due_have_left():
    play = turn()
    play.at(21, RequestWithdrawn(r("b1")), RequestWithdrawn(r("b2"))).gives()
    assert play.instance("b").closed_for == "c"


def test_a_turn_ends_when_its_time_is_over():
    play = turn(turn_max=4)
    assert play.scheduler.next_wakeup() == 24
    play.at(23.9, Wakeup()).gives()
    assert play.instance("b").state == "ready"
    play.at(24, Wakeup()).gives()
    assert play.instance("b").closed_for == "c"
    play.at(25, LeaseReleased(r("b0"))).gives("stop 2/b evicted for c")


def test_a_turn_of_no_length_still_grants_what_the_slots_hold():
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=150, slots=2, turn_max_seconds=0, wait_max_seconds=1000), "a")
    play.at(0, arrive("a1", "a"), *(arrive(f"b{n}", "b") for n in range(3)), arrive("c1", "c"))
    play.at(12, Wakeup(), LeaseReleased(r("a1"))).gives("stop 1/a evicted for b")
    swap(play, 13, "1/a", "2/b")
    play.at(14, InstanceReady(i(2, "b"))).gives("grant b0 2/b", "grant b1 2/b")
    assert play.instance("b").closed_for == "c"


def test_a_request_that_came_back_is_in_its_turn_again():
    """Its instance failed it once, within the turn: another due model may not close it before it was asked again."""
    play = turn()
    play.at(20.5, LeaseFailed(r("b0"), before_first_byte=True), RequestWithdrawn(r("b1")), RequestWithdrawn(r("b2"))).gives()
    assert play.instance("b").state == "ready"
    play.at(20.75, Wakeup()).gives("grant b0 2/b")
    assert play.instance("b").closed_for == "c"


def test_who_is_closed_stays_so_until_somebody_can_go_at_once():
    """Drains do not jump from one busy victim to the next; but none is waited for when another has ended."""
    play = Play({"a": 100, "b": 100, "c": 100}, budget=200, slots=2, wait_max_seconds=1000)
    loaded(play, "a", "b")
    play.at(1, arrive("a1", "a"), arrive("b1", "b"), arrive("c1", "c"))
    play.at(11, Wakeup()).gives()
    assert play.instance("a").closed_for == "c"
    play.at(12, arrive("b2", "b")).gives("grant b2 2/b")  # now a is the one that was used least recently no more
    play.at(13, LeaseReleased(r("b1")), arrive("a2", "a")).gives()
    assert (play.instance("a").closed_for, play.instance("b").state) == ("c", "ready")
    play.at(14, LeaseReleased(r("b2"))).gives("stop 2/b evicted for c", "grant a2 1/a")


def test_who_gave_way_does_not_take_the_memory_back_with_its_older_line():
    """A model in demand beyond its slots always has older requests in line than a rival that becomes due."""
    play = loaded(Play({"a": 100, "b": 100}, budget=150, wait_max_seconds=1000), "a")
    play.at(0, *(arrive(f"a{n}", "a") for n in range(9)))
    play.at(1, arrive("b1", "b"))
    play.at(11, Wakeup())
    play.at(15, LeaseReleased(r("a0"))).gives("stop 1/a evicted for b")
    swap(play, 16, "1/a", "2/b")
    play.at(18, InstanceReady(i(2, "b"))).gives("grant b1 2/b")
    assert play.instance("b").closed_for == "a"
    play.at(19, LeaseReleased(r("b1"))).gives("stop 2/b evicted for a")
    swap(play, 20, "2/b", "3/a")


def test_who_gave_way_stands_behind_nobody_once_that_one_has_left():
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=150, wait_max_seconds=1000), "a")
    play.at(0, arrive("a0", "a"), arrive("a1", "a"))
    play.at(1, arrive("b1", "b"), arrive("c1", "c"))
    play.at(11, Wakeup(), LeaseReleased(r("a0"))).gives("stop 1/a evicted for b")
    play.at(12, RequestWithdrawn(r("b1"))).gives()
    swap(play, 13, "1/a", "2/a")


def test_preload_and_wishes_never_become_due():
    play = busy()
    play.at(2, LoadRequested(ModelId("b"), may_evict=False), LoadRequested(ModelId("c")))
    play.at(1000, Wakeup(), arrive("a9", "a")).gives()
    assert play.instance("a").state == "ready"


# --- residency, quiet, preemption -------------------------------------------------------------------------------------


def test_a_freshly_loaded_model_is_kept_for_as_long_as_its_load_took():
    play = Play({"a": 100, "b": 100}, budget=150, min_residency_seconds=5)
    play.at(0, arrive("a1", "a")).gives("start 1/a")
    play.at(3, InstanceReady(i(1, "a")), LeaseReleased(r("a1"))).gives("grant a1 1/a")
    play.at(4, arrive("b1", "b")).gives()
    assert play.scheduler.next_wakeup() == 6
    play.at(6, Wakeup()).gives("stop 1/a evicted for b")


def test_min_residency_protects_nobody_from_a_due_one():
    play = Play({"a": 100, "b": 100}, budget=150, min_residency_seconds=1000)
    play.at(0, arrive("a1", "a")).gives("start 1/a")
    play.at(1, arrive("b1", "b")).gives()
    play.at(10, InstanceReady(i(1, "a")), LeaseReleased(r("a1"))).gives("grant a1 1/a")
    play.at(11, Wakeup()).gives("stop 1/a evicted for b")


def test_a_model_asked_at_a_rhythm_is_kept_until_its_next_request_is_overdue():
    play = Play({"a": 100, "b": 100}, budget=150, min_residency_seconds=60)
    play.at(0, arrive("a0", "a"))
    play.at(8, InstanceReady(i(1, "a")), LeaseReleased(r("a0")))
    for n in range(1, 5):
        play.at(8 + 2 * n, arrive(f"a{n}", "a"), LeaseReleased(r(f"a{n}"))).gives(f"grant a{n} 1/a")
    play.at(16.5, arrive("b1", "b")).gives()
    due, wakeup = 26.5, play.scheduler.next_wakeup()
    assert wakeup is not None
    assert 16.5 + 2 < wakeup < due
    play.at(wakeup, Wakeup()).gives("stop 1/a evicted for b")


def test_what_runs_is_cut_after_preempt_after_and_only_then():
    play = busy(preempt_after_seconds=5)
    play.at(2, arrive("b1", "b"))
    play.at(12, Wakeup(), LeaseReleased(r("a1"))).gives()
    assert play.scheduler.next_wakeup() == 17
    play.at(17, Wakeup()).gives("revoke a2 unloaded")
    assert "b" in str(play.refused("a2"))
    assert play.snapshot.preemptions_total == 1
    play.at(18, LeaseFailed(r("a2"), before_first_byte=True)).gives("stop 1/a evicted for b")  # it keeps its place
    swap(play, 19, "1/a", "2/b")
    play.at(20, InstanceReady(i(2, "b"))).gives("grant b1 2/b")
    play.at(21, LeaseReleased(r("b1"))).gives("stop 2/b evicted for a")


def test_without_preempt_after_nothing_is_ever_cut():
    play = busy()
    play.at(2, arrive("b1", "b"))
    play.at(900, Wakeup()).gives()
    assert (play.instance("a").inflight, play.snapshot.preemptions_total) == (2, 0)


def test_a_closing_that_ends_takes_its_preemption_along():
    play = busy(preempt_after_seconds=5)
    play.at(2, arrive("b1", "b"))
    play.at(12, Wakeup()).gives()
    play.at(13, RequestWithdrawn(r("b1"))).gives()
    play.at(18, Wakeup()).gives()
    assert play.instance("a").state == "ready"


# --- several devices --------------------------------------------------------------------------------------------------


def test_a_due_model_keeps_its_own_devices_and_no_others():

    one, two = DeviceId("local/gpu0"), DeviceId("local/gpu1")
    play = Play([spec("a", 90), spec("big", 95), spec("s", 40)], budget_mb={one: 100, two: 60}, wait_max_seconds=1000)
    play.at(0, arrive("a1", "a")).gives("start 1/a")
    play.at(1, arrive("g1", "big")).gives()
    play.at(12, Wakeup(), arrive("s1", "s")).gives("start 2/s")
    assert play.instance("s").devices_mb == {two: 40}
