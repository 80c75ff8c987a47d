# SPDX-License-Identifier: GPL-3.0-only
"""The single writer: event in, core decides, commands out; rule: nothing is awaited between taking an event and booking its commands.

Requests get a `PendingLease`; inside its `async with` they hold a slot of a ready instance. The stream owns the lease: it is released
when the block is left, by whatever way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from copy import copy
from types import TracebackType
from typing import Protocol, assert_never

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
    Refuse,
    RequestArrived,
    RequestWithdrawn,
    RevokeLease,
    StartInstance,
    StopInstance,
    Wakeup,
)
from modeld.core.model import InstanceId, ModelSpec, Request, RequestId
from modeld.core.scheduler import Scheduler
from modeld.core.snapshot import Explanation, Snapshot
from modeld.errors import ClientGone, DeadlineUnreachable, InstanceFault, InvariantError, ModeldError, QueueFull, WaitTimeout
from modeld.runtime.adapters.interface import Served
from modeld.runtime.journal import Journal

log = logging.getLogger("modeld.driver")


class Actor(Protocol):
    """What carries out the commands about instances: runtime.supervisor.Supervisor."""

    def check(self, spec: ModelSpec) -> None: ...
    def start(self, instance: InstanceId, spec: ModelSpec) -> None: ...
    def stop(self, instance: InstanceId, why: str) -> None: ...
    def served(self, instance: InstanceId) -> Served | None: ...


class Observer(Protocol):
    """Who counts: api.metrics.Metrics. All durations in seconds."""

    def observe_wait(self, seconds: float) -> None: ...
    def observe_load(self, seconds: float) -> None: ...
    def backpressure(self, reason: str) -> None: ...


class Recorder(Protocol):
    """Who writes down each step: runtime.trace.TraceWriter. Must not wait for anything."""

    def record(self, at: float, event: Event, commands: list[Command]) -> None: ...


class Lease:
    """A slot of a ready instance, held while a request runs."""

    __slots__ = ("_on_revoke", "_revoked", "instance", "request", "served", "tokens")

    def __init__(self, request: Request, instance: InstanceId, served: Served) -> None:
        self.request = request
        self.instance = instance
        self.served = served
        self.tokens = 0
        """Tokens generated, set by the holder when it knows."""
        self._revoked: ModeldError | None = None
        self._on_revoke: Callable[[ModeldError], None] | None = None

    def on_revoke(self, callback: Callable[[ModeldError], None]) -> None:
        """Call `callback` once if the request must end now; at once if it was revoked already."""
        self._on_revoke = callback
        if self._revoked is not None:
            callback(self._revoked)

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

    async def __aenter__(self) -> Lease:
        if not self._granted.done():  # else the client left before it had said all
            self._driver.arrive(self._request, self._granted)
        try:
            return await self._granted
        except asyncio.CancelledError:
            self._driver.leave(self._request.id, RequestWithdrawn(self._request.id))
            raise
        finally:
            if self._granted.done() and (self._granted.cancelled() or self._granted.exception() is not None):
                # The error's traceback holds this frame, and with it us: holding the error would keep all three until a full collection.
                self._granted = self._driver.never

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        request, tokens = self._request.id, self._granted.result().tokens
        if isinstance(error, InstanceFault):
            self._driver.leave(request, LeaseFailed(request, before_first_byte=tokens == 0))
        else:
            self._driver.leave(request, LeaseReleased(request, tokens))

    def withdraw(self, error: ModeldError | None = None) -> None:
        """End the wait with `error` (ClientGone by default). No effect once granted: then the holder ends its own stream."""
        if not self._granted.done():
            self._granted.set_exception(error or ClientGone("the client left while it waited"))
            self._driver.leave(self._request.id, RequestWithdrawn(self._request.id))


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
        self._pending: dict[RequestId, tuple[Request, asyncio.Future[Lease], float]] = {}
        self._leases: dict[RequestId, Lease] = {}
        self._started: dict[InstanceId, float] = {}
        self._empty = asyncio.Event()
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
        self._pending[request.id] = (request, granted, self.loop.time())
        self.post(RequestArrived(request))

    def leave(self, request: RequestId, event: Event) -> None:
        self._pending.pop(request, None)
        self._leases.pop(request, None)
        self.post(event)

    async def empty(self) -> None:
        """Return when no instance is left. To be asked after the shutdown was requested: nothing starts any more."""
        while not self._scheduler.is_empty():
            self._empty.clear()
            await self._empty.wait()

    def snapshot(self) -> Snapshot:
        return self._scheduler.snapshot(self.loop.time())

    def explain(self) -> Explanation:
        return self._scheduler.explain(self.loop.time())

    def now(self) -> float:
        """The clock of all decisions: the loop's monotonic seconds."""
        return self.loop.time()

    # --- out ----------------------------------------------------------------------------------------------------------

    def _step(self, event: Event) -> None:
        now = self.loop.time()
        try:
            commands = self._scheduler.handle(event, now)
        except InvariantError as error:
            log.critical("invariant broken by %s: %s\n%s", event, error.message, "\n".join(self.journal.lines()))
            self._on_fatal(error)
            return
        self.journal.record(now, event, commands)
        if self._trace is not None:
            self._trace.record(now, event, commands)
        if isinstance(event, MemoryFreed):
            self._started.pop(event.instance, None)
            self._empty.set()
        if isinstance(event, InstanceReady) and (started := self._started.pop(event.instance, None)) is not None:
            self._observer.observe_load(now - started)
            log.info("ready %s after %.3f s", event.instance, now - started)
        for command in commands:
            self._carry_out(command, now)

    def _carry_out(self, command: Command, now: float) -> None:
        if self._actor is None:
            raise InvariantError("the driver has no actor")
        match command:
            case Grant(request, instance):
                self._grant(request, instance, now)
            case Refuse(request, error):
                self._refuse(request, error, now)
            case RevokeLease(request, error):
                log.info("end request %s: %s", request, error.message)
                if (lease := self._leases.get(request)) is not None:
                    lease.revoke(copy(error))
                else:  # granted and given back in the same step
                    self.post(LeaseReleased(request))
            case CheckLaunch(spec):
                self._actor.check(spec)
            case CheckProgress():
                pass
            case StartInstance(instance, spec):
                log.info("start %s", instance)
                self._started[instance] = now
                self._actor.start(instance, spec)
            case StopInstance(instance, why):
                log.info("stop %s: %s", instance, why)
                self._started.pop(instance, None)
                self._actor.stop(instance, why)
            case _:
                assert_never(command)

    def _grant(self, request: RequestId, instance: InstanceId, now: float) -> None:
        pending = self._pending.pop(request, None)
        served = None if self._actor is None else self._actor.served(instance)
        if pending is None or pending[1].done() or served is None:
            # The client left, or the instance died, while the grant was on its way.
            if pending is not None and not pending[1].done():
                pending[1].set_exception(InstanceFault("the model server ended before it could answer"))
            self.post(LeaseReleased(request))
            return
        asked, granted, arrived = pending
        self._observer.observe_wait(now - arrived)
        self._leases[request] = lease = Lease(asked, instance, served)
        granted.set_result(lease)

    def _refuse(self, request: RequestId, error: ModeldError, now: float) -> None:
        pending = self._pending.pop(request, None)
        if isinstance(error, QueueFull | WaitTimeout | DeadlineUnreachable):
            self._observer.backpressure(error.kind)
        if pending is not None:
            log.info("refuse request %s (%s): %s", request, error.kind, error.message)
            if not pending[1].done():
                # A copy: the journal keeps the error, and where it is raised it gets a traceback that holds the whole request.
                pending[1].set_exception(copy(error))

    def _arm(self) -> None:
        """One timer, for the scheduler's next deadline."""
        at = self._scheduler.next_wakeup()
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if at is None else self.loop.call_at(at, self._wake)

    def _wake(self) -> None:
        self._timer = self._timer_at = None
        self.post(Wakeup())

    def close(self) -> None:
        """Disarm the timer. Nothing may be posted afterwards."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timer_at = None
