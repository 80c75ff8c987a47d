# SPDX-License-Identifier: GPL-3.0-only

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from modeld.core.footprint import Footprint, When
from modeld.core.messages import Event, FootprintMeasured
from modeld.core.model import Companion, InstanceId, MemoryShape, ModelId, ModelSpec
from modeld.runtime import meter as module
from modeld.runtime.adapters.interface import Served
from modeld.runtime.background import in_background
from modeld.runtime.loadlines import MIB, Reported
from modeld.runtime.meter import Meter, footprint, held_bytes

ONE = InstanceId("1/a")
SPEC = ModelSpec(ModelId("a"), "/a", size_bytes=101 * MIB, memory=MemoryShape(weights_bytes=100 * MIB, tied_bytes=10 * MIB))
ON_CPU = Reported({("CPU", "KV"): 90 * MIB, ("CPU", "compute"): 20 * MIB}, frozenset({"CPU_Mapped"}))
ON_DEVICE = Reported(
    {("CUDA0", "model"): 100 * MIB, ("CUDA0", "KV"): 90 * MIB, ("CUDA_Host", "compute"): 5 * MIB}, frozenset({"CPU_Mapped"})
)


def test_on_the_cpu_the_weights_in_the_file_count_once_beside_what_the_process_holds():
    assert footprint(SPEC, ON_CPU, None, 131 * MIB) == Footprint({}, 231 * MIB, complete=True, reported_bytes=210 * MIB)


def test_a_draft_models_weights_lie_in_a_file_too():
    drafted = replace(SPEC, draft=Companion("/d", 50 * MIB, MemoryShape(40 * MIB)))
    assert footprint(drafted, ON_CPU, None, 131 * MIB).host_bytes == (231 + 40) * MIB
    assert footprint(replace(drafted, draft=Companion("/d", 50 * MIB)), ON_CPU, None, 131 * MIB).host_bytes == (231 + 50) * MIB


def test_buffers_count_before_a_page_of_them_was_touched():
    assert footprint(SPEC, ON_CPU, None, 3 * MIB).host_bytes == 210 * MIB


def test_weights_copied_into_a_layout_of_the_cpus_own_are_not_counted_again():
    repacked = Reported({("CPU_REPACK", "model"): 70 * MIB, ("CPU", "KV"): 90 * MIB}, frozenset({"CPU_Mapped"}))
    assert footprint(SPEC, repacked, None, 165 * MIB).host_bytes == (165 + 30) * MIB


def test_without_the_file_in_memory_all_weights_are_in_buffers():
    read_in = Reported({("CPU", "model"): 100 * MIB, ("CPU", "KV"): 90 * MIB})
    assert footprint(SPEC, read_in, None, 200 * MIB).host_bytes == 200 * MIB


def test_a_devices_share_is_what_its_driver_says_where_that_is_more():
    seen = footprint(SPEC, ON_DEVICE, {"CUDA0": 490 * MIB}, 50 * MIB)
    # 90 MiB of weights and the output head's copy of the token table lie on the device, the table itself in the file.
    assert seen == Footprint({"CUDA0": 490 * MIB}, 60 * MIB, complete=True, reported_bytes=205 * MIB)
    assert footprint(SPEC, ON_DEVICE, {"CUDA0": 1}, 50 * MIB).device_bytes == {"CUDA0": 190 * MIB}


def test_what_cannot_be_read_is_missing_and_not_zero():
    assert not footprint(SPEC, ON_DEVICE, None, 50 * MIB).complete
    # In a container: the driver answers, and names no process that we know.
    assert not footprint(SPEC, ON_DEVICE, {}, 50 * MIB).complete
    assert not footprint(SPEC, ON_DEVICE, {"CUDA1": 500 * MIB}, 50 * MIB).complete
    silent = footprint(SPEC, None, None, 50 * MIB)
    assert (silent.complete, silent.host_bytes, silent.reported_bytes) == (False, 151 * MIB, 0)


def test_this_process_holds_memory_and_one_that_is_gone_none():
    held = held_bytes(os.getpid())
    assert held is not None
    assert 5 * MIB < held < 4096 * MIB
    assert held_bytes(2**22 + 1) is None


