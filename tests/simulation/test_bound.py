# SPDX-License-Identifier: GPL-3.0-only
"""How long a due request may wait: each part of the bound is counted, and one moment more is a violation."""

from __future__ import annotations

import pytest

from modeld.core.messages import InstanceReady, RequestWithdrawn, SettingsReplaced, StopInstance, Wakeup
from modeld.core.model import InstanceId, RequestId
from modeld.simulation.seen import Violation
from simulation.tale import Tale, check, evict, grant, spec

A, B, C = spec("a", 200), spec("b", 200), spec("c", 200)
ONLY_BOUND = frozenset({"bound"})


def closed_at_once(drained: float) -> Tale:
    """r2 is due for b at 6: then 1/a is closed; r1 ends at 8; `drained` is when a's memory is back."""
    tale = Tale(A, B, C, checks=ONLY_BOUND).serving("a", "r1").arrive(1, "r2", "b", check(B)).checked(1, "b")
    tale.mirror.closed = {"1/a": "b"}
    tale.at(6, Wakeup()).released(8, "r1", evict("1/a", "b")).exited(9, "1/a")
    return tale.freed(drained, "1/a")


def load(tale: Tale, start: float, ready: float) -> Tale:
    tale.at(start, Wakeup(), tale.start("b"))
    return tale.at(ready, InstanceReady(InstanceId("1/b")), grant("r2", "1/b"))


def late(tell: object) -> bool:
    with pytest.raises(Violation) as caught:
        tell()  # type: ignore[operator]
    return caught.value.name == "bound"


def test_drain_and_load_are_all_that_it_waits_for() -> None:
    tale = load(closed_at_once(9.5), 9.5, 12)
    bound = tale.watch.bound
    assert (bound.judged, bound.excused) == (1, 0)
    assert bound.used_share == pytest.approx(1.0)


def test_a_start_that_comes_late_is_seen() -> None:
    assert late(lambda: load(closed_at_once(9.5), 9.6, 12))


def test_a_closing_that_comes_late_is_seen() -> None:
    tale = Tale(A, B, C, checks=ONLY_BOUND).serving("a", "r1").arrive(1, "r2", "b", check(B)).checked(1, "b")
    tale.at(6, Wakeup())
    tale.mirror.closed = {"1/a": "b"}
    tale.at(6.5, Wakeup()).released(8, "r1", evict("1/a", "b")).exited(9, "1/a").freed(9, "1/a")
    assert late(lambda: load(tale, 9, 12))


def test_memory_given_to_somebody_younger_is_seen() -> None:
    tale = closed_at_once(9)
    tale.arrive(9, "r3", "c", check(C)).checked(9, "c", tale.start("c"))
    tale.ready(10, "1/c", grant("r3", "1/c")).released(10, "r3", StopInstance(InstanceId("1/c"), "ttl"))
    tale.exited(10, "1/c").freed(10, "1/c")
    assert late(lambda: load(tale, 10, 12))


def test_an_older_demand_may_have_its_load_and_its_turn() -> None:
    tale = Tale(A, B, C, checks=ONLY_BOUND).serving("a", "r1")
    tale.arrive(0.5, "r0", "c", check(C)).checked(0.5, "c").arrive(1, "r2", "b", check(B)).checked(1, "b")
    tale.mirror.closed = {"1/a": "c"}
    tale.at(5.5, Wakeup()).at(6, Wakeup()).released(8, "r1", evict("1/a", "c")).exited(9, "1/a").freed(9, "1/a", tale.start("c"))
    tale.ready(11, "1/c", grant("r0", "1/c"))
    tale.mirror.closed = {"1/c": "b"}
    tale.at(11, Wakeup()).released(13, "r0", evict("1/c", "b")).exited(13, "1/c").freed(13, "1/c")
    load(tale, 13, 15)
    assert tale.watch.bound.used_share == pytest.approx(tale.watch.bound.judged) == 2


def test_the_clock_starts_again_when_the_oldest_leaves() -> None:
    tale = closed_at_once(9)
    tale.arrive(9, "r3", "b").at(14.5, RequestWithdrawn(RequestId("r2")), tale.start("b"))
    tale.at(15, InstanceReady(InstanceId("1/b")), grant("r3", "1/b"))
    assert tale.watch.bound.judged == 1


def test_the_clock_starts_again_when_the_settings_change() -> None:
    tale = closed_at_once(9)
    tale.at(20, SettingsReplaced(tale.outside.limits))
    load(tale, 20, 22)
    assert tale.watch.bound.judged == 1


def test_who_is_granted_before_it_is_due_is_not_judged() -> None:
    tale = Tale(A, checks=ONLY_BOUND).serving("a", "r1")
    assert (tale.watch.bound.judged, tale.watch.bound.excused) == (0, 0)
