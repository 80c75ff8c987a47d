# SPDX-License-Identifier: GPL-3.0-only
"""Bounded lines of waiting requests, one per model; rule: bookkeeping and order only, who may enter is admission's.

Who of a line is next (`Line.next`):
1  The oldest, if it has waited `fairness_wait` and the last grant of this line did not go by age: every other grant at least, so that
   nothing starves in a line and the classes keep their meaning in a full one.
2  Otherwise the most urgent class; in it principals by deficit round robin over estimated work (Shreedhar and Varghese, 1995); for one
   principal first in, first out.

A request's clock (max_wait) runs while it stands in line and stops while the model's own load runs. The client's own limit never stops.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from modeld.core.model import ModelId, Principal, Priority, Request, RequestId
from modeld.errors import InvariantError

QUANTUM: Final = 1.0
"""Tokens of work that a round of deficit round robin gives each principal. Rounds are counted, not walked, so it may be as small as the
unit: who has one request in line at a time is not outrun by another's burst of a quantum."""


@dataclass(slots=True)
class Waiting:
    """A request in line. Times in monotonic seconds.

    ticket     counts arrivals over all lines: who was first, also within one instant
    rank       of its class, 0 = most urgent
    deadline   end of max_wait if the clock of its model never stopped after `stood_seconds`
    stood_seconds   how long that clock had stood still in all when the deadline was set
    hard       end of the client's own limit, +inf = none
    requeued   it was granted once and came back
    """

    request: Request
    ticket: int
    rank: int
    arrived: float
    deadline: float
    stood_seconds: float
    hard: float
    requeued: bool = False

    @property
    def cost(self) -> float:
        """What its grant costs its principal, in tokens: nothing the second time, it was paid for."""
        return 0.0 if self.requeued else self.request.work


class Share:
    """One class of a line: principals in turn, each with a deficit in tokens."""

    __slots__ = ("_deficit", "_lines")

    def __init__(self) -> None:
        self._lines: OrderedDict[Principal, OrderedDict[RequestId, Waiting]] = OrderedDict()
        self._deficit: dict[Principal, float] = {}

    def append(self, waiting: Waiting) -> None:
        line = self._lines.get(waiting.request.principal)
        if line is None:
            line = self._lines[waiting.request.principal] = OrderedDict()
        line[waiting.request.id] = waiting

    def restore(self, waiting: Waiting) -> None:
        """Back to its old place: before all with a later ticket."""
        self.append(waiting)
        _by_ticket(self._lines[waiting.request.principal])

    def remove(self, waiting: Waiting) -> None:
        principal = waiting.request.principal
        line = self._lines[principal]
        del line[waiting.request.id]
        if not line:
            del self._lines[principal]
            self._deficit.pop(principal, None)

    def next(self) -> Waiting:
        """Whose turn it is. Books the round that leads to it; the work itself is booked by `pay`."""
        lines, deficit = self._lines, self._deficit
        if len(lines) == 1:
            return _first(next(iter(lines.values())))
        # So many whole rounds pass until somebody can pay; then the first in turn who can.
        rounds = min(max(0, math.ceil((_first(line).cost - deficit.get(principal, 0.0)) / QUANTUM)) for principal, line in lines.items())
        if rounds:
            for principal in lines:
                deficit[principal] = deficit.get(principal, 0.0) + rounds * QUANTUM
        for _ in range(len(lines)):
            principal = next(iter(lines))
            head = _first(lines[principal])
            if head.cost <= deficit.get(principal, 0.0):
                return head
            lines.move_to_end(principal)
        return _first(next(iter(lines.values())))  # nobody can: sums of fractions may miss by their last digit

    def pay(self, waiting: Waiting) -> None:
        """It is granted, and leaves the line next."""
        if len(self._lines) > 1:
            principal = waiting.request.principal
            self._deficit[principal] = self._deficit.get(principal, 0.0) - waiting.cost

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)


