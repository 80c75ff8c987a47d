# SPDX-License-Identifier: GPL-3.0-only
"""A hand-made story for the invariants: events with the commands a scheduler might give, right or wrong; rule: nothing here decides."""

from __future__ import annotations

from dataclasses import replace

from modeld.core.messages import (
    CheckLaunch,
    Command,
    Event,
    Grant,
    InstanceExited,
    InstanceReady,
    LaunchChecked,
    LeaseReleased,
    MemoryFreed,
    RequestArrived,
    StartInstance,
    StopInstance,
)
from modeld.core.model import LOCAL, DeviceId, InstanceId, LaunchOptions, Limits, ModelId, ModelSpec, Principal, Request, RequestId
from modeld.core.snapshot import DeviceView, InstanceView, LineView, Snapshot
from modeld.errors import InvariantError
from modeld.simulation.invariants import ALL, Watch
from modeld.simulation.outside import Outside
from modeld.simulation.seen import READY, Violation


def spec(name: str, mb: int = 100, *, slots: int = 1, **more: object) -> ModelSpec:
    base = ModelSpec(id=ModelId(name), path=f"/{name}", fingerprint="v1", vram_mb=mb, options=LaunchOptions(parallel=slots))
    return replace(base, **more)  # type: ignore[arg-type]


class Mirror:
    """A scheduler that says of itself what is known of it from outside, and what a test adds to that.

    closed   instances that take nothing new, with the due model they were closed for
    pinned   what it says is pinned, None = the truth
    """

    def __init__(self) -> None:
        self.outside: Outside
        self.closed: dict[str, str] = {}
        self.failed: list[str] = []
        self.wakeup: float | None = None
        self.hidden_lines = False
        self.pinned: frozenset[ModelId] | None = None
        self.broken = False

    def next_wakeup(self) -> float | None:
        return self.wakeup

    def check_invariants(self) -> None:
        if self.broken:
            raise InvariantError("the book is torn")

    def snapshot(self, now: float, *, estimates: bool = True) -> Snapshot:
        outside = self.outside
        views = []
        for seen in outside.instances.values():
            closed = seen.state is READY and seen.id in self.closed
            views.append(
                InstanceView(
                    id=seen.id,
                    model=seen.model,
                    state="draining" if closed else seen.state,
                    need_mb=0,
                    slots=seen.slots,
                    inflight=len(seen.leases),
                    last_used=now,
                    pid=None,
                    progress=1.0,
                    external=False,
                    devices_mb=dict(seen.need_mb),
                    closed_for=self.closed[seen.id] if closed else "",
                )
            )
        views += [
            InstanceView(InstanceId(f"0/{name}"), ModelId(name), "failed", 0, 0, 0, now, None, 0.0, False, {}, "") for name in self.failed
        ]
        lines = () if self.hidden_lines else tuple(LineView(m, len(line), 0.0, {}, None, 0.0) for m, line in outside.lines.items())
        devices = tuple(DeviceView(device, budget, outside.used_mb.get(device, 0)) for device, budget in outside.limits.budget_mb.items())
        return Snapshot(
            instances=tuple(views),
            lines=lines,
            devices=devices,
            budget_mb=0,
            used_mb=sum(outside.used_mb.values()),
            margin_mb=0,
            queue_depth_max=0,
            waiting_bytes=outside.waiting_bytes,
            loads_total=0,
            load_failures_total=0,
            evictions_total=0,
            crashes_total=0,
            shutting_down=False,
            error=None,
            last_error=None,
            pinned=frozenset(one.id for one in outside.models.values() if outside.is_held(one)) if self.pinned is None else self.pinned,
        )


class Tale:
    """`at(time, event, *commands)` is one step. A step that must not be raises Violation."""

    def __init__(self, *models: ModelSpec, budget: int = 250, checks: frozenset[str] = ALL, **limits: object) -> None:
        settings = replace(Limits(budget_mb={LOCAL: budget}, fairness_wait_seconds=5.0), **limits)  # type: ignore[arg-type]
        self.now = 0.0
        self.mirror = Mirror()
        self.models = {one.id: one for one in models}
        self.outside = self.mirror.outside = Outside(settings, self.models, self.fail)
        self.watch = Watch(self.outside, self.mirror, checks, self.fail)

    def fail(self, name: str, detail: str) -> None:
        raise Violation(name, detail, 0, self.now)

    def at(self, now: float, event: Event, *commands: Command) -> Tale:
        self.now = now
        self.outside.take(event, now)
        self.watch.before(event, now)
        self.outside.obey(commands, now)
        self.watch.after(event, commands, now)
        return self

    # --- what happens often -------------------------------------------------------------------------------------------

    def arrive(self, now: float, request: str, model: str, *commands: Command, body_bytes: int = 0, who: str = "ann") -> Tale:
        event = RequestArrived(Request(RequestId(request), ModelId(model), principal=Principal(who), body_bytes=body_bytes))
        return self.at(now, event, *commands)

    def checked(self, now: float, model: str, *commands: Command) -> Tale:
        return self.at(now, LaunchChecked(ModelId(model), "v1"), *commands)

    def ready(self, now: float, instance: str, *commands: Command) -> Tale:
        return self.at(now, InstanceReady(InstanceId(instance)), *commands)

    def released(self, now: float, request: str, *commands: Command) -> Tale:
        return self.at(now, LeaseReleased(RequestId(request)), *commands)

    def exited(self, now: float, instance: str, *commands: Command) -> Tale:
        return self.at(now, InstanceExited(InstanceId(instance), 0), *commands)

    def freed(self, now: float, instance: str, *commands: Command) -> Tale:
        return self.at(now, MemoryFreed(InstanceId(instance)), *commands)

    def serving(self, model: str, request: str, now: float = 0.0) -> Tale:
        """`request` runs on instance "1/<model>", started and ready at once."""
        self.arrive(now, request, model, check(self.models[ModelId(model)]))
        self.checked(now, model, self.start(model))
        return self.ready(now, f"1/{model}", grant(request, f"1/{model}"))

    def start(self, model: str, number: int = 1, need_mb: int | None = None, device: DeviceId = LOCAL) -> StartInstance:
        one = self.models[ModelId(model)]
        return StartInstance(InstanceId(f"{number}/{model}"), one, {device: (one.vram_mb or 0) if need_mb is None else need_mb})


def check(one: ModelSpec) -> CheckLaunch:
    return CheckLaunch(one)


def grant(request: str, instance: str) -> Grant:
    return Grant(RequestId(request), InstanceId(instance))


def evict(instance: str, model: str) -> StopInstance:
    return StopInstance(InstanceId(instance), f"evicted for {model}")
