# SPDX-License-Identifier: GPL-3.0-only
"""An asyncio event loop without a clock and without I/O; rule: the seed alone decides what runs next, and nothing ever really waits.

Time stands still while anything is ready, then jumps to the next timer. A loop with `busy_seconds` is a machine with too much to do: each
callback takes some time, so that deadlines pass while others still wait for their turn.

asyncio promises that callbacks run in the order in which they were registered. `Order.FIFO` keeps that promise. `Order.ANY` runs any
callback that is ready: how many turns of the loop a coroutine needs, which socket the kernel names first, and whether a timer or a byte
comes first when both are there, is nobody's promise, and all of it ends as another order of what is ready. It is a wider net than any real
loop: a failure that only `ANY` finds is first asked whether it leans on an order that asyncio does promise. Nothing in asyncio's own tasks,
futures, timeouts and groups does; a stream of bytes does, and keeps its order by itself (wire.py).

When nothing is ready, no timer is set and the main task is not done, nothing will ever happen again: that is Deadlock. So many callbacks
at one moment that it cannot be an accident are Spin.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from enum import StrEnum
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SPIN_MAX: Final = 100_000
"""Callbacks at one moment."""


class Order(StrEnum):
    """Which of the ready callbacks runs next: the first registered, or any."""

    FIFO = "fifo"
    ANY = "any"


class Deadlock(RuntimeError):
    """Nothing can happen any more. The text names all tasks and where each waits."""


class Spin(RuntimeError):
    """Callbacks call callbacks and time does not pass."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Use it as `asyncio.Runner(loop_factory=lambda: VirtualLoop(seed))`. Same seed, same program: same order, in any process.

    For that the program, too, must draw from seeded dice and must not walk over sets.
    """

    def __init__(self, seed: int, *, order: Order = Order.ANY, busy_seconds: float = 0.0, spin_max: int = SPIN_MAX) -> None:
        super().__init__()
        self.faults: list[dict[str, Any]] = []
        """What went to the exception handler: errors that nobody caught or retrieved."""
        self.steps = 0
        """Callbacks run so far."""
        self.stood_until = -math.inf
        """The end of the last `stand_still`: what rings at that moment may be late."""
        self._dice = random.Random(seed)
        self._order = order
        self._busy_seconds = busy_seconds
        self._spin_max = spin_max
        self._now = 0.0
        self._spun = 0
        self._runnable: list[asyncio.Handle] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    # --- what asyncio asks of a loop ----------------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds, from 0."""
        return self._now

    def call_soon(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> asyncio.Handle:
        self._open()
        handle = asyncio.Handle(callback, args, self, context)
        self._runnable.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._open()
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_soon_threadsafe(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> asyncio.Handle:
        raise RuntimeError("no thread may call a loop whose order is to be the same each time")

    def run_in_executor(self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> asyncio.Future[T]:
        raise RuntimeError("no thread may work for a loop whose order is to be the same each time")

    def stand_still(self, seconds: float) -> None:
        """The whole process was stopped for so long: every timer of that time comes late, and all at once."""
        self._now += seconds
        self.stood_until = self._now

    def armed(self) -> list[asyncio.TimerHandle]:
        """The timers that will still ring, soonest first."""
        return [timer for _, _, timer in sorted(self._timers) if not timer.cancelled()]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by TimerHandle.cancel: the entry stays until its time, and is skipped then."""

    # --- one step -----------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        """Called by run_forever until it is stopped: one callback."""
        self._ring()
        if not self._runnable:
            self._jump()
        if self._order is Order.FIFO or len(self._runnable) == 1:
            handle = self._runnable.pop(0)
        else:
            handle = self._runnable.pop(self._dice.randrange(len(self._runnable)))
        if handle.cancelled():
            return
        self.steps += 1
        self._spun += 1
        if self._busy_seconds:
            self._now += self._dice.random() * self._busy_seconds
        elif self._spun > self._spin_max:
            raise Spin(f"{self._spun} callbacks at {self._now:.6f} s and no end; the last is {handle}")
        handle._run()

    def _ring(self) -> None:
        """Whose time has come is ready."""
        while self._timers and (self._timers[0][0] <= self._now or self._timers[0][2].cancelled()):
            _, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled():
                self._runnable.append(timer)

    def _jump(self) -> None:
        """To the next timer."""
        if not self._timers:  # _ring has dropped the cancelled ones before the first live one
            raise Deadlock(f"nothing can happen any more at {self._now:.6f} s:\n{self._tasks()}")
        self._now, self._spun = self._timers[0][0], 0
        self._ring()

    def _tasks(self) -> str:
        waiting = sorted(f"  {task.get_name()} waits in {_place(task)}" for task in asyncio.all_tasks(self))
        return "\n".join(waiting) or "  (no task)"

    def _open(self) -> None:
        if self.is_closed():
            raise RuntimeError("Event loop is closed")

    def close(self) -> None:
        """End the loop; what was ready or timed is forgotten."""
        super().close()
        if not self.is_running():
            self._runnable.clear()
            self._timers.clear()


def _place(task: asyncio.Task[Any]) -> str:
    """Where the innermost coroutine of a task stands: function, file and line."""
    inner: Any = task.get_coro()
    while getattr(getattr(inner, "cr_await", None), "cr_frame", None) is not None:
        inner = inner.cr_await
    frame = getattr(inner, "cr_frame", None)
    if frame is None:
        return repr(inner)
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno})"
