# SPDX-License-Identifier: GPL-3.0-only
"""The trace: what a real driver writes, what is read back, and what a broken disk or a broken line costs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest

from core.play import spec
from modeld.core.messages import (
    Grant,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    LeaseFailed,
    LeaseReleased,
    ModelTableReplaced,
    PinChanged,
    Refuse,
    RequestArrived,
    RequestWithdrawn,
    RevokeLease,
    SettingsReplaced,
    StartInstance,
    StopInstance,
)
from modeld.core.model import LOCAL, InstanceId, Limits, ModelId, Priority, Request, RequestId
from modeld.core.scheduler import Scheduler
from modeld.errors import ConfigError, DeadlineExceeded, Died, LoadFailed, QueueFull
from modeld.runtime import trace
from modeld.runtime.driver import Driver
from modeld.runtime.trace import Header, LimitsLine, LoadLine, ModelLine, RequestLine, TraceWriter, limits_of, read
from runtime.test_driver import Counts, Hands

LIMITS = Limits(budget_mb=MappingProxyType({LOCAL: 150}), fairness_wait_seconds=3.0)  # as the settings make it
A, B = spec("a", 100, slots=2, priority=Priority.INTERACTIVE, pinned=True), spec("b", 120)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.trace"


def lines(path: Path) -> list[object]:
    return [line for _, line in read(path)]


def requests(path: Path) -> list[RequestLine]:
    return [line for line in lines(path) if isinstance(line, RequestLine)]


def arrived(request: str, model: str = "a", **more: object) -> RequestArrived:
    return RequestArrived(Request(RequestId(request), ModelId(model), **more))  # type: ignore[arg-type]


def r(name: str) -> RequestId:
    return RequestId(name)


ONE = InstanceId("1/a")


def test_it_begins_with_who_wrote_it_the_limits_and_the_models(path: Path):
    writer = TraceWriter(path, LIMITS, now=100.0, models={A.id: A})
    writer.record(101.0, ModelTableReplaced({A.id: A, B.id: B}), [])
    writer.record(102.5, SettingsReplaced(Limits(budget_mb={LOCAL: 0})), [])
    writer.close()
    head, limits, first, second, replaced = lines(path)
    assert isinstance(head, Header) and head.unix > 1.7e9
    assert isinstance(limits, LimitsLine) and limits_of(limits) == LIMITS
    assert first == ModelLine(0.0, "a", 100, slots=2, priority=Priority.INTERACTIVE, pinned=True)
    assert second == ModelLine(1.0, "b", 120)  # and "a" is not told again
    assert isinstance(replaced, LimitsLine) and (replaced.at, limits_of(replaced).budget_mb) == (2.5, {LOCAL: 0})


def test_a_pin_at_run_time_is_written_as_the_model_it_makes(path: Path):
    writer = TraceWriter(path, LIMITS, now=100.0, models={A.id: A, B.id: B})
    writer.record(101.0, PinChanged(B.id, True), [])
    writer.record(102.0, ModelTableReplaced({A.id: A, B.id: B}), [])
    writer.record(103.0, PinChanged(A.id, False), [])
    writer.close()
    told = [(line.at, line.id, line.pinned) for line in lines(path) if isinstance(line, ModelLine)]
    assert told == [(0.0, "a", True), (0.0, "b", False), (1.0, "b", True), (3.0, "a", False)]


def test_a_request_is_written_when_it_ends(path: Path):
    writer = TraceWriter(path, LIMITS, now=100.0, models={A.id: A})
    writer.record(101.0, arrived("r1", work=9.0, priority=Priority.BATCH, timeout_seconds=4.0), [])
    writer.record(103.0, InstanceReady(ONE), [Grant(r("r1"), ONE)])
    writer.record(108.0, LeaseReleased(r("r1"), tokens=7), [])
    writer.close()
    assert requests(path) == [
        RequestLine(1.0, "r1", "a", Priority.BATCH, "anonymous", 9.0, 7.0, "done", 2.0, 5.0, 7, 4.0),
    ]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(2, RequestWithdrawn(r("r")), [])], ("left", None, None)),
        ([(2, RequestWithdrawn(r("other")), [Refuse(r("r"), QueueFull("full"))])], ("queue_full", None, None)),
        (
            [(2, InstanceReady(ONE), [Grant(r("r"), ONE)]), (5, LeaseFailed(r("r"), before_first_byte=False, error=Died("x")), [])],
            ("instance_died", 1.0, 3.0),
        ),
        (
            [
                (2, InstanceReady(ONE), [Grant(r("r"), ONE)]),
                (4, arrived("other"), [RevokeLease(r("r"), DeadlineExceeded("long"))]),
                (5, LeaseReleased(r("r"), tokens=1), []),
            ],
            ("deadline_exceeded", 1.0, 3.0),
        ),
        (  # back in line, and granted again
            [
                (2, InstanceReady(ONE), [Grant(r("r"), ONE)]),
                (3, LeaseFailed(r("r"), before_first_byte=True, error=Died("x")), []),
                (6, InstanceReady(ONE), [Grant(r("r"), ONE)]),
                (8, LeaseReleased(r("r")), []),
            ],
            ("done", 5.0, 2.0),
        ),
        (  # the second time it is refused in the same step
            [
                (2, InstanceReady(ONE), [Grant(r("r"), ONE)]),
                (3, LeaseFailed(r("r"), before_first_byte=True, error=Died("x")), [Refuse(r("r"), Died("x"))]),
            ],
            ("instance_died", 1.0, 1.0),
        ),
    ],
    ids=["left", "refused", "failed", "revoked", "requeued", "failed twice"],
)
def test_how_a_request_ended(path: Path, steps: list, expected: tuple[object, ...]):
    writer = TraceWriter(path, LIMITS, now=0.0)
    writer.record(1, arrived("r"), [])
    for at, event, commands in steps:
        writer.record(at, event, commands)
    writer.close()
    (line,) = requests(path)
    assert (line.outcome, line.wait_seconds, line.service_seconds) == expected


def test_how_a_load_ended(path: Path):
    writer = TraceWriter(path, LIMITS, now=0.0)
    ends: list[Callable[[InstanceId], tuple]] = [
        lambda one: (InstanceReady(one), []),
        lambda one: (InstanceFailed(one, LoadFailed("x")), []),
        lambda one: (InstanceExited(one), []),
        lambda one: (arrived("r"), [StopInstance(one, "evicted for b")]),
    ]
    for number, end in enumerate(ends):
        one = InstanceId(f"{number}/a")
        writer.record(number, arrived(f"r{number}"), [StartInstance(one, A, {LOCAL: 100})])
        writer.record(number + 0.5, *end(one))
        writer.record(number + 0.7, InstanceExited(one), [])  # told once
    writer.close()
    loads = [line for line in lines(path) if isinstance(line, LoadLine)]
    assert [(line.at, line.model, line.seconds, line.outcome) for line in loads] == [
        (0.0, "a", 0.5, "ready"), (1.0, "a", 0.5, "failed"), (2.0, "a", 0.5, "failed"), (3.0, "a", 0.5, "stopped"),
    ]  # fmt: skip
    assert loads[0].need_mb == {"local/all": 100}


def test_a_second_start_of_the_daemon_appends_and_mends_half_a_line(path: Path):
    TraceWriter(path, LIMITS, now=0.0, models={A.id: A}).close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"line":"request","at":1')
    assert len(lines(path)) == 3  # half a line is not read
    TraceWriter(path, LIMITS, now=0.0).close()
    assert path.read_bytes().startswith(whole + b'{"trace":"modeld"')
    assert [type(line) for line in lines(path)] == [Header, LimitsLine, ModelLine, Header, LimitsLine]


def test_something_else_is_not_written_to(path: Path):
    path.write_text("my notes\n")
    with pytest.raises(ConfigError, match=r"run\.trace:1: is not the head of a trace"):
        TraceWriter(path, LIMITS, now=0.0)
    with pytest.raises(ConfigError, match=r"trace_file: .*No such file"):
        TraceWriter(path.parent / "no" / "y", LIMITS, now=0.0)
    assert path.read_text() == "my notes\n"


def until(is_so: Callable[[], bool]) -> None:
    """The writing thread tells nobody when it is done."""
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("end", ["size", "gone", "full"])
def test_a_trace_that_cannot_go_on_ends_with_one_line(
    path: Path, end: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    writer = TraceWriter(path, LIMITS, now=0.0, size_bytes_max=2000 if end == "size" else 1 << 20)
    until(lambda: path.stat().st_size > 300)
    if end == "gone":
        path.unlink()
    if end == "full":
        monkeypatch.setattr(writer._sink, "_file", Full(writer._sink._file), raising=True)
    for number in range(50):
        writer.record(number, arrived(f"r{number}"), [Refuse(r(f"r{number}"), QueueFull("full"))])
    until(lambda: writer._sink.ended)
    writer.record(60, arrived("late"), [Refuse(r("late"), QueueFull("full"))])
    writer.close()
    assert len(caplog.records) == 1 and "ends here" in caplog.text
    if end == "size":
        assert path.stat().st_size <= 2000
        assert requests(path)


class Full:
    """A file on a disk that has no room."""

    def __init__(self, file: object) -> None:
        self.file = file

    def write(self, line: bytes) -> int:
        raise OSError(28, "No space left on device")


def test_a_disk_that_hangs_costs_the_trace_not_the_loop(path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trace, "QUEUE_BYTES_MAX", 1000)
    monkeypatch.setattr(trace, "CLOSE_SECONDS", 0.0)
    writer = TraceWriter(path, LIMITS, now=0.0)
    until(lambda: path.stat().st_size > 300)
    monkeypatch.setattr(writer._sink, "_lines", Hung())  # the thread still waits for the queue that it had
    for number in range(50):
        writer.record(number, arrived(f"r{number}"), [Refuse(r(f"r{number}"), QueueFull("full"))])
    assert writer._sink.ended
    assert caplog.text.count("the disk does not keep up") == 1
    monkeypatch.undo()
    writer.close()


class Hung:
    def put(self, line: bytes) -> None:
        """Nobody takes it."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", None),
        ("{}\n", "1: is not the head of a trace of modeld: Object missing required field `trace`"),
        ('{"trace":"other","version":1,"unix":1}\n', "1: is not a trace of modeld"),
        ('{"trace":"modeld","version":2,"unix":1}\n', "1: is version 2, this modeld reads version 1"),
        ('{"trace":"modeld","version":1,"unix":1}\n\n{"line":"load"}\n', "3: Object missing required field `at`"),
        ('{"trace":"modeld","version":1,"unix":1}\n{"line":"lod","at":1}\n', r"2: Invalid value 'lod' - at `\$\.line`"),
        ('{"trace":"modeld","version":1,"unix":1}\n{"line":"load","at":-1,"model":"a"}\n', "2: Expected `float` >= 0"),
        ('{"trace":"modeld","version":1,"unix":1}\n{"line":"load","at"\n', "2: Input data was truncated"),
    ],
)  # fmt: skip
def test_a_broken_line_is_named(path: Path, text: str, said: str | None):
    path.write_text(text)
    if said is None:
        assert lines(path) == []
        return
    with pytest.raises(ConfigError, match=rf"run\.trace:{said}"):
        lines(path)


