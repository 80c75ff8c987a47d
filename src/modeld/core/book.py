# SPDX-License-Identifier: GPL-3.0-only
"""The scheduler's state: instances, leases, lines, ledger, failures; rule: it is read and checked here, changed by scheduler.py alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from modeld.core.estimate import need
from modeld.core.ledger import Ledger
from modeld.core.lifecycle import Signal, State, advance
from modeld.core.model import LOCAL, InstanceId, Limits, ModelId, ModelSpec, RequestId
from modeld.core.pace import Failure, Pace
from modeld.core.queues import Lines
from modeld.core.snapshot import DeviceView, InstanceView, LineView, Snapshot
from modeld.errors import InvariantError

EVICTED: Final = "evicted"
STORY_MAX: Final = 24
SUSPECT_SECONDS: Final = 0.25
"""After a request failed on an instance nothing new is granted there for so long: if its child has died, the report is on its way."""


@dataclass(slots=True)
class Instance:
    """A running model, from StartInstance to MemoryFreed, with the spec it was started with. Times in monotonic seconds."""

    id: InstanceId
    spec: ModelSpec
    need_mb: int
    started: float
    last_used: float
    state: State = State.LOADING
    leases: set[RequestId] = field(default_factory=set)
    pid: int | None = None
    progress: float = 0.0
    drain_why: str = ""
    drain_deadline: float = math.inf
    suspect_until: float = -math.inf
    story: list[str] = field(default_factory=list)

    @property
    def model(self) -> ModelId:
        return self.spec.id

    @property
    def external(self) -> bool:
        return self.spec.external

    @property
    def free_slots(self) -> int:
        return self.spec.options.parallel - len(self.leases)

    @property
    def idle_until(self) -> float:
        return math.inf if self.spec.ttl_seconds is None else self.last_used + self.spec.ttl_seconds

    def same_launch(self, spec: ModelSpec) -> bool:
        """Would `spec` start the very same thing?"""
        return (self.spec.fingerprint, self.spec.options, self.spec.mmproj) == (spec.fingerprint, spec.options, spec.mmproj)

    def advance(self, signal: Signal) -> None:
        self.state = advance(self.state, signal, story=f"{self.id}: " + " ".join(self.story))
        self.story.append(f"{signal}→{self.state}")
        del self.story[:-STORY_MAX]


@dataclass(slots=True)
class LeaseBook:
    """A granted request. `deadline` is the end of infer_timeout, or +inf."""

    request: RequestId
    instance: InstanceId
    model: ModelId
    granted: float
    deadline: float
    revoked: bool = False


class Book:
    """All of the state, with the sums that decisions read."""

    def __init__(self, limits: Limits, models: dict[ModelId, ModelSpec]) -> None:
        self.limits = limits
        self.models = models
        self.instances: dict[InstanceId, Instance] = {}
        self.leases: dict[RequestId, LeaseBook] = {}
        self.lines = Lines()
        self.ledger = Ledger()
        self.pace = Pace()
        self.failures: dict[ModelId, Failure] = {}
        self.checking: dict[ModelId, str] = {}
        """Launch checks on their way, with the fingerprint asked about."""
        self.checked: dict[ModelId, str] = {}
        """Checks that passed and wait for room; used up by the start."""
        self.wishes: dict[ModelId, bool] = {}
        """Models wanted without a request, with whether idle others may be evicted for them."""
        self.waits: dict[ModelId, str] = {}
        self.shutting_down = False
        self.loads_total = 0
        self.load_failures_total = 0
        self.evictions_total = 0
        self.crashes_total = 0
        self.last_error: str | None = None
        self._started = 0

    def next_instance_id(self, model: ModelId) -> InstanceId:
        self._started += 1
        return InstanceId(f"{self._started}/{model}")

    def get(self, instance: InstanceId) -> Instance:
        found = self.instances.get(instance)
        if found is None:
            raise InvariantError(f"a report about {instance}, which is gone or never was")
        return found

    def of_model(self, model: ModelId) -> Instance | None:
        """The one instance of a model that is not gone yet."""
        return next((instance for instance in self.instances.values() if instance.model == model), None)

    def is_pinned(self, instance: Instance) -> bool:
        spec = self.models.get(instance.model)
        return instance.spec.pinned if spec is None else spec.pinned

    # --- sums, in MiB -------------------------------------------------------------------------------------------------

    @property
    def budget_mb(self) -> int:
        return self.limits.budget_mb.get(LOCAL, 0)

    def free_mb(self) -> int | None:
        """Budget less margin less all that is held; None = unlimited."""
        return None if self.budget_mb == 0 else self.budget_mb - self.limits.margin_mb - self.ledger.used_mb(LOCAL)

    def coming_mb(self) -> int:
        """What returns without a further decision: children that end, and drains somebody ordered."""
        ordered = (
            self.ledger.held_mb(instance.id, LOCAL)
            for instance in self.instances.values()
            if instance.state is State.DRAINING and instance.drain_why != EVICTED
        )
        return self.ledger.releasing_mb(LOCAL) + sum(ordered)

    def loading_mb(self) -> int:
        """What loads in progress hold that can be evicted once they are ready."""
        return sum(
            self.ledger.held_mb(instance.id, LOCAL)
            for instance in self.instances.values()
            if instance.state is State.LOADING and not self.is_pinned(instance)
        )

    def available_at_most_mb(self, model: ModelId) -> int | None:
        """What `model` could have if everything that may be evicted were: budget less margin less other models' pins.

        Pins are honoured in id order as far as they fit: one too many must not refuse everybody else.
        """
        if self.budget_mb == 0:
            return None
        room_mb = self.budget_mb - self.limits.margin_mb
        for other in sorted(self.models):
            spec = self.models[other]
            if spec.pinned and other != model and spec.unavailable is None and (pin_mb := need(spec).total_mb) <= room_mb:
                room_mb -= pin_mb
        return room_mb

    def why_waits(self, model: ModelId) -> str:
        """Half a sentence for people: what a request of this model waits for."""
        instance = self.of_model(model)
        if instance is None:
            return self.waits.get(model, "its model to start")
        if instance.state is State.READY:
            return f"a free slot ({len(instance.leases)} requests run)"
        return f"its model, which is {instance.state}"

    # --- seen from outside --------------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> Snapshot:
        views = [
            InstanceView(
                id=instance.id,
                model=instance.model,
                state=instance.state,
                need_mb=instance.need_mb,
                slots=instance.spec.options.parallel,
                inflight=len(instance.leases),
                last_used=instance.last_used,
                pid=instance.pid,
                progress=instance.progress,
                external=instance.external,
                devices_mb={LOCAL: instance.need_mb},
            )
            for instance in self.instances.values()
        ]
        backing_off = {model: failure for model, failure in self.failures.items() if failure.until > now}
        for model, failure in backing_off.items():
            if self.of_model(model) is None:
                views.append(InstanceView(InstanceId(f"0/{model}"), model, State.FAILED, 0, 0, 0, failure.at, None, 0.0, False, {}))
        heads = {model: self.lines.head(model) for model in self.lines.models()}
        return Snapshot(
            instances=tuple(views),
            lines=tuple(
                LineView(model, self.lines.length(model), now - head.arrived, {}, None, 0.0)
                for model, head in heads.items()
                if head is not None
            ),
            devices=(DeviceView(LOCAL, self.budget_mb, self.ledger.used_mb(LOCAL)),),
            budget_mb=self.budget_mb,
            used_mb=self.ledger.used_mb(LOCAL),
            margin_mb=self.limits.margin_mb,
            queue_depth_max=self.limits.queue_depth_max,
            waiting_bytes=self.lines.waiting_bytes,
            loads_total=self.loads_total,
            load_failures_total=self.load_failures_total,
            evictions_total=self.evictions_total,
            crashes_total=self.crashes_total,
            shutting_down=self.shutting_down,
            error=next((f"{model}: {failure.error.message}" for model, failure in backing_off.items()), None),
            last_error=self.last_error,
        )

    def check(self) -> None:
        """Bytes held = sum of holders, within the budget; each request in exactly one place; at most one instance per model."""
        self.ledger.check()
        if set(self.ledger) != set(self.instances):
            raise InvariantError(f"memory is held by {sorted(self.ledger)}, instances are {sorted(self.instances)}")
        models = [instance.model for instance in self.instances.values()]
        if len(models) != len(set(models)):
            raise InvariantError(f"two instances of one model: {sorted(models)}")
        for request, lease in self.leases.items():
            if request in self.lines:
                raise InvariantError(f"request {request} waits and runs")
            instance = self.instances.get(lease.instance)
            if instance is None and not lease.revoked:
                raise InvariantError(f"request {request} runs on {lease.instance}, which is gone")
            if instance is not None and request not in instance.leases:
                raise InvariantError(f"request {request} is not known to {lease.instance}")
        for instance in self.instances.values():
            if not instance.leases <= self.leases.keys():
                raise InvariantError(f"{instance.id} holds leases that ended")
            if instance.free_slots < 0:
                raise InvariantError(f"{instance.id} serves more requests than it has slots")