class Line:
    """All who wait for one model."""

    __slots__ = ("_shares", "by_age", "stopped_at", "waiting")

    def __init__(self) -> None:
        self.waiting: OrderedDict[RequestId, Waiting] = OrderedDict()
        self.by_age = False
        """The last grant went to the oldest because of its age."""
        self.stopped_at: float | None = None
        self._shares: list[Share | None] = [None] * len(Priority)

    def append(self, waiting: Waiting) -> None:
        self.waiting[waiting.request.id] = waiting
        self._share(waiting).append(waiting)

    def restore(self, waiting: Waiting) -> None:
        self.waiting[waiting.request.id] = waiting
        _by_ticket(self.waiting)
        self._share(waiting).restore(waiting)

    def remove(self, waiting: Waiting) -> None:
        del self.waiting[waiting.request.id]
        self._share(waiting).remove(waiting)

    def oldest(self) -> Waiting:
        return _first(self.waiting)

    def best_rank(self) -> int:
        """Of the most urgent class that waits."""
        return next(rank for rank, share in enumerate(self._shares) if share)

    def next(self, now: float, fairness_wait_seconds: float) -> Waiting:
        """Who is granted next, booked as granted."""
        oldest = _first(self.waiting)
        if oldest.arrived + fairness_wait_seconds <= now and not self.by_age:  # 1
            self.by_age = True
            chosen = oldest
        else:  # 2
            self.by_age = False
            chosen = next(share for share in self._shares if share).next()
        self._share(chosen).pay(chosen)
        return chosen

    def ahead_of(self, rank: int) -> int:
        """How many wait in classes as urgent as `rank` or more so."""
        return sum(len(share) for share in self._shares[: rank + 1] if share)

    def count(self, rank: int) -> int:
        share = self._shares[rank]
        return len(share) if share else 0

    def _share(self, waiting: Waiting) -> Share:
        share = self._shares[waiting.rank]
        if share is None:
            share = self._shares[waiting.rank] = Share()
        return share


