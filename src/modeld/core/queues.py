# SPDX-License-Identifier: GPL-3.0-only
"""Bounded lines of waiting requests, one per model, first in first out; rule: bookkeeping only, who may enter is admission's.

A request's clock (max_wait) runs while it stands in line and stops while the model's own load runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from modeld.core.model import ModelId, Request, RequestId
from modeld.errors import InvariantError


@dataclass(slots=True)
class Waiting:
    """A request in line. `deadline` is monotonic seconds, +inf while the clock is stopped with `left_seconds` on it.

    ticket   counts arrivals over all lines: who was first, also within one instant
    failed   an instance has failed it once already
    """

    request: Request
    ticket: int
    arrived: float
    deadline: float
    left_seconds: float
    failed: bool = False


class Lines:
    """All lines. Withdrawal is O(1); only heads are looked at, for within one line the head's deadline is the earliest."""

    def __init__(self) -> None:
        self._lines: dict[ModelId, dict[RequestId, Waiting]] = {}
        self._model_of: dict[RequestId, ModelId] = {}
        self._stopped: set[ModelId] = set()
        self._tickets = 0
        self.waiting_bytes = 0

    def append(self, request: Request, now: float, wait_max_seconds: float) -> None:
        if request.id in self._model_of:
            raise InvariantError(f"request {request.id} waits already")
        deadline = math.inf if request.model in self._stopped else now + wait_max_seconds
        self._tickets += 1
        waiting = Waiting(request, self._tickets, now, deadline, wait_max_seconds)
        self._lines.setdefault(request.model, {})[request.id] = waiting
        self._model_of[request.id] = request.model
        self.waiting_bytes += request.body_bytes

    def put_back(self, waiting: Waiting, now: float, wait_max_seconds: float) -> None:
        """Let it stand in its old place again, with a new clock."""
        model = waiting.request.model
        waiting.left_seconds = wait_max_seconds
        waiting.deadline = math.inf if model in self._stopped else now + wait_max_seconds
        line = [*self._lines.get(model, {}).values(), waiting]
        self._lines[model] = {one.request.id: one for one in sorted(line, key=lambda one: one.ticket)}
        self._model_of[waiting.request.id] = model
        self.waiting_bytes += waiting.request.body_bytes

    def remove(self, request: RequestId) -> Waiting | None:
        model = self._model_of.pop(request, None)
        if model is None:
            return None
        line = self._lines[model]
        waiting = line.pop(request)
        if not line:
            del self._lines[model]
        self.waiting_bytes -= waiting.request.body_bytes
        return waiting

    def head(self, model: ModelId) -> Waiting | None:
        line = self._lines.get(model)
        return next(iter(line.values())) if line else None

    def take(self, model: ModelId) -> list[Waiting]:
        """Empty a line and return who stood in it, oldest first."""
        line = list(self._lines.get(model, {}).values())
        for waiting in line:
            self.remove(waiting.request.id)
        return line

    def length(self, model: ModelId) -> int:
        return len(self._lines.get(model, ()))

    def stop_clock(self, model: ModelId, now: float) -> None:
        """The model's own load starts: who waits for it no longer ages."""
        if model in self._stopped:
            return
        self._stopped.add(model)
        for waiting in self._lines.get(model, {}).values():
            waiting.left_seconds = max(0.0, waiting.deadline - now)
            waiting.deadline = math.inf

    def start_clock(self, model: ModelId, now: float) -> None:
        if model not in self._stopped:
            return
        self._stopped.discard(model)
        for waiting in self._lines.get(model, {}).values():
            waiting.deadline = now + waiting.left_seconds

    def oldest_first(self) -> list[tuple[float, ModelId]]:
        """(ticket of its head, model) of every line, oldest head first."""
        return sorted((next(iter(line.values())).ticket, model) for model, line in self._lines.items())

    def expired(self, now: float) -> Iterator[Waiting]:
        """Remove and yield every head whose time is up."""
        for model in list(self._lines):
            while (head := self.head(model)) is not None and head.deadline <= now:
                self.remove(head.request.id)
                yield head

    def next_deadline(self) -> float:
        return min((next(iter(line.values())).deadline for line in self._lines.values()), default=math.inf)

    def models(self) -> list[ModelId]:
        return list(self._lines)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._model_of

    def __len__(self) -> int:
        return len(self._model_of)
