# SPDX-License-Identifier: GPL-3.0-only
"""A story told to the real scheduler: at a time, an event gives these commands; rule: every step checks the invariants.

Every step also checks that nobody sleeps too long: as the driver does, it asks for the next wakeup after each event (which forgets what
lost its meaning); then a decision taken anew, at once or just before that wakeup, has nothing to add.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

from modeld.core.footprint import Footprint, When
from modeld.core.messages import (
    CheckLaunch,
    CheckProgress,
    Command,
    Event,
    FootprintMeasured,
    Grant,
    InstanceExited,
    InstanceReady,
    LaunchChecked,
    LoadRequested,
    MemoryFreed,
    ProbeFailed,
    ProbeFootprint,
    Refuse,
    Remember,
    RequestArrived,
    RevokeLease,
    SettingsReplaced,
    StartInstance,
    StopInstance,
)
from modeld.core.model import (
    LOCAL,
    EvictionPolicy,
    InstanceId,
    LaunchOptions,
    Limits,
    ModelId,
    ModelSpec,
    Principal,
    Priority,
    Request,
    RequestId,
)
from modeld.core.scheduler import Scheduler
from modeld.core.snapshot import InstanceView, Snapshot


def spec(name: str, mb: int, *, slots: int = 1, **more: object) -> ModelSpec:
    base = ModelSpec(
        id=ModelId(name), path=f"/{name}", fingerprint="v1", vram_mb=mb, options=LaunchOptions(parallel=slots, threads=1, ctx=512)
    )
    return replace(base, **more)  # type: ignore[arg-type]


def sized(name: str, mb: int, *, header: str = "", **more: object) -> ModelSpec:
    """A model whose figure is the formula's: `mb` of file, 5 % of that and 64 MB. It can be learned, as the operator declared nothing."""
    return spec(name, 0, vram_mb=None, size_bytes=mb << 20, header_hash=header or f"header of {name}", **more)


def took(number: int, model: str, mb: int, *, when: When = When.READY, host: int = 0, complete: bool = True) -> FootprintMeasured:
    """The child was measured: MiB on its device and on the host."""
    return FootprintMeasured(i(number, model), Footprint({"CUDA0": mb << 20}, host << 20, complete), when)


def arrive(request: str, model: str, body_bytes: int = 0, *, by: str = "anonymous", **more: object) -> RequestArrived:
    """`more`: further fields of Request."""
    base = Request(RequestId(request), ModelId(model), Principal(by), body_bytes=body_bytes)
    return RequestArrived(replace(base, **more))  # type: ignore[arg-type]


def batch(request: str, model: str, **more: object) -> RequestArrived:
    return arrive(request, model, priority=Priority.BATCH, **more)  # type: ignore[arg-type]


def i(number: int, model: str) -> InstanceId:
    return InstanceId(f"{number}/{model}")


def r(name: str) -> RequestId:
    return RequestId(name)


def gone(number: int, model: str, code: int | None = 0) -> tuple[Event, Event]:
    """The child has ended and its memory is back."""
    return InstanceExited(i(number, model), code=code), MemoryFreed(i(number, model))


def loaded(play: Play, *models: str, at: float = 0.0) -> Play:
    """Load models one after another by the operator's wish."""
    for model in models:
        play.at(at, LoadRequested(ModelId(model)))
        number = len(play.snapshot.instances)
        play.at(at, InstanceReady(i(number, model), pid=100 + number))
    return play


class Play:
    """Launch checks pass by themselves unless `checks=False`, llama.cpp cannot be asked unless `probes=False`; nothing is kept when idle
    and nothing counts as stuck unless asked.

    Commands are told in short: "start 1/a", "grant r1 1/a".
    """

    def __init__(
        self,
        models: Mapping[str, int] | list[ModelSpec],
        *,
        budget: int = 0,
        checks: bool = True,
        probes: bool = True,
        slots: int = 1,
        **limits: object,
    ) -> None:
        specs = models if isinstance(models, list) else [spec(name, mb, slots=slots) for name, mb in models.items()]
        defaults = Limits(budget_mb={LOCAL: budget}, min_residency_seconds=0.0, first_token_seconds=0.0, eviction=EvictionPolicy.LRU)
        self.limits = replace(defaults, **limits)  # type: ignore[arg-type]
        self.models = {one.id: one for one in specs}
        self.scheduler = Scheduler(self.limits, self.models)
        self.now = 0.0
        self.checks, self.probes = checks, probes
        self.commands: list[Command] = []

    def at(self, now: float, *events: Event) -> Play:
        assert now >= self.now
        wakeup = self.scheduler.next_wakeup()
        self._nothing_to_add(now if wakeup is None else max(self.now, min(now, math.nextafter(wakeup, -math.inf))))
        self.now = now
        self.commands = []
        for event in events:
            self._feed(event)
        self._nothing_to_add(now)
        return self

    def _feed(self, event: Event) -> None:
        if isinstance(event, SettingsReplaced):
            self.limits = event.limits
        commands = self.scheduler.handle(event, self.now)
        self.scheduler.check_invariants()
        self.scheduler.next_wakeup()
        for command in commands:
            if self.checks and isinstance(command, CheckLaunch):
                self._feed(LaunchChecked(command.spec.id, command.spec.fingerprint))
            elif self.probes and isinstance(command, ProbeFootprint):
                self._feed(ProbeFailed(command.spec.id, command.key, "there is nobody to ask in a story"))
            else:
                self.commands.append(command)

    def _nothing_to_add(self, now: float) -> None:
        """The same settings again make the scheduler decide anew; who could be granted was granted, or will be at a known time."""
        if self.snapshot.shutting_down:
            return
        again = deepcopy(self.scheduler).handle(SettingsReplaced(self.limits), now)
        assert [tell(command) for command in again] == []
        book = self.scheduler._book
        for one in book.instances.values():
            if one.state == "ready" and one.free_slots > 0 and book.lines.length(one.model):
                assert (self.scheduler.next_wakeup() or math.inf) <= one.suspect_until

    def gives(self, *told: str) -> Play:
        assert [tell(command) for command in self.commands] == list(told)
        return self

    def refused(self, request: str) -> object:
        """The error with which `request` was refused or revoked in the last step."""
        found = [c.error for c in self.commands if isinstance(c, Refuse | RevokeLease) and c.request == request]
        assert len(found) == 1, self.commands
        return found[0]

    @property
    def snapshot(self) -> Snapshot:
        return self.scheduler.snapshot(self.now)

    def instance(self, model: str) -> InstanceView:
        return next(view for view in self.snapshot.instances if view.model == model)


def tell(command: Command) -> str:
    match command:
        case Grant(request, instance):
            return f"grant {request} {instance}"
        case Refuse(request, error):
            return f"refuse {request} {error.kind}"
        case RevokeLease(request, error):
            return f"revoke {request} {error.kind}"
        case CheckLaunch(model):
            return f"check {model.id}"
        case StartInstance(instance, _):
            return f"start {instance}"
        case CheckProgress(instance):
            return f"check progress of {instance}"
        case StopInstance(instance, why):
            return f"stop {instance} {why}"
        case ProbeFootprint(model):
            return f"probe {model.id}"
        case Remember(_, header_hash, learned):
            return f"remember {header_hash}" if learned is not None else f"remember probe {header_hash}"
