# SPDX-License-Identifier: GPL-3.0-only
"""Who watches the scheduler under pressure; rule: holdings are counted from commands and events, and from nothing that the scheduler says.

over_budget     nothing is started where what is known to be held, and what is booked for it, is more than may be used
forgotten       what was measured for a launch, or what it ran out of memory with, is booked the next time
ledger          what was measured is held in the ledger
spike           what others hold counts once it lasted, or once a load ran out of memory
thrashed        evicted for lack of memory: the deficit only, never the busy, the pinned, or what grew just now
relieved        who could go goes, as long as more is held than may be
first_try       a load that ran out of memory is tried once more before anybody hears of it; then they hear numbers
asked_twice     llama.cpp is asked once about a launch
dry_pass        nobody waits for a dry pass about another model
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from modeld.core.footprint import When, launch_key, mib
from modeld.core.lifecycle import State
from modeld.core.messages import (
    Command,
    Event,
    FootprintMeasured,
    FootprintsLearned,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    MemoryFreed,
    MemorySeen,
    ProbeFootprint,
    Refuse,
    StartInstance,
    StopInstance,
)
from modeld.core.model import HOST, DeviceId, InstanceId, Limits, ModelId, ModelSpec
from modeld.core.scheduler import Scheduler
from modeld.core.snapshot import InstanceView, Snapshot
from modeld.errors import OutOfMemory
from modeld.simulation.machine import Machine
from modeld.simulation.seen import Violation

SETTLE_SECONDS: Final = 10.0
STEP_MB: Final = 64
ROUNDING_MB: Final = 4
SHORT: Final = "evicted, memory is short"


@dataclass(slots=True)
class Held:
    """What an instance is known to hold, MiB: booked, then measured."""

    spec: ModelSpec
    mb: dict[DeviceId, int]
    ready: bool = False


@dataclass(slots=True)
class Ran:
    """A launch that ran out of memory with so much, and what it has to get the next time at least, MiB."""

    had_mb: int
    times: int = 1
    binding: bool = False


@dataclass(slots=True)
class Seen:
    """The looks at one device: (when, what others held)."""

    looks: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now: float, mb: int) -> None:
        self.looks.append((now, mb))
        while len(self.looks) > 1 and self.looks[1][0] <= now - SETTLE_SECONDS:
            self.looks.popleft()

    def lasting_mb(self) -> int:
        """What they held at every look, for so long."""
        if not self.looks or self.looks[0][0] > self.looks[-1][0] - SETTLE_SECONDS:
            return 0
        return min(mb for _, mb in self.looks)


class Referee:
    """One sequence's. `used_shares` is the use of the budget at each start for which somebody had to go."""

    def __init__(self, scheduler: Scheduler, limits: Limits, models: Mapping[ModelId, ModelSpec], machine: Machine, seed: int) -> None:
        self._seed = seed
        self.used_shares: list[float] = []
        self._made_room: set[str] = set()
        self._scheduler = scheduler
        self._limits = limits
        self._models = models
        self._machine = machine
        self._held: dict[InstanceId, Held] = {}
        self._marks: dict[str, int] = {}
        self._ran: dict[ModelId, Ran] = {}
        self._seen: dict[DeviceId, Seen] = {}
        self._foreign_mb: dict[DeviceId, int] = {}
        self._asked: set[tuple[ModelId, str]] = set()
        self._probing: dict[ModelId, str] = {}
        self._now = 0.0

    # --- one step -----------------------------------------------------------------------------------------------------

    def after(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """The scheduler took `event` and gave `commands`. Raises Violation."""
        self._now = now
        self._take(event)
        matters = isinstance(event, FootprintMeasured | InstanceFailed | InstanceExited | MemorySeen)
        if not commands and not matters:
            return
        snapshot = self._scheduler.snapshot(now, estimates=False)
        views = {view.id: view for view in snapshot.instances}
        if isinstance(event, InstanceFailed):
            self._failed(event, commands, snapshot)
        self._spikes(event, snapshot)
        self._evictions(event, commands, snapshot, views)
        for command in commands:
            if isinstance(command, StartInstance):
                self._started(command)
                self._share(command, snapshot)
            elif isinstance(command, ProbeFootprint):
                self._probe(command)
        if isinstance(event, FootprintMeasured):
            self._measured(event, views)
        self._relieved(snapshot)
        self._dry_passes(snapshot)

    def answered(self, model: ModelId) -> None:
        """A dry pass has ended."""
        self._probing.pop(model, None)

    def _take(self, event: Event) -> None:
        match event:
            case InstanceExited(instance, ran_out=True):
                self._ran.setdefault(self._held[instance].spec.id, Ran(0, times=0))
            case MemoryFreed(instance):
                self._held.pop(instance, None)
            case InstanceReady(instance):
                if instance in self._held:
                    self._held[instance].ready = True
                    self._came_through(self._held[instance].spec.id)
            case FootprintsLearned(learned):
                self._marks |= {key: mib(one.footprint.total_bytes) for key, one in learned.items() if one.footprint is not None}
            case FootprintMeasured(instance, footprint, when):
                self._known(instance, when, complete=footprint.complete)
            case MemorySeen(devices):
                for device, memory in devices.items():
                    self._seen.setdefault(device, Seen()).add(self._now, memory.foreign_mb)
            case _:
                pass

    def _came_through(self, model: ModelId) -> None:
        """It is ready: from now on it has two tries again."""
        if (ran := self._ran.get(model)) is not None:
            ran.times = 0

    def fail(self, name: str, detail: str) -> None:
        raise Violation(name, detail, self._seed, self._now)

    # --- what may be used ---------------------------------------------------------------------------------------------

    def _may_use_mb(self, device: DeviceId) -> int | None:
        """Of a device, now: the budget less the margin, and less what others held of it for long."""
        budget = self._limits.budget_mb.get(device, 0)
        if not budget:
            return None
        margin = 0 if device == HOST else self._limits.margin_mb
        seen = self._seen.get(device)
        if seen is None:
            return budget - margin
        return min(budget - margin, self._machine.total_mb[device] - margin - max(0, seen.lasting_mb() - STEP_MB))

    def _known_mb(self, device: DeviceId) -> int:
        return sum(held.mb.get(device, 0) for held in self._held.values())

    def _started(self, command: StartInstance) -> None:
        spec, total = command.spec, sum(command.need_mb.values())
        for device, mb in command.need_mb.items():
            may, known = self._may_use_mb(device), self._known_mb(device)
            if may is not None and known + mb > may:
                self.fail("over_budget", f"{command.instance} is started with {mb} MB of {device}: {known} MB are held, {may} MB may be")
        mark = self._marks.get(launch_key(spec), 0)
        if spec.vram_mb is None and total < mark:
            self.fail("forgotten", f"{command.instance} is started with {total} MB, {mark} MB were measured")
        ran = self._ran.get(spec.id)
        if ran is not None and ran.binding and total <= ran.had_mb:
            self.fail("forgotten", f"{command.instance} is started with {total} MB, it ran out of memory with {ran.had_mb} MB")
        self._held[command.instance] = Held(spec, dict(command.need_mb))

    def _share(self, command: StartInstance, snapshot: Snapshot) -> None:
        """How much of what may be used is used, where that decided who stays."""
        if command.spec.id not in self._made_room:
            return
        self._made_room.discard(command.spec.id)
        for view in snapshot.devices:
            if view.id in command.need_mb and view.id != HOST and view.room_mb:
                self.used_shares.append(view.used_mb / view.room_mb)

    # --- measured -----------------------------------------------------------------------------------------------------

    def _known(self, instance: InstanceId, when: When, *, complete: bool) -> None:
        """It was measured: from now on it is known what is held."""
        held, child = self._held.get(instance), self._machine.children.get(instance)
        if held is None or child is None or child.ending:
            return
        spec, mb = held.spec, child.holds_mb
        if complete and spec.vram_mb is None and held.ready:
            held.mb = dict(mb)
        else:
            held.mb = {device: max(held.mb.get(device, 0), mb.get(device, 0)) for device in dict.fromkeys([*held.mb, *mb])}
        if complete:
            key = launch_key(spec)
            self._marks[key] = max(self._marks.get(key, 0), sum(mb.values()))
            if when is not When.READY and (ran := self._ran.get(spec.id)) is not None:
                ran.binding = False

    def _measured(self, event: FootprintMeasured, views: Mapping[InstanceId, InstanceView]) -> None:
        """What is known of it is what the ledger says."""
        held, view = self._held.get(event.instance), views.get(event.instance)
        child = self._machine.children.get(event.instance)
        if held is None or view is None or child is None or child.ending:
            return
        spec, mb = held.spec, child.holds_mb
        for device, amount in held.mb.items():
            if view.devices_mb.get(device, 0) < amount:
                self.fail("ledger", f"{event.instance} takes {amount} MB of {device}, {view.devices_mb.get(device, 0)} MB are held for it")
        settled = event.when is not When.READY or spec.id not in self._ran
        if settled and event.footprint.complete and spec.vram_mb is None and sum(mb.values()) == self._marks[launch_key(spec)]:
            booked = {device: amount for device, amount in view.devices_mb.items() if amount}
            if booked != {device: amount for device, amount in mb.items() if amount}:
                self.fail("ledger", f"{event.instance} takes {mb}, {booked} is held for it")

    # --- out of memory ------------------------------------------------------------------------------------------------

    def _failed(self, event: InstanceFailed, commands: Sequence[Command], snapshot: Snapshot) -> None:
        held = self._held.get(event.instance)
        if held is None or not isinstance(event.error, OutOfMemory):
            return
        model, had = held.spec.id, sum(held.mb.values())
        before = self._ran.get(model)
        told = [one.error.message for one in commands if isinstance(one, Refuse) and isinstance(one.error, OutOfMemory)]
        if before is None or before.times % 2 == 0:
            if told:
                self.fail("first_try", f"{event.instance} ran out of memory once, and its line was refused")
        elif any("twice" not in text or len(re.findall(r"\d+ MB", text)) < 2 for text in told):
            self.fail("first_try", f"{event.instance} ran out of memory twice, and the line hears no numbers: {told[0]}")
        free = {view.id: view.room_mb - view.used_mb for view in snapshot.devices if view.room_mb is not None}
        was_there = all(free.get(device, 0) >= 0 for device in held.mb)
        room = [mb for device, mb in self.limits_mb().items() if device != HOST]
        most = (sum(room) if held.spec.split else max(room)) - self._pinned_mb(model) - ROUNDING_MB
        binding = was_there and sum(mb for device, mb in held.mb.items() if device != HOST) < most
        self._ran[model] = Ran(had, 1 if before is None else before.times + 1, binding)

    def limits_mb(self) -> dict[DeviceId, int]:
        """Budget less margin of each device."""
        return {device: mb - (0 if device == HOST else self._limits.margin_mb) for device, mb in self._limits.budget_mb.items()}

    def _pinned_mb(self, model: ModelId) -> int:
        """What pinned others take at most."""
        pinned = [one for one in self._models.values() if one.pinned and one.id != model]
        return sum(max(self._scheduler.need(one.id).total_mb, *self._of(one.id)) for one in pinned)

    def _of(self, model: ModelId) -> list[int]:
        return [0, *(sum(held.mb.values()) for held in self._held.values() if held.spec.id == model)]

    # --- others -------------------------------------------------------------------------------------------------------

    def _spikes(self, event: Event, snapshot: Snapshot) -> None:
        failed = isinstance(event, InstanceExited) or (isinstance(event, InstanceFailed) and isinstance(event.error, OutOfMemory))
        for view in snapshot.devices:
            before = self._foreign_mb.get(view.id)
            self._foreign_mb[view.id] = view.foreign_mb
            seen = self._seen.get(view.id)
            if seen is None or before is None or view.foreign_mb <= before:
                continue
            most = seen.looks[-1][1] if failed else seen.lasting_mb()
            if len(seen.looks) > 1 and view.foreign_mb > most:
                self.fail("spike", f"{view.foreign_mb} MB of {view.id} count as taken by others, {most} MB were for long")

    # --- victims ------------------------------------------------------------------------------------------------------

    def _evictions(self, event: Event, commands: Sequence[Command], snapshot: Snapshot, views: Mapping[InstanceId, InstanceView]) -> None:
        stops = [one for one in commands if isinstance(one, StopInstance) and one.why.startswith("evicted")]
        self._made_room |= {stop.why.removeprefix("evicted for ") for stop in stops if stop.why != SHORT}
        for stop in stops:
            view = views[stop.instance]
            if view.pinned or view.inflight:
                self.fail("thrashed", f"{stop.instance} is evicted though it is pinned or busy")
        victims = [views[stop.instance] for stop in stops if stop.why == SHORT]
        if not victims:
            return
        if isinstance(event, FootprintMeasured) and event.instance in {view.id for view in victims}:
            self.fail("thrashed", f"{event.instance} grew, and goes for it itself")
        going = {stop.instance: views[stop.instance] for stop in stops}
        short = self._short_mb(snapshot, without=going)
        for view in victims:
            rest = {device: mb - sum(one.devices_mb.get(device, 0) for one in victims if one is not view) for device, mb in short.items()}
            if not any(mb > 0 and view.devices_mb.get(device, 0) > 0 for device, mb in rest.items()):
                self.fail("thrashed", f"{view.id} is evicted beyond the deficit of {short}")

    def _short_mb(self, snapshot: Snapshot, without: Mapping[InstanceId, InstanceView] | None = None) -> dict[DeviceId, int]:
        """What is held and does not come back, beyond what may be; as if `without` had not been told to end."""
        back = {view.id: sum(one.devices_mb.get(view.id, 0) for one in (without or {}).values()) for view in snapshot.devices}
        ordered = {
            view.id: sum(one.devices_mb.get(view.id, 0) for one in snapshot.instances if one.state is State.DRAINING and not one.closed_for)
            for view in snapshot.devices
        }
        return {
            view.id: view.used_mb - view.releasing_mb + back[view.id] - ordered[view.id] - view.room_mb
            for view in snapshot.devices
            if view.room_mb is not None
        }

    def _relieved(self, snapshot: Snapshot) -> None:
        short = {device: mb for device, mb in self._short_mb(snapshot).items() if mb > 0}
        if not short:
            return
        waited = {line.model for line in snapshot.lines}
        grown = 0
        for view in snapshot.instances:
            may = view.state is State.READY and not (view.inflight or view.pinned or view.model in waited or view.model in snapshot.wished)
            if may and not short.keys().isdisjoint(device for device, mb in view.devices_mb.items() if mb):
                grown += 1
        if grown > 1:  # what grew last stays
            self.fail("relieved", f"{short} MB too much are held, and {grown} idle instances stay")

    # --- dry passes ---------------------------------------------------------------------------------------------------

    def _probe(self, command: ProbeFootprint) -> None:
        asked = (command.spec.id, command.key)
        if asked in self._asked:
            self.fail("asked_twice", f"llama.cpp is asked about {command.spec.id} again")
        self._asked.add(asked)
        self._probing[command.spec.id] = command.key

    def _dry_passes(self, snapshot: Snapshot) -> None:
        """Who is checked and has room starts, when all the others that wait are asked about and not due."""
        if not self._probing:
            return
        loaded = {view.model for view in snapshot.instances}
        waiting = [line for line in snapshot.lines if line.model not in loaded]
        asked = [line for line in waiting if line.model in self._probing]
        others = [line for line in waiting if line.model not in self._probing]
        if len(others) != 1 or not asked or any(not line.due_in_seconds for line in asked) or snapshot.wished:
            return
        model = others[0].model
        why = self._scheduler.explain(self._now).models[model]
        if "to be checked" in why or "after a failure" in why:
            return
        need = self._scheduler.need(model)
        free = {view.id: view.room_mb - view.used_mb for view in snapshot.devices if view.room_mb is not None}
        if need.host_mb <= free.get(HOST, need.host_mb) and any(mb >= need.total_mb for device, mb in free.items() if device != HOST):
            self.fail("dry_pass", f"{model} has room and waits while llama.cpp is asked about {asked[0].model}: {why}")
