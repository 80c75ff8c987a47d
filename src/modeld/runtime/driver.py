# SPDX-License-Identifier: GPL-3.0-only
"""The single writer: event in, core decides, commands out; rule: nothing is awaited between taking an event and booking its commands.

Requests get a `PendingLease`; inside its `async with` they hold a slot of a ready instance. The stream owns the lease: it is released
when the block is left, by whatever way.

Each Grant is answered by exactly one event: LeaseReleased, LeaseFailed, or RequestWithdrawn when its owner was cancelled before it saw the
lease. More than one would be wrong: after LeaseFailed(before_first_byte) the same request may run again, and a late report about its first
lease would end the second.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Protocol, assert_never

from modeld.core.changes import Change
from modeld.core.estimate import Need
from modeld.core.footprint import Learned
from modeld.core.messages import (
    CheckLaunch,
    CheckProgress,
    Command,
    Event,
    Grant,
    InstanceReady,
    LeaseFailed,
    LeaseReleased,
    MemoryFreed,
    MemorySeen,
    ProbeFootprint,
    ProgressChecked,
    Refuse,
    Remember,
    RequestArrived,
    RequestWithdrawn,
    RevokeLease,
    StartInstance,
    StopInstance,
    Wakeup,
)
from modeld.core.model import HOST, LOCAL, DeviceId, InstanceId, ModelId, ModelSpec, Request, RequestId
from modeld.core.scheduler import Scheduler
from modeld.core.snapshot import Explanation, Snapshot
from modeld.core.whatif import WhatIf
from modeld.errors import ClientGone, DeadlineUnreachable, Died, InstanceFault, InvariantError, ModeldError, QueueFull, WaitTimeout
from modeld.runtime.adapters.interface import Served
from modeld.runtime.journal import Journal

log = logging.getLogger("modeld.driver")

LATE_SECONDS: Final = 1.0
"""A timer that comes so late tells that the whole daemon stood still: what came meanwhile has not been read yet."""


class Actor(Protocol):
    """What carries out the commands about instances: runtime.supervisor.Supervisor."""

    def check(self, spec: ModelSpec) -> None: ...
    def start(self, instance: InstanceId, spec: ModelSpec) -> None: ...
    def probe(self, spec: ModelSpec, key: str, *, around: bool = True) -> None: ...
    def remember(self, what: Remember) -> None: ...
    def used(self, instance: InstanceId) -> None: ...
    def stop(self, instance: InstanceId, why: str) -> None: ...
    def served(self, instance: InstanceId) -> Served | None: ...


class Progress(Protocol):
    """What tells whether an answer moves: runtime.upstream.Exchange."""

    @property
    def began(self) -> bool: ...
    def moved_at(self, now: float) -> float: ...


class Observer(Protocol):
    """Who counts: api.metrics.Metrics. All durations in seconds; a wait is one in line, a request that has to wait again has two."""

    def observe_wait(self, seconds: float) -> None: ...
    def observe_load(self, seconds: float) -> None: ...
    def backpressure(self, reason: str) -> None: ...


class Recorder(Protocol):
    """Who writes down each step: runtime.trace.TraceWriter. Must not wait for anything."""

    def record(self, at: float, event: Event, commands: list[Command]) -> None: ...


class Lease:
    """A slot of a ready instance, held while a request runs."""

    __slots__ = ("_granted_at", "_on_revoke", "_progress", "_revoked", "degraded", "instance", "request", "served", "tokens")

    def __init__(self, request: Request, instance: InstanceId, served: Served, granted_at: float, degraded: tuple[str, ...] = ()) -> None:
        self.request = request
        self.instance = instance
        self.served = served
        self.degraded = degraded
        """What of the instance was given up to make it fit, in words."""
        self._granted_at = granted_at
        self._progress: Progress | None = None
        self.tokens = 0
        """Tokens generated, set by the holder when it knows."""
        self._revoked: ModeldError | None = None
        self._on_revoke: Callable[[ModeldError], None] | None = None

    def on_revoke(self, callback: Callable[[ModeldError], None]) -> None:
        """Call `callback` once if the request must end now; at once if it was revoked already."""
        self._on_revoke = callback
        if self._revoked is not None:
            callback(self._revoked)

    def follow(self, progress: Progress) -> None:
        """From now on `progress` tells whether the answer moves; before, only the grant counts."""
        self._progress = progress

    @property
    def began(self) -> bool:
        """Whether a byte of the answer's body has come from the instance, seen by the client or not."""
        return self._progress is not None and self._progress.began

    def moved_at(self, now: float) -> float:
        """Loop time of the last byte of the body, or of the grant; `now` while a slow client keeps us from reading."""
        return self._granted_at if self._progress is None else max(self._granted_at, self._progress.moved_at(now))

    @property
    def revoked(self) -> ModeldError | None:
        return self._revoked

    def revoke(self, error: ModeldError) -> None:
        if self._revoked is None:
            self._revoked = error
            if self._on_revoke is not None:
                self._on_revoke(error)


