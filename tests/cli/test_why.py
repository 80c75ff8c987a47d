# SPDX-License-Identifier: GPL-3.0-only
"""`modeld why`: the daemon's sentences for one name, and one line for a name it does not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modeld.cli import client, run
from modeld.errors import ModeldError


def wait(request: str, model: str, position: int, why: str, priority: str = "normal") -> dict[str, Any]:
    return {"request_id": request, "model_id": model, "priority": priority, "position": position, "why": why}


ANSWERS: dict[str, Any] = {
    "/status?explain=1": {
        "why": {"b.gguf": "loading, 40 %", "a.gguf": "runs; all 4 slots are taken"},
        "waiting": [
            wait("mine-1-7", "b.gguf", 1, "b.gguf loads", "batch"),
            wait("mine-1-8", "a.gguf", 1, "it waits for a slot"),
            wait("c-9", "a.gguf", 2, "it stands behind mine-1-8\x1b[2J"),
        ],
    },
    "/models": {
        "models": [
            {"id": "a.gguf", "aliases": ["chat", "mine-1"]},
            {"id": "b.gguf"},
            {"id": "Idle.gguf"},
            {"id": "torn.gguf", "unavailable": "the file is cut short"},
        ]
    },
}
Why = Callable[..., tuple[int, str, str]]


@pytest.fixture
def why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Why:
    """why(words..., answers=...): exit code, output, error line."""

    def go(*words: str, answers: dict[str, Any] = ANSWERS) -> tuple[int, str, str]:
        def get(address: object, path: str) -> Any:
            if path not in answers:
                raise ModeldError("nobody there")
            return answers[path]

        monkeypatch.setattr(client, "get", get)
        code = run(["why", "--addr", ":1", *words])
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return go


A = "a.gguf: runs; all 4 slots are taken"
R7 = "mine-1-7 (batch, number 1 for b.gguf): b.gguf loads"
R8 = "mine-1-8 (normal, number 1 for a.gguf): it waits for a slot"
R9 = "c-9 (normal, number 2 for a.gguf): it stands behind mine-1-8\ufffd[2J"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ((), [A, "b.gguf: loading, 40 %", R7, R8, R9]),
        (("a.gguf",), [A, R8, R9]),
        (("a",), [A, R8, R9]),
        (("CHAT",), [A, R8, R9]),
        (("b",), ["b.gguf: loading, 40 %", R7]),
        (("idle",), ["Idle.gguf: not loaded, and nobody waits for it"]),
        (("torn",), ["torn.gguf: cannot be served: the file is cut short"]),
        (("mine-1-7",), [R7]),
        (("c",), [R9]),
        (("mine-1",), [A, R7, R8, R9]),  # an alias, and what a client sent as X-Request-Id
    ],
)
def test_what_is_told(why: Why, name: tuple[str, ...], lines: list[str]) -> None:
    assert why(*name) == (0, "\n".join(lines) + "\n", "")


def test_the_same_for_programs(why: Why) -> None:
    code, out, _ = why("b", "--json")
    assert code == 0
    assert json.loads(out) == {"why": {"b.gguf": "loading, 40 %"}, "waiting": [ANSWERS["/status?explain=1"]["waiting"][0]]}


def test_nothing_to_tell(why: Why) -> None:
    assert why(answers={"/status?explain=1": {"why": {}, "waiting": []}}) == (0, "nothing is loaded, and nobody waits\n", "")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("chta", '"chta" is neither a model here nor a request that waits; did you mean "chat"?'),
        ("mine-1-6", '"mine-1-6" is neither a model here nor a request that waits; did you mean "mine-1-8" or "mine-1-7" or "mine-1"?'),
        ("zzzzzz", '"zzzzzz" is neither a model here nor a request that waits'),
    ],
)
def test_an_unknown_name_costs_one_line(why: Why, name: str, line: str) -> None:
    assert why(name) == (1, "", f"modeld: {line}\n")


def test_what_does_not_explain_itself_is_said(why: Why) -> None:
    code, out, error = why(answers={"/status?explain=1": {"instances": []}})
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "is not modeld, or an older one" in error
    assert why("a", answers={})[::2] == (1, "modeld: nobody there\n")


def test_names_are_completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def complete(words: str, answers: dict[str, Any]) -> list[str]:
        def get(address: object, path: str) -> Any:
            if not answers:
                raise ModeldError("nobody there")
            return answers[path]

        monkeypatch.setattr(client, "get", get)
        asked = {"_MODELD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        for key, value in asked.items():
            monkeypatch.setenv(key, value)
        run([])
        return [line.partition(",")[2] for line in capsys.readouterr().out.split()]

    assert complete("modeld why --addr :1 mi", ANSWERS) == ["mine-1-7", "mine-1-8"]
    assert complete("modeld why --addr :1 a", ANSWERS) == ["a.gguf"]
    assert complete("modeld why --addr :1 a", {}) == []
    assert complete("modeld why --addr nonsense a", ANSWERS) == []
    assert complete("modeld w", ANSWERS) == ["why"]
