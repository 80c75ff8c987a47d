# SPDX-License-Identifier: GPL-3.0-only
"""`modeld simulate`: tables, JSON, pictures, and one line for each mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modeld.cli import run
from modeld.core.model import Limits
from modeld.simulation import plot, shipped

Simulate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str]) -> Simulate:
    def told(*words: str) -> tuple[int, str, str]:
        code = run(["simulate", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return told


@pytest.mark.parametrize("words", [(), ("--workload", "list")])
def test_it_lists_what_there_is(simulate: Simulate, words: tuple[str, ...]):
    code, out, err = simulate(*words)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == [*shipped.names(), "all"]


def test_a_workload_is_a_table(simulate: Simulate):
    code, out, err = simulate("--workload", "rotation")
    assert (code, err) == (0, "")
    assert f"modeld ({Limits().eviction})" in out and "strict fifo" in out and "clairvoyant: exact" in out and "wait bound: kept" in out
    assert max(map(len, out.splitlines())) <= 110


def test_flags_change_the_run(simulate: Simulate):
    words = ("--workload", "rotation", "--policy", "cost", "--fairness-wait", "1m", "--min-residency", "2s", "--budget-mb", "20000")
    code, out, _ = simulate(*words, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["eviction"], found["fairness_wait_seconds"], found["min_residency_seconds"]) == ("cost", 60.0, 2.0)
    assert found["budget_mb"] == {"local/all": 20000}
    assert found["modeld"]["loads"] == found["clairvoyant"]["loads"] == 2  # both fit


def test_a_seed_is_another_draw(simulate: Simulate):
    first, second, third = (simulate("--workload", "rotation", "--json", "--seed", seed)[1] for seed in "001")
    assert first == second != third


def test_a_trace_is_a_workload(simulate: Simulate, tmp_path: Path):
    path = tmp_path / "day.trace"
    lines = [
        {"trace": "modeld", "version": 1, "unix": 1.0},
        {"line": "model", "at": 0, "id": "a", "need_mb": 100},
        {
            "line": "request",
            "at": 1,
            "id": "r",
            "model": "a",
            "class": "normal",
            "principal": "p",
            "work": 1,
            "seconds": 2,
            "outcome": "done",
        },
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, err = simulate("--trace", str(path))
    assert (code, err) == (0, "")
    assert out.startswith("day.trace: recorded: 1 requests, 1 models; 1 never ran, their length is a guess\n")
    path.write_text(path.read_text() + '{"line":"load"}\n')
    assert simulate("--trace", str(path)) == (2, "", f"modeld: {path}:4: Object missing required field `at`\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workload", "rotaton"), 'modeld: --workload "rotaton" is not known; did you mean "rotation"?'),
        (
            ("--workload", "rotation", "--budget-mb", "100"),
            "modeld: a budget of 100 MB holds none of the models: the smallest, left, needs 9800",
        ),
        (("--workload", "rotation", "--budget-mb", "many"), 'modeld: --budget-mb: "many" is not a whole number'),
        (("--workload", "rotation", "--fairness-wait=-1"), 'modeld: --fairness-wait: "-1" is'),
        (("--workload", "rotation", "--min-residency=-1"), 'modeld: --min-residency: "-1" is'),
        (("--workload", "rotation", "--policy", "mru"), 'modeld: --policy: "mru" is not one of lru, cost'),
        (("--workload", "rotation", "--trace", "x"), "modeld: name a --trace or a --workload, not both"),
        (("--workload", "all", "--plot", "x.png"), "modeld: --plot draws one workload; name it"),
        (("--trace", "nowhere.trace"), "modeld: nowhere.trace: No such file or directory"),
        (("--worklaod", "x"), "modeld: config error: flag --worklaod is not known; did you mean --workload?"),
    ],
)
def test_a_mistake_is_one_line(simulate: Simulate, words: tuple[str, ...], said: str):
    code, out, err = simulate(*words)
    assert (code, out) == (2, "")
    assert err.startswith(said) and err.count("\n") == 1


def test_a_picture_is_drawn(simulate: Simulate, tmp_path: Path):
    path = tmp_path / "x.png"
    code, _, err = simulate("--workload", "rotation", "--plot", str(path))
    assert (code, err) == (0, f"drawn: {path}\n")
    assert path.read_bytes().startswith(b"\x89PNG")
    code, _, err = simulate("--workload", "rotation", "--plot", str(tmp_path / "no" / "x.png"))
    assert code == 1 and "No such file" in err


def test_what_is_missing_for_a_picture_is_said_before_anything_runs(simulate: Simulate, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert simulate("--workload", "rotation", "--plot", "x.png") == (2, "", "modeld: --plot needs Pillow: pip install 'modeld[plot]'\n")
