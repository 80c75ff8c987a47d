# SPDX-License-Identifier: GPL-3.0-only
"""Clients of a simulated house: each asks, reads or does not, and leaves at the worst moment; rule: an answer ends once, or it is told.

A guest is the edge's Connection. When it leaves is its `Habit`; the moments that races are made of (the step in which its grant is booked,
its first byte) are named by what happens to it, not by a time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from modeld.api.route import Connection, Header
from modeld.core.model import ModelId, Priority
from modeld.errors import InvariantError


class Moment(StrEnum):
    """When a guest gives up."""

    NEVER = "never"
    BEFORE = "before it asked"
    LATER = "at some time"
    GRANTED = "when it was granted"
    FIRST_BYTE = "at the first byte"


@dataclass(frozen=True, slots=True)
class Habit:
    """How a guest behaves.

    moment, seconds   when it gives up; `seconds` after it asked, for LATER
    grant             for GRANTED: at which of its grants
    cancelled         it does not close its connection, its task is cancelled (a server that goes down hard)
    slow              it stops reading now and then
    asks              how often it asks, once it has ended with an error
    """

    moment: Moment
    seconds: float
    grant: int
    cancelled: bool
    slow: bool
    asks: int


def habit(dice: random.Random) -> Habit:
    """About half of them stay to the end."""
    moments = [Moment.NEVER] * 5 + [Moment.LATER] * 2 + [Moment.GRANTED] * 2 + [Moment.FIRST_BYTE, Moment.BEFORE]
    return Habit(
        moment=dice.choice(moments),
        seconds=dice.choice((0.0, dice.random() * 0.5, dice.random() * 10.0)),
        grant=dice.choice((1, 1, 2)),
        cancelled=dice.random() < 0.3,
        slow=dice.random() < 0.2,
        asks=dice.choice((1, 1, 1, 2, 3)),
    )


class Guest(Connection):
    """One client during one request."""

    def __init__(self, name: str, model: ModelId, priority: Priority | None, habit: Habit, dice: random.Random) -> None:
        self.name = name
        self.model = model
        self.priority = priority
        self.habit = habit
        self.task: asyncio.Task[None] | None = None
        self.complaints: list[str] = []
        self.left = False
        self.grants = 0
        self._dice = dice
        self._loop = asyncio.get_running_loop()
        self._callbacks: list[Callable[[], None]] = []
        self._pressure: tuple[Callable[[], None], Callable[[], None]] | None = None
        self._started = self.answered = False
        self._timers: list[asyncio.TimerHandle] = []

    # --- what the edge asks of a connection ---------------------------------------------------------------------------

    @property
    def peer(self) -> None:
        return None

    @property
    def disconnected(self) -> bool:
        return self.left

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        if self.left:
            callback()
        else:
            self._callbacks.append(callback)

    def start(self, status: int, headers: list[Header]) -> None:
        if self._started or self.answered:
            self.complaints.append(f"{self.name} got a second head")
        self._started = True
        if self.habit.moment is Moment.FIRST_BYTE:
            self._loop.call_soon(self.give_up)

    def write(self, chunk: bytes) -> None:
        if not self._started or self.answered:
            self.complaints.append(f"{self.name} got bytes {'after the end' if self.answered else 'before the head'}")
        if self.habit.slow and self._pressure is not None and self._dice.random() < 0.3:
            pause, resume = self._pressure
            pause()
            self._timers.append(self._loop.call_later(self._dice.random() * 3.0, resume))

    def finish(self, last: bytes = b"") -> None:
        self._end()

    def cut(self) -> None:
        self._end()

    def on_pressure(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pressure = (pause, resume)

    @property
    def wants_socket(self) -> bool:
        return False

    def switch(self, head: bytes, receive: Callable[[bytes], None]) -> None:
        raise InvariantError("a guest has no wish for a WebSocket")

    async def body(self, limit: int) -> bytes:
        return b"{}"

    # --- its own will -------------------------------------------------------------------------------------------------

    def asks(self) -> None:
        """It asks now."""
        if self.habit.moment is Moment.BEFORE and not self.habit.cancelled:
            self.give_up()
        elif self.habit.moment is Moment.LATER:
            self._timers.append(self._loop.call_later(self.habit.seconds, self.give_up))

    def was_granted(self) -> None:
        """In the very step of the grant: its task has not run since."""
        self.grants += 1
        if self.habit.moment is Moment.GRANTED and self.grants == self.habit.grant:
            self._loop.call_soon(self.give_up)

    def give_up(self) -> None:
        if self.answered or self.left:
            return
        if self.habit.cancelled:
            if self.task is not None:
                self.task.cancel()
            return
        self.left = True
        for callback in self._callbacks:
            callback()

    def gone(self) -> None:
        """It is over, whatever came of it."""
        for timer in self._timers:
            timer.cancel()
        self._pressure = None

    def _end(self) -> None:
        if self.answered:
            self.complaints.append(f"{self.name} was answered twice")
        self.answered = True
