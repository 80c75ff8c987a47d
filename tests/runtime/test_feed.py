# SPDX-License-Identifier: GPL-3.0-only
"""The feed: what becomes of a change, what is remembered, who is told, and that none of it grows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from modeld.core.changes import Change, InstanceMoved, LineMoved, LoadMoved, PinMoved, TableMoved, WishDropped
from modeld.core.lifecycle import State
from modeld.core.messages import LoadRequested, UnloadRequested
from modeld.core.model import InstanceId, ModelId
from modeld.errors import LoadFailed, Unloaded
from modeld.runtime import feed as feed_module
from modeld.runtime.feed import BYTES_MAX, EVENTS_MAX, LINE_SECONDS, WHY_CHARS_MAX, Feed, Told
from runtime.test_driver import Stage, stage

__all__ = ["stage"]
A, ONE = ModelId("a"), InstanceId("1/a")


@pytest.fixture
async def feed() -> AsyncIterator[Feed]:
    feed = Feed(run="abcd", clock=lambda: 1700000000.1234)
    yield feed
    feed.close()


def pin(number: int) -> Change:
    return PinMoved(ModelId(f"m{number}"), True)


def nobody() -> None:
    """Nobody asks when it ended."""


def numbers(replayed: list[Told]) -> list[int]:
    return [told.event.seq for told in replayed]


async def eventually(holds: Callable[[], object]) -> None:
    for _ in range(5000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


async def test_each_change_becomes_its_event(feed: Feed):
    got: list[dict[str, object]] = []
    feed.subscribe(lambda told: got.append(json.loads(told.json)), nobody)
    error = LoadFailed("the file is damaged")
    feed.take(
        [
            InstanceMoved(A, ONE, State.LOADING),
            LoadMoved(A, ONE, 0.123456),
            InstanceMoved(A, ONE, State.FAILED, error.message, error),
            LineMoved(A, 3),
            PinMoved(A, False),
            WishDropped(A, Unloaded("called off")),
            TableMoved(0),
        ]
    )
    assert [one.pop("unix_ms") for one in got] == [1700000000123] * 7
    assert [(one.pop("id"), one.pop("seq")) for one in got] == [(f"abcd-{n}", n) for n in range(1, 8)]
    assert got == [
        {"type": "state", "model_id": "a", "instance_id": "1/a", "state": "loading"},
        {"type": "load", "model_id": "a", "instance_id": "1/a", "progress": 0.1235},
        {"type": "state", "model_id": "a", "instance_id": "1/a", "state": "failed", "why": "the file is damaged"},
        {"type": "line", "model_id": "a", "length": 3},
        {"type": "pin", "model_id": "a", "pinned": False},
        {"type": "dropped", "model_id": "a", "why": "called off"},
        {"type": "models", "models": 0},
    ]


async def test_a_long_reason_is_cut(feed: Feed):
    feed.take([InstanceMoved(A, ONE, State.FAILED, "x" * 10_000), WishDropped(A, Unloaded("y" * 10_000))])
    assert [len(told.event.why) for told in feed.since("").events] == [WHY_CHARS_MAX] * 2


async def test_who_comes_back_gets_what_came_since(feed: Feed):
    feed.take([pin(n) for n in range(5)])
    for seen, expected in (("abcd-2", [3, 4, 5]), ("abcd-5", []), ("abcd-0", [1, 2, 3, 4, 5])):
        replay = feed.since(seen)
        assert (numbers(replay.events), replay.lost) == (expected, False)
    assert feed.last_id == "abcd-5"


@pytest.mark.parametrize("strange", ["", "abcd-", "abcd-6", "abcd--1", "abcd-1x", "abce-2", "2", "abcd-" + "9" * 5000, "abcd-²"])
async def test_an_id_of_another_run_or_of_nobody_has_lost_something(feed: Feed, strange: str):
    feed.take([pin(n) for n in range(5)])
    replay = feed.since(strange)
    assert (numbers(replay.events), replay.lost) == ([1, 2, 3, 4, 5], True)


async def test_two_runs_have_two_names():
    assert Feed().run != Feed().run


async def test_the_oldest_leave_the_ring_and_who_missed_them_is_told():
    feed = Feed(run="r")
    feed.take([pin(n) for n in range(EVENTS_MAX + 10)])
    assert len(feed) == EVENTS_MAX == 1000
    assert (feed.since("r-10").lost, len(feed.since("r-10").events)) == (False, EVENTS_MAX)
    assert (feed.since("r-9").lost, len(feed.since("r-9").events)) == (True, EVENTS_MAX)


async def test_the_ring_is_bounded_in_bytes_too():
    feed = Feed(run="r")
    why = "ü" * WHY_CHARS_MAX
    feed.take([InstanceMoved(ModelId("m" * 5000), ONE, State.FAILED, why) for _ in range(EVENTS_MAX)])
    assert BYTES_MAX - 10_000 < feed.size_bytes <= BYTES_MAX
    assert feed.since("r-0").lost
    feed = Feed(run="r", bytes_max=100)
    feed.take([pin(1)])
    assert (len(feed), feed.size_bytes, feed.since("r-0").lost, feed.since("r-1").lost) == (0, 0, True, False)


async def test_who_has_cancelled_is_told_nothing_any_more(feed: Feed):
    got: list[Told] = []
    ended: list[int] = []
    one = feed.subscribe(got.append, lambda: ended.append(1))
    two = feed.subscribe(lambda _: one.cancel(), lambda: ended.append(2))
    feed.take([pin(1), pin(2)])
    two.cancel()
    two.cancel()
    feed.close()
    assert (numbers(got), ended) == ([1], [])


async def test_a_reader_that_fails_costs_the_others_nothing(feed: Feed, caplog: pytest.LogCaptureFixture):
    got: list[Told] = []

    def fail(_: Told) -> None:
        raise ValueError("a bug")

    feed.subscribe(fail, nobody)
    feed.subscribe(got.append, nobody)
    feed.take([pin(1), pin(2)])
    assert numbers(got) == [1, 2]
    assert caplog.text.count("ValueError: a bug") == 1


async def test_the_end_is_told_once_and_nothing_comes_after_it(feed: Feed):
    ended: list[int] = []
    feed.subscribe(lambda _: ended.append(0), lambda: ended.append(1))
    feed.close()
    feed.close()
    feed.take([pin(1)])
    feed.subscribe(lambda _: ended.append(0), lambda: ended.append(2))
    assert (ended, len(feed)) == ([1, 2], 0)


async def test_a_busy_line_is_told_of_now_and_then_with_what_it_came_to(feed: Feed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed_module, "LINE_SECONDS", 0.02)
    got: list[tuple[str, int | None]] = []
    feed.subscribe(lambda told: got.append((told.event.model_id, told.event.length)), nobody)
    for length in range(1, 50):
        feed.take([LineMoved(A, length)])
    feed.take([LineMoved(ModelId("b"), 7)])
    assert got == [("a", 1), ("b", 7)]
    await eventually(lambda: len(got) == 3)
    assert got == [("a", 1), ("b", 7), ("a", 49)]
    feed.take([LineMoved(A, 0)])
    await eventually(lambda: len(got) == 4)
    assert got[-1] == ("a", 0)
    assert LINE_SECONDS <= 0.1


async def test_no_timer_is_left_when_nothing_moves(feed: Feed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed_module, "LINE_SECONDS", 0.001)
    feed.take([LineMoved(A, 1)])
    await asyncio.sleep(0.05)
    assert feed._timer is None
    feed.take([LineMoved(A, 2)])
    feed.close()
    assert feed._timer is None


async def test_the_driver_tells_what_each_step_changed_before_its_commands(stage: Stage):
    feed = Feed(run="r")
    stop = stage.driver.watch(feed.take)
    states: list[tuple[str, int]] = []
    feed.subscribe(lambda told: states.append((told.event.state, len(stage.hands.told))), nobody)
    stage.driver.post(LoadRequested(A))
    assert states == [("loading", 0), ("ready", 1)]
    stop()
    stop()
    stage.driver.post(UnloadRequested(A))
    assert len(states) == 2
    feed.close()
