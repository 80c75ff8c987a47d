# SPDX-License-Identifier: GPL-3.0-only
"""The invariant order can fail: classes, ageing and shares, each with a story that breaks it and one that does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from modeld.core.messages import LeaseReleased, RequestArrived
from modeld.core.model import ModelId, Principal, Priority, Request, RequestId
from modeld.simulation.seen import Violation
from simulation.tale import Tale, grant, spec

A = spec("a")
ORDER = frozenset({"order"})
URGENT = spec("a", priority=Priority.INTERACTIVE)


def breaks(tell: Callable[[], object]) -> bool:
    """Does the story break the invariant?"""
    try:
        tell()
    except Violation as violation:
        assert violation.name == "order"
        return True
    return False


def ask(request: str, priority: Priority | None = None, who: str = "ann", work: float = 1.0) -> RequestArrived:
    return RequestArrived(Request(RequestId(request), ModelId("a"), principal=Principal(who), priority=priority, work=work))


def served(tale: Tale, order: Sequence[str], now: float, first: str = "r0", step: float = 0.1) -> Tale:
    """The one slot of a goes from `first` to each of `order`."""
    running = first
    for request in order:
        now += step
        tale.at(now, LeaseReleased(RequestId(running)), grant(request, "1/a"))
        running = request
    return tale


@pytest.mark.parametrize(("first", "broken"), [("urgent", False), ("patient", True)])
def test_a_less_urgent_class_first(first: str, broken: bool) -> None:
    tale = Tale(URGENT, checks=ORDER).serving("a", "r0")
    tale.at(1, ask("patient", Priority.BATCH)).at(1, ask("urgent"))
    assert breaks(lambda: served(tale, [first], 1)) is broken


@pytest.mark.parametrize(("order", "broken"), [(["b1", "u1", "b2"], False), (["u1", "b1"], False), (["u1", "u2"], True)])
def test_the_aged_one_passed_over_twice(order: list[str], broken: bool) -> None:
    tale = Tale(URGENT, checks=ORDER, fairness_wait_seconds=5.0).serving("a", "r0")
    for request in ("b1", "b2"):
        tale.at(1, ask(request, Priority.BATCH))
    for request in ("u1", "u2"):
        tale.at(2, ask(request))
    assert breaks(lambda: served(tale, order, 10)) is broken


@pytest.mark.parametrize(("order", "broken"), [(["b1", "u1", "b2", "u2"], False), (["b1", "b2"], True)])
def test_age_alone_twice(order: list[str], broken: bool) -> None:
    tale = Tale(URGENT, checks=ORDER, fairness_wait_seconds=5.0).serving("a", "r0")
    for request in ("b1", "b2"):
        tale.at(1, ask(request, Priority.BATCH))
    for request in ("u1", "u2"):
        tale.at(2, ask(request))
    assert breaks(lambda: served(tale, order, 10)) is broken


@pytest.mark.parametrize(("names", "broken"), [("abababab", False), ("aaaa", True)])
def test_one_principal_has_it_all(names: str, broken: bool) -> None:
    """What was served may differ by two requests and two tokens."""
    tale = Tale(A, checks=ORDER, fairness_wait_seconds=100.0).serving("a", "r0")
    waiting: dict[str, list[str]] = {"a": [], "b": []}
    for number in range(6):
        for who in "ab":
            tale.at(1, ask(f"{who}{number}", who=who, work=8.0))
            waiting[who].append(f"{who}{number}")
    order = [waiting[who].pop(0) for who in names]
    assert breaks(lambda: served(tale, order, 1)) is broken
