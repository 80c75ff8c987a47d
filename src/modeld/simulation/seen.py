# SPDX-License-Identifier: GPL-3.0-only
"""One request and one instance as they look from outside, and what is raised when they must not look so; rule: it only records."""

from __future__ import annotations

import math
from collections.abc import Mapping

from modeld.core.model import DeviceId, InstanceId, ModelSpec, Request, RequestId
from modeld.errors import ModeldError

WAITING, RUNNING, ENDED = "waiting", "running", "ended"
LOADING, READY, STOPPING, FAILED = "loading", "ready", "stopping", "failed"


class Violation(Exception):
    """Something that must never be was seen. `name` is the invariant's."""

    def __init__(self, name: str, detail: str, seed: int, time: float) -> None:
        super().__init__(f"seed {seed}, {time:.6f} s: {name}: {detail}")
        self.name = name
        self.detail = detail
        self.seed = seed
        self.time = time

    def __reduce__(self) -> tuple[type[Violation], tuple[str, str, int, float]]:
        return Violation, (self.name, self.detail, self.seed, self.time)


class Asked:
    """A request from its arrival to its end. `ticket` counts arrivals; `granted`, `freed_at`: begin and end of its last lease."""

    __slots__ = (
        "arrived",
        "began_at",
        "error",
        "freed_at",
        "granted",
        "group",
        "instance",
        "place",
        "request",
        "requeued",
        "revoked",
        "ticket",
    )

    def __init__(self, request: Request, ticket: int, now: float) -> None:
        self.request = request
        self.ticket = ticket
        self.arrived = now
        self.group = (request.model, request.priority, request.principal)
        self.place = WAITING
        self.granted: float | None = None
        self.freed_at = math.inf
        self.began_at = math.inf
        self.instance: InstanceId | None = None
        self.revoked = False
        self.requeued = 0
        self.error: ModeldError | None = None


class Seen:
    """An instance from StartInstance to MemoryFreed.

    turn         requests that were aged when it became ready and stand in line (again); `turn_of` are all of them
    turn_sure    no settings changed since
    draining     the snapshot said so; `closed_for` then names the due model, if any
    closings     (model, time, leases that ran then) of each time it was closed for a due model, the last one last
    for_ticket   Outside.rank_of_age of the oldest request that waited when it was started, +inf when nobody did
    victim_of    the model it was stopped for, or ""
    """

    __slots__ = (
        "closed_at",
        "closed_for",
        "closings",
        "draining",
        "exited",
        "for_ticket",
        "gone_at",
        "id",
        "idle_at",
        "kept_until",
        "leases",
        "model",
        "need_mb",
        "ready_at",
        "slots",
        "spec",
        "started",
        "state",
        "stopped_at",
        "suspect_at",
        "turn",
        "turn_ended",
        "turn_of",
        "turn_sure",
        "turn_until",
        "victim_of",
        "why",
    )

    def __init__(self, instance: InstanceId, spec: ModelSpec, need_mb: Mapping[DeviceId, int], now: float) -> None:
        self.id = instance
        self.spec = spec
        self.model = spec.id
        self.slots = spec.options.parallel
        self.need_mb = tuple(need_mb.items())
        self.state = LOADING
        self.leases: dict[RequestId, Asked] = {}
        self.started = now
        self.ready_at: float | None = None
        self.stopped_at: float | None = None
        self.suspect_at = -math.inf
        self.idle_at = -math.inf
        self.kept_until = -math.inf
        self.exited = False
        self.draining = False
        self.closed_for = ""
        self.closed_at = math.inf
        self.closings: list[tuple[str, float, tuple[Asked, ...]]] = []
        self.turn: dict[RequestId, Asked] = {}
        self.turn_of: frozenset[RequestId] = frozenset()
        self.turn_until = -math.inf
        self.turn_sure = True
        self.turn_ended: float | None = None
        self.for_ticket = math.inf
        self.gone_at = math.inf
        self.victim_of = ""
        self.why = ""

    def close(self, model: str, now: float) -> None:
        """It takes nothing new any more, for a due model or (model "") for good."""
        if not self.draining:
            self.closed_at = now
        self.draining, self.closed_for = True, model
        if model:
            self.closings.append((model, now, tuple(self.leases.values())))

    def reopen(self) -> None:
        self.draining, self.closed_for, self.closed_at = False, "", math.inf

    def frees_mb(self, device: DeviceId) -> int:
        return next((mb for name, mb in self.need_mb if name == device), 0)
