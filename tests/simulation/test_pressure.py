# SPDX-License-Identifier: GPL-3.0-only
"""One sequence under pressure: the same each time, wrong by half and not more, and nobody is forgotten in it."""

from __future__ import annotations

import pytest

from modeld.core.bookings import Bookings
from modeld.simulation import pressure
from modeld.simulation.pressure import WRONG, Pressed, Pressure
from modeld.simulation.seen import Violation


def test_the_seed_decides_everything() -> None:
    first, again, other = (Pressure(seed).run() for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert first.served > 0
    assert first.events == Pressure(3).run().events > 100


def test_figures_are_wrong_by_half_at_most_and_really_wrong() -> None:
    shares = []
    for seed in range(6):
        one = Pressure(seed)
        for model, truth in one.truths.items():
            figure = one.scheduler.need(model)
            shares.append((figure.total_mb + figure.host_mb) / (truth.device_mb + truth.host_mb))
    assert 1 - WRONG - 0.05 < min(shares) < 0.55
    assert 1.4 < max(shares) < 1 + WRONG + 0.05


def test_who_is_never_served_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies of its first request each time, and nothing is learned from that."""
    exited = Bookings.exited
    monkeypatch.setattr(Bookings, "exited", lambda self, instance, ending, now, *, ran_out: exited(self, instance, ending, now))
    monkeypatch.setattr(pressure, "TRIES_MAX", 6)
    with pytest.raises(Violation) as seen:
        for seed in (10, 156):
            Pressure(seed).run()
    assert seen.value.name == "stuck"


def test_who_is_never_answered_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pressure, "_ready", lambda self, child: None)
    with pytest.raises(Violation) as seen:
        Pressure(3).run()
    assert seen.value.name == "stuck"


def test_more_than_there_is_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure.Machine, "free_mb", lambda self, device: -1)
    with pytest.raises(Violation) as seen:
        Pressure(3).run()
    assert seen.value.name == "machine"


def test_many_add_up() -> None:
    total = Pressed()
    total.add(Pressed(sequences=1, loads=2, used_share=0.5, used_count=1, violations=["a"]))
    total.add(Pressed(sequences=1, loads=3, used_share=1.0, used_count=2, violations=["b"]))
    assert total == Pressed(sequences=2, loads=5, used_share=1.5, used_count=3, violations=["a", "b"])
