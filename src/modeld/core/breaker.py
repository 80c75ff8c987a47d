# SPDX-License-Identifier: GPL-3.0-only
"""How long a model that failed is left alone: back-off, then an open circuit with a half-open probe; rule: time is an argument.

1  A failed load backs off, doubling from 1 s to 60 s, +-20 % by a hash of model and attempt.
2  A child that dies after it was ready is started again on the next demand; from the third death within WINDOW_SECONDS on it backs off too.
3  DEATHS_MAX deaths (failed loads included) within the window open the circuit: 60 s, doubling to 10 min with each probe that fails.
4  When that time is over the next request is the probe: one load. A request answered well closes the circuit.
A replaced file starts with a clean record.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Final

from modeld.core.model import ModelId
from modeld.errors import ModeldError

BACKOFF_FIRST_SECONDS: Final = 1.0
BACKOFF_MAX_SECONDS: Final = 60.0
JITTER: Final = 0.2
WINDOW_SECONDS: Final = 300.0
DEATHS_FREE: Final = 2
"""So many deaths of a ready instance within the window cost no pause."""
DEATHS_MAX: Final = 5
OPEN_FIRST_SECONDS: Final = 60.0
OPEN_MAX_SECONDS: Final = 600.0
STARTS_MAX: Final = 2 * DEATHS_MAX + 1
"""Within WINDOW_SECONDS no model is started more often than this because its instances died: until the circuit opens, then probes."""


@dataclass(slots=True)
class Failure:
    """The record of a model that failed. A new attempt is allowed from `until` on (monotonic seconds); `opened` counts openings."""

    error: ModeldError
    fingerprint: str
    at: float
    until: float
    attempts: int = 0
    opened: int = 0
    deaths: list[float] = field(default_factory=list)


class Breaker:
    """All records."""

    def __init__(self) -> None:
        self._failures: dict[ModelId, Failure] = {}

    def load_failed(self, model: ModelId, fingerprint: str, error: ModeldError, now: float) -> Failure:
        """Book a load that did not succeed."""
        record = self._died(model, fingerprint, error, now)
        record.attempts += 1
        record.until = max(record.until, now + backoff_seconds(model, record.attempts))
        return record

    def died(self, model: ModelId, fingerprint: str, error: ModeldError, now: float) -> Failure:
        """Book the death of an instance that was ready."""
        record = self._died(model, fingerprint, error, now)
        if len(record.deaths) > DEATHS_FREE:
            record.until = max(record.until, now + backoff_seconds(model, len(record.deaths) - DEATHS_FREE))
        return record

    def ready(self, model: ModelId) -> None:
        """The load succeeded: the next failure starts with the shortest pause again. Deaths stay on record."""
        record = self._failures.get(model)
        if record is not None:
            record.attempts = 0

    def answered(self, model: ModelId, now: float) -> None:
        """A request was answered: the circuit closes."""
        record = self._failures.get(model)
        if record is None:
            return
        record.opened = 0
        if not record.deaths or now - record.deaths[-1] > WINDOW_SECONDS:
            del self._failures[model]

    def forget(self, model: ModelId) -> None:
        self._failures.pop(model, None)

    def failure(self, model: ModelId) -> Failure | None:
        return self._failures.get(model)

    def blocked_until(self, model: ModelId) -> float:
        """No start before this time; -inf = none is held back."""
        record = self._failures.get(model)
        return float("-inf") if record is None else record.until

    def models(self) -> list[ModelId]:
        return list(self._failures)

    def is_open(self, model: ModelId) -> bool:
        record = self._failures.get(model)
        return record is not None and record.opened > 0

    def _died(self, model: ModelId, fingerprint: str, error: ModeldError, now: float) -> Failure:
        record = self._failures.get(model)
        if record is None or record.fingerprint != fingerprint:
            record = self._failures[model] = Failure(error, fingerprint, now, now)
        record.error, record.at = error, now
        record.deaths = [*(death for death in record.deaths if now - death < WINDOW_SECONDS), now]
        if record.opened or len(record.deaths) >= DEATHS_MAX:
            record.opened += 1
            record.until = now + _jitter(model, record.opened, min(OPEN_MAX_SECONDS, OPEN_FIRST_SECONDS * 2.0 ** (record.opened - 1)))
        return record


def backoff_seconds(model: ModelId, attempts: int) -> float:
    """Doubling from 1 s to 60 s, +-20 % by a hash of model and attempt, so that a thousand clients do not return together."""
    return _jitter(model, attempts, min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(attempts - 1, 16)))


def _jitter(model: ModelId, number: int, seconds: float) -> float:
    spread = zlib.crc32(f"{model}#{number}".encode()) / 0xFFFFFFFF
    return seconds * (1 - JITTER + 2 * JITTER * spread)
