# SPDX-License-Identifier: GPL-3.0-only
"""What was learned of seconds, and how long a failure backs off; rule: arithmetic only, jitter is a hash of what it belongs to."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Final

from modeld.core.model import ModelId
from modeld.errors import ModeldError

WEIGHT: Final = 0.3
"""Of the newest sample in the moving average."""
FIRST_LOAD_SECONDS: Final = 5.0
FIRST_REQUEST_SECONDS: Final = 5.0
BACKOFF_FIRST_SECONDS: Final = 1.0
BACKOFF_MAX_SECONDS: Final = 60.0
JITTER: Final = 0.2


@dataclass(slots=True)
class Pace:
    """Moving averages by model, in seconds."""

    _load: dict[ModelId, float] = field(default_factory=dict)
    _request: dict[ModelId, float] = field(default_factory=dict)

    def loaded(self, model: ModelId, seconds: float) -> None:
        self._load[model] = _mix(self._load.get(model), seconds)

    def served(self, model: ModelId, seconds: float) -> None:
        self._request[model] = _mix(self._request.get(model), seconds)

    def expected_wait(self, model: ModelId, *, ahead: int, slots: int, resident: bool) -> float:
        """Seconds until a new arrival would be granted: those ahead over the slots, plus a load when the model is not resident."""
        load = 0.0 if resident else self._load.get(model, FIRST_LOAD_SECONDS)
        return load + (ahead + 1) / max(1, slots) * self._request.get(model, FIRST_REQUEST_SECONDS)


@dataclass(frozen=True, slots=True)
class Failure:
    """The last load failure of a model, `at` its time. A new attempt is allowed from `until` on (both monotonic seconds)."""

    error: ModeldError
    fingerprint: str
    attempts: int
    at: float
    until: float


def backoff_seconds(model: ModelId, attempts: int) -> float:
    """Doubling from 1 s to 60 s, +-20 % by a hash of model and attempt, so that a thousand clients do not return together."""
    base = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(attempts - 1, 16))
    spread = zlib.crc32(f"{model}#{attempts}".encode()) / 0xFFFFFFFF
    return base * (1 - JITTER + 2 * JITTER * spread)


def _mix(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)
