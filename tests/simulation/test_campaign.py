# SPDX-License-Identifier: GPL-3.0-only
"""A campaign counts, finds, shrinks and replays; its figures do not depend on the processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeld.simulation import campaign, shrink
from modeld.simulation.faults import KINDS
from modeld.simulation.seen import Violation
from modeld.simulation.story import Story
from modeld.simulation.world import World


def figures(text: str) -> list[str]:
    """All lines but the one with the speed."""
    return [line for line in text.splitlines() if "events/s" not in line]


def test_one_process_or_two(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--events", "3000", "--keep-going", "--workers"]
    code = campaign.main([*arguments, "1"])
    alone = figures(capsys.readouterr().out)
    assert campaign.main([*arguments, "2"]) == code
    assert figures(capsys.readouterr().out) == alone
    assert alone[-1].startswith("sim: ")


def break_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a world complains about the tenth grant."""
    act = World._grant

    def grant(self: World, command: object) -> None:
        self.counts["grants"] += 1
        if self.counts["grants"] == 10:
            self.fail("slots", "made up")
        act(self, command)  # type: ignore[arg-type]

    monkeypatch.setattr(World, "_grant", grant)


def test_a_violation_is_shrunk_written_down_and_replayed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    break_slots(monkeypatch)
    arguments = ["--events", "3000", "--workers", "1", "--shrink-seconds", "5", "--out", str(tmp_path)]
    assert campaign.main(arguments) == 1
    out = capsys.readouterr().out
    assert "VIOLATED slots: 1 seeds, first: seed 0, " in out
    path = tmp_path / "sim-seed-0.json"
    assert f"python -m modeld.simulation.campaign --replay {path}" in out
    assert campaign.main(["--replay", str(path)]) == 1
    told = capsys.readouterr().out
    assert "VIOLATED seed 0, " in told and "arrived r" in told
    monkeypatch.undo()
    assert campaign.main(["--replay", str(path)]) == 0


def test_violations_are_counted_when_it_keeps_going(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    break_slots(monkeypatch)
    assert campaign.main(["--events", "300", "--workers", "1", "--keep-going"]) == 1
    out = capsys.readouterr().out
    assert "VIOLATED slots: " in out and "replay" not in out


def test_an_invariant_that_is_left_out_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[frozenset[str]] = []

    def run(seed: int, checks: frozenset[str]) -> campaign.Tally:
        seen.append(checks)
        return campaign.Tally(seeds=1, events=1)

    monkeypatch.setattr(campaign, "run_seed", run)
    assert campaign.main(["--events", "1", "--workers", "1", "--without", "bound"]) == 0
    assert seen == [campaign.ALL - {"bound"}]


def test_a_generator_that_has_gone_blind_fails_a_whole_campaign(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = campaign.Tally(seeds=1, events=campaign.WHOLE_EVENTS)
    tally.happened.update(KINDS[1:])
    monkeypatch.setattr(campaign, "run_seed", lambda seed, checks: tally)
    assert campaign.main(["--workers", "1", "--events", "10"]) == 1
    assert f"never happened: {KINDS[0]}\n" in capsys.readouterr().out


def test_shrinking_finds_nothing_in_a_story_that_holds() -> None:
    assert shrink.violation_of(Story(0, campaign.generate.story(0).workload)) is None


def test_a_violation_travels_between_processes() -> None:
    import pickle

    violation = pickle.loads(pickle.dumps(Violation("slots", "too many", 7, 1.5)))
    assert (violation.name, violation.seed, str(violation)) == ("slots", 7, "seed 7, 1.500000 s: slots: too many")
