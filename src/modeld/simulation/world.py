# SPDX-License-Identifier: GPL-3.0-only
"""What the runtime, the children and the clients would do, on a virtual clock; rule: it decides nothing, it is data made to happen.

The same workload, faults and seed give the same events and commands at the same times, in any process. The seed is used for the load
times alone (a stream for each model, so that the n-th load of a model takes as long under every policy); all else is in the data.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from modeld.core.messages import (
    CheckLaunch,
    CheckProgress,
    Command,
    Event,
    Grant,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    InstanceSpawned,
    LaunchChecked,
    LaunchRejected,
    LeaseFailed,
    LeaseReleased,
    LoadProgressed,
    MemoryFreed,
    ProgressChecked,
    RequestArrived,
    RequestWithdrawn,
    RevokeLease,
    ShutdownRequested,
    StartInstance,
    StopInstance,
    Wakeup,
)
from modeld.core.model import InstanceId, Limits, ModelId, ModelSpec, Request, RequestId
from modeld.core.scheduler import Scheduler
from modeld.core.snapshot import Snapshot
from modeld.errors import (
    BadUpstreamReply,
    ClientGone,
    InstanceFault,
    InvariantError,
    LoadFailed,
    LoadStalled,
    OutOfMemory,
    UpstreamUnreachable,
)
from modeld.simulation.faults import NO_FAULTS, Act, CheckFate, ChildFate, Deed, Faults, LeaseFate, LoadEnd
from modeld.simulation.invariants import ALL, Watch
from modeld.simulation.operator import Operator
from modeld.simulation.outside import Outside
from modeld.simulation.seen import READY, RUNNING, WAITING, Asked, Seen, Violation
from modeld.simulation.trace import tell
from modeld.simulation.workload import Ask, History, Served, SimModel, Stay, Workload

STALL_SECONDS = 60.0
"""After so long a load that stalls is given up by the runtime (LoadStalled)."""
REAP_SECONDS = 0.02
"""Between a failed load and the end of its process."""
REVOKE_SECONDS = 0.03
"""Between a revoked lease and its end."""
FIRST_BYTE_SHARE = 0.1
"""Of a request's service, until its first byte."""
STORY_STEPS = 60
WAKEUPS_MAX = 20
"""Wakeups in a row at one moment: more is a clock that stands still."""
PATIENCE_SECONDS = 1e7


class Policy(Protocol):
    """What the world drives: core.scheduler.Scheduler, or something to compare it with."""

    def handle(self, event: Event, now: float) -> list[Command]: ...
    def next_wakeup(self) -> float | None: ...
    def snapshot(self, now: float, *, estimates: bool = ...) -> Snapshot: ...
    def check_invariants(self) -> None: ...


class _Child:
    """A process: what it is fated to, and where it is on the way."""

    __slots__ = ("ending", "fate", "hung_at", "load_seconds", "seen", "stop_seconds")

    def __init__(self, seen: Seen, fate: ChildFate, load_seconds: float, stop_seconds: float) -> None:
        self.seen = seen
        self.fate = fate
        self.load_seconds = load_seconds
        self.stop_seconds = stop_seconds
        self.hung_at = math.inf
        self.ending = False


