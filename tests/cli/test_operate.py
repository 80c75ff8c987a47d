# SPDX-License-Identifier: GPL-3.0-only
"""`modeld load|unload|pin|unpin`: what is asked of the daemon, and what is said of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modeld.cli import client, run
from modeld.errors import ModeldError

ANSWER = {"model_id": "a.gguf", "state": "ready", "pinned": True, "instance_id": "1/a.gguf"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    paths: list[str] = []

    def post(address: object, path: str) -> dict[str, Any]:
        paths.append(path)
        if "nobody" in path:
            raise ModeldError("the daemon refused: there is no such model")
        return ANSWER

    monkeypatch.setattr(client, "post", post)
    return paths


@pytest.mark.parametrize(
    ("words", "path", "said"),
    [
        (["load", "a"], "/models/a/load", "a.gguf is ready"),
        (["load", "a", "--no-wait"], "/models/a/load?wait=0", "a.gguf is ready"),
        (["unload", "a"], "/models/a/unload", "a.gguf is ready"),
        (["unload", "x/a b.gguf"], "/models/x%2Fa%20b.gguf/unload", "a.gguf is ready"),
        (["pin", "a"], "/models/a/pin", "a.gguf is pinned (ready)"),
        (["unpin", "a"], "/models/a/unpin", "a.gguf is not pinned (ready)"),
    ],
)
def test_each_verb_asks_its_route(asked: list[str], capsys: pytest.CaptureFixture[str], words: list[str], path: str, said: str) -> None:
    assert run([*words, "--addr", ":1"]) == 0
    assert (asked, capsys.readouterr().out) == ([path], f"{said}\n")


def test_for_programs(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["load", "a", "--addr", ":1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWER


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [(["load", "nobody"], 1, "no such model"), (["load"], 2, "MODEL"), (["pin", "a", "--no-wait"], 2, "--no-wait")],
)
def test_what_goes_wrong_is_one_line(asked: list[str], capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str) -> None:
    assert run([*words, "--addr", ":1"]) == code
    seen = capsys.readouterr().err
    assert said in seen
    assert seen.count("\n") == 1


def test_names_are_completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {"models": [{"id": "a.gguf", "aliases": ["assistant"]}, {"id": "b.gguf"}]}
    monkeypatch.setattr(client, "get", lambda address, path: listed)
    monkeypatch.delenv("MODELD_TEST_STARTER", raising=False)  # no setting of ours, and so a mistake in the settings
    monkeypatch.setenv("_MODELD_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "modeld load a")
    monkeypatch.setenv("COMP_CWORD", "2")
    run([])
    assert capsys.readouterr().out.split() == ["plain,a.gguf", "plain,assistant"]
