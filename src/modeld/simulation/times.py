# SPDX-License-Identifier: GPL-3.0-only
"""The invariant times: every limit ends what it limits, not before and not after; rule: clocks of its own, set by events and commands.

max_wait           stands still while the request's own model loads; goes on where it was when the request stands in line again
X-Modeld-Timeout   never stands still
infer_timeout      from the grant
drain_timeout      from the order (unload, a replaced model); preempt_after from the closing: then all that runs there is revoked
ttl                from the end of the last request, or from when it was ready; not before what a request asked to be kept for
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

from modeld.core.messages import (
    Command,
    Event,
    Grant,
    LeaseFailed,
    Refuse,
    RequestArrived,
    RevokeLease,
    StartInstance,
    StopInstance,
)
from modeld.core.model import InstanceId, ModelId, RequestId
from modeld.errors import DeadlineExceeded, WaitTimeout
from modeld.simulation.outside import Outside
from modeld.simulation.seen import LOADING, READY, RUNNING, WAITING, Asked, Seen

SLACK = 1e-6
"""For sums of floating-point numbers."""


class Clock:
    """The max_wait of a request: what is left of it, counted from `since` on the clock of its model."""

    __slots__ = ("asked", "left", "since")

    def __init__(self, asked: Asked, left: float, since: float) -> None:
        self.asked = asked
        self.left = left
        self.since = since


class Times:
    """All clocks of one run."""

    def __init__(self, outside: Outside, fail: Callable[[str, str], None]) -> None:
        self._outside = outside
        self._fail = fail
        self._clocks: dict[RequestId, Clock] = {}
        self._loads: dict[ModelId, Seen] = {}
        self._stood: dict[ModelId, float] = {}
        """How long each model's clock has stood still, up to the end of its last load."""
        self._rings: list[tuple[float, RequestId]] = []
        self._parked: dict[ModelId, list[RequestId]] = {}
        """Whose max_wait would have ended while the clock stood still."""
        self._answers: list[tuple[float, RequestId, float]] = []
        self._drains: dict[InstanceId, tuple[str, float]] = {}
        """Until when an instance drains at most, and why."""

    def before(self, event: Event, now: float) -> None:
        """Loads that this event ended."""
        for model, seen in list(self._loads.items()):
            if seen.state is not LOADING:
                self._loaded(model, seen)

    def after(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Everything is booked."""
        outside = self._outside
        if type(event) is RequestArrived:
            asked = outside.requests.get(event.request.id)
            if asked is not None or any(type(one) is Refuse and type(one.error) is WaitTimeout for one in commands):
                self._waits(event.request.id, outside.limits.wait_max_seconds, now)
        elif type(event) is LeaseFailed and (asked := outside.requests.get(event.request)) is not None and asked.place is WAITING:
            clock = self._clocks.get(event.request)
            self._waits(event.request, math.inf if clock is None else clock.left, now)
        for command in commands:
            self._command(command, now)
        self._late(now)
        self._unanswered(now)
        self._draining(now)
        for seen in outside.instances.values():
            self._idle(seen, now)

    # --- in line ------------------------------------------------------------------------------------------------------

    def _on_clock(self, model: ModelId, now: float) -> float:
        """Seconds on the clock of a model."""
        seen = self._loads.get(model)
        return now - self._stood.get(model, 0.0) - (0.0 if seen is None else now - seen.started)

    def _waits(self, request: RequestId, left: float, now: float) -> None:
        asked = self._outside.requests.get(request)
        if asked is not None:
            self._clocks[request] = Clock(asked, left, self._on_clock(asked.request.model, now))
            heapq.heappush(self._rings, (min(now + left, asked.arrived + asked.request.timeout_seconds), request))

    def _left(self, clock: Clock, now: float) -> float:
        return clock.left - (self._on_clock(clock.asked.request.model, now) - clock.since)

    def _loaded(self, model: ModelId, seen: Seen) -> None:
        """The load has ended, one way or another: the clock goes on."""
        del self._loads[model]
        end = seen.ready_at if seen.ready_at is not None else seen.stopped_at
        self._stood[model] = self._stood.get(model, 0.0) + (0.0 if end is None else end - seen.started)
        for request in self._parked.pop(model, ()):
            heapq.heappush(self._rings, (0.0, request))

    def _late(self, now: float) -> None:
        """Nobody stands in line whose time is up."""
        while self._rings and self._rings[0][0] < now - SLACK:
            _, request = heapq.heappop(self._rings)
            clock = self._clocks.get(request)
            if clock is None or clock.asked.place is not WAITING:
                continue
            asked = clock.asked
            hard, left = asked.arrived + asked.request.timeout_seconds, self._left(clock, now)
            if hard < now - SLACK:
                self._fail("times", f"{request} still waits, {now - hard:.3f} s after its own limit")
            if asked.request.model in self._loads:
                if left <= 0.0:
                    self._parked.setdefault(asked.request.model, []).append(request)
                    heapq.heappush(self._rings, (hard, request))
                    continue
            elif left < -SLACK:
                self._fail("times", f"{request} still waits, {-left:.3f} s after max_wait")
            heapq.heappush(self._rings, (min(hard, now + max(left, SLACK)), request))

    # --- commands -----------------------------------------------------------------------------------------------------

    def _command(self, command: Command, now: float) -> None:
        outside = self._outside
        if type(command) is StartInstance:
            self._loads[command.spec.id] = outside.instances[command.instance]
        elif type(command) is StopInstance:
            seen = outside.instances[command.instance]
            if self._loads.get(seen.model) is seen:
                self._loaded(seen.model, seen)
            self._stopped(seen, command.why, now)
        elif type(command) is Grant:
            asked = outside.requests[command.request]
            clock = self._clocks.get(command.request)
            if clock is not None:
                clock.left = max(0.0, self._left(clock, now))
            if outside.limits.infer_timeout_seconds > 0:
                heapq.heappush(self._answers, (now + outside.limits.infer_timeout_seconds, command.request, now))
        elif type(command) is Refuse:
            clock = self._clocks.pop(command.request, None)
            if clock is not None and type(command.error) is WaitTimeout:
                asked = clock.asked
                left = min(self._left(clock, now), asked.arrived + asked.request.timeout_seconds - now)
                if left > SLACK:
                    self._fail("times", f"{command.request} is told wait_timeout {left:.3f} s too early")
        elif type(command) is RevokeLease and type(command.error) is DeadlineExceeded:
            asked = outside.requests[command.request]
            left = (asked.granted or 0.0) + outside.limits.infer_timeout_seconds - now
            if left > SLACK:
                self._fail("times", f"{command.request} is ended by infer_timeout {left:.3f} s too early")

    def _stopped(self, seen: Seen, why: str, now: float) -> None:
        if why == "ttl" and seen.spec.ttl_seconds is not None and seen.ready_at is not None:
            left = max(max(seen.ready_at, seen.idle_at) + seen.spec.ttl_seconds, seen.kept_until) - now
            if left > SLACK:
                self._fail("times", f"{seen.id} is stopped by its ttl {left:.3f} s too early")

    # --- what runs, and what lies idle --------------------------------------------------------------------------------

    def _unanswered(self, now: float) -> None:
        while self._answers and self._answers[0][0] < now - SLACK:
            at, request, granted = heapq.heappop(self._answers)
            asked = self._outside.requests.get(request)
            if asked is not None and asked.place is RUNNING and asked.granted == granted and not asked.revoked:
                self._fail("times", f"{request} still runs, {now - at:.3f} s after infer_timeout")

    def _draining(self, now: float) -> None:
        limits = self._outside.limits
        for seen in self._outside.instances.values():
            if not seen.draining or seen.state is not READY:
                self._drains.pop(seen.id, None)
                continue
            drain = self._drains.get(seen.id)
            if seen.closed_for:
                if drain is None:
                    after = limits.preempt_after_seconds
                    drain = self._drains[seen.id] = ("preempt_after", math.inf if after is None else seen.closed_at + after)
            elif drain is None or drain[0] == "preempt_after":
                drain = self._drains[seen.id] = ("drain_timeout", now + limits.drain_timeout_seconds)
            if drain[1] < now - SLACK and not all(asked.revoked for asked in seen.leases.values()):
                self._fail("times", f"{seen.id} drains, {now - drain[1]:.3f} s after {drain[0]}")

    def _idle(self, seen: Seen, now: float) -> None:
        ttl = seen.spec.ttl_seconds
        if ttl is None or seen.state is not READY or seen.leases or seen.ready_at is None or seen.model in self._outside.lines:
            return
        late = now - max(max(seen.ready_at, seen.idle_at) + ttl, seen.kept_until)
        if late > SLACK:
            self._fail("times", f"{seen.id} is still there, {late:.3f} s after its ttl")