class _Child(Served):
    """A process that says what it is told to say."""

    def __init__(self, pid: int | None = 77) -> None:
        self._pid = pid

    @property
    def pid(self) -> int | None:
        return self._pid

    def reported(self) -> Reported | None:
        return ON_CPU

    async def ready(self) -> None: ...

    async def exited(self) -> None: ...  # type: ignore[override]

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    async def health(self) -> bool:
        return True

    async def generate(self, *_: object) -> None: ...  # type: ignore[override]

    def log_tail(self) -> tuple[str, ...]:
        return ()


class _Seen:
    def __init__(self) -> None:
        self.events: list[FootprintMeasured] = []
        self.news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        assert isinstance(event, FootprintMeasured)
        self.events.append(event)
        self.news.set()

    async def count(self, number: int) -> None:
        async with asyncio.timeout(10):
            while len(self.events) < number:
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def following(looks: Coroutine[None, None, None]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(looks)
        yield
        task.cancel()


def status(proc: Path, pid: int, anon_kb: int) -> None:
    (proc / str(pid)).mkdir(exist_ok=True, parents=True)
    (proc / str(pid) / "status").write_text(f"VmRSS:\t 999999 kB\nRssAnon:\t {anon_kb} kB\nRssFile:\t 5 kB\nRssShmem:\t 4 kB\n")


async def test_a_child_is_looked_at_when_it_is_ready_after_its_first_request_and_then_again(tmp_path: Path):
    seen = _Seen()
    meter = Meter(seen, seconds=0.01, proc=tmp_path)
    status(tmp_path, 77, 200 * 1024)
    async with following(meter.follow(ONE, SPEC, _Child())):
        await seen.count(1)
        await asyncio.sleep(0.1)
        assert [event.when for event in seen.events] == [When.READY]  # nobody has asked for anything yet
        status(tmp_path, 77, 300 * 1024)
        meter.used(ONE)
        meter.used(InstanceId("2/other"))
        await seen.count(4)
    assert [event.when for event in seen.events[:4]] == [When.READY, When.FIRST, When.LATER, When.LATER]
    assert seen.events[0].footprint.host_bytes == 300 * MIB + 4096
    assert seen.events[1].footprint.host_bytes == 400 * MIB + 4096


async def test_a_child_that_is_gone_gives_nothing(tmp_path: Path):
    seen = _Seen()
    meter = Meter(seen, seconds=0.01, proc=tmp_path)
    async with following(meter.follow(ONE, SPEC, _Child())), following(meter.follow(InstanceId("2/b"), SPEC, _Child(pid=None))):
        await asyncio.sleep(0.1)
    assert seen.events == []


async def test_memory_is_back_when_the_driver_no_longer_names_the_child(monkeypatch: pytest.MonkeyPatch):
    answers: list[Mapping[str, int] | None] = [{"CUDA0": 5}, {"CUDA0": 5}, {}]
    meter = Meter(_Seen(), device_bytes_of=lambda pid: answers.pop(0) if pid == 77 else None)
    await asyncio.wait_for(meter.freed(77), 5)
    assert answers == []
    monkeypatch.setattr(module, "FREED_SECONDS_MAX", 0.1)
    stuck = Meter(_Seen(), device_bytes_of=lambda pid: {"CUDA0": 5})
    await asyncio.wait_for(stuck.freed(77), 5)
    await asyncio.wait_for(Meter(_Seen()).freed(77), 0.05)


async def test_a_look_that_fails_is_one_that_sees_nothing(tmp_path: Path):
    def broken(pid: int) -> Mapping[str, int] | None:
        raise OSError(f"no driver for {pid}")

    seen = _Seen()
    status(tmp_path, 77, 1024)
    async with following(Meter(seen, device_bytes_of=broken, proc=tmp_path).follow(ONE, SPEC, _Child())):
        await seen.count(1)
    assert seen.events[0].footprint.complete


async def test_without_a_thread_for_it_there_is_no_look_and_the_next_one_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    failures = 1

    def scarce(work: Callable[[], object], *, name: str) -> asyncio.Future[object]:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError("can't start new thread")
        return in_background(work, name=name)

    monkeypatch.setattr(module, "in_background", scarce)
    seen = _Seen()
    status(tmp_path, 77, 1024)
    meter = Meter(seen, seconds=0.01, proc=tmp_path)
    async with following(meter.follow(ONE, SPEC, _Child())):
        await asyncio.sleep(0.02)
        meter.used(ONE)
        await seen.count(1)
    assert seen.events[0].when is When.FIRST
