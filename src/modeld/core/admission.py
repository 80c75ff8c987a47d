# SPDX-License-Identifier: GPL-3.0-only
"""Accept or refuse a request at the door; rule: plain functions that return the refusal as a value.

The order of the questions is the order of usefulness to whom is refused: 1 are we open, 2 is the model servable, 3 can it ever fit,
4 did it just fail, 5 is there room in line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from modeld.core.estimate import Need
from modeld.core.model import Limits, ModelId, ModelSpec, Request
from modeld.errors import BackingOff, CannotEverFit, Draining, ModeldError, ModelUnavailable, QueueFull, UnknownModel


@dataclass(frozen=True, slots=True)
class Door:
    """What the door must know: all of it read in the same step in which the answer is booked.

    available_mb    what the model may use at most: budget less margin less other models' pins; None = unlimited
    failure, retry_in_seconds   the last load failure and how long it still backs off, or None
    """

    open: bool
    spec: ModelSpec | None
    need: Need | None
    available_mb: int | None
    failure: ModeldError | None
    retry_in_seconds: float
    line_length: int
    waiting_bytes: int
    expected_wait_seconds: float
    goes_straight_through: bool


def refusal(request: Request, door: Door, limits: Limits) -> ModeldError | None:
    """The refusal, or None: the request may wait (or run at once)."""
    if not door.open:  # 1
        return Draining("modeld is shutting down; try again when it is back", retry_after_seconds=5)
    spec = door.spec
    absent = gone(request.model, spec)  # 2
    if absent is not None or spec is None:
        return absent
    if door.need is not None and (misfit := never_fits(spec, door.need, door.available_mb)):  # 3
        return misfit
    if door.failure is not None and door.retry_in_seconds > 0:  # 4
        seconds = math.ceil(door.retry_in_seconds)
        return BackingOff(
            f'model "{spec.id}" did not start: {door.failure.message.rstrip(".")}; next try in {seconds} s', retry_after_seconds=seconds
        )
    if door.goes_straight_through:
        return None
    retry_after = whole_seconds(door.expected_wait_seconds)
    if door.line_length >= limits.queue_depth_max:  # 5
        return QueueFull(
            f'{door.line_length} requests wait for "{spec.id}" already (max_queue_depth); try again in about {retry_after} s',
            retry_after_seconds=retry_after,
        )
    if door.waiting_bytes + request.body_bytes > limits.waiting_bytes_max:
        return QueueFull(
            f"waiting requests hold {door.waiting_bytes} bytes already (max_waiting_body_bytes); try again in about {retry_after} s",
            retry_after_seconds=retry_after,
        )
    return None


def gone(model: ModelId, spec: ModelSpec | None) -> ModeldError | None:
    """The refusal for a model that the catalogue no longer has, or cannot serve."""
    if spec is None:
        return UnknownModel(f'model "{model}" is not here any more; GET /models lists all')
    if spec.unavailable is not None:
        return ModelUnavailable(f'model "{spec.id}" cannot be served: {spec.unavailable}', retry_after_seconds=30)
    return None


def never_fits(spec: ModelSpec, need: Need, available_mb: int | None) -> CannotEverFit | None:
    """The refusal with its numbers when no eviction could ever make room."""
    if available_mb is None or need.total_mb <= available_mb:
        return None
    return CannotEverFit(
        f'model "{spec.id}" needs {need.total_mb} MB ({need.source}), at most {available_mb} MB can be had '
        "(vram_budget_mb less vram_margin_mb and pinned models); raise the budget, or use a smaller llama_ctx or model"
    )


def whole_seconds(seconds: float) -> int:
    """For Retry-After: rounded up, between 1 s and 10 minutes."""
    return max(1, min(600, math.ceil(seconds)))
