# SPDX-License-Identifier: GPL-3.0-only
"""`modeld events`: what is asked for, and each event in a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from modeld.cli import client, run
from modeld.cli.events import payloads, told


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"type": "hello", "instances": [{"model_id": "a", "state": "ready"}]}, "loaded: a ready"),
        ({"type": "hello", "instances": []}, "loaded: nothing"),
        ({"type": "state", "model_id": "a", "state": "draining", "why": "evicted for b"}, "a draining: evicted for b"),
        ({"type": "load", "model_id": "a", "progress": 0.25}, "a loading, 25 %"),
        ({"type": "line", "model_id": "a", "length": 3}, "a: 3 wait"),
        ({"type": "pin", "model_id": "a", "pinned": True}, "a pinned"),
        ({"type": "models", "models": 7}, "7 models in the folder"),
        ({"type": "bye", "why": "modeld is shutting down"}, "bye modeld is shutting down"),
        ({"type": "new", "model_id": "\x1b[2J"}, "new \ufffd[2J"),
    ],
)
def test_an_event_is_a_line(data: dict[str, Any], line: str) -> None:
    assert told(data).strip() == line


def test_the_time_of_day_stands_in_front() -> None:
    assert told({"type": "models", "models": 1, "unix_ms": 0})[2] == ":"


def test_what_is_no_event_is_passed_over() -> None:
    lines = [b": still here\n", b"event: x\n", b"data: {}\n", b"\n", b"data: nonsense\n", b"data: [1]\n", b'data: {"a":1}\n']
    assert list(payloads(lines)) == [{}, {"a": 1}]


def test_the_flags_become_the_query(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def follow(address: object, path: str) -> Iterator[bytes]:
        asked.append(path)
        yield b'data: {"type":"models","models":2}\n'

    monkeypatch.setattr(client, "follow", follow)
    assert run(["events", "--addr", ":1", "--model", "a b", "--type", "state", "--type", "load", "--since", "x-1", "--json"]) == 0
    assert asked == ["/events?model=a+b&type=state%2Cload&since=x-1"]
    assert json.loads(capsys.readouterr().out) == {"type": "models", "models": 2}
    assert run(["events", "--addr", ":1"]) == 0
    assert asked[1] == "/events"
    assert capsys.readouterr().out.strip() == "2 models in the folder"