class PendingLease:
    """A request from its arrival to its end. `async with` waits for the grant and raises the refusal."""

    def __init__(self, driver: Driver, request: Request) -> None:
        self._driver = driver
        self._request = request
        self._granted: asyncio.Future[Lease] = driver.loop.create_future()
        self._held: Lease | None = None

    async def __aenter__(self) -> Lease:
        if not self._granted.done():  # else the client left before it had said all
            self._driver.arrive(self._request, self._granted)
        return await self._wait()

    async def again(self, error: ModeldError) -> Lease:
        """The lease failed with `error` before anything reached the client: stand in the old place again, and wait for another one.

        Raises the refusal; that of a second failure is `error`. The journal keeps `error`: give one that was not raised, a traceback holds
        the whole request.
        """
        if self._held is None:
            raise InvariantError(f"request {self._request.id} holds no lease that could fail")
        instance, self._held = self._held.instance, None
        self._granted = self._driver.loop.create_future()
        self._driver.line_up_again(self._request, self._granted, instance, error)
        return await self._wait()

    async def _wait(self) -> Lease:
        try:
            self._held = await self._granted
            return self._held
        except asyncio.CancelledError:
            self._driver.leave(self._request.id, RequestWithdrawn(self._request.id))
            raise
        finally:
            if self._held is None:
                # The error's traceback holds this frame, and with it us: holding the error would keep all three until a full collection.
                self._granted = self._driver.never

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._held is None:
            return  # refused, withdrawn or cancelled while it waited again: over already
        request, held = self._request.id, self._held
        if isinstance(error, InstanceFault):
            self._driver.leave(request, LeaseFailed(request, before_first_byte=False, error=copy(error)))
        else:
            moved_at = held.moved_at(self._driver.now()) if held.began else None
            self._driver.leave(request, LeaseReleased(request, held.tokens, moved_at))

    def withdraw(self, error: ModeldError | None = None) -> None:
        """End the wait with `error` (ClientGone by default). No effect once granted: then the holder ends its own stream."""
        if not self._granted.done():
            self._granted.set_exception(error or ClientGone("the client left while it waited"))
            self._driver.leave(self._request.id, RequestWithdrawn(self._request.id))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request without a lease. `since` is loop time; `lost` the instance that failed it, None the first time."""

    request: Request
    granted: asyncio.Future[Lease]
    since: float
    lost: InstanceId | None = None


class Driver:
    """Feeds the scheduler, carries out what it commands, arms the one timer. Belongs to one event loop."""

    def __init__(
        self, scheduler: Scheduler, *, observer: Observer, on_fatal: Callable[[InvariantError], None], trace: Recorder | None = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.journal = Journal()
        self._scheduler = scheduler
        self._observer = observer
        self._on_fatal = on_fatal
        self._trace = trace
        self._actor: Actor | None = None
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._timer_due = math.inf
        self._late_until = -math.inf
        """Until then the daemon stood still: no silence before it counts."""
        self._pending: dict[RequestId, _Waiting] = {}
        self._leases: dict[RequestId, Lease] = {}
        self._started: dict[InstanceId, float] = {}
        self._empty = asyncio.Event()
        self._watchers: dict[Callable[[Sequence[Change]], None], None] = {}
        self.never: asyncio.Future[Lease] = self.loop.create_future()
        """What a request that was refused waits for from then on; done, so that nobody withdraws it again."""
        self.never.cancel()

    def attach(self, actor: Actor) -> None:
        """Give the driver its hands. Before this nothing may be posted."""
        self._actor = actor

    # --- in -----------------------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Take an event. May be called from inside a command: it is then handled right after the present one."""
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                self._step(self._inbox.popleft())
        finally:
            self._busy = False
        self._arm()

    def request(self, request: Request) -> PendingLease:
        """`async with driver.request(r) as lease:` - raises the ModeldError with which the request was refused."""
        return PendingLease(self, request)

    def arrive(self, request: Request, granted: asyncio.Future[Lease]) -> None:
        self._pending[request.id] = _Waiting(request, granted, self.loop.time())
        self.post(RequestArrived(request))

    def line_up_again(self, request: Request, granted: asyncio.Future[Lease], instance: InstanceId, error: ModeldError) -> None:
        """The lease on `instance` is over, the request is not: core may grant or refuse in the step of this very event."""
        self._leases.pop(request.id, None)
        self._pending[request.id] = _Waiting(request, granted, self.loop.time(), lost=instance)
        self.post(LeaseFailed(request.id, before_first_byte=True, error=error))

    def leave(self, request: RequestId, event: Event) -> None:
        self._pending.pop(request, None)
        lease = self._leases.pop(request, None)
        self.post(event)
        if lease is not None and self._actor is not None:
            self._actor.used(lease.instance)

    async def empty(self) -> None:
        """Return when no instance is left. To be asked after the shutdown was requested: nothing starts any more."""
        while not self._scheduler.is_empty():
            self._empty.clear()
            await self._empty.wait()

    def is_idle(self) -> bool:
        """Nobody waits or holds a lease here, nothing loads, no event is unread, no timer is armed. To assert, never to decide."""
        return not (self._pending or self._leases or self._started or self._inbox or self._timer)

    def snapshot(self, *, estimates: bool = True) -> Snapshot:
        return self._scheduler.snapshot(self.loop.time(), estimates=estimates)

    def need(self, model: ModelId) -> Need:
        """What a model of the catalogue would take if it were started now, by all that is known."""
        return self._scheduler.need(model)

    def launch(self, model: ModelId) -> ModelSpec:
        """What a model of the catalogue would be started with now: its context may be less than what was asked for."""
        return self._scheduler.launch(model)

    def degraded(self, model: ModelId) -> tuple[str, ...]:
        """What was given up of a model to make it fit, in words of the settings; of one that does not run, what would be."""
        return self._scheduler.degraded(model)

    def pin_refusal(self, model: ModelId) -> ModeldError | None:
        """Why `model` cannot be pinned now, or None."""
        return self._scheduler.pin_refusal(model)

    def watch(self, callback: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        """Call `callback` with what has changed, in the step that changed it, before its commands are carried out. It may post events; it
        must not raise. Returns what ends it; idempotent.
        """
        self._watchers[callback] = None
        return lambda: self._forget(callback)

    def _forget(self, callback: Callable[[Sequence[Change]], None]) -> None:
        self._watchers.pop(callback, None)

    def explain(self) -> Explanation:
        return self._scheduler.explain(self.loop.time())

    def what_if(self, models: Sequence[ModelId]) -> WhatIf:
        """What would happen if these models were asked for, or each for itself where none is named."""
        return self._scheduler.what_if(models, self.loop.time())

    def footprints(self) -> tuple[Learned, ...]:
        """What was learned of launches."""
        return self._scheduler.footprints()

    def now(self) -> float:
        """The clock of all decisions: the loop's monotonic seconds."""
        return self.loop.time()

    # --- out ----------------------------------------------------------------------------------------------------------

    def _step(self, event: Event) -> None:
        now = self.loop.time()
        try:
            commands = self._scheduler.handle(event, now)
        except InvariantError as error:
            self._broken(event, error)
            return
        if commands or not isinstance(event, MemorySeen):  # one every other second would drive all else out of the ring
            self.journal.record(now, event, commands)
        if self._trace is not None:
            self._trace.record(now, event, commands)
        changes = self._scheduler.take_changes()
        if changes:
            for watcher in list(self._watchers):
                watcher(changes)
        if isinstance(event, MemoryFreed):
            self._started.pop(event.instance, None)
            self._empty.set()
        if isinstance(event, InstanceReady) and (started := self._started.pop(event.instance, None)) is not None:
            self._observer.observe_load(now - started)
            log.info("ready %s after %.3f s", event.instance, now - started)
        if isinstance(event, LeaseFailed) and event.before_first_byte:
            self._tell_again(event, commands)
        for command in commands:
            try:
                self._carry_out(command, now)
            except InvariantError as error:  # it is ours, not of whoever posted; the other commands are still owed
                self._broken(command, error)

    def _broken(self, by: Event | Command, error: InvariantError) -> None:
        log.critical("invariant broken by %s: %s\n%s", by, error.message, "\n".join(self.journal.lines()))
        self._on_fatal(error)

    def _tell_again(self, event: LeaseFailed, commands: list[Command]) -> None:
        """A line for the log when the request waits again; that it is refused instead says the line of the refusal."""
        waiting = self._pending.get(event.request)
        if waiting is not None and not any(isinstance(command, Refuse) and command.request == event.request for command in commands):
            why = event.error or Died("it failed")
            log.info("request %s of %s waits again: %s: %s", event.request, waiting.request.model, waiting.lost, why.message)

    def _carry_out(self, command: Command, now: float) -> None:
        if self._actor is None:
            raise InvariantError("the driver has no actor")
        match command:
            case Grant(request, instance):
                self._grant(request, instance, now)
            case Refuse(request, error):
                self._refuse(request, error, now)
            case RevokeLease(request, error):
                if (lease := self._leases.get(request)) is not None:  # else it has been given back: that event is on its way
                    log.info("end request %s on %s: %s", request, lease.instance, error.message)
                    lease.revoke(copy(error))
            case CheckLaunch(spec):
                self._actor.check(spec)
            case CheckProgress(instance):
                self.post(self._progress(instance, now))
            case ProbeFootprint(spec, key, around):
                self._actor.probe(spec, key, around=around)
            case Remember():
                self._actor.remember(command)
            case StartInstance(instance, spec, need_mb):
                log.info("start %s: %s%s", instance, _where(need_mb), f" ({', '.join(spec.degraded)})" if spec.degraded else "")
                self._started[instance] = now
                self._actor.start(instance, _placed(spec, need_mb))
            case StopInstance(instance, why):
                log.info("stop %s: %s", instance, why)
                self._started.pop(instance, None)
                self._actor.stop(instance, why)
            case _:
                assert_never(command)

    def _progress(self, instance: InstanceId, now: float) -> ProgressChecked:
        leases = [lease for lease in self._leases.values() if lease.instance == instance]
        moved = {lease.request.id: max(lease.moved_at(now), self._late_until) for lease in leases}
        return ProgressChecked(instance, moved, frozenset(lease.request.id for lease in leases if lease.began))

    def _grant(self, request: RequestId, instance: InstanceId, now: float) -> None:
        waiting = self._pending.get(request)
        if waiting is None or waiting.granted.done():  # the client left while the grant was on its way
            self._pending.pop(request, None)
            self.post(LeaseReleased(request))
            return
        served = None if self._actor is None else self._actor.served(instance)
        if served is None:  # the instance died while the grant was on its way
            self._pending[request] = replace(waiting, lost=instance)
            error = Died("the model server ended before it could answer; try again")
            self.post(LeaseFailed(request, before_first_byte=True, error=error))
            return
        del self._pending[request]
        self._observer.observe_wait(now - waiting.since)
        self._leases[request] = lease = Lease(waiting.request, instance, served, now, self._scheduler.degraded(waiting.request.model))
        waiting.granted.set_result(lease)

    def _refuse(self, request: RequestId, error: ModeldError, now: float) -> None:
        waiting = self._pending.pop(request, None)
        if isinstance(error, QueueFull | WaitTimeout | DeadlineUnreachable):
            self._observer.backpressure(error.kind)
        if waiting is not None:
            log.info("refuse request %s of %s (%s): %s", request, waiting.request.model, error.kind, error.message)
            if not waiting.granted.done():
                # A copy: the journal keeps the error, and where it is raised it gets a traceback that holds the whole request.
                waiting.granted.set_exception(copy(error))

    def _arm(self) -> None:
        """One timer, for the scheduler's next deadline."""
        at = self._scheduler.next_wakeup()
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer_due = math.inf if at is None else max(at, self.loop.time())
        self._timer = None if at is None else self.loop.call_at(at, self._wake)

    def _wake(self) -> None:
        now = self.loop.time()
        if now - self._timer_due > LATE_SECONDS:
            self._late_until = now
        self._timer = self._timer_at = None
        self.post(Wakeup())

    def close(self) -> None:
        """Disarm the timer. Nothing may be posted afterwards."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timer_at = None


def _placed(spec: ModelSpec, need_mb: Mapping[DeviceId, int]) -> ModelSpec:
    """The spec with the devices it was booked on, by llama.cpp's names, and the share of each where there are several."""
    places = {device.partition("/")[2]: mb for device, mb in need_mb.items() if device not in (LOCAL, HOST)}
    if not places:
        return spec
    shares = tuple(places.values()) if len(places) > 1 else ()
    return replace(spec, options=replace(spec.options, devices=tuple(places), tensor_split=shares))


def _where(need_mb: Mapping[DeviceId, int]) -> str:
    """What was booked, for a log line."""
    return ", ".join(f"{mb} MiB of {device}" for device, mb in sorted(need_mb.items())) or "nothing booked"
