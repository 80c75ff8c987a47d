# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

import pytest

from modeld.core.footprint import DeviceMemory
from modeld.core.messages import Event, MemorySeen
from modeld.core.model import LOCAL, DeviceId
from modeld.errors import InvariantError
from modeld.runtime.memorywatch import watch_memory

Seen = Mapping[DeviceId, DeviceMemory]


def seen(free_mb: int) -> Seen:
    return {LOCAL: DeviceMemory(100, free_mb, 0)}


async def watched(look: Callable[[], Awaitable[Seen]], *, until: Callable[[list[Event]], bool], late_seconds: float = 30.0) -> list[Event]:
    """What is posted until `until` is true of it."""
    posted: list[Event] = []
    enough = asyncio.Event()

    def post(event: Event) -> None:
        posted.append(event)
        if until(posted):
            enough.set()

    async with asyncio.timeout(10):
        task = asyncio.get_running_loop().create_task(watch_memory(look, post, seconds=0.001, late_seconds=late_seconds))
        task.add_done_callback(lambda _: enough.set())  # it should not end by itself: what it raised then is raised here
        await enough.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return posted


async def test_each_look_is_told():
    looks = iter(range(1000))

    async def look() -> Seen:
        return seen(next(looks))

    assert (await watched(look, until=lambda posted: len(posted) >= 3))[:3] == [MemorySeen(seen(number)) for number in range(3)]


async def test_a_look_that_fails_is_said_once_and_ends_nothing(caplog: pytest.LogCaptureFixture):
    answers = iter([RuntimeError("can't start new thread"), RuntimeError("again"), seen(1), OSError("later"), *[seen(2)] * 1000])

    async def look() -> Seen:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    posted = await watched(look, until=lambda posted: len(posted) >= 2)
    assert posted[:2] == [MemorySeen(seen(1)), MemorySeen(seen(2))]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["can't start new thread", "later"]


async def test_looks_do_not_overlap_and_a_late_one_is_told_of(caplog: pytest.LogCaptureFixture):
    running, most = 0, 0

    async def look() -> Seen:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return seen(1)

    await watched(look, until=lambda posted: len(posted) >= 2, late_seconds=0.01)
    assert most == 1
    assert caplog.messages[0] == "a look at memory takes more than 0.01 s: what other programs take is not seen"


async def test_what_is_looked_at_in_time_is_no_warning(caplog: pytest.LogCaptureFixture):
    async def look() -> Seen:
        return seen(1)

    begun = asyncio.get_running_loop().time()
    await watched(look, until=lambda posted: asyncio.get_running_loop().time() > begun + 0.3, late_seconds=0.1)
    assert not caplog.records


async def test_what_the_core_says_of_it_is_not_swallowed():
    async def look() -> Seen:
        return seen(1)

    def broken(posted: list[Event]) -> bool:
        raise InvariantError("the book does not add up")

    with pytest.raises(InvariantError):
        await watched(look, until=broken)
