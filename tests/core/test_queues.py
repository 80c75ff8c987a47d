# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import math

import pytest

from modeld.core.model import ModelId, Request, RequestId
from modeld.core.queues import Lines
from modeld.errors import InvariantError

A, B = ModelId("a"), ModelId("b")


def request(name: str, model: ModelId = A, size: int = 0) -> Request:
    return Request(RequestId(name), model, body_bytes=size)


def test_lines_are_first_in_first_out_and_withdrawal_leaves_no_trace():
    lines = Lines()
    for n, name in enumerate("xyz"):
        lines.append(request(name, size=10), now=n, wait_max_seconds=5)
    assert lines.waiting_bytes == 30
    lines.remove(RequestId("x"))
    head = lines.head(A)
    assert head is not None
    assert head.request.id == "y"
    assert lines.remove(RequestId("x")) is None
    assert [w.request.id for w in lines.take(A)] == ["y", "z"]
    assert (len(lines), lines.waiting_bytes, lines.models(), lines.head(A)) == (0, 0, [], None)


def test_nobody_stands_in_two_places():
    lines = Lines()
    lines.append(request("x"), 0, 5)
    with pytest.raises(InvariantError):
        lines.append(request("x", B), 0, 5)


def test_heads_expire_each_at_its_own_time():
    lines = Lines()
    lines.append(request("x"), 0, 5)
    lines.append(request("y", B), 1, 5)
    lines.append(request("z"), 2, 5)
    assert lines.next_deadline() == 5
    assert [w.request.id for w in lines.expired(6)] == ["x", "y"]
    assert [w.request.id for w in lines.expired(6.9)] == []
    assert [w.request.id for w in lines.expired(7)] == ["z"]
    assert lines.next_deadline() == math.inf


def test_a_stopped_clock_keeps_what_was_left_also_for_who_comes_meanwhile():
    lines = Lines()
    lines.append(request("x"), 0, 5)
    lines.stop_clock(A, 3)
    lines.stop_clock(A, 4)
    lines.append(request("y"), 50, 5)
    assert lines.next_deadline() == math.inf
    lines.start_clock(A, 100)
    lines.start_clock(A, 101)
    assert [w.request.id for w in lines.expired(102)] == ["x"]
    assert [w.request.id for w in lines.expired(105)] == ["y"]


def test_the_oldest_head_comes_first_also_within_one_instant():
    lines = Lines()
    lines.append(request("x", B), 0, 5)
    lines.append(request("y", A), 0, 5)
    assert [model for _, model in lines.oldest_first()] == [B, A]
