# SPDX-License-Identifier: GPL-3.0-only
"""The last public events, numbered, and who is told of the next ones; rule: nobody waits here, and all of it is bounded.

Changes of the core become events for people and programs. A line that moves many times a second is told of at most each LINE_SECONDS, with
the length it has then: else a busy minute would push the loads and ends of an hour out of the ring.

An id is "<run>-<number>": numbers count from 1 without a gap, `run` is another one for each start of the daemon. Who comes back with an id
gets all events since, or is told that some are lost: they left the ring, or were another daemon's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, assert_never

import msgspec

from modeld.core.changes import Change, InstanceMoved, LineMoved, LoadMoved, PinMoved, TableMoved, WishDropped

log = logging.getLogger("modeld.feed")

EVENTS_MAX: Final = 1000
BYTES_MAX: Final = 1 << 20
LINE_SECONDS: Final = 0.1
WHY_CHARS_MAX: Final = 500
ENTRY_BYTES: Final = 200
"""What an event takes beside its own JSON, about."""

STATE, LOAD, LINE, PIN, DROPPED, MODELS = "state", "load", "line", "pin", "dropped", "models"
TYPES: Final = (STATE, LOAD, LINE, PIN, DROPPED, MODELS)


class Published(msgspec.Struct, frozen=True, rename={"kind": "type"}, omit_defaults=True):
    """One event as it is sent. `unix_ms` is the wall clock; the fields after `model_id` are those of its type.

    state     the instance is `loading`, `ready`, `draining`, `stopping`, `failed` or `gone`; `why`, where there is a reason
    load      `progress` of the weights, 0..1
    line      `length`: so many wait
    pin       `pinned`: from now on
    dropped   a load that was asked for without a request will not happen: `why`
    models    the catalogue was read again: `models` it has
    """

    id: str
    seq: int
    unix_ms: int
    kind: str
    model_id: str = ""
    instance_id: str = ""
    state: str = ""
    why: str = ""
    progress: float | None = None
    length: int | None = None
    pinned: bool | None = None
    models: int | None = None


class Told:
    """An event with its JSON, made once for all who get it."""

    __slots__ = ("event", "json")

    def __init__(self, event: Published, json: bytes) -> None:
        self.event = event
        self.json = json


class Replay:
    """What somebody missed. `lost`: some of it is no longer known. `last` is the newest id, "" when nothing has happened yet."""

    __slots__ = ("events", "last", "lost")

    def __init__(self, events: list[Told], *, lost: bool, last: str) -> None:
        self.events = events
        self.lost = lost
        self.last = last


class Subscription:
    """Somebody who is told. `ended` is called once when the feed ends before he does."""

    __slots__ = ("_feed", "ended", "tell")

    def __init__(self, feed: Feed, tell: Callable[[Told], None], ended: Callable[[], None]) -> None:
        self._feed = feed
        self.tell = tell
        self.ended = ended

    def cancel(self) -> None:
        """Be told nothing any more. Idempotent."""
        self._feed.forget(self)


class Feed:
    """Belongs to one event loop. `take` is called by the driver after each step."""

    def __init__(
        self,
        *,
        events_max: int = EVENTS_MAX,
        bytes_max: int = BYTES_MAX,
        clock: Callable[[], float] = time.time,
        run: str | None = None,
    ) -> None:
        self.run = run or secrets.token_hex(4)
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._events_max, self._bytes_max = events_max, bytes_max
        self._clock = clock
        self._encode = msgspec.json.Encoder().encode
        self._ring: deque[Told] = deque()
        self._ring_bytes = 0
        self._seq = 0
        self._subscribers: dict[Subscription, None] = {}
        self._lines: dict[str, int] = {}
        """Lines that moved again within LINE_SECONDS, with their length."""
        self._line_told: dict[str, float] = {}
        """When a line was last told of, in loop time; only those of the last LINE_SECONDS."""
        self._timer: asyncio.TimerHandle | None = None

    # --- in -----------------------------------------------------------------------------------------------------------

    def take(self, changes: Iterable[Change]) -> None:
        """Make events of them, in their order, and tell everybody."""
        if self.closed:
            return
        for change in changes:
            match change:
                case InstanceMoved(model, instance, state, why):
                    self._publish(STATE, model, instance_id=instance, state=str(state), why=why[:WHY_CHARS_MAX])
                case LoadMoved(model, instance, fraction):
                    self._publish(LOAD, model, instance_id=instance, progress=round(fraction, 4))
                case LineMoved(model, length):
                    self._line(model, length)
                case PinMoved(model, pinned):
                    self._publish(PIN, model, pinned=pinned)
                case WishDropped(model, error):
                    self._publish(DROPPED, model, why=error.message[:WHY_CHARS_MAX])
                case TableMoved(models):
                    self._publish(MODELS, "", models=models)
                case _:
                    assert_never(change)

    def close(self) -> None:
        """The daemon ends: everybody is told so, and nothing is published any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.closed = True
        subscribers, self._subscribers = self._subscribers, {}
        for one in subscribers:
            one.ended()

    # --- out ----------------------------------------------------------------------------------------------------------

    def subscribe(self, tell: Callable[[Told], None], ended: Callable[[], None]) -> Subscription:
        """Be told of each event from now on, synchronously: `tell` must not wait, and must not raise."""
        subscription = Subscription(self, tell, ended)
        if self.closed:
            ended()
        else:
            self._subscribers[subscription] = None
        return subscription

    def forget(self, subscription: Subscription) -> None:
        self._subscribers.pop(subscription, None)

    def since(self, identity: str) -> Replay:
        """All events after the one of that id."""
        run, _, number = identity.rpartition("-")
        last = f"{self.run}-{self._seq}" if self._seq else ""
        if run != self.run or not number.isdecimal() or len(number) > 18 or int(number) > self._seq:
            return Replay(list(self._ring), lost=True, last=last)
        seen = int(number)
        first = self._ring[0].event.seq if self._ring else self._seq + 1
        return Replay([told for told in self._ring if told.event.seq > seen], lost=seen + 1 < first, last=last)

    @property
    def last_id(self) -> str:
        """Of the newest event; number 0 when there is none yet: whoever comes back with it has missed all since the start."""
        return f"{self.run}-{self._seq}"

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def size_bytes(self) -> int:
        """What the ring holds, about."""
        return self._ring_bytes

    # --- what it does -------------------------------------------------------------------------------------------------

    def _publish(self, kind: str, model: str, **fields: Any) -> None:
        self._seq += 1
        event = Published(f"{self.run}-{self._seq}", self._seq, int(self._clock() * 1000), kind, model, **fields)
        told = Told(event, self._encode(event))
        self._ring.append(told)
        self._ring_bytes += len(told.json) + ENTRY_BYTES
        while len(self._ring) > self._events_max or self._ring_bytes > self._bytes_max:
            self._ring_bytes -= len(self._ring.popleft().json) + ENTRY_BYTES
        for one in list(self._subscribers):
            try:
                one.tell(told)
            except Exception:  # one reader's fault must not cost the others, and least of all the driver, in whose step we are
                log.exception("a reader of the events failed and is told nothing any more")
                self.forget(one)

    def _line(self, model: str, length: int) -> None:
        now = self._loop.time()
        if model in self._lines or now - self._line_told.get(model, -LINE_SECONDS) < LINE_SECONDS:
            self._lines[model] = length
        else:
            self._line_told[model] = now
            self._publish(LINE, model, length=length)
        if self._timer is None:
            self._timer = self._loop.call_later(LINE_SECONDS, self._tell_lines)

    def _tell_lines(self) -> None:
        """The lines that moved meanwhile; while some do, they are looked at again."""
        self._timer = None
        moved, self._lines = self._lines, {}
        now = self._loop.time()
        self._line_told = dict.fromkeys(moved, now)
        for model, length in moved.items():
            self._publish(LINE, model, length=length)
        if moved:
            self._timer = self._loop.call_later(LINE_SECONDS, self._tell_lines)
