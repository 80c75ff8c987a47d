# SPDX-License-Identifier: GPL-3.0-only
"""One random sequence of loads on a machine that is full, with figures that are wrong; rule: the seed decides everything.

Each model has a truth; what is predicted of it is off by up to WRONG either way. A child allocates step by step, and a step for which
there is no memory fails the load, whatever was booked. Some take more with their first request; what they cannot have then ends them.
Other programs come and go, for a moment or for a minute. Clients ask until they are served, or hear that what they ask for cannot be.

    refused   nobody hears that a model can never fit which can
    stuck     each request ends, served or refused, in bounded time and after a bounded number of tries
    machine   children and others together never hold more than there is
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from modeld.core.estimate import DEVICE_CONTEXT_MB, PROCESS_MB, need
from modeld.core.footprint import MIB, Footprint, Learned, When, launch_key
from modeld.core.messages import (
    CheckLaunch,
    CheckProgress,
    Command,
    Event,
    FootprintMeasured,
    FootprintsLearned,
    Grant,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    InstanceSpawned,
    LaunchChecked,
    LeaseFailed,
    LeaseReleased,
    LoadRequested,
    MemoryFreed,
    ProbeFailed,
    ProbeFootprint,
    ProgressChecked,
    Refuse,
    RequestArrived,
    RevokeLease,
    StartInstance,
    StopInstance,
    Wakeup,
)
from modeld.core.model import HOST, LOCAL, DeviceId, InstanceId, LaunchOptions, Limits, ModelId, ModelSpec, Request, RequestId
from modeld.core.scheduler import Scheduler
from modeld.errors import BackingOff, CannotEverFit, Died, ModeldError, OutOfMemory, WaitTimeout
from modeld.simulation.machine import Child, Machine, Truth
from modeld.simulation.referee import Referee
from modeld.simulation.seen import Violation

WRONG: Final = 0.5
"""A figure is at most so much above or below the truth, as a share of the truth."""
ARRIVALS_SECONDS: Final = 240.0
END_SECONDS: Final = 4000.0
"""By then everybody was answered."""
WAIT_SECONDS: Final = 900.0
TRIES_MAX: Final = 16
LOOK_SECONDS: Final = 2.5
ROUNDING_MB: Final = 8


@dataclass(slots=True)
class Asking:
    """A client who wants one answer, and how often it asked for it."""

    model: ModelId
    service_seconds: float
    tries: int = 0
    instance: InstanceId | None = None
    done: bool = False


@dataclass(slots=True)
class Pressed:
    """What came of one sequence, or of many."""

    sequences: int = 0
    events: int = 0
    loads: int = 0
    served: int = 0
    refused: int = 0
    out_of_memory: int = 0
    helped: int = 0
    told: int = 0
    grown: int = 0
    evicted: int = 0
    died: int = 0
    used_share: float = 0.0
    used_count: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, other: Pressed) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Pressure:
    """One sequence."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.seed = seed
        self.now = 0.0
        self.tally = Pressed(sequences=1)
        self.truths: dict[ModelId, Truth] = {}
        self.asking: dict[RequestId, Asking] = {}
        self.waiting = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._tried_again: set[ModelId] = set()
        self._devices()
        self._models()
        self.scheduler = Scheduler(self.limits, self.models)
        self.referee = Referee(self.scheduler, self.limits, self.models, self.machine, seed)

    @property
    def events(self) -> int:
        """So many were handed to the scheduler."""
        return self.tally.events

    # --- what there is ------------------------------------------------------------------------------------------------

    def _devices(self) -> None:
        dice = self.dice
        count = dice.choice((1, 1, 1, 1, 1, 2, 2, 3))
        one_pool = count == 1 and dice.random() < 0.6
        names = [LOCAL] if one_pool else [DeviceId(f"local/CUDA{number}") for number in range(count)]
        totals = {name: dice.randrange(8000, 48000) if one_pool else dice.randrange(36_000, 96_000) for name in names}
        margin = dice.choice((0, 200, 500))
        budget = {name: int(total * dice.choice((1.0, 1.0, 0.97))) for name, total in totals.items()}
        if not one_pool and dice.random() < 0.5:
            budget[HOST] = 200_000
        self.machine = Machine(totals, one_pool=one_pool)
        self.limits = Limits(
            budget_mb=budget,
            margin_mb=margin,
            one_pool=one_pool,
            wait_max_seconds=WAIT_SECONDS,
            fairness_wait_seconds=dice.choice((2.0, 10.0)),
            min_residency_seconds=dice.choice((0.0, 5.0)),
            first_token_seconds=0.0,
        )

    def _models(self) -> None:
        dice, limits = self.dice, self.limits
        rooms = [mb - limits.margin_mb for device, mb in limits.budget_mb.items() if device != HOST]
        self.models: dict[ModelId, ModelSpec] = {}
        pinned = 0
        for number in range(dice.randrange(24, 40) * len(rooms)):
            name = ModelId(f"m{number}")
            split = len(rooms) > 1 and dice.random() < 0.15
            largest = sum(rooms) if split else max(rooms)
            truth_mb = int(largest * (dice.uniform(0.04, 0.12) if dice.random() < 0.97 else dice.uniform(0.2, 0.7)))
            if dice.random() < 0.01:
                truth_mb = int(largest * dice.uniform(1.05, 1.3))  # it cannot be, and nobody knows yet
            truth_mb = max(truth_mb, 3 * self._fixed_mb)
            figure_mb = min(int(truth_mb * dice.uniform(1 - WRONG, 1 + WRONG)), largest * 4 // 5)
            spec = ModelSpec(
                name,
                f"/{name}",
                fingerprint="v1",
                header_hash=f"h{number}",
                split=split,
                options=LaunchOptions(parallel=dice.choice((1, 2, 4)), ctx=512),
            )
            spec = replace(spec, size_bytes=max(1, figure_mb - self._fixed_mb) * MIB * 20 // 21)
            if dice.random() < 0.15:
                spec = replace(spec, vram_mb=figure_mb)
            if not pinned and dice.random() < 0.03 and truth_mb < 0.1 * min(rooms):
                spec, pinned = replace(spec, pinned=True), truth_mb
            self.models[name] = spec
            self.truths[name] = self._truth(spec, truth_mb)

    @property
    def _fixed_mb(self) -> int:
        """What every figure of the formula holds, whatever the file."""
        return PROCESS_MB + (0 if self.limits.one_pool else DEVICE_CONTEXT_MB)

    def _truth(self, spec: ModelSpec, mb: int) -> Truth:
        """In steps: weights, context, compute; and some of it only with the first request."""
        dice = self.dice
        host = 0 if self.limits.one_pool else int(mb * dice.uniform(0.02, 0.1))
        growth = int(mb * dice.uniform(0.01, 0.1)) if dice.random() < 0.3 else 0
        loaded = mb - host - growth
        weights = int(loaded * dice.uniform(0.6, 0.9))
        context = int((loaded - weights) * dice.uniform(0.3, 0.8))
        return Truth((weights, context, loaded - weights - context), host, growth)

    def can_fit(self, model: ModelId) -> bool:
        """Whether all that it really takes could be had, beside what is pinned."""
        spec, truth = self.models[model], self.truths[model]
        rooms = [mb for device, mb in self.referee.limits_mb().items() if device != HOST]
        pins = [self._pin_mb(one) for one in self.models.values() if one.pinned and one.id != model]
        if spec.split and sum(truth.steps_mb) > max(rooms):  # else it runs on one device, until it wants more than that has
            return truth.device_mb + ROUNDING_MB <= sum(rooms) - sum(pins)
        return truth.device_mb + ROUNDING_MB <= max(rooms) - sum(pins)

    def _pin_mb(self, spec: ModelSpec) -> int:
        return max(self.truths[spec.id].device_mb, need(spec, one_pool=self.limits.one_pool).total_mb) * 5 // 4

    # --- time ---------------------------------------------------------------------------------------------------------

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, act))

    def run(self) -> Pressed:
        """To the end. Raises Violation."""
        self._begin()
        while True:
            wakeup, following = self.scheduler.next_wakeup(), self._heap[0][0] if self._heap else None
            if wakeup is not None and (following is None or wakeup <= following):
                self.now = max(self.now, wakeup)
                self.feed(Wakeup())
            elif following is not None:
                self.now, _, act = heapq.heappop(self._heap)
                act()
            if self.waiting == 0:
                break
            if self.now > END_SECONDS or (not self._heap and wakeup is None):
                left = [(name, one.model, one.tries) for name, one in self.asking.items() if not one.done]
                raise Violation("stuck", f"{len(left)} requests were never answered: {left[:3]}", self.seed, self.now)
        tally, shares = self.tally, self.referee.used_shares
        tally.used_share, tally.used_count = sum(shares), len(shares)
        seen = self.scheduler.snapshot(self.now, estimates=False)
        tally.grown, tally.out_of_memory, tally.evicted = seen.grown_total, seen.out_of_memory_total, seen.evictions_total
        return tally

    def feed(self, event: Event) -> None:
        commands = self.scheduler.handle(event, self.now)
        self.tally.events += 1
        if self.tally.events % 16 == 0:
            self.scheduler.check_invariants()
            if any(self.machine.free_mb(device) < 0 for device in self.machine.total_mb):
                raise Violation("machine", "more is held than there is", self.seed, self.now)
        self.referee.after(event, commands, self.now)
        for command in commands:
            self._carry_out(command)

    def _begin(self) -> None:
        dice = self.dice
        if dice.random() < 0.3:
            some = [one for one in self.models.values() if dice.random() < 0.3]
            learned = {launch_key(one): Learned(one.id, self._remembered(self.truths[one.id])) for one in some}
            self.after(0.0, lambda: self.feed(FootprintsLearned(learned)))
        names = list(self.models)
        popular = dice.sample(names, k=len(names))
        for number in range(dice.randrange(60, 100) * len(self.machine.total_mb)):
            model = popular[min(int(dice.expovariate(1.2 / len(names))), len(names) - 1)]
            asking = Asking(model, dice.uniform(0.5, 8.0))
            self.waiting += 1
            self.after(dice.uniform(0.0, ARRIVALS_SECONDS), lambda asking=asking, number=number: self._ask(f"r{number}", asking))  # type: ignore[misc]
        for model in dice.sample(names, k=3):
            self.after(dice.uniform(0.0, ARRIVALS_SECONDS), lambda model=model: self.feed(LoadRequested(model)))  # type: ignore[misc]
        if dice.random() < 0.85:
            self.after(0.5, self._look)
        for _ in range(dice.randrange(0, 6)):
            device = dice.choice(list(self.machine.total_mb))
            share, seconds = dice.uniform(0.02, 0.3), dice.choice((2.0, 6.0, 40.0, 90.0))
            begin = dice.uniform(0.0, ARRIVALS_SECONDS)
            self.after(begin, lambda device=device, share=share, seconds=seconds: self._foreign(device, share, seconds))  # type: ignore[misc]

    def _remembered(self, truth: Truth) -> Footprint:
        """What an earlier run could have measured: before its first request, or after."""
        late = truth.growth_mb if self.dice.random() < 0.5 else 0
        names = [device.partition("/")[2] for device in self.machine.total_mb]
        return Footprint({names[0]: (sum(truth.steps_mb) + late) * MIB}, truth.host_mb * MIB)

    def _look(self) -> None:
        self.feed(self.machine.look())
        self.after(LOOK_SECONDS, self._look)

    def _foreign(self, device: DeviceId, share: float, seconds: float) -> None:
        got = self.machine.take_foreign(device, int(self.machine.total_mb[device] * share))

        def leave() -> None:
            self.machine.foreign_mb[device] -= got

        self.after(seconds, leave)

    # --- clients ------------------------------------------------------------------------------------------------------

    def _ask(self, name: str, asking: Asking) -> None:
        asking.tries += 1
        if asking.tries > TRIES_MAX:
            raise Violation("stuck", f"{name} was refused {TRIES_MAX} times, though {asking.model} could be served", self.seed, self.now)
        request = RequestId(f"{name}.{asking.tries}")
        self.asking[request] = asking
        self.feed(RequestArrived(Request(request, asking.model)))

    def _again(self, request: RequestId, asking: Asking, seconds: float) -> None:
        del self.asking[request]
        name = request.partition(".")[0]
        self.after(seconds, lambda: self._ask(name, asking))

    def _refused(self, request: RequestId, error: ModeldError) -> None:
        asking = self.asking[request]
        told = isinstance(error, CannotEverFit | OutOfMemory | Died | BackingOff)
        if isinstance(error, CannotEverFit) and self.can_fit(asking.model):
            raise Violation("refused", f"{request}: {error.message}; it takes {self.truths[asking.model]}", self.seed, self.now)
        if isinstance(error, WaitTimeout):
            raise Violation("stuck", f"{request}: {error.message}", self.seed, self.now)
        if told and not self.can_fit(asking.model):
            asking.done = True
            self.waiting -= 1
            self.tally.refused += 1
            return
        self.tally.told += isinstance(error, OutOfMemory)
        self._again(request, asking, (error.retry_after_seconds or 1) + self.dice.uniform(0.0, 2.0))

    # --- what is to be done -------------------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        dice = self.dice
        match command:
            case CheckLaunch(spec):
                self.after(dice.uniform(0.01, 0.1), lambda: self.feed(LaunchChecked(spec.id, spec.fingerprint)))
            case ProbeFootprint(spec, key):
                self.after(dice.uniform(0.01, 0.5) if dice.random() < 0.9 else 12.0, lambda: self._probed(spec.id, key))
            case StartInstance(instance, spec, place):
                self._start(instance, spec, place)
            case StopInstance(instance):
                self._stop(instance)
            case Grant(request, instance):
                self._grant(request, instance)
            case RevokeLease(request):
                self.after(0.01, lambda: self._lost(request))
            case Refuse(request, error):
                self._refused(request, error)
            case CheckProgress(instance):
                moved = {request: self.now for request, one in self.asking.items() if one.instance == instance}
                self.after(0.0, lambda: self.feed(ProgressChecked(instance, moved)))
            case _:
                pass

    def _probed(self, model: ModelId, key: str) -> None:
        self.referee.answered(model)
        self.feed(ProbeFailed(model, key, "not here"))

    def _start(self, instance: InstanceId, spec: ModelSpec, place: object) -> None:
        assert isinstance(place, dict)
        child = self.machine.children[instance] = Child(instance, self.truths[spec.id], place)
        self.after(0.05, lambda: self.feed(InstanceSpawned(instance, 1)))
        self.after(self.dice.uniform(0.3, 1.0), lambda: self._step(child, 0))

    def _step(self, child: Child, number: int) -> None:
        """The next allocation of a load."""
        if child.stopping:
            return
        steps, dice = child.truth.steps_mb, self.dice
        if number == len(steps):
            self._ready(child)
        elif self.machine.give(child, steps[number]):
            self.after(dice.uniform(0.2, 1.5), lambda: self._step(child, number + 1))
        else:
            if dice.random() < 0.5:
                self.feed(FootprintMeasured(child.instance, self.machine.footprint(child, complete=False), When.READY))
            asked = steps[number] * MIB if dice.random() < 0.7 else 0
            child.stopping = child.ending = True
            self._tried_again.symmetric_difference_update({self._model(child)})
            self.after(dice.uniform(0.05, 0.3), lambda: self._exit(child, 1))
            self.feed(InstanceFailed(child.instance, OutOfMemory("it ran out of memory while it loaded", asked_bytes=asked)))

    def _ready(self, child: Child) -> None:
        self.machine.give_host(child)
        self.tally.loads += 1
        if self._model(child) in self._tried_again:
            self._tried_again.discard(self._model(child))
            self.tally.helped += 1
        self.feed(InstanceReady(child.instance, 1))
        self.after(self.dice.uniform(0.0, 0.2), lambda: self._measure(child, When.READY))

    def _measure(self, child: Child, when: When) -> None:
        if child.instance in self.machine.children and not child.stopping:
            self.feed(FootprintMeasured(child.instance, self.machine.footprint(child, complete=self.dice.random() < 0.95), when))

    def _model(self, child: Child) -> ModelId:
        return ModelId(child.instance.partition("/")[2])

    def _stop(self, instance: InstanceId) -> None:
        child = self.machine.children.get(instance)
        if child is None or child.ending:
            return  # it ends by itself
        child.stopping = child.ending = True
        self.after(self.dice.uniform(0.05, 0.8), lambda: self._exit(child, 0))

    def _exit(self, child: Child, code: int, *, ran_out: bool = False) -> None:
        del self.machine.children[child.instance]
        self.feed(InstanceExited(child.instance, code=code, ran_out=ran_out))
        self.after(self.dice.uniform(0.0, 0.2), lambda: self.feed(MemoryFreed(child.instance)))

    # --- requests that run --------------------------------------------------------------------------------------------

    def _grant(self, request: RequestId, instance: InstanceId) -> None:
        asking = self.asking[request]
        asking.instance = instance
        child = self.machine.children.get(instance)
        if child is None or child.stopping:
            self.after(0.01, lambda: self._lost(request))
        elif child.has_served or self.machine.give(child, child.truth.growth_mb):
            if not child.has_served:
                self.after(self.dice.uniform(0.1, 1.0), lambda: self._measure(child, When.FIRST))
            child.has_served = True
            self.after(asking.service_seconds, lambda: self._served(request, asking, instance))
        else:  # it wants more than there is
            self.tally.died += 1
            child.stopping = child.ending = True
            self.after(0.01, lambda: self._lost(request))
            self.after(0.05, lambda: self._exit(child, -6, ran_out=True))

    def _served(self, request: RequestId, asking: Asking, instance: InstanceId) -> None:
        if self.asking.get(request) is not asking or asking.instance != instance or asking.done:
            return
        asking.done = True
        self.waiting -= 1
        self.tally.served += 1
        self.feed(LeaseReleased(request, tokens=1, moved_at=self.now))

    def _lost(self, request: RequestId) -> None:
        """Its instance is gone before the first byte: it stands in line again, or is refused."""
        asking = self.asking.get(request)
        if asking is not None and not asking.done and asking.instance is not None:
            asking.instance = None
            self.feed(LeaseFailed(request, before_first_byte=True, error=Died("gone")))
