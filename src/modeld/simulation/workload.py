# SPDX-License-Identifier: GPL-3.0-only
"""What is asked of a machine, as plain data, and what came of it; rule: nothing here depends on the policy that serves it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from modeld.core.model import ANONYMOUS, DeviceId, Limits, ModelId, ModelSpec, Principal, Priority, RequestId


@dataclass(frozen=True, slots=True)
class SimModel:
    """A model and how its child behaves. Seconds are medians; `load_sigma` is the lognormal spread of the load (0 = always the same)."""

    spec: ModelSpec
    load_seconds: float
    load_sigma: float = 0.0
    stop_seconds: float = 0.2

    @property
    def id(self) -> ModelId:
        return self.spec.id


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: it comes `at`, runs `service_seconds` once granted, and its client leaves at `leaves_at` if it has not ended by then."""

    at: float
    request: RequestId
    model: ModelId
    service_seconds: float
    tokens: int = 1
    principal: Principal = ANONYMOUS
    priority: Priority | None = None
    work: float = 1.0
    timeout_seconds: float = math.inf
    leaves_at: float = math.inf
    body_bytes: int = 0
    keep_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """`asks` are in order of time. `limits` holds the budgets and all other settings of the scheduler."""

    name: str
    models: tuple[SimModel, ...]
    asks: tuple[Ask, ...]
    limits: Limits = field(default_factory=Limits)
    note: str = ""

    @property
    def budget_mb(self) -> Mapping[DeviceId, int]:
        return self.limits.budget_mb


@dataclass(frozen=True, slots=True)
class Served:
    """How one request ended: `granted` is None when it never ran; `outcome` is "done", "left" or the kind of the error."""

    ask: Ask
    granted: float | None
    ended: float
    outcome: str


@dataclass(frozen=True, slots=True)
class Stay:
    """One instance, from StartInstance to MemoryFreed. `ready` is None when it never was; `why` is why it was stopped, "" at the end.

    `closed` is when it took nothing new any more for a due model, None if that never was.
    """

    model: ModelId
    started: float
    ready: float | None
    stopping: float
    gone: float
    why: str = ""
    closed: float | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What a run of a workload under one policy came to. `swap_seconds` is the sum of all loads, the failed and cancelled ones too."""

    workload: Workload
    policy: str
    served: tuple[Served, ...]
    stays: tuple[Stay, ...]
    until: float

    @property
    def loads(self) -> int:
        return len(self.stays)

    @property
    def swap_seconds(self) -> float:
        return sum((stay.stopping if stay.ready is None else stay.ready) - stay.started for stay in self.stays)
