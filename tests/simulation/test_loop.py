# SPDX-License-Identifier: GPL-3.0-only
"""The deterministic loop: time, order, and the two ways in which a program can get nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import pytest

from modeld.simulation.loop import Deadlock, Order, Spin, VirtualLoop

T = TypeVar("T")


def run(main: Coroutine[object, object, T], seed: int = 0, **options: object) -> T:
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed, **options)) as runner:  # type: ignore[arg-type]
        return runner.run(main)


async def told(turns: int = 3) -> list[str]:
    """Five tasks that are all ready, again and again."""
    said: list[str] = []

    async def talk(name: str) -> None:
        for _ in range(turns):
            said.append(name)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for name in "abcde":
            group.create_task(talk(name))
    return said


def test_time_jumps_to_the_next_timer_and_stands_still_before():
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        seen = [loop.time()]
        for seconds in (0.0, 3600.0, 0.25):
            await asyncio.sleep(seconds)
            seen.append(loop.time())
        return seen

    assert run(main()) == [0.0, 0.0, 3600.0, 3600.25]


def test_timers_ring_in_the_order_of_their_times_and_not_when_cancelled():
    async def main() -> list[str]:
        loop, rung = asyncio.get_running_loop(), []
        for seconds, name in ((3, "late"), (1, "soon"), (2, "never")):
            timer = loop.call_later(seconds, rung.append, name)
            if name == "never":
                timer.cancel()
        await asyncio.sleep(5)
        return rung

    assert run(main()) == ["soon", "late"]


def test_a_timeout_ends_what_waits():
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == 7.0


def test_the_seed_is_the_order():
    orders = [run(told(), seed) for seed in (1, 2, 1, 3)]
    assert orders[0] == orders[2]
    assert orders[0] != orders[1] != orders[3]
    assert all(sorted(order) == sorted("abcde" * 3) for order in orders)


def test_the_first_registered_is_first_where_that_is_promised():
    assert run(told(), seed=9, order=Order.FIFO) == list("abcde" * 3)


def test_on_a_busy_machine_time_passes_while_others_wait():
    async def main() -> float:
        await told()
        return asyncio.get_running_loop().time()

    assert 0.0 < run(main(), busy_seconds=0.1) < 10.0


def test_what_was_missed_while_all_stood_still_rings_late():
    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        rung: list[float] = []
        loop.call_later(1, lambda: rung.append(loop.time()))
        loop.stand_still(5)
        await asyncio.sleep(1)
        return rung[0]

    assert run(main()) == 5.0


def test_nothing_left_to_happen_is_a_deadlock_that_names_who_waits():
    async def wait(lock: asyncio.Lock) -> None:
        await lock.acquire()

    async def main() -> None:
        lock = asyncio.Lock()
        await lock.acquire()
        async with asyncio.TaskGroup() as group:
            group.create_task(wait(lock), name="the second")
            asyncio.get_running_loop().call_later(2, print).cancel()  # a timer that will not ring helps nobody

    with pytest.raises(Deadlock, match=r"(?s)at 0\.0.* the second waits in Lock\.acquire"):
        run(main())


def test_running_in_circles_is_found():
    async def main() -> None:
        await told(turns=10_000)

    with pytest.raises(Spin):
        run(main(), spin_max=1000)


def test_an_error_that_nobody_catches_is_kept():
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_soon(int, "x")
        await asyncio.sleep(1)
        return [type(context["exception"]).__name__ for context in loop.faults]

    assert run(main()) == ["ValueError"]


def test_no_thread_has_a_say():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError):
            loop.run_in_executor(None, print)
        with pytest.raises(RuntimeError):
            loop.call_soon_threadsafe(print)

    run(main())


def test_a_closed_loop_takes_nothing():
    loop = VirtualLoop(0)
    loop.close()
    with pytest.raises(RuntimeError):
        loop.call_soon(print)