class Lines:
    """The lines of all models. Withdrawal is O(1)."""

    def __init__(self) -> None:
        self._lines: dict[ModelId, Line] = {}
        self._model_of: dict[RequestId, ModelId] = {}
        self._stopped: dict[ModelId, float] = {}
        """Models whose load runs, with the time since when."""
        self._stood: dict[ModelId, float] = {}
        """How long each model's clock has stood still, up to the end of its last load."""
        self._rung: dict[ModelId, dict[RequestId, None]] = {}
        """Whose deadline would have come while the clock stood still."""
        self.tickets = 0
        """Arrivals so far."""
        self.waiting_bytes = 0

    def append(self, request: Request, rank: int, now: float, wait_max_seconds: float) -> Waiting:
        if request.id in self._model_of:
            raise InvariantError(f"request {request.id} waits already")
        self.tickets += 1
        stood = self._stood_seconds(request.model, now)
        waiting = Waiting(request, self.tickets, rank, now, now + wait_max_seconds, stood, now + request.timeout_seconds)
        self._enter(waiting).append(waiting)
        return waiting

    def restore(self, waiting: Waiting, now: float, left_seconds: float) -> None:
        """A request that was granted stands in its old place again, with what was left of its max_wait."""
        if waiting.request.id in self._model_of:
            raise InvariantError(f"request {waiting.request.id} waits already")
        waiting.requeued = True
        waiting.deadline, waiting.stood_seconds = now + left_seconds, self._stood_seconds(waiting.request.model, now)
        self._enter(waiting).restore(waiting)

    def remove(self, request: RequestId) -> Waiting | None:
        model = self._model_of.pop(request, None)
        if model is None:
            return None
        line = self._lines[model]
        waiting = line.waiting[request]
        line.remove(waiting)
        if not line.waiting:
            del self._lines[model]
        self.waiting_bytes -= waiting.request.body_bytes
        return waiting

    def next(self, model: ModelId, now: float, fairness_wait_seconds: float) -> Waiting | None:
        """Take who is granted next out of the line of `model`."""
        line = self._lines.get(model)
        if line is None:
            return None
        chosen = line.next(now, fairness_wait_seconds)
        self.remove(chosen.request.id)
        return chosen

    def of(self, model: ModelId) -> Line | None:
        """The line of a model, None when nobody waits for it."""
        return self._lines.get(model)

    def get(self, request: RequestId) -> Waiting | None:
        model = self._model_of.get(request)
        return None if model is None else self._lines[model].waiting[request]

    def take(self, model: ModelId) -> list[Waiting]:
        """Empty a line and return who stood in it, oldest first."""
        line = self._lines.get(model)
        found = [] if line is None else list(line.waiting.values())
        for waiting in found:
            self.remove(waiting.request.id)
        return found

    def length(self, model: ModelId) -> int:
        line = self._lines.get(model)
        return 0 if line is None else len(line.waiting)

    # --- clocks -------------------------------------------------------------------------------------------------------

    def stop_clock(self, model: ModelId, now: float) -> None:
        """The model's own load starts: who waits for it no longer ages."""
        self._stopped.setdefault(model, now)

    def start_clock(self, model: ModelId, now: float) -> list[Waiting]:
        """The load has ended. Those whose deadline would have come meanwhile."""
        since = self._stopped.pop(model, None)
        if since is not None:
            self._stood[model] = self._stood.get(model, 0.0) + now - since
        rung = self._rung.pop(model, {})
        return [waiting for request in rung if (waiting := self.get(request)) is not None]

    def left_seconds(self, waiting: Waiting, now: float) -> float:
        """Of its max_wait."""
        return max(0.0, self._deadline(waiting, now) - now)

    def is_late(self, waiting: Waiting, now: float) -> bool:
        """Its time is up."""
        return waiting.hard <= now or (waiting.request.model not in self._stopped and self._deadline(waiting, now) <= now)

    def next_look(self, waiting: Waiting, now: float) -> float:
        """When its time may be up at the earliest, +inf = only its own model's load stands before that."""
        if waiting.request.model not in self._stopped:
            return min(waiting.hard, self._deadline(waiting, now))
        if waiting.deadline <= now:  # the clock stands still: looked at again when it goes on
            self._rung.setdefault(waiting.request.model, {})[waiting.request.id] = None
            return waiting.hard
        return min(waiting.hard, waiting.deadline)

    def _deadline(self, waiting: Waiting, now: float) -> float:
        return waiting.deadline + self._stood_seconds(waiting.request.model, now) - waiting.stood_seconds

    def _stood_seconds(self, model: ModelId, now: float) -> float:
        since = self._stopped.get(model)
        return self._stood.get(model, 0.0) + (0.0 if since is None else now - since)

    # --- all ----------------------------------------------------------------------------------------------------------

    def models(self) -> list[ModelId]:
        return list(self._lines)

    def all(self) -> Iterator[Waiting]:
        for line in self._lines.values():
            yield from line.waiting.values()

    def __contains__(self, request: RequestId) -> bool:
        return request in self._model_of

    def __len__(self) -> int:
        return len(self._model_of)

    def _enter(self, waiting: Waiting) -> Line:
        request = waiting.request
        self._model_of[request.id] = request.model
        self.waiting_bytes += request.body_bytes
        line = self._lines.get(request.model)
        if line is None:
            line = self._lines[request.model] = Line()
        return line


def _first(line: OrderedDict[RequestId, Waiting]) -> Waiting:
    return next(iter(line.values()))


def _by_ticket(line: OrderedDict[RequestId, Waiting]) -> None:
    """Move the last entry to where its ticket belongs: all with a later one go behind it."""
    ticket = line[next(reversed(line))].ticket
    for request in [request for request, waiting in line.items() if waiting.ticket > ticket]:
        line.move_to_end(request)
