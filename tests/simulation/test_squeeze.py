# SPDX-License-Identifier: GPL-3.0-only
"""Some sequences violate nothing and use the budget; what is violated is told with its seed and fails the run; so does an idle budget."""

from __future__ import annotations

import pytest

from modeld.simulation import squeeze
from modeld.simulation.pressure import Pressed, Pressure
from modeld.simulation.seen import Violation


def test_a_few_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    assert squeeze.main(["--sequences", "12", "--workers", "1"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("squeeze: ")]
    assert line.startswith("squeeze: 12 sequences, ")
    assert line.endswith(" 0 violations")
    figures = {
        what: int(count) for count, what in [part.split(" ", 1) for part in line.removeprefix("squeeze: ").split(", ") if part[0].isdigit()]
    }
    for what in ("starts out of memory", "second tries that helped", "grown", "evicted", "served"):
        assert figures[what] > 0, line


def test_one_process_or_two(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for workers in ("1", "2"):
        squeeze.main(["--sequences", "6", "--seed-start", "40", "--workers", workers])
        told.append(capsys.readouterr().out.splitlines()[-1])
    assert told[0] == told[1]


def test_a_violation_is_told_with_its_seed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(self: Pressure) -> Pressed:
        if self.seed == 8:
            raise Violation("made_up", "so it is", self.seed, 1.5)
        if self.seed == 9:
            raise KeyError("what is this")
        return Pressed(sequences=1, used_share=0.95, used_count=1)

    monkeypatch.setattr(Pressure, "run", run)
    assert squeeze.main(["--sequences", "2", "--seed-start", "6", "--workers", "1"]) == 0
    capsys.readouterr()
    assert squeeze.main(["--sequences", "3", "--seed-start", "7", "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert "seed 8, 1.500000 s: made_up: so it is" in out
    assert "seed 9, 0.000 s: KeyError: 'what is this'" in out
    assert out.splitlines()[-1].endswith("2 violations")


def test_a_budget_that_is_not_used_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pressure, "run", lambda self: Pressed(sequences=1, used_share=0.8, used_count=1))
    assert squeeze.main(["--sequences", "1", "--workers", "1"]) == 1
