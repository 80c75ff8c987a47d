# SPDX-License-Identifier: GPL-3.0-only
"""A story told to the real scheduler: at a time, an event gives these commands; rule: every step checks the invariants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modeld.core.messages import (
    CheckLaunch,
    CheckProgress,
    Command,
    Event,
    Grant,
    LaunchChecked,
    Refuse,
    RequestArrived,
    RevokeLease,
    StartInstance,
    StopInstance,
)
from modeld.core.model import LOCAL, LaunchOptions, Limits, ModelId, ModelSpec, Request, RequestId
from modeld.core.scheduler import Scheduler
from modeld.core.snapshot import InstanceView, Snapshot


def spec(name: str, mb: int, *, slots: int = 1, **more: object) -> ModelSpec:
    base = ModelSpec(
        id=ModelId(name), path=f"/{name}", fingerprint="v1", vram_mb=mb, options=LaunchOptions(parallel=slots, threads=1, ctx=512)
    )
    return replace(base, **more)  # type: ignore[arg-type]


def arrive(request: str, model: str, body_bytes: int = 0) -> RequestArrived:
    return RequestArrived(Request(RequestId(request), ModelId(model), body_bytes=body_bytes))


class Play:
    """Launch checks pass by themselves unless `checks=False`; nothing is kept when idle and nothing counts as stuck unless asked.

    Commands are told in short: "start 1/a", "grant r1 1/a".
    """

    def __init__(
        self, models: Mapping[str, int] | list[ModelSpec], *, budget: int = 0, checks: bool = True, slots: int = 1, **limits: object
    ) -> None:
        specs = models if isinstance(models, list) else [spec(name, mb, slots=slots) for name, mb in models.items()]
        defaults = Limits(budget_mb={LOCAL: budget}, min_residency_seconds=0.0, first_token_seconds=0.0)
        self.limits = replace(defaults, **limits)  # type: ignore[arg-type]
        self.models = {one.id: one for one in specs}
        self.scheduler = Scheduler(self.limits, self.models)
        self.now = 0.0
        self.checks = checks
        self.commands: list[Command] = []

    def at(self, now: float, *events: Event) -> Play:
        assert now >= self.now
        self.now = now
        self.commands = []
        for event in events:
            self._feed(event)
        return self

    def _feed(self, event: Event) -> None:
        commands = self.scheduler.handle(event, self.now)
        self.scheduler.check_invariants()
        for command in commands:
            if self.checks and isinstance(command, CheckLaunch):
                self._feed(LaunchChecked(command.spec.id, command.spec.fingerprint))
            else:
                self.commands.append(command)

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
