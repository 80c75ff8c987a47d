# SPDX-License-Identifier: GPL-3.0-only
"""All planted bugs apply to core as it is now; some are caught here, all of them by `make mutants`; core as it is is not."""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import replace

import pytest

from modeld.simulation import planted
from modeld.simulation.mutants import Misplaced, Mutant
from modeld.simulation.planted import CORE, MUTANTS, Verdict

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
PEERS = ("llama-swap #946", "llama.cpp #20763", "llama.cpp #25528", "llama.cpp #28443", "llama.cpp #28698", "ollama #7758", "ollama #17408")
HARMLESS = Mutant("harmless", "book.py", '"""The scheduler\'s state', '"""The state', "nothing")


@pytest.mark.parametrize("mutant", MUTANTS, ids=BY_NAME)
def test_every_planted_bug_applies(mutant: Mutant) -> None:
    """Once, and what comes of it is Python that means something else."""
    source = (CORE / mutant.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutant.planted(source))) != ast.dump(ast.parse(source))


def test_there_are_enough_and_each_has_its_own_name() -> None:
    assert len(BY_NAME) == len(MUTANTS) >= 32
    assert {mutant.peer for mutant in MUTANTS} >= set(PEERS)


def test_the_page_names_all_of_them() -> None:
    text = (CORE.parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    rows = [(name, means) for name, means in re.findall(r"^\| (\w+) \| (.+?)(?: \([\w.-]+ #\d+\))? \| \w+ \|$", text, re.MULTILINE)]
    assert rows == [(mutant.name, mutant.means) for mutant in MUTANTS]


def test_some_are_caught_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("load_evicted_by_rival", "last_in_first_out", "limit_not_for_loaded")
    arguments = [word for name in names for word in ("--only", name)]
    assert planted.main([*arguments, "--seeds", "12"]) == 0
    out = capsys.readouterr().out
    for name, invariant in zip(names, ("eviction", "fifo", "queues"), strict=True):
        assert f"| {name} | {BY_NAME[name].means}" in out
        assert f"| {invariant} |" in out
    assert "planted: 3 bugs, 3 caught, 0 survived" in out


def test_one_that_survives_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(planted, "MUTANTS", (HARMLESS,))
    assert planted.main(["--seeds", "3"]) == 1
    out = capsys.readouterr().out
    assert "| harmless | nothing | **nobody** |" in out
    assert "planted: 1 bugs, 0 caught, 1 survived" in out


def test_one_that_does_not_apply_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "MUTANTS", (replace(HARMLESS, old="not in there"),))
    with pytest.raises(Misplaced):
        planted.main(["--seeds", "3"])


def test_it_is_too_late_once_core_is_imported() -> None:
    importlib.import_module("modeld.core")
    with pytest.raises(RuntimeError, match="imported already"):
        planted.plant(MUTANTS[0])


def test_a_seed_that_core_as_it_is_violates_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(planted, "judge", lambda seed, by: Verdict("", "slots", seed, 1, detail="made up") if seed == 2 else None)
    monkeypatch.setattr(planted.multiprocessing, "get_context", lambda _: FakeContext())
    assert planted.clean_seeds(range(4), 1) == [0, 1, 3]
    assert "seed 2 is left out, core as it is violates slots: made up" in capsys.readouterr().out


class FakeContext:
    """A pool in this very process."""

    def Pool(self, workers: int) -> FakeContext:
        return self

    def __enter__(self) -> FakeContext:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def imap(self, function: object, items: list[int], chunksize: int) -> list[object]:
        return [function(item) for item in items]  # type: ignore[operator]
