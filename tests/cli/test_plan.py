# SPDX-License-Identifier: GPL-3.0-only
"""`modeld plan`: the daemon's answer for people, and the same arithmetic where there is no daemon."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from makegguf import make_gguf
from modeld.cli import client, run
from modeld.cli.plan import BAR_CELLS, as_text, device_lines
from modeld.errors import ModeldError
from modeld.runtime.hostmemory import read_host_memory

Plan = Callable[..., tuple[int, str, str]]


def model(name: str, verdict: str = "fits", **more: Any) -> dict[str, Any]:
    told = {"model_id": name, "verdict": verdict, "why": f"because it {verdict}", "need_mb": 100, "source": "probed"}
    return told | {"ctx": 4096, "ctx_alone": 32768, "ctx_beside": 8192, "ctx_train": 131072} | more


def answer(*models: dict[str, Any], named: bool = True, fits: bool = True, together: list[str] | None = None) -> dict[str, Any]:
    held = {one["model_id"]: one["need_mb"] for one in models if one["verdict"] == "fits"}
    device = {"id": "local/all", "budget_mb": 1000, "room_mb": 950, "foreign_mb": 0, "held_mb": held}
    return {"named": named, "fits": fits, "together": together or [], "models": list(models), "devices": [device]}


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Plan:
    """plan(words..., given=answer or error): exit code, output, error lines. A models folder with two models lies in tmp_path."""
    monkeypatch.delenv("MODELD_TEST_STARTER", raising=False)  # no setting of ours, and so a mistake in the settings
    make_gguf(tmp_path / "models" / "a.gguf")
    make_gguf(tmp_path / "models" / "b.gguf")
    settings: dict[str, Any] = {
        "models_dir": str(tmp_path / "models"),
        "vram_budget_mb": 700,
        "vram_margin_mb": 0,
        "addr": f"unix:{tmp_path}/none.sock",
    }
    settings["models"] = {"a.gguf": {"vram_mb": 300}, "b.gguf": {"vram_mb": 500}}
    (tmp_path / "c.json").write_text(json.dumps(settings))

    def go(*words: str, given: Any = None) -> tuple[int, str, str]:
        def get(address: object, path: str) -> Any:
            asked.append(path)
            if isinstance(given, ModeldError):
                raise given
            return given

        if given is not None:
            monkeypatch.setattr(client, "get", get)
        code = run(["plan", "--config", str(tmp_path / "c.json"), *words])
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    asked: list[str] = []
    go.asked = asked  # type: ignore[attr-defined]
    return go


def test_the_daemon_is_asked_for_what_was_named(plan: Plan) -> None:
    code, out, err = plan("a", "b c&d", given=answer(model("a.gguf"), model("b c&d.gguf", "evicts")))
    assert (code, err) == (0, "")
    assert plan.asked == ["/plan?model=a&model=b+c%26d"]  # type: ignore[attr-defined]
    assert "a.gguf      100  probed  4096    32768    8192   131072  fits" in out
    assert "b c&d.gguf: because it evicts" in out
    assert "they fit together" in out


def test_the_same_for_programs(plan: Plan) -> None:
    given = answer(model("a.gguf"))
    code, out, _ = plan("--json", given=given)
    assert (code, json.loads(out)) == (0, given)


def test_without_a_daemon_nothing_is_loaded(plan: Plan) -> None:
    code, out, err = plan("a", "b")
    assert code == 0
    assert re.fullmatch(r"modeld: no daemon at \S+none\.sock: as if nothing were loaded\n", err)
    assert "they do not fit together: no room for b.gguf" in out
    assert "b.gguf: has no room beside a.gguf" in out


def test_offline_asks_nobody(plan: Plan) -> None:
    code, out, err = plan("--offline", "--json", given=ModeldError("nobody is to be asked"))
    assert (code, err, plan.asked) == (0, "", [])  # type: ignore[attr-defined]
    told = json.loads(out)
    assert [(one["model_id"], one["verdict"]) for one in told["models"]] == [("a.gguf", "fits"), ("b.gguf", "fits")]
    assert told["together"] == ["a.gguf"]


def test_without_a_budget_of_the_operators_it_is_what_the_machine_has(plan: Plan, tmp_path: Path) -> None:
    settings = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(settings | {"vram_budget_mb": "auto"}))
    told = json.loads(plan("--offline", "--json")[1])
    assert [device["budget_mb"] for device in told["devices"]] == [read_host_memory().total_mb]


def test_an_unknown_model_costs_one_line(plan: Plan) -> None:
    code, out, err = plan("--offline", "aa.gguf")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert 'model "aa.gguf" is not here; did you mean "a.gguf"?' in err


def test_a_daemon_that_refuses_is_not_passed_over(plan: Plan) -> None:
    assert plan("a", given=ModeldError("the daemon refused: no"))[::2] == (1, "modeld: the daemon refused: no\n")


def test_what_is_not_modeld_is_said(plan: Plan) -> None:
    code, out, err = plan(given={"models": [], "object": "list"})
    assert (code, out) == (1, "")
    assert "is not modeld, or an older one that cannot plan" in err


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (answer(model("a")), "it fits"),
        (answer(model("a"), model("b")), "they fit together"),
        (answer(model("a", "too_large"), fits=False), "it does not fit"),
        (answer(model("a"), model("b", "no_room"), fits=False, together=["a"]), "they do not fit together: no room for b"),
        (answer(model("a"), model("b"), named=False, together=["a", "b"]), "all of them fit together"),
        (answer(model("a"), model("b"), named=False, together=["b"]), "1 of 2 fit together: b"),
    ],
)
def test_one_sentence_for_all_of_them(given: dict[str, Any], line: str) -> None:
    assert line in as_text(given).split("\n")


def test_names_of_others_cannot_move_the_cursor() -> None:
    text = as_text(answer(model("a\x1b[2J", why="it \x1b[31m is")))
    assert "\x1b" not in text


def test_a_model_that_cannot_be_served_has_no_numbers() -> None:
    text = as_text(answer(model("torn.gguf", "unavailable", source="")))
    assert text.split("\n")[1].split() == ["torn.gguf", "-", "-", "-", "-", "-", "-", "unavailable"]


def device(room: int | None, foreign: int = 0, **held: int) -> list[str]:
    return device_lines({"id": "local/all", "budget_mb": room or 0, "room_mb": room, "foreign_mb": foreign, "held_mb": held})


def test_a_bar_shows_each_share() -> None:
    head, bar, *legend = device(1000, a=500, b=250)
    assert head == "local/all: 750 of 1000 MiB, 250 MiB free"
    cells = bar.strip(" []")
    assert (len(cells), cells.count("A"), cells.count("B"), cells.count("·")) == (BAR_CELLS, 30, 15, 15)
    assert legend == ["  A a 500 MiB", "  B b 250 MiB"]


def test_a_bar_never_outgrows_its_line() -> None:
    _, bar, *legend = device(100, **{f"m{n}": 1 for n in range(100)})
    assert len(bar.strip(" []")) == BAR_CELLS
    assert legend[-1] == "  + m99 1 MiB"


def test_too_much_is_said() -> None:
    assert device(100, a=150)[0] == "local/all: 150 of 100 MiB, 50 MiB too much"


def test_what_others_hold_is_said() -> None:
    assert device(900, 300, a=1)[-1] == "  other programs hold 300 MiB of the device"


def test_without_a_budget_there_is_no_bar() -> None:
    assert device(None, a=150) == ["local/all: 150 MiB, no budget", "  A a 150 MiB"]


def test_an_empty_folder_is_said() -> None:
    assert as_text(answer()) == "no models; `modeld pull starter` fetches a small one"
