# SPDX-License-Identifier: GPL-3.0-only
"""From a file of lines to a workload; and round: a run is recorded, read, and played again."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from core.play import spec
from modeld.core.messages import InstanceExited, InstanceReady, LaunchChecked, MemoryFreed, ModelTableReplaced
from modeld.core.model import LOCAL, InstanceId, Limits, ModelId, ModelSpec, Priority, Request, RequestId
from modeld.core.scheduler import Scheduler
from modeld.errors import ConfigError
from modeld.runtime.driver import Driver
from modeld.runtime.trace import TraceWriter
from modeld.simulation import tracefile
from modeld.simulation.report import compare
from modeld.simulation.tracefile import read_trace
from runtime.test_driver import Counts

HEAD = {"trace": "modeld", "version": 1, "unix": 1000.0}
A = {"line": "model", "at": 0, "id": "a", "need_mb": 1000}
B = {"line": "model", "at": 0, "id": "b", "need_mb": 2000, "slots": 4, "priority": "batch", "pinned": True}


def request(at: float, model: str, **more: Any) -> dict[str, Any]:
    usual = {"line": "request", "at": at, "id": f"{model}{at}", "model": model, "class": "normal", "principal": "p", "work": 1}
    return usual | {"seconds": 3, "outcome": "done", "wait_seconds": 1, "service_seconds": 2, "tokens": 9} | more


def load(model: str, seconds: float, outcome: str = "ready") -> dict[str, Any]:
    return {"line": "load", "at": 0, "model": model, "seconds": seconds, "outcome": outcome}


@pytest.fixture
def write(tmp_path: Path):
    def written(*lines: dict[str, Any]) -> Path:
        path = tmp_path / "x.trace"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return written


def test_what_is_read(write):
    limits = {"line": "limits", "at": 0, "limits": {"budget_mb": {"local/all": 2500}, "fairness_wait_seconds": 4}}
    later = {"line": "limits", "at": 9, "limits": {"budget_mb": {"local/all": 1}}}
    asks = (
        request(5, "b", **{"class": "batch"}),
        request(2, "a", timeout_seconds=7),
        request(6, "gone"),
        request(7, "a", outcome="model_unavailable"),
    )
    one = read_trace(write(HEAD, limits, A, B, later, *asks))
    assert one.name == "x.trace"
    assert (one.limits.budget_mb, one.limits.fairness_wait_seconds) == ({LOCAL: 2500}, 4)
    assert [(ask.at, ask.model, ask.service_seconds, ask.tokens, ask.timeout_seconds) for ask in one.asks] == [
        (2, "a", 2, 9, 7), (5, "b", 2, 9, math.inf),
    ]  # fmt: skip
    second = one.models[1].spec
    assert (second.id, second.vram_mb, second.options.parallel, second.priority, second.pinned) == ("b", 2000, 4, Priority.BATCH, True)
    assert one.note == "recorded: 2 requests, 2 models; 2 that no policy could have served are left out"


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ((load("a", 4), load("a", 6), load("a", 90), load("a", 1, "failed"), load("b", 7)), {"a": 6, "b": 7}),
        ((load("a", 4),), {"a": 4, "b": 8}),  # twice as large
        ((load("a", 4, "stopped"),), {"a": 1.2 + 1000 / 1500, "b": 1.2 + 2000 / 1500}),
    ],
    ids=["own", "by size from others", "by size"],
)
def test_how_long_loads_take(write, loads: tuple[dict[str, Any], ...], expected: dict[str, float]):
    one = read_trace(write(HEAD, A, B, *loads, request(1, "a")))
    assert {model.id: model.load_seconds for model in one.models} == pytest.approx(expected)


def test_who_never_ran_is_guessed_and_who_left_leaves(write):
    never = {"wait_seconds": None, "service_seconds": None}
    asks = (
        request(1, "a", service_seconds=3),
        request(2, "a", service_seconds=5),
        request(3, "a", service_seconds=50),
        request(4, "a", **never, outcome="queue_full", seconds=0),
        request(5, "b", **never, outcome="left", seconds=6),
    )
    one = read_trace(write(HEAD, A, B, *asks))
    assert [ask.service_seconds for ask in one.asks] == [3, 5, 50, 5, 5]
    assert [ask.leaves_at for ask in one.asks] == [math.inf] * 4 + [11]
    assert "2 never ran, their length is a guess" in one.note
    alone = read_trace(write(HEAD, A, request(1, "a", **never, outcome="left")))
    assert alone.asks[0].service_seconds == tracefile.SERVICE_SECONDS


def test_runs_of_the_daemon_follow_each_other(write):
    again = HEAD | {"unix": 1100.0}
    back = HEAD | {"unix": 1050.0}  # a clock that was put back does not mix the runs
    one = read_trace(write(HEAD, A, request(7, "a"), again, A, request(7, "a"), back, request(1, "a")))
    assert [ask.at for ask in one.asks] == [7, 107, 111]
    assert len({ask.request for ask in one.asks}) == 3


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((HEAD,), "x.trace: names no model"),
        ((HEAD, A), "x.trace: holds no request that could have been served"),
        (
            (HEAD, A, {"line": "limits", "at": 0, "limits": {"margin_mb": "x"}}),
            r"x\.trace:3: Expected `int`, got `str` - at `\$\.margin_mb`",
        ),
        ((HEAD, A | {"slots": 0}), r"x\.trace:2: Expected `int` >= 1 - at `\$\.slots`"),
    ],
)
def test_what_is_wrong_is_said(write, lines: tuple[dict[str, Any], ...], said: str):
    with pytest.raises(ConfigError, match=said):
        read_trace(write(*lines))


class Slow:
    """Hands whose loads and stops take a moment of real time."""

    def __init__(self) -> None:
        self.driver: Driver | None = None
        self.loop = asyncio.get_running_loop()

    def check(self, one: ModelSpec) -> None:
        assert self.driver is not None
        self.driver.post(LaunchChecked(one.id, one.fingerprint))

    def start(self, instance: InstanceId, one: ModelSpec) -> None:
        assert self.driver is not None
        self.loop.call_later(0.05, self.driver.post, InstanceReady(instance, pid=1))

    def stop(self, instance: InstanceId, why: str) -> None:
        assert self.driver is not None
        self.driver.post(InstanceExited(instance, code=0))
        self.driver.post(MemoryFreed(instance))

    def used(self, instance: InstanceId) -> None: ...

    def served(self, instance: InstanceId) -> object:
        return instance


async def test_a_run_is_recorded_read_and_played_again(tmp_path: Path):
    """A real driver on a real loop; the simulation of what it wrote loads the same models."""
    path, limits = tmp_path / "run.trace", Limits(budget_mb={LOCAL: 150}, fairness_wait_seconds=0.5)
    writer = TraceWriter(path, limits, now=asyncio.get_running_loop().time())
    hands, fatal = Slow(), []
    driver = Driver(Scheduler(limits, {}), observer=Counts(), on_fatal=fatal.append, trace=writer)
    hands.driver = driver
    driver.attach(hands)  # type: ignore[arg-type]
    driver.post(ModelTableReplaced({one.id: one for one in (spec("a", 100, slots=2), spec("b", 100))}))
    for name, model in (("r1", "a"), ("r2", "a"), ("r3", "b"), ("r4", "a")):
        async with driver.request(Request(RequestId(name), ModelId(model))) as lease:
            await asyncio.sleep(0.02)
            lease.tokens = 3
    driver.close()
    writer.close()
    assert fatal == []
    one = read_trace(path)
    assert one.limits == limits
    assert [(ask.model, ask.tokens) for ask in one.asks] == [("a", 3), ("a", 3), ("b", 3), ("a", 3)]
    assert [model.load_seconds >= 0.05 for model in one.models] == [True, True]
    assert all(ask.service_seconds >= 0.02 for ask in one.asks)
    found = compare(one)
    assert found.modeld.unserved == 0
    assert found.modeld.by_model["a"].requests == 3
    assert [stay.model for stay in found.history.stays][:1] == ["a"]
    assert found.bound_broken == ""
