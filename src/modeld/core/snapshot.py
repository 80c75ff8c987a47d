# SPDX-License-Identifier: GPL-3.0-only
"""The frozen read model for status, metrics and test assertions; rule: a copy, never a way in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from modeld.core.estimate import Need
from modeld.core.footprint import Footprint
from modeld.core.model import DeviceId, InstanceId, LaunchOptions, ModelId, Principal, Priority, RequestId


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One running model. `state` is one of core.lifecycle.State's values; `last_used` is monotonic seconds.

    devices_mb  MiB booked per device; `need_mb` is their sum without host memory
    closed_for  the due model for which it takes nothing new, or ""
    kept_until  its ttl ends no earlier, monotonic seconds; -inf = nobody asked for that
    cost        what was reserved for it and why, None where it is not an instance; `measured` the high-water marks of what it took
    options     what it was started with; `degraded` what of it was given up to make it fit, in words
    """

    id: InstanceId
    model: ModelId
    state: str
    need_mb: int
    slots: int
    inflight: int
    last_used: float
    pid: int | None
    progress: float
    external: bool
    devices_mb: Mapping[DeviceId, int]
    closed_for: str = ""
    pinned: bool = False
    kept_until: float = -math.inf
    cost: Need | None = None
    measured: Footprint | None = None
    options: LaunchOptions | None = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LineView:
    """A model's line: how many wait, and for how long the oldest has waited.

    by_class          how many wait in each class, those with none left out
    due_in_seconds    until room is made for it although others are busy; 0 = it is due; None = it has its instance
    estimate_seconds  how long a request that came now would wait: what Retry-After says
    """

    model: ModelId
    length: int
    oldest_wait_seconds: float
    by_class: Mapping[Priority, int]
    due_in_seconds: float | None
    estimate_seconds: float


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device of the ledger, MiB. `budget_mb` 0 = unlimited.

    reserved_mb, committed_mb, releasing_mb   what is used: for loads, by instances that are ready, on its way back
    room_mb       what may be used now: the budget less the margin, and less what others hold of the device; None = unlimited
    total_mb      what the device has, 0 = it was not seen; `foreign_mb` what other programs hold of it for good
    """

    id: DeviceId
    budget_mb: int
    used_mb: int
    releasing_mb: int = 0
    room_mb: int | None = None
    total_mb: int = 0
    foreign_mb: int = 0
    reserved_mb: int = 0
    committed_mb: int = 0

    @property
    def free_mb(self) -> int | None:
        """What may still be given out; None = unlimited."""
        return None if self.room_mb is None else max(0, self.room_mb - self.used_mb)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one may see. Totals count since the start of the daemon."""

    instances: tuple[InstanceView, ...]
    lines: tuple[LineView, ...]
    devices: tuple[DeviceView, ...]
    budget_mb: int
    used_mb: int
    margin_mb: int
    queue_depth_max: int
    waiting_bytes: int
    loads_total: int
    load_failures_total: int
    evictions_total: int
    crashes_total: int
    shutting_down: bool
    error: str | None
    last_error: str | None
    fairness_closings_total: int = 0
    """Instances closed to newcomers for a due model."""
    preemptions_total: int = 0
    requeued_total: int = 0
    """Requests that kept their place when an instance failed before their first byte."""
    stuck_total: int = 0
    """Instances stopped because nothing moved on them."""
    pinned: frozenset[ModelId] = frozenset()
    """Models that are pinned, loaded or not."""
    wished: frozenset[ModelId] = frozenset()
    """Models that are to be loaded without a request."""
    out_of_memory_total: int = 0
    """Loads that ran out of memory."""
    grown_total: int = 0
    """Instances that took more than was reserved for them."""
    one_pool: bool = True


@dataclass(frozen=True, slots=True)
class WaitView:
    """One waiting request. `position` counts from 1 in the order of arrival of its line; `why` is one sentence."""

    request: RequestId
    model: ModelId
    principal: Principal
    priority: Priority
    position: int
    waited_seconds: float
    estimate_seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why things are as they are: one sentence for each model that runs, waits or failed, and for each waiting request."""

    models: Mapping[ModelId, str]
    requests: tuple[WaitView, ...]