def test_a_file_that_is_not_there_is_named(path: Path):
    with pytest.raises(ConfigError, match=r"run\.trace: No such file"):
        lines(path)


def test_numbers_are_json_numbers(path: Path):
    """Other programs read it too: no Infinity, no NaN."""
    writer = TraceWriter(path, LIMITS, now=0.0)
    writer.record(1, arrived("r"), [Refuse(r("r"), QueueFull("full"))])
    writer.close()
    for raw in path.read_text().splitlines():
        json.loads(raw, parse_constant=lambda word: pytest.fail(word))
    with pytest.raises(msgspec.ValidationError):
        limits_of(LimitsLine(0.0, {"budget_mb": "all"}))


async def test_a_driver_writes_what_happened(path: Path):
    """The real driver and scheduler, with hands that load at once."""
    hands, fatal = Hands(), []
    writer = TraceWriter(path, LIMITS, now=asyncio.get_running_loop().time())
    driver = Driver(Scheduler(LIMITS, {}), observer=Counts(), on_fatal=fatal.append, trace=writer)
    hands.driver = driver
    driver.attach(hands)  # type: ignore[arg-type]
    models = {one.id: one for one in (spec("a", 100), spec("b", 100))}
    driver.post(ModelTableReplaced(models))
    for name, model in (("r1", "a"), ("r2", "b"), ("r3", "b")):
        async with driver.request(Request(r(name), ModelId(model), work=3.0)) as lease:
            lease.tokens = 5
    driver.close()
    writer.close()
    assert fatal == []
    assert [(line.id, line.model, line.outcome, line.tokens, line.work) for line in requests(path)] == [
        ("r1", "a", "done", 5, 3.0), ("r2", "b", "done", 5, 3.0), ("r3", "b", "done", 5, 3.0),
    ]  # fmt: skip
    assert [(line.model, line.outcome) for line in lines(path) if isinstance(line, LoadLine)] == [("a", "ready"), ("b", "ready")]