class World:
    """One run. `checks` are names of invariants (empty = none: for comparing policies). Raises Violation.

    make         builds the policy from (limits, models)
    requeues     a request that failed before its first byte stands in line again (False for a policy that ends it)
    on_wait      called after an arrival that has to wait, with the world and the request: for estimates
    traced       `digest` is made of every event and command
    """

    def __init__(
        self,
        workload: Workload,
        *,
        faults: Faults = NO_FAULTS,
        seed: int = 0,
        checks: frozenset[str] = ALL,
        policy: str = "modeld",
        make: Callable[[Limits, Mapping[ModelId, ModelSpec]], Policy] = Scheduler,
        requeues: bool = True,
        on_wait: Callable[[World, Asked], None] | None = None,
        traced: bool = False,
    ) -> None:
        self.workload = workload
        self.seed = seed
        self.policy = policy
        self.now = 0.0
        self.events = 0
        self.happened: Counter[str] = Counter()
        """Faults by kind."""
        self.counts: Counter[str] = Counter()
        models = {model.id: model.spec for model in workload.models}
        self.scheduler = make(workload.limits, models)
        self.outside = Outside(workload.limits, models, self.fail, requeues=requeues)
        self.outside.on_end, self.outside.on_gone = self._request_ended, self._instance_gone
        self.outside.stop_seconds = {model.id: model.stop_seconds for model in workload.models}
        self.watch = Watch(self.outside, self.scheduler, checks, self.fail) if checks else None
        self.story: deque[tuple[float, Event, list[Command]]] = deque(maxlen=STORY_STEPS)
        self._operator = Operator(workload.limits, models)
        self._models: dict[ModelId, SimModel] = {model.id: model for model in workload.models}
        self._asks: dict[RequestId, Ask] = {ask.request: ask for ask in workload.asks}
        self._children: dict[InstanceId, _Child] = {}
        self._dice = {model.id: random.Random(f"{seed}/{model.id}") for model in workload.models}
        self._starts: Counter[ModelId] = Counter()
        self._checks: Counter[ModelId] = Counter()
        self._child_fates: dict[tuple[ModelId, int], ChildFate] = {(fate.model, fate.start): fate for fate in faults.children}
        self._lease_fates: dict[RequestId, LeaseFate] = {fate.request: fate for fate in faults.leases}
        self._check_fates: dict[tuple[ModelId, int], CheckFate] = {(fate.model, fate.check): fate for fate in faults.checks}
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._soon: deque[Event] = deque()
        self._seq = 0
        self._served: list[Served] = []
        self._stays: list[Stay] = []
        self._on_wait = on_wait
        self._hash = hashlib.sha256() if traced else None
        for act in faults.acts:
            self._at(act.at, self._act, act)
        self._obey: dict[type, Callable[[Any], None]] = {
            Grant: self._grant,
            RevokeLease: self._revoke,
            CheckLaunch: self._check,
            StartInstance: self._start,
            StopInstance: self._stop,
            CheckProgress: self._progress,
        }

    @property
    def digest(self) -> str:
        """Of all events and commands so far, in order, with their times."""
        return "" if self._hash is None else self._hash.hexdigest()

    def fail(self, name: str, detail: str) -> None:
        """Raise the Violation."""
        raise Violation(name, detail, self.seed, self.now)

    def run(self) -> History:
        """Until everything asked for has ended and, after a shutdown, nothing is left."""
        asks = self.workload.asks
        self._play(asks, lambda: False)
        until = self.now
        self._play((), lambda: not self.outside.requests)
        if self.watch is not None:
            self.watch.quiet(self.now)
        if not self.outside.shutting_down:
            self.feed(ShutdownRequested())
        self._play((), lambda: False, wakeups=False)
        if self.watch is not None:
            self.watch.over(self.now)
        self.counts["requests"] = len(asks)
        return History(self.workload, self.policy, tuple(self._served), tuple(self._stays), until)

    # --- the clock ----------------------------------------------------------------------------------------------------

    def _play(self, asks: tuple[Ask, ...], is_over: Callable[[], bool], *, wakeups: bool = True) -> None:
        """Let time pass until nothing is planned any more (wakeups do not count as plans, except while requests wait)."""
        index, count, heap, scheduler = 0, len(asks), self._heap, self.scheduler
        in_a_row = 0
        while True:
            ask_at = asks[index].at if index < count else math.inf
            heap_at = heap[0][0] if heap else math.inf
            at = min(heap_at, ask_at)
            wakeup = scheduler.next_wakeup() if wakeups else None
            if wakeup is not None and wakeup <= at:
                if at == math.inf and (is_over() or not self.outside.requests):
                    return
                in_a_row = in_a_row + 1 if wakeup <= self.now else 0
                if in_a_row > WAKEUPS_MAX or wakeup > PATIENCE_SECONDS:
                    self.fail("clock", f"next_wakeup() stays {wakeup}")
                self.now = max(self.now, wakeup)
                self.feed(Wakeup())
                continue
            if at == math.inf:
                return
            in_a_row = 0
            self.now = at
            if heap_at <= ask_at:
                _, _, action, subject = heapq.heappop(heap)
                action(subject)
            else:
                self._arrive(asks[index])
                index += 1

    def _at(self, time: float, action: Callable[[Any], None], subject: object) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (time, self._seq, action, subject))

    def _event_at(self, time: float, event: Event) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (time, self._seq, self.feed, event))

    def feed(self, event: Event) -> None:
        """One event and, at the same moment, all that the commands it gives bring about at once."""
        self._step(event)
        while self._soon:
            self._step(self._soon.popleft())

    def _step(self, event: Event) -> None:
        now = self.now
        try:
            commands = self.scheduler.handle(event, now)
        except InvariantError as error:
            self.story.append((now, event, []))
            self.fail("core", error.message)
        self.events += 1
        self.story.append((now, event, commands))
        if self._hash is not None:
            self._hash.update(tell(now, event, commands).encode())
        self.outside.take(event, now)
        if self.watch is not None:
            self.watch.before(event, now)
        if commands:
            self.outside.obey(commands, now)
        if self.watch is not None:
            self.watch.after(event, commands, now)
        for command in commands:
            if (obey := self._obey.get(type(command))) is not None:
                obey(command)

    # --- clients ------------------------------------------------------------------------------------------------------

    def _arrive(self, ask: Ask) -> None:
        request = Request(
            ask.request,
            ask.model,
            ask.principal,
            body_bytes=ask.body_bytes,
            priority=ask.priority,
            work=ask.work,
            timeout_seconds=ask.timeout_seconds,
            keep_seconds=ask.keep_seconds,
        )
        self.feed(RequestArrived(request))
        asked = self.outside.requests.get(ask.request)
        if asked is None:
            return
        if ask.leaves_at < math.inf:
            self._at(max(self.now, ask.leaves_at), self._leave, ask.request)
        if self._on_wait is not None and asked.place is WAITING:
            self._on_wait(self, asked)

    def _leave(self, request: RequestId) -> None:
        """The client goes, whatever its request is doing."""
        asked = self.outside.requests.get(request)
        if asked is None:
            return
        if asked.place is RUNNING:
            self.happened["left while streaming"] += 1
            asked.error = ClientGone("the client left")
            child = None if asked.instance is None else self._children.get(asked.instance)
            moved_at = self.now if child is None else min(self.now, child.hung_at)
            self.feed(LeaseReleased(request, moved_at=moved_at if moved_at >= asked.began_at else None))
        else:
            self.happened["left after requeued" if asked.requeued else "left while waiting"] += 1
            self.feed(RequestWithdrawn(request))

    def _grant(self, command: Grant) -> None:
        asked = self.outside.requests[command.request]
        ask = self._asks[command.request]
        fate = self._lease_fates.get(command.request)
        now, service = self.now, ask.service_seconds
        asked.began_at = now + service * FIRST_BYTE_SHARE
        if fate is None:
            self._at(now + service, self._finish, (asked, now, LeaseReleased(ask.request, ask.tokens)))
        elif fate.leaves_granted and not asked.requeued:
            self.happened["left at the grant"] += 1
            self._soon.append(RequestWithdrawn(ask.request))
        elif asked.requeued < fate.fails_before:
            error: InstanceFault = UpstreamUnreachable("the model server did not answer")
            end = LeaseFailed(ask.request, before_first_byte=True, error=error)
            self._at(now + fate.share * (asked.began_at - now), self._finish, (asked, now, end))
        elif fate.fails_after:
            error = BadUpstreamReply("the model server answered nonsense")
            end = LeaseFailed(ask.request, before_first_byte=False, error=error)
            self._at(now + (0.1 + 0.9 * fate.share) * service, self._finish, (asked, now, end))
        else:
            self._at(now + service, self._finish, (asked, now, LeaseReleased(ask.request, ask.tokens)))

    def _finish(self, plan: tuple[Asked, float, LeaseReleased | LeaseFailed]) -> None:
        """A lease ends as planned, unless it ended, or its child hangs or has died."""
        asked, granted, event = plan
        if asked.place is not RUNNING or asked.granted != granted:
            return
        child = None if asked.instance is None else self._children.get(asked.instance)
        if child is None or child.hung_at <= self.now or child.seen.exited:
            return  # whoever holds it is told by RevokeLease
        if type(event) is LeaseFailed:
            self._lease_fails(asked, event)
        else:
            self.feed(event)

    def _lease_fails(self, asked: Asked, event: LeaseFailed) -> None:
        self.happened["lease failed before its first byte" if event.before_first_byte else "lease failed in its answer"] += 1
        request = event.request
        self.feed(event)
        fate = self._lease_fates.get(request)
        if event.before_first_byte and fate is not None and fate.leaves_requeued and asked.place is WAITING:
            self.happened["left after requeued"] += 1
            self.feed(RequestWithdrawn(request))

    def _revoke(self, command: RevokeLease) -> None:
        asked = self.outside.requests.get(command.request)
        if asked is None or asked.granted is None:
            return
        child = None if asked.instance is None else self._children.get(asked.instance)
        until = self.now if child is None else min(self.now, child.hung_at)
        end: Event = LeaseReleased(command.request)
        if isinstance(command.error, InstanceFault):
            end = LeaseFailed(command.request, before_first_byte=until < asked.began_at, error=command.error)
        self._at(self.now + REVOKE_SECONDS, self._revoked, (asked, asked.granted, end))

    def _revoked(self, plan: tuple[Asked, float, Event]) -> None:
        asked, granted, end = plan
        if asked.place is not RUNNING or asked.granted != granted:
            return
        if type(end) is LeaseFailed:
            self._lease_fails(asked, end)
        else:
            self.feed(end)

    # --- children -----------------------------------------------------------------------------------------------------

    def _check(self, command: CheckLaunch) -> None:
        spec = command.spec
        self._checks[spec.id] += 1
        fate = self._check_fates.get((spec.id, self._checks[spec.id]))
        if fate is None:
            self._soon.append(LaunchChecked(spec.id, spec.fingerprint))
        elif fate.rejected:
            self.happened["launch rejected"] += 1
            self._event_at(self.now + fate.seconds, LaunchRejected(spec.id, spec.fingerprint, LoadFailed("its arguments are wrong")))
        else:
            self.happened["slow launch check"] += 1
            self._event_at(self.now + fate.seconds, LaunchChecked(spec.id, spec.fingerprint))

    def _start(self, command: StartInstance) -> None:
        model = command.spec.id
        self.counts["loads"] += 1
        self._starts[model] += 1
        fate = self._child_fates.get((model, self._starts[model])) or ChildFate(model, self._starts[model])
        sim = self._models[model]
        seconds = sim.load_seconds
        if sim.load_sigma > 0:
            seconds *= math.exp(sim.load_sigma * self._dice[model].gauss(0.0, 1.0))
        child = _Child(self.outside.instances[command.instance], fate, seconds, sim.stop_seconds)
        self._children[command.instance] = child
        self._soon.append(InstanceSpawned(command.instance, self.counts["loads"]))
        if fate.load is LoadEnd.STALLS:
            seconds = STALL_SECONDS
        elif fate.load is not LoadEnd.READY:
            seconds *= fate.share
        else:
            self._at(self.now + seconds / 2, self._halfway, child)
        self._at(self.now + seconds, self._loaded, child)

    def _halfway(self, child: _Child) -> None:
        if not child.ending:
            self.feed(LoadProgressed(child.seen.id, 0.5))

    def _loaded(self, child: _Child) -> None:
        """The load ends, well or not, unless it was told to stop meanwhile."""
        if child.ending:
            return
        instance, fate = child.seen.id, child.fate
        if fate.load is LoadEnd.READY:
            if fate.dies_after < math.inf:
                self._at(self.now + fate.dies_after, self._crash, child)
            if fate.hangs_after < math.inf:
                self._at(self.now + fate.hangs_after, self._hang, child)
            self.feed(InstanceReady(instance, self.counts["loads"]))
            return
        self.happened[f"load {fate.load}"] += 1
        child.ending = True
        if fate.load is LoadEnd.CRASHES:
            self._exit((child, -11))
            return
        self._at(self.now + REAP_SECONDS + fate.deaf_seconds, self._exit, (child, 1))
        errors: dict[LoadEnd, InstanceFault] = {
            LoadEnd.STALLS: LoadStalled("nothing was loaded for a long time"),
            LoadEnd.OUT_OF_MEMORY: OutOfMemory("it needs more memory than was booked for it"),
        }
        self.feed(InstanceFailed(instance, errors.get(fate.load) or LoadFailed("the file is damaged")))

    def _hang(self, child: _Child) -> None:
        if not child.ending:
            self.happened["child hangs"] += 1
            child.hung_at = self.now

    def _crash(self, child: _Child) -> None:
        """Every other request hears of it before the process is reaped, the rest when core revokes them."""
        if child.ending or child.seen.state is not READY:
            return
        child.ending = True
        self.happened["crash while streaming" if child.seen.leases else "crash while idle"] += 1
        error = UpstreamUnreachable("the connection broke")
        for asked in [asked for asked in child.seen.leases.values() if asked.ticket % 2 == 0]:
            if asked.place is RUNNING and asked.instance == child.seen.id:
                self._lease_fails(asked, LeaseFailed(asked.request.id, before_first_byte=self.now < asked.began_at, error=error))
        self._exit((child, -9))

    def _stop(self, command: StopInstance) -> None:
        child = self._children[command.instance]
        self.counts["evictions"] += command.why.startswith("evicted")
        if child.ending:
            return  # it has ended by itself, the report is on its way
        child.ending = True
        if child.fate.deaf_seconds:
            self.happened["TERM ignored"] += 1
        self._at(self.now + child.stop_seconds + child.fate.deaf_seconds, self._exit, (child, -15))

    def _exit(self, plan: tuple[_Child, int]) -> None:
        child, code = plan
        instance = child.seen.id
        self.feed(InstanceExited(instance, code))
        if child.fate.freed_seconds:
            self.happened["memory freed late"] += 1
            self._event_at(self.now + child.fate.freed_seconds, MemoryFreed(instance))
        else:
            self.feed(MemoryFreed(instance))

    def _progress(self, command: CheckProgress) -> None:
        child = self._children.get(command.instance)
        if child is None or command.instance not in self.outside.instances:
            self._soon.append(ProgressChecked(command.instance, {}))
            return
        until = min(self.now, child.hung_at)
        moved: dict[RequestId, float] = {}
        began: list[RequestId] = []
        for request, asked in child.seen.leases.items():
            granted = asked.granted or 0.0
            if asked.began_at <= until:
                began.append(request)
                moved[request] = until
            else:
                moved[request] = granted
        self._soon.append(ProgressChecked(command.instance, moved, frozenset(began)))

    # --- the operator, and the record ---------------------------------------------------------------------------------

    def _act(self, act: Act) -> None:
        if act.deed is Deed.SHUTDOWN and self.outside.shutting_down:
            return
        self.happened[f"operator: {act.deed}"] += 1
        if act.deed is Deed.HOLD and isinstance(self.scheduler, Scheduler):
            self.outside.pin_refused = self.scheduler.pin_refusal(act.model) is not None
        self.feed(self._operator.event(act))

    def _request_ended(self, asked: Asked, outcome: str, now: float) -> None:
        ask = self._asks[asked.request.id]
        self._served.append(Served(ask, asked.granted, now, "left" if outcome == ClientGone.kind else outcome))

    def _instance_gone(self, seen: Seen, now: float) -> None:
        del self._children[seen.id]
        stopping = now if seen.stopped_at is None else seen.stopped_at
        closed = seen.closed_at if seen.closed_at < stopping else None
        self._stays.append(Stay(seen.model, seen.started, seen.ready_at, stopping, now, seen.why, closed))
