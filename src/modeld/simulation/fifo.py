# SPDX-License-Identifier: GPL-3.0-only
"""Strict first come, first served, to compare with; rule: nobody is granted before everybody who came earlier was.

Only the head of the one line is looked at. Its model is loaded if it is not there; the least recently used models go, the busy ones when
their last request has ended. Slots are honoured, pins too. Nobody is refused for waiting; a model that can never fit is.
A policy for simulation.world.World, in the place of core's scheduler. All devices are one, with the sum of their budgets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from modeld.core.estimate import need
from modeld.core.messages import (
    Command,
    Event,
    Grant,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    LeaseFailed,
    LeaseReleased,
    MemoryFreed,
    Refuse,
    RequestArrived,
    RequestWithdrawn,
    ShutdownRequested,
    StartInstance,
    StopInstance,
)
from modeld.core.model import LOCAL, InstanceId, Limits, ModelId, ModelSpec, Request, RequestId
from modeld.core.snapshot import Snapshot
from modeld.errors import CannotEverFit, Draining, LoadFailed, ModeldError, UnknownModel
from modeld.simulation.clairvoyant import room_mb

FIFO: Final = "strict fifo"


@dataclass(slots=True)
class _Instance:
    id: InstanceId
    spec: ModelSpec
    need_mb: int
    ready: bool = False
    stopping: bool = False
    last_used: float = 0.0
    leases: set[RequestId] = field(default_factory=set)


class Fifo:
    """The policy. Same door as core's scheduler."""

    def __init__(self, limits: Limits, models: Mapping[ModelId, ModelSpec]) -> None:
        self._room_mb = room_mb(limits)
        self._models = dict(models)
        self._line: deque[Request] = deque()
        self._instances: dict[InstanceId, _Instance] = {}
        self._leases: dict[RequestId, _Instance] = {}
        self._number = 0

    def handle(self, event: Event, now: float) -> list[Command]:
        """The head of the line is served as far as it goes after every event."""
        out: list[Command] = []
        match event:
            case RequestArrived(request):
                self._line.append(request)
            case RequestWithdrawn(gone):
                self._line = deque(request for request in self._line if request.id != gone)
                self._release(gone, now)
            case LeaseReleased(gone) | LeaseFailed(gone):
                self._release(gone, now)
            case InstanceReady(instance):
                self._instances[instance].ready = True
            case InstanceFailed(instance, error):
                self._failed(self._instances[instance], error, out)
            case InstanceExited(instance):
                self._exited(self._instances[instance], out)
            case MemoryFreed(instance):
                del self._instances[instance]
            case ShutdownRequested():
                self._shut_down(out)
                return out
            case _:
                pass
        while self._line and self._serve(self._line[0], now, out):
            self._line.popleft()
        return out

    def next_wakeup(self) -> float | None:
        return None

    def snapshot(self, now: float, *, estimates: bool = True) -> Snapshot:
        used = sum(one.need_mb for one in self._instances.values())
        return Snapshot((), (), (), self._room_mb or 0, used, 0, 0, 0, 0, 0, 0, 0, False, None, None)

    def check_invariants(self) -> None:
        """Nothing to check: the world counts the memory itself."""

    # --- the head -----------------------------------------------------------------------------------------------------

    def _serve(self, head: Request, now: float, out: list[Command]) -> bool:
        """True when the head is granted or refused; False when it has to wait, and with it all others."""
        spec = self._models.get(head.model)
        refusal = self._refusal(head, spec)
        if refusal is not None or spec is None:
            out.append(Refuse(head.id, refusal or UnknownModel(f"{head.model} is not here")))
            return True
        instance = next((one for one in self._instances.values() if one.spec.id == head.model), None)
        if instance is None:
            self._make_room(spec, now, out)
            return False
        if instance.stopping or not instance.ready or len(instance.leases) >= spec.options.parallel:
            return False
        instance.leases.add(head.id)
        instance.last_used = now
        self._leases[head.id] = instance
        out.append(Grant(head.id, instance.id))
        return True

    def _refusal(self, head: Request, spec: ModelSpec | None) -> ModeldError | None:
        if spec is None or spec.unavailable is not None:
            return UnknownModel(f"{head.model} is not here")
        pinned = sum(one.need_mb for one in self._instances.values() if one.spec.pinned and one.spec.id != spec.id)
        if self._room_mb is not None and need(spec).total_mb + pinned > self._room_mb:
            return CannotEverFit(f"{head.model} needs {need(spec).total_mb} MB, there are {self._room_mb}")
        return None

    def _make_room(self, spec: ModelSpec, now: float, out: list[Command]) -> None:
        """Start it, or stop who is idle of the least recently used that must go; the rest go when they are idle."""
        cost = need(spec).total_mb
        used = sum(one.need_mb for one in self._instances.values())
        if self._room_mb is None or used + cost <= self._room_mb:
            self._number += 1
            instance = _Instance(InstanceId(f"{self._number}/{spec.id}"), spec, cost, last_used=now)
            self._instances[instance.id] = instance
            out.append(StartInstance(instance.id, spec, {LOCAL: cost}))
            return
        short = used + cost - self._room_mb - sum(one.need_mb for one in self._instances.values() if one.stopping)
        here = [one for one in self._instances.values() if one.ready and not one.stopping and not one.spec.pinned]
        for victim in sorted(here, key=lambda one: (one.last_used, one.id)):
            if short <= 0:
                return
            short -= victim.need_mb
            if not victim.leases:
                victim.stopping = True
                out.append(StopInstance(victim.id, f"evicted for {spec.id}"))

    # --- endings ------------------------------------------------------------------------------------------------------

    def _release(self, request: RequestId, now: float) -> None:
        instance = self._leases.pop(request, None)
        if instance is not None:
            instance.leases.discard(request)
            instance.last_used = now

    def _failed(self, instance: _Instance, error: ModeldError, out: list[Command]) -> None:
        """A failed load refuses the head that it was for; its memory comes back by itself."""
        instance.stopping = True
        if self._line and self._line[0].model == instance.spec.id:
            out.append(Refuse(self._line.popleft().id, error))

    def _exited(self, instance: _Instance, out: list[Command]) -> None:
        if not instance.ready and not instance.stopping:
            self._failed(instance, LoadFailed(f"{instance.spec.id} ended while it loaded"), out)
        instance.stopping = True

    def _shut_down(self, out: list[Command]) -> None:
        out.extend(Refuse(request.id, Draining("the run is over")) for request in self._line)
        self._line.clear()
        for instance in self._instances.values():
            if not instance.stopping:
                instance.stopping = True
                out.append(StopInstance(instance.id, "shutdown"))
