# SPDX-License-Identifier: GPL-3.0-only
"""Accept or refuse a request at the door; rule: plain functions that return the refusal as a value.

The order of the questions is the order of usefulness to whom is refused: 1 are we open, 2 is the model servable, 3 can it ever fit,
4 did it just fail, 5 is there room in line, 6 can it make its deadline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modeld.core.estimate import Need
from modeld.core.model import Limits, ModelId, ModelSpec, Request
from modeld.errors import (
    BackingOff,
    CannotEverFit,
    DeadlineUnreachable,
    Draining,
    ModeldError,
    ModelUnavailable,
    QueueFull,
    UnknownModel,
)

DOUBT: Final = 2.0
"""A wait is refused at once when the own line alone is expected to take so many times max_wait: the expectation may err."""
RETRY_SECONDS_MAX: Final = 600


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a request would wait, in seconds: in all, and those parts of it that were measured before."""

    seconds: float
    measured_seconds: float


@dataclass(frozen=True, slots=True)
class Door:
    """What the door must know: all of it read in the same step in which the answer is booked.

    fits            False when no eviction could ever make room; `available_mb` is what the model may use at most then
    failure, retry_in_seconds   the last failure and how long it still backs off, or None
    line_seconds    what those ahead in the model's own line are expected to take
    outlook         asked only when the answer depends on it
    """

    open: bool
    spec: ModelSpec | None
    need: Need | None
    fits: bool
    available_mb: int
    failure: ModeldError | None
    retry_in_seconds: float
    line_length: int
    waiting_bytes: int
    goes_straight_through: bool
    line_seconds: float
    outlook: Callable[[], Outlook]


def refusal(request: Request, door: Door, limits: Limits) -> ModeldError | None:
    """The refusal, or None: the request may wait (or run at once)."""
    if not door.open:  # 1
        return Draining("modeld is shutting down; try again when it is back", retry_after_seconds=5)
    spec = door.spec
    absent = gone(request.model, spec)  # 2
    if absent is not None or spec is None:
        return absent
    if door.need is not None and not door.fits:  # 3
        return never_fits(spec, door.need, door.available_mb)
    if door.failure is not None and door.retry_in_seconds > 0:  # 4
        seconds = whole_seconds(door.retry_in_seconds)
        return BackingOff(
            f'model "{spec.id}" did not start: {door.failure.message.rstrip(".")}; next try in {seconds} s', retry_after_seconds=seconds
        )
    if door.goes_straight_through:
        return None
    return _crowded(request, spec, door, limits) or _too_late(request, spec, door, limits)


def _crowded(request: Request, spec: ModelSpec, door: Door, limits: Limits) -> ModeldError | None:  # 5
    if door.line_length >= limits.queue_depth_max:
        retry_after = whole_seconds(door.outlook().seconds)
        return QueueFull(
            f'{door.line_length} requests wait for "{spec.id}" already (max_queue_depth); try again in about {retry_after} s',
            retry_after_seconds=retry_after,
        )
    if door.waiting_bytes + request.body_bytes > limits.waiting_bytes_max:
        retry_after = whole_seconds(door.outlook().seconds)
        return QueueFull(
            f"waiting requests hold {door.waiting_bytes} bytes already (max_waiting_body_bytes); try again in about {retry_after} s",
            retry_after_seconds=retry_after,
        )
    return None


def _too_late(request: Request, spec: ModelSpec, door: Door, limits: Limits) -> ModeldError | None:  # 6
    if door.line_seconds > DOUBT * limits.wait_max_seconds:
        seconds = whole_seconds(door.outlook().seconds)
        return DeadlineUnreachable(
            f'a request for "{spec.id}" would wait about {seconds} s, far longer than max_wait ({limits.wait_max_seconds:g} s)',
            retry_after_seconds=seconds,
        )
    if request.timeout_seconds == math.inf:
        return None
    outlook = door.outlook()
    if request.timeout_seconds < outlook.measured_seconds:
        seconds = whole_seconds(outlook.seconds)
        return DeadlineUnreachable(
            f'"{spec.id}" would answer in about {seconds} s, later than X-Modeld-Timeout allows ({request.timeout_seconds:g} s)',
            retry_after_seconds=seconds,
        )
    return None


def gone(model: ModelId, spec: ModelSpec | None) -> ModeldError | None:
    """The refusal for a model that the catalogue no longer has, or cannot serve."""
    if spec is None:
        return UnknownModel(f'model "{model}" is not here any more; GET /models lists all')
    if spec.unavailable is not None:
        return ModelUnavailable(f'model "{spec.id}" cannot be served: {spec.unavailable}', retry_after_seconds=30)
    return None


def never_fits(spec: ModelSpec, need: Need, available_mb: int) -> CannotEverFit:
    """The refusal with its numbers when no eviction could ever make room."""
    return CannotEverFit(
        f'model "{spec.id}" needs {need.total_mb} MB ({need.source}), at most {available_mb} MB can be had '
        "(vram_budget_mb less vram_margin_mb and pinned models); raise the budget, or use a smaller llama_ctx or model"
    )


def whole_seconds(seconds: float) -> int:
    """For Retry-After: rounded up, between 1 s and 10 minutes."""
    return max(1, min(RETRY_SECONDS_MAX, math.ceil(min(seconds, RETRY_SECONDS_MAX))))
