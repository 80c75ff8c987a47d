# SPDX-License-Identifier: GPL-3.0-only
"""The scheduler's state: instances, leases, lines, ledger, records; rule: it is read and checked here, changed by scheduler.py alone.

A *demand* is a model with a line and no instance. Demands stand in `demands` by the time at which they are due, so that those that are due
are always the first of them. A model that gave way to another stands there as if it had become due in that moment: each due
model gets one turn before any gets a second, however long the lines are.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import replace
from heapq import heappop, heappush

from modeld.core.breaker import Breaker
from modeld.core.changes import Changes, WishDropped
from modeld.core.estimate import Need, need
from modeld.core.fairness import Rest, protected_until
from modeld.core.fitting import fitted
from modeld.core.footprint import Known, Source, probe_key
from modeld.core.foreign import Foreign
from modeld.core.instance import EVICTED, Instance, LeaseBook
from modeld.core.ledger import Ledger
from modeld.core.lifecycle import State
from modeld.core.model import HOST, LOCAL, DeviceId, InstanceId, Limits, ModelId, ModelSpec, Request, RequestId
from modeld.core.pace import Pace
from modeld.core.placement import Vector, places
from modeld.core.queues import Lines, Waiting
from modeld.errors import InvariantError, ModeldError


class Alarm:
    """What a deadline is about."""

    PLAN, WAITING, LEASE, DRAIN, IDLE, GRANT, PROGRESS = range(7)


class Book:
    """All of the state, with the sums that decisions read."""

    def __init__(self, limits: Limits, models: dict[ModelId, ModelSpec]) -> None:
        self.limits = limits
        self.models = models
        self.instances: dict[InstanceId, Instance] = {}
        self.by_model: dict[ModelId, Instance] = {}
        self.leases: dict[RequestId, LeaseBook] = {}
        self.lines = Lines()
        self.ledger = Ledger()
        self.pace = Pace()
        self.breaker = Breaker()
        self.demands: list[tuple[float, float, ModelId]] = []
        """(when it is due, ticket of its oldest request, model), in order."""
        self.checking: dict[ModelId, str] = {}
        """Launch checks on their way, with the fingerprint asked about."""
        self.checked: dict[ModelId, str] = {}
        """Checks that passed and wait for room; used up by the start."""
        self.wishes: dict[ModelId, bool] = {}
        """Models wanted without a request, with whether idle others may be evicted for them."""
        self.gave_way: dict[ModelId, tuple[float, float]] = {}
        """Models whose memory was taken and that have not started since: where in `demands` they stand at the earliest."""
        self.pins: dict[ModelId, bool] = {}
        """The operator's word at run time, pinned or not, before what the settings say. Kept for models that are away: they may return."""
        self.changes = Changes()
        self.known = Known()
        self.foreign = Foreign()
        self.totals_mb: dict[DeviceId, int] = {}
        """What the devices have, as far as they were seen."""
        self.probing: dict[ModelId, str] = {}
        """Dry passes on their way, with the probe key asked about."""
        self.unprobed: dict[str, str] = {}
        """Probe keys that could not be asked about, and why: the formula stands for them."""
        self.second_try: dict[ModelId, str] = {}
        """Models that ran out of memory while they loaded and are to be tried once more: the file (fingerprint) that did."""
        self.grown: dict[InstanceId, None] = {}
        """Instances that took more than was booked for them, the latest last, as long as memory is short."""
        self.waits: dict[ModelId, str] = {}
        """Why demands wait, by the words of placement.py, as far as the last plan looked at them."""
        self.shutting_down = False
        self.loads_total = 0
        self.load_failures_total = 0
        self.evictions_total = 0
        self.crashes_total = 0
        self.closings_total = 0
        self.preemptions_total = 0
        self.requeued_total = 0
        self.stuck_total = 0
        self.out_of_memory_total = 0
        self.grown_total = 0
        self.last_error: str | None = None
        self._started = 0
        self._listed: dict[ModelId, tuple[float, float, ModelId]] = {}
        self._alarms: list[tuple[float, int, int, str]] = []
        self._rung = 0
        self._needs: dict[ModelId, Need] = {}
        self._fitted: dict[ModelId, ModelSpec] = {}
        self._places: dict[ModelId, tuple[Vector, ...]] = {}
        self._least_mb: int | None = None

    # --- instances and demands ----------------------------------------------------------------------------------------

    def add(self, instance: Instance) -> None:
        self.instances[instance.id] = instance
        self.by_model[instance.model] = instance
        self.ledger.reserve(instance.id, instance.need_mb)
        self.sync_demand(instance.model)

    def drop(self, instance: Instance) -> None:
        """It is gone: memory free, nobody serves its model."""
        self.ledger.free(instance.id)
        self.grown.pop(instance.id, None)
        del self.instances[instance.id]
        del self.by_model[instance.model]
        self.sync_demand(instance.model)

    def next_instance_id(self, model: ModelId) -> InstanceId:
        self._started += 1
        return InstanceId(f"{self._started}/{model}")

    def get(self, instance: InstanceId) -> Instance:
        found = self.instances.get(instance)
        if found is None:
            raise InvariantError(f"a report about {instance}, which is gone or never was")
        return found

    def sync_demand(self, model: ModelId) -> bool:
        """List the model as a demand, where it belongs, or take it off the list. True when the list changed."""
        place = self._place(model)
        before = self._listed.get(model)
        if place == before:
            return False
        if before is not None:
            del self.demands[bisect_left(self.demands, before)]
            del self._listed[model]
        if place is not None:
            insort(self.demands, place)
            self._listed[model] = place
        return True

    def _place(self, model: ModelId) -> tuple[float, float, ModelId] | None:
        """Where the model stands in `demands`, None = it is none."""
        oldest = None if model in self.by_model else self.oldest(model)
        if oldest is None:
            return None
        place, behind = (self.due_at(oldest), oldest.ticket), self.gave_way.get(model)
        if behind is not None and behind > place:
            return (*behind, model)
        return (*place, model)

    def give_way(self, model: ModelId, now: float) -> None:
        """The memory of `model` is taken for a due one: it stands behind all that are due now."""
        self.gave_way[model] = (now, self.lines.tickets + 0.5)

    def is_demand(self, model: ModelId) -> bool:
        return model in self._listed

    def due_count(self, now: float) -> int:
        """So many of the demands are due, the first ones: their oldest request has waited fairness_wait."""
        return bisect_right(self.demands, now, key=lambda demand: demand[0])

    def oldest(self, model: ModelId) -> Waiting | None:
        line = self.lines.of(model)
        return None if line is None else line.oldest()

    def due_at(self, waiting: Waiting) -> float:
        return waiting.arrived + self.limits.fairness_wait_seconds

    def is_pinned(self, instance: Instance) -> bool:
        return self.is_held(instance.model, instance.spec)

    def is_held(self, model: ModelId, spec: ModelSpec | None = None) -> bool:
        """Whether a model is pinned, loaded or not. `spec` is asked when the catalogue no longer has it."""
        word = self.pins.get(model)
        if word is not None:
            return word
        spec = self.models.get(model, spec)
        return spec is not None and spec.pinned

    def drop_wish(self, model: ModelId, error: ModeldError) -> None:
        """It will not be loaded without a request; whoever asked for it is told why."""
        if self.wishes.pop(model, None) is not None:
            self.changes.note(WishDropped(model, error))

    def rank_of(self, request: Request, spec: ModelSpec) -> int:
        """The class of a request, 0 = most urgent: the model's own, or a less urgent one that was asked for."""
        own = spec.priority.rank
        return own if request.priority is None else max(own, request.priority.rank)

    # --- alarms -------------------------------------------------------------------------------------------------------

    def alarm(self, at: float, kind: int, key: str = "") -> None:
        """Be called at `at` about `key`. Alarms are not taken back: who is called looks whether there is something to do."""
        if at < math.inf:
            self._rung += 1
            heappush(self._alarms, (at, self._rung, kind, key))

    def ring(self, now: float) -> Iterator[tuple[int, str]]:
        """The alarms that are due, each once, as (kind, key)."""
        while self._alarms and self._alarms[0][0] <= now:
            _, _, kind, key = heappop(self._alarms)
            yield kind, key

    def next_alarm(self) -> float | None:
        """When the next one rings that still means something, or None."""
        while self._alarms:
            at, _, kind, key = self._alarms[0]
            if self._still_means(kind, key):
                return at
            heappop(self._alarms)
        return None

    def _still_means(self, kind: int, key: str) -> bool:
        if kind == Alarm.WAITING:
            return RequestId(key) in self.lines
        if kind == Alarm.LEASE:
            lease = self.leases.get(RequestId(key))
            return lease is not None and lease.revoked is None
        if kind == Alarm.PLAN:
            return bool(self.demands or self.wishes)
        instance = self.instances.get(InstanceId(key))
        if instance is None:
            return False
        if kind == Alarm.DRAIN:
            return instance.state is State.DRAINING and instance.drain_deadline < math.inf
        if kind == Alarm.GRANT:
            return True  # whoever comes before it rings waits for it
        if kind == Alarm.PROGRESS:
            return instance.watch_at < math.inf  # also while it is idle: as long as it says so no later one is set
        return not instance.leases and instance.state in (State.READY, State.DRAINING)

    # --- memory, in MiB -----------------------------------------------------------------------------------------------

    @property
    def devices(self) -> list[DeviceId]:
        """Those with a budget, limited or not; HOST only when it has one."""
        return list(self.limits.budget_mb) or [LOCAL]

    def limit_mb(self, device: DeviceId) -> int | None:
        """Budget less margin, None = unlimited."""
        budget = self.limits.budget_mb.get(device, 0)
        if budget == 0:
            return None
        return budget - self.limits.kept_free_mb(device)

    def room_mb(self, device: DeviceId) -> int | None:
        """What of it we may have now: `limit_mb`, or less while other programs hold some of it."""
        limit, total = self.limit_mb(device), self.totals_mb.get(device)
        if limit is None or total is None:
            return limit
        return min(limit, total - self.foreign.settled_mb(device) - self.limits.kept_free_mb(device))

    def spec(self, model: ModelId) -> ModelSpec:
        """What `model` would be started with now: the catalogue's word, fitted to what the devices could have."""
        found = self._fitted.get(model)
        if found is None:
            spec = self.models[model]
            if self.limits.cpu_only and spec.options.ngl:
                spec = replace(spec, options=replace(spec.options, ngl=0))
            found = fitted(spec, self._could_fit) if spec.options.ctx_max or spec.degrade else spec
            self._fitted[model] = found
        return found

    def _could_fit(self, spec: ModelSpec) -> bool:
        """Whether there is room when nothing else is loaded. Pinned models do not count: who is pinned may change every moment."""
        cost = self.cost(spec)
        return bool(places(cost.total_mb, cost.host_mb, {device: self.limit_mb(device) for device in self.devices}, split=spec.split))

    def cost(self, spec: ModelSpec) -> Need:
        """What such a launch would take, by all that is known."""
        return need(spec, self.known, one_pool=self.limits.one_pool)

    def need(self, model: ModelId) -> Need:
        found = self._needs.get(model)
        if found is None:
            found = self._needs[model] = self.cost(self.spec(model))
        return found

    def places(self, model: ModelId) -> tuple[Vector, ...]:
        """Where the model could run if everything that may be evicted were; nowhere = it can never fit."""
        found = self._places.get(model)
        if found is None:
            spec, cost = self.models[model], self.need(model)
            capacity = self.capacity(model)
            found = ({},) if spec.external else places(cost.total_mb, cost.host_mb, capacity, split=spec.split)
            self._places[model] = found
        return found

    def unasked(self, model: ModelId) -> str:
        """The probe key under which llama.cpp is to be asked first, while it was not asked about this very launch; "" = nothing to ask."""
        spec = self.spec(model)
        key = probe_key(spec) if self.need(model).source in (Source.FORMULA, Source.PROBED) else ""
        probe = self.known.probes.get(key)
        return "" if key in self.unprobed or (probe is not None and probe.at(spec.options) is not None) else key

    def is_misfit(self, model: ModelId) -> bool:
        """It could never fit. What only the formula says is not enough for that, as long as llama.cpp has not answered."""
        return not self.places(model) and not self.unasked(model)

    def capacity(self, model: ModelId) -> dict[DeviceId, int | None]:
        """What `model` could have of each device at most: budget less margin less other models' pins.

        Pins that are loaded count where they are, the others on the one device there is; in id order as far as they fit: one too many
        must not refuse everybody else. On several devices a pin that is not loaded may go to any, and counts once it has.
        """
        limits = {device: self.limit_mb(device) for device in self.devices}
        accelerators = [device for device in limits if device != HOST]
        for other in sorted(self.models):
            spec = self.models[other]
            if not self.is_held(other) or other == model or spec.unavailable is not None:
                continue
            instance = self.by_model.get(other)
            if instance is not None and instance.state not in (State.FAILED, State.STOPPING):
                held: Vector = instance.need_mb
            elif len(accelerators) == 1:
                held = {accelerators[0]: self.need(other).total_mb}
            else:
                continue
            if all((limit := limits.get(device)) is None or amount <= limit for device, amount in held.items()):
                for device, amount in held.items():
                    if (limit := limits.get(device)) is not None:
                        limits[device] = limit - amount
        return limits

    def least_mb(self) -> int:
        """No model takes less of some device than this."""
        if self._least_mb is None:
            devices = [device for device in self.devices if device != HOST]
            needs = [
                self.need(model).total_mb // (max(1, len(devices)) if spec.split else 1)
                for model, spec in self.models.items()
                if spec.unavailable is None
            ]
            unlimited = any(self.limit_mb(device) is None for device in devices)
            self._least_mb = 0 if unlimited else min(needs, default=0)
        return self._least_mb

    def forget_memory(self, *, needs: bool = False) -> None:
        """Models, settings or pins changed: what was computed from them is computed anew."""
        self._places.clear()
        if needs:
            self._needs.clear()
            self._fitted.clear()
            self._least_mb = None

    def forget_header(self, header_hash: str) -> None:
        """Something was learned about the models with this header: what was computed for them is computed anew, and nothing else."""
        pinned = False
        for model, spec in self.models.items():
            if spec.header_hash == header_hash:
                self._needs.pop(model, None)
                self._fitted.pop(model, None)
                self._places.pop(model, None)
                pinned = pinned or self.is_held(model)
        self._least_mb = None
        if pinned:
            self._places.clear()  # what others could have depends on it

    def free_mb(self) -> dict[DeviceId, int]:
        """What we may have less all that is held, of each limited device; may be negative."""
        return {device: limit - self.ledger.used_mb(device) for device in self.devices if (limit := self.room_mb(device)) is not None}

    def coming_mb(self) -> dict[DeviceId, int]:
        """What returns without a further decision: children that end, and drains somebody ordered."""
        coming = {device: self.ledger.releasing_mb(device) for device in self.devices}
        for instance in self.instances.values():
            if instance.state is State.DRAINING and instance.drain_why != EVICTED:
                for device, amount in instance.need_mb.items():
                    coming[device] = coming.get(device, 0) + amount
        return coming

    # --- facts about instances ----------------------------------------------------------------------------------------

    def protected_until(self, instance: Instance, now: float) -> float:
        """Until when an idle instance is kept for its own next request."""
        rest = Rest(
            ready_at=instance.ready_at,
            idle_since=max(instance.ready_at, instance.last_used),
            asked_at=self.pace.asked_at(instance.model),
            gap_seconds=self.pace.gap_seconds(instance.model),
            load_seconds=self.pace.load_seconds(instance.model, instance.device_mb),
        )
        return protected_until(rest, now, self.limits.min_residency_seconds)

    def in_turn(self, instance: Instance, now: float) -> bool:
        """Requests that made it due still wait there, and its time is not over: no other due model may close it."""
        return instance.turn_until > now and self.turn_waits(instance)

    def turn_waits(self, instance: Instance) -> bool:
        """Requests that were due when it became ready still stand in line."""
        oldest = self.oldest(instance.model)
        return oldest is not None and self.due_at(oldest) <= instance.ready_at

    def is_wanted(self, instance: Instance) -> bool:
        """Somebody waits for the load."""
        return self.lines.length(instance.model) > 0 or instance.model in self.wishes

    # --- checks -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Bytes held = sum of holders; each request in exactly one place; at most one instance per model; demands are listed."""
        self.ledger.check()
        if len(self.ledger) != len(self.instances) or any(one not in self.instances for one in self.ledger):
            raise InvariantError(f"memory is held by {sorted(self.ledger)}, instances are {sorted(self.instances)}")
        if len(self.by_model) != len(self.instances) or any(self.by_model.get(one.model) is not one for one in self.instances.values()):
            raise InvariantError(f"two instances of one model: {sorted(self.instances)}")
        for request, lease in self.leases.items():
            if request in self.lines:
                raise InvariantError(f"request {request} waits and runs")
            instance = self.instances.get(lease.instance)
            if instance is None and lease.revoked is None:
                raise InvariantError(f"request {request} runs on {lease.instance}, which is gone")
            if instance is not None and request not in instance.leases:
                raise InvariantError(f"request {request} is not known to {lease.instance}")
        for instance in self.instances.values():
            if not instance.leases.keys() <= self.leases.keys():
                raise InvariantError(f"{instance.id} holds leases that ended")
            if instance.free_slots < 0:
                raise InvariantError(f"{instance.id} serves more requests than it has slots")
        listed = {model: place for model in self.lines.models() if (place := self._place(model)) is not None}
        if listed != self._listed or sorted(listed.values()) != self.demands:
            raise InvariantError(f"demands are {self.demands}, lines without an instance are {listed}")
