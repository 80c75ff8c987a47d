# SPDX-License-Identifier: GPL-3.0-only
"""Each thing that must never be is seen when it is: the scheduler is made to do it, and the referee objects, and by the right name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modeld.core import planning, shortage
from modeld.core.accounting import Accounting
from modeld.core.book import Book
from modeld.core.bookings import Bookings
from modeld.core.foreign import Foreign
from modeld.core.ledger import Ledger
from modeld.core.planning import Planner
from modeld.simulation.pressure import Pressure
from modeld.simulation.seen import Violation


def nothing(*_: object, **__: object) -> None:
    """Done instead of what should be."""


def believes_a_spike(self: Foreign, device: object, foreign_mb: int, now: float) -> bool:
    self.observe_before(device, foreign_mb, now)  # type: ignore[attr-defined]  # set by the test
    self._settled[device] = foreign_mb  # type: ignore[index]
    return True


def asks_again(self: Bookings, model: object) -> None:
    self.book.unprobed.clear()
    self.probe_before(model)  # type: ignore[attr-defined]  # set by the test


def waits_for_any(self: Planner, model: object, now: float, *, due: bool) -> object:
    return None if self._book.probing and not due else self.demand_before(model, now, due=due)  # type: ignore[attr-defined]


def tells_no_numbers(book: object, instance: object, cost: object, error: object) -> object:
    return error


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "instead", "kept"),
    [
        ("over_budget", Ledger, "correct", nothing, ""),
        ("over_budget", Foreign, "settled_mb", lambda self, device: 0, ""),
        ("forgotten", Bookings, "learn", nothing, ""),
        ("ledger", Accounting, "_correct", nothing, ""),
        ("spike", Foreign, "observe", believes_a_spike, "observe_before"),
        ("thrashed", planning, "choose", lambda pool, short: pool, ""),
        ("relieved", Planner, "_relieved", lambda self, room, now: room, ""),
        ("second_try", Bookings, "_out_of_memory", lambda self, instance, error: error, ""),
        ("second_try", shortage, "told", tells_no_numbers, ""),
        ("asked_twice", Bookings, "probe", asks_again, "probe_before"),
        ("dry_pass", Planner, "_demand", waits_for_any, "demand_before"),
        ("refused", Book, "is_misfit", lambda self, model: True, ""),
    ],
)
def test_it_is_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, owner: object, attribute: str, instead: Callable[..., object], kept: str
) -> None:
    if kept:
        monkeypatch.setattr(owner, kept, getattr(owner, attribute), raising=False)
    monkeypatch.setattr(owner, attribute, instead)
    seen = []
    for seed in range(3):
        try:
            Pressure(seed).run()
        except Violation as violation:
            assert violation.seed == seed
            seen.append(violation.name)
    assert name in seen
