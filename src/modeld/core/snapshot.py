# SPDX-License-Identifier: GPL-3.0-only
"""The frozen read model for status, metrics and test assertions; rule: a copy, never a way in."""

from __future__ import annotations

from dataclasses import dataclass

from modeld.core.model import InstanceId, ModelId


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One running model. `state` is one of core.lifecycle.State's values; `last_used` is monotonic seconds."""

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


@dataclass(frozen=True, slots=True)
class LineView:
    """A model's line: how many wait, and for how long the oldest has waited."""

    model: ModelId
    length: int
    oldest_wait_seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one may see. Totals count since the start of the daemon."""

    instances: tuple[InstanceView, ...]
    lines: tuple[LineView, ...]
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
