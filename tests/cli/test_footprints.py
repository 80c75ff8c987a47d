# SPDX-License-Identifier: GPL-3.0-only
"""`modeld footprints`: what the daemon learned, as a table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modeld.cli import client, run
from modeld.cli.footprints import as_text

MIB = 1 << 20


def learned(model: str, **more: Any) -> dict[str, Any]:
    told = {"model_id": model, "launch": "ctx 4096, 4 slots", "predicted_bytes": 102 * MIB, "source": "probed", "measured_bytes": 100 * MIB}
    told |= {"error": 0.02, "devices_bytes": {}, "host_bytes": 100 * MIB, "least_bytes": 0, "loads": 3, "last_seen_unix": 1000}
    return told | more


def test_prediction_and_truth_stand_side_by_side() -> None:
    lines = as_text([learned("a.gguf"), learned("b.gguf", error=-0.101, predicted_bytes=2048 * MIB, last_seen_unix=0)], 1065.0).split("\n")
    assert lines[0].split() == ["MODEL", "LAUNCH", "PREDICTED", "SOURCE", "MEASURED", "ERROR", "LOADS", "SEEN"]
    assert "a.gguf" in lines[1] and "102.0" in lines[1] and "100.0" in lines[1] and "+2.0%" in lines[1]
    assert lines[1].endswith("    3  1m5s ago")
    assert "2,048.0" in lines[2] and "-10.1%" in lines[2] and lines[2].endswith("this run")


def test_what_ran_out_of_memory_is_told() -> None:
    text = as_text([learned("a.gguf", measured_bytes=0, error=None, least_bytes=7 * MIB)], 1000.0)
    assert text.endswith("a.gguf (ctx 4096, 4 slots) ran out of memory with less than 7.0 MiB")
    assert text.split("\n")[1].split()[-6:] == ["probed", "-", "-", "3", "0s", "ago"]


def test_nothing_yet() -> None:
    assert as_text([], 0.0) == "nothing was measured yet: load a model"


def ask(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], *words: str) -> int:
    def get(address: object, path: str) -> dict[str, Any]:
        assert path == "/footprints"
        return answer

    monkeypatch.setattr(client, "get", get)
    return run(["footprints", "--addr", ":1", *words])


def test_one_model_alone_and_for_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"footprints": [learned("a.gguf"), learned("b.gguf")]}
    assert ask(monkeypatch, answer, "b.gguf", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"footprints": [learned("b.gguf")]}
    assert ask(monkeypatch, answer) == 0
    assert capsys.readouterr().out.count(".gguf") == 2


def test_what_learns_nothing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(monkeypatch, {"status": "ok"}) == 1
    assert "is not modeld, or an older one that learns nothing" in capsys.readouterr().err
