# SPDX-License-Identifier: GPL-3.0-only
"""What must hold after every event, judged from outside; rule: each check has a name, can be switched off by it, and raises at once.

always (the world cannot go on without them)
  requests      each request is in one place and ends once; granted only while it waits, on a ready instance of its model
  one_instance  one instance of a model at a time; stopped only once
  clock         next_wakeup() moves on
  core          core's own InvariantError
by name
  memory        nothing is started above budget - margin of a device; what is booked is what the model needs
  slots         never more requests than slots; nothing new on an instance that was closed before and stays closed
  fifo          in order of arrival within model, class and principal; the first grant of a load goes to the oldest aged one
  eviction      nobody busy or awaited gives way except closed for a due model and drained; pins, residency and turns are kept
  closing       nothing is closed before somebody is due, and only for who is due
  needless      no victim without whom there would have been room; none in vain; none before the launch check has passed
  queues        lines and waiting bytes within their limits; QueueFull only when they are reached
  hopeless      nobody waits for a model that could not be started whoever went
  idle_slot     no request waits for an open instance with a free slot
  room_unused   no checked demand stands unstarted beside memory it fits into and no older one needs
  due_stands    a due demand has victims as soon as enough are to be had
  bound         bound.py
  restarts      a model that fails is not started more often than the breaker allows
  books         the snapshot says the same as the events and commands
  order         order.py: classes, ageing, and shares of principals in a line
  times         times.py: every limit ends what it limits, not before and not after
  loads         loads.py: a model is loaded for somebody, checked, and not too soon after a failure
  pins          holds.py: the operator's word holds, and what is pinned together has room for all of it
  baseline      when all have left, and after the shutdown, nothing is left
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from modeld.core.breaker import STARTS_MAX, WINDOW_SECONDS
from modeld.core.instance import SUSPECT_SECONDS
from modeld.core.messages import (
    Command,
    Event,
    Grant,
    InstanceReady,
    ModelTableReplaced,
    PinChanged,
    Refuse,
    RequestArrived,
    SettingsReplaced,
    StartInstance,
    StopInstance,
    UnloadRequested,
)
from modeld.core.model import HOST, ModelId
from modeld.core.snapshot import InstanceView, Snapshot
from modeld.errors import InvariantError, QueueFull
from modeld.simulation.bound import Bound
from modeld.simulation.holds import Pins
from modeld.simulation.loads import Loads
from modeld.simulation.order import Order
from modeld.simulation.outside import Outside
from modeld.simulation.room import fits, is_clear, is_hopeless, need_mb, with_memory_of, without_need_of
from modeld.simulation.seen import LOADING, READY, WAITING, Asked, Seen
from modeld.simulation.times import Times
from modeld.simulation.victims import EPSILON, Victims, who_goes_before

NAMES = (
    "memory",
    "slots",
    "fifo",
    "eviction",
    "closing",
    "needless",
    "queues",
    "hopeless",
    "idle_slot",
    "room_unused",
    "due_stands",
    "bound",
    "restarts",
    "books",
    "order",
    "times",
    "loads",
    "pins",
    "baseline",
)
ALL = frozenset(NAMES)
LOOK_EVERY = 32
"""Steps between two looks at the snapshot when nothing asks for one."""


class Watched(Protocol):
    """What is looked at beside events and commands."""

    def next_wakeup(self) -> float | None: ...
    def snapshot(self, now: float, *, estimates: bool = True) -> Snapshot: ...
    def check_invariants(self) -> None: ...


class Watch:
    """All checks over one run. `before` comes after the event was booked outside, `after` when its commands were, too.

    restarts    (starts, seconds): so many StartInstance of a model after its last instance died, within so long
    """

    def __init__(
        self,
        outside: Outside,
        watched: Watched,
        checks: frozenset[str],
        fail: Callable[[str, str], None],
        restarts: tuple[int, float] = (STARTS_MAX, WINDOW_SECONDS),
    ) -> None:
        self.outside = outside
        self.bound = Bound(outside, fail)
        self.looks = 0
        self._victims = Victims(outside, checks, fail)
        self._watched = watched
        self._fail = fail
        self._restarts = restarts
        self._starts: dict[ModelId, deque[float]] = {}
        self._steps = 0
        self._demands: list[tuple[Asked, ModelId]] = []
        self._draining = False
        self._is = {name: name in checks for name in NAMES}
        others: dict[str, Order | Times | Loads | Pins] = {
            "order": Order(outside, fail),
            "times": Times(outside, fail),
            "loads": Loads(outside, fail),
            "pins": Pins(outside, watched, fail),
        }
        self._others = [other for name, other in others.items() if name in checks]

    # --- one step -----------------------------------------------------------------------------------------------------

    def before(self, event: Event, now: float) -> None:
        """The event is booked, its commands are not."""
        self._demands = self.outside.demands() if self.outside.lines else []
        if self._is["bound"]:
            self.bound.before(event, now, self._demands)
        for other in self._others:
            other.before(event, now)

    def after(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Everything is booked."""
        outside = self.outside
        self._steps += 1
        try:
            self._watched.check_invariants()
        except InvariantError as error:
            self._fail("core", error.message)
        if outside.shutting_down:
            self._draining = False
            return
        demands = outside.demands() if outside.lines else []
        is_due = bool(demands) and outside.due_at(demands[0][0]) <= now + EPSILON
        was_draining = self._draining
        closed: list[Seen] = []
        if (
            is_due
            or was_draining
            or self._steps % LOOK_EVERY == 0
            or type(event) in (UnloadRequested, PinChanged, ModelTableReplaced, SettingsReplaced)
        ):
            closed = self._look(now)
        self._judge_commands(commands, closed, now)
        for other in self._others:
            other.after(event, commands, now)
        if type(event) is RequestArrived:
            self._queued(event, commands)
        elif type(event) is InstanceReady:
            self._first_grant(event, commands, now)
        self._idle_slots(now)
        if demands:
            if is_due and len(demands) > 1 and outside.gave_way:
                demands = outside.in_order(demands, now)
            if self._is["room_unused"]:
                self._room_unused(demands, now)
            if is_due and self._is["due_stands"]:
                self._due_stands(demands, now)

    def _judge_commands(self, commands: Sequence[Command], closed: list[Seen], now: float) -> None:
        outside = self.outside
        stopped = [command for command in commands if type(command) is StopInstance]
        for command in commands:
            if type(command) is Grant:
                self._granted(command, now)
            elif type(command) is StartInstance:
                self._started(command, now)
        if stopped or closed:
            self._victims.gave_way([outside.instances[c.instance] for c in stopped], closed, now, self._demands)

    def _look(self, now: float) -> list[Seen]:
        """Read the snapshot: which instances are closed, and whether its books agree. Returns those closed since the last look."""
        self.looks += 1
        snapshot = self._watched.snapshot(now, estimates=False)
        closed: list[Seen] = []
        self._draining = False
        for view in snapshot.instances:
            seen = self.outside.instances.get(view.id)
            if seen is None:
                if self._is["books"] and (view.state != "failed" or view.model not in self.outside.failed_at):
                    self._fail("books", f"{view.id} is {view.state} in the snapshot and was never started, or never failed")
                continue
            if view.state == "draining":
                self._draining = True
                if not seen.draining or seen.closed_for != view.closed_for:
                    if view.closed_for and not seen.draining:
                        self.outside.give_way(seen, now)
                    seen.close(view.closed_for, now)
                    closed.append(seen)
            elif seen.draining and seen.state is READY:
                seen.reopen()
                self.outside.gave_way.pop(seen.model, None)
            if self._is["books"]:
                self._agree(view, seen)
        if self._is["books"]:
            self._agree_sums(snapshot)
        return closed

    def _agree(self, view: InstanceView, seen: Seen) -> None:
        state = "ready" if view.state == "draining" else view.state
        if (state, view.inflight, view.slots) != (seen.state, len(seen.leases), seen.slots):
            told = f"{view.state} with {view.inflight} of {view.slots} slots taken"
            self._fail("books", f"{view.id} is {told} in the snapshot, {seen.state} with {len(seen.leases)} of {seen.slots} outside")

    def _agree_sums(self, snapshot: Snapshot) -> None:
        outside = self.outside
        inside = {view.model: view.length for view in snapshot.lines}
        lines = {model: len(line) for model, line in outside.lines.items()}
        if inside != lines:
            self._fail("books", f"lines are {inside} in the snapshot, {lines} outside")
        if snapshot.waiting_bytes != outside.waiting_bytes:
            self._fail("books", f"{snapshot.waiting_bytes} bytes wait in the snapshot, {outside.waiting_bytes} outside")
        for device in snapshot.devices:
            if device.used_mb != outside.used_mb.get(device.id, 0):
                self._fail("books", f"{device.id}: {device.used_mb} MB in the snapshot, {outside.used_mb.get(device.id, 0)} MB outside")

    # --- commands -----------------------------------------------------------------------------------------------------

    def _granted(self, command: Grant, now: float) -> None:
        outside = self.outside
        asked = outside.requests[command.request]
        seen = outside.instances[command.instance]
        if self._is["slots"]:
            if len(seen.leases) > seen.slots:
                self._fail("slots", f"{seen.id} serves {len(seen.leases)} requests and has {seen.slots} slots")
            if seen.draining and (seen.closings[-1][1] if seen.closed_for else seen.closed_at) < now:
                self._fail("slots", f"{command.request} is granted on {seen.id}, which is closed for {seen.closed_for or 'good'}")
        if self._is["fifo"]:
            group = outside.groups.get(asked.group)
            if group is not None and next(iter(group.values())).ticket < asked.ticket:
                self._fail("fifo", f"{command.request} is granted before {next(iter(group))} of the same model, class and principal")
        if self._is["bound"]:
            self.bound.granted(asked, now)

    def _first_grant(self, event: InstanceReady, commands: Sequence[Command], now: float) -> None:
        """The oldest of those who waited for the load, when it is aged, is granted first."""
        if not self._is["fifo"]:
            return
        grants = [self.outside.requests[command.request] for command in commands if type(command) is Grant]
        here = [asked for asked in grants if asked.instance == event.instance]
        model = self.outside.instances[event.instance].model
        oldest = min([*here, *self.outside.lines.get(model, {}).values()], key=lambda asked: asked.ticket, default=None)
        if here and oldest is not None and oldest is not here[0] and self.outside.due_at(oldest) <= now - EPSILON:
            self._fail("fifo", f"{here[0].request.id} is granted first after the load, {oldest.request.id} is older and aged")

    def _started(self, command: StartInstance, now: float) -> None:
        outside = self.outside
        seen = outside.instances[command.instance]
        if self._is["memory"]:
            limits = outside.limits
            for device, amount in seen.need_mb:
                budget = limits.budget_mb.get(device)
                if budget is None and device != HOST:
                    self._fail("memory", f"{seen.id} is started on {device}, which does not exist")
                room = (budget or 0) - limits.kept_free_mb(device)
                if budget and amount and outside.used_mb[device] > room:
                    self._fail("memory", f"{device}: {outside.used_mb[device]} MB with {seen.id}, at most {room} MB may be used")
            places = [(device, amount) for device, amount in seen.need_mb if device != HOST and amount]
            booked = sum(amount for _, amount in places)
            if booked != need_mb(seen.spec) or seen.frees_mb(HOST) < seen.spec.host_mb:
                self._fail(
                    "memory",
                    f"{seen.id} needs {need_mb(seen.spec)} MB and {seen.spec.host_mb} MB of host memory, booked are {seen.need_mb}",
                )
            if len(places) > 1 and not seen.spec.split:
                self._fail("memory", f"{seen.id} is spread over {places} and may not be split")
        if self._is["restarts"] and outside.died.get(seen.model, False):
            most, window = self._restarts
            starts = self._starts.setdefault(seen.model, deque(maxlen=most + 1))
            starts.append(now)
            if len(starts) > most and now - starts[0] < window:
                self._fail("restarts", f"{seen.model} was started {len(starts)} times after it died within {now - starts[0]:.1f} s")

    def _queued(self, event: RequestArrived, commands: Sequence[Command]) -> None:
        """A newcomer that waits found room in line; one that was told QueueFull found none."""
        if not self._is["queues"]:
            return
        outside, request = self.outside, event.request
        limits, line = outside.limits, outside.lines.get(request.model, {})
        asked = outside.requests.get(request.id)
        if asked is not None and asked.place is WAITING:
            length = sum(1 for other in line.values() if not other.requeued)
            if length > limits.queue_depth_max:
                self._fail("queues", f"{length} requests wait for {request.model}, at most {limits.queue_depth_max} may")
            if outside.waiting_bytes > limits.waiting_bytes_max and len(outside.lines) > 0:
                self._fail("queues", f"{outside.waiting_bytes} bytes wait, at most {limits.waiting_bytes_max} may")
        for command in commands:
            if type(command) is Refuse and command.request == request.id and type(command.error) is QueueFull:
                has_room = len(line) < limits.queue_depth_max
                if has_room and outside.waiting_bytes + request.body_bytes <= limits.waiting_bytes_max:
                    self._fail("queues", f"{request.id} is refused with {len(line)} in line and {outside.waiting_bytes} bytes waiting")

    # --- nothing lies idle --------------------------------------------------------------------------------------------

    def _idle_slots(self, now: float) -> None:
        if not self._is["idle_slot"]:
            return
        outside = self.outside
        for model in outside.lines:
            seen = outside.by_model.get(model)
            if seen is None or seen.state is not READY or len(seen.leases) >= seen.slots or now - seen.suspect_at < SUSPECT_SECONDS:
                continue
            if not seen.draining:
                self._look(now)
            if not seen.draining:
                self._fail("idle_slot", f"{next(iter(outside.lines[model]))} waits for {seen.id}, which has a free slot")

    def _room_unused(self, demands: list[tuple[Asked, ModelId]], now: float) -> None:
        """Memory that is free now; those that go first keep what they need, wherever it may be.

        Due ones go first, in order of age, then the others, by class and age.
        """
        outside, room = self.outside, self.outside.free_mb()
        capacity = outside.capacity_mb()
        waiting: list[ModelId] = []
        for asked, model in demands:
            spec = outside.models.get(model)
            if spec is None:
                continue
            if is_hopeless(outside, spec):
                if self._is["hopeless"]:
                    self._fail("hopeless", f"{asked.request.id} waits for {model}, which does not fit beside what is pinned")
                continue
            is_due = outside.due_at(asked) <= now + EPSILON
            if fits(spec, room, capacity) and is_clear(outside, spec) and outside.is_checked(model):
                rank = outside.rank_of_age(asked, model)
                equal = [name for other, name in demands if name != model and outside.rank_of_age(other, name) == rank]
                ahead = [*waiting, *equal] if is_due else who_goes_before(outside, model, demands, now)
                left = without_need_of(room, [outside.models[name] for name in ahead if name in outside.models])
                if fits(spec, left, capacity) and self._may_start(model, now):
                    self._fail("room_unused", f"{asked.request.id} waits for {model}, which fits into free memory: {left}")
            waiting.append(model)

    def _may_start(self, model: ModelId, now: float) -> bool:
        """It does not back off: the snapshot would show it as failed."""
        self.looks += 1
        return not any(view.model == model and view.state == "failed" for view in self._watched.snapshot(now).instances)

    def _due_stands(self, demands: list[tuple[Asked, ModelId]], now: float) -> None:
        """The first due demand: what is going would be enough, or all that may be chosen would not."""
        outside = self.outside
        asked, model = demands[0]
        if outside.due_at(asked) > now - EPSILON:
            return  # it becomes due at this very moment, or the next
        if len(demands) > 1 and outside.rank_of_age(*demands[0]) == outside.rank_of_age(*demands[1]):
            return  # both gave way in one step: either may go first
        spec = outside.models.get(model)
        if spec is None or not outside.is_checked(model) or not is_clear(outside, spec) or is_hopeless(outside, spec):
            return
        capacity, residents = outside.capacity_mb(), outside.instances.values()
        going = [seen for seen in residents if seen.state is not LOADING and (seen.draining or seen.state is not READY)]
        room = with_memory_of(outside.free_mb(), going)
        if fits(spec, room, capacity):
            return
        more = [seen for seen in residents if self._may_go(seen, now)]
        if fits(spec, with_memory_of(room, more), capacity) and self._may_start(model, now):
            told = [f"{seen.id}{' (busy)' if seen.leases else ''}" for seen in more]
            self._fail("due_stands", f"{asked.request.id} is due for {model} and nothing is done, {told} could give way")

    def _may_go(self, seen: Seen, now: float) -> bool:
        """A due demand may choose it."""
        outside = self.outside
        if outside.is_pinned(seen) or seen.spec.external:
            return False
        if seen.state is LOADING:
            wanted = seen.model in outside.lines or seen.model in outside.wishes or outside.renewed.get(seen.model, -1.0) >= 0.0
            return not wanted
        return seen.state is READY and not seen.draining and not outside.may_be_in_turn(seen, now)

    # --- the end ------------------------------------------------------------------------------------------------------

    def quiet(self, now: float) -> None:
        """Everybody has left or was served."""
        if not self._is["baseline"]:
            return
        outside, snapshot = self.outside, self._watched.snapshot(now)
        if outside.requests:
            told = [f"{asked.request.id} {asked.place} for {asked.request.model}" for asked in list(outside.requests.values())[:5]]
            self._fail("baseline", f"nothing will happen any more, and {len(outside.requests)} requests are left: {told}")
        if snapshot.lines or snapshot.waiting_bytes or any(view.inflight for view in snapshot.instances):
            self._fail("baseline", f"nobody is there, and the snapshot has {snapshot.lines} {snapshot.instances}")

    def over(self, now: float) -> None:
        """The shutdown is complete."""
        if not self._is["baseline"]:
            return
        snapshot, wakeup = self._watched.snapshot(now), self._watched.next_wakeup()
        if self.outside.requests or self.outside.instances or snapshot.lines or wakeup is not None:
            left = [*self.outside.requests, *self.outside.instances]
            self._fail("baseline", f"after the shutdown there are {left} {snapshot.lines}, next_wakeup() is {wakeup}")
        if snapshot.used_mb or any(device.used_mb for device in snapshot.devices):
            self._fail("baseline", f"after the shutdown {snapshot.devices} are in use")
