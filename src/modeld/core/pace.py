# SPDX-License-Identifier: GPL-3.0-only
"""What was learned of seconds: loads, answers, stops, and the rhythm in which a model is asked; rule: arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from modeld.core.model import ModelId

WEIGHT: Final = 0.3
"""Of the newest sample in a moving average."""
FIRST_LOAD_SECONDS: Final = 5.0
FIRST_REQUEST_SECONDS: Final = 5.0
FIRST_STOP_SECONDS: Final = 0.5
GAP_SECONDS_MIN: Final = 0.001
REUSE_SECONDS: Final = 60.0
"""How far ahead the chance of reuse looks."""


@dataclass(slots=True)
class Pace:
    """Moving averages, in seconds. Gaps between arrivals are averaged as logarithms: one long pause does not hide a burst."""

    _load: dict[ModelId, float] = field(default_factory=dict)
    _request: dict[ModelId, float] = field(default_factory=dict)
    _log_gap: dict[ModelId, float] = field(default_factory=dict)
    _asked: dict[ModelId, float] = field(default_factory=dict)
    _stop: float | None = None
    _seconds_per_mb: float | None = None

    # --- samples ------------------------------------------------------------------------------------------------------

    def loaded(self, model: ModelId, seconds: float, need_mb: int) -> None:
        self._load[model] = _mix(self._load.get(model), seconds)
        if need_mb > 0:
            self._seconds_per_mb = _mix(self._seconds_per_mb, seconds / need_mb)

    def served(self, model: ModelId, seconds: float) -> None:
        self._request[model] = _mix(self._request.get(model), seconds)

    def stopped(self, seconds: float) -> None:
        self._stop = _mix(self._stop, seconds)

    def asked(self, model: ModelId, now: float) -> None:
        before = self._asked.get(model)
        self._asked[model] = now
        if before is not None:
            self._log_gap[model] = _mix(self._log_gap.get(model), math.log(max(GAP_SECONDS_MIN, now - before)))

    # --- expectations -------------------------------------------------------------------------------------------------

    def load_seconds(self, model: ModelId, need_mb: int) -> float:
        """Learned; for a model never loaded, from its size and what other loads took for theirs."""
        known = self._load.get(model)
        if known is not None:
            return known
        return FIRST_LOAD_SECONDS if self._seconds_per_mb is None else max(0.1, self._seconds_per_mb * need_mb)

    def knows_load(self, model: ModelId) -> bool:
        return model in self._load

    def knows_request(self, model: ModelId) -> bool:
        return model in self._request

    def request_seconds(self, model: ModelId) -> float:
        return self._request.get(model, FIRST_REQUEST_SECONDS)

    def stop_seconds(self) -> float:
        return FIRST_STOP_SECONDS if self._stop is None else self._stop

    def asked_at(self, model: ModelId) -> float:
        """When the model was last asked for, -inf = never."""
        return self._asked.get(model, -math.inf)

    def gap_seconds(self, model: ModelId) -> float | None:
        """The usual pause between two requests, None before the second one."""
        known = self._log_gap.get(model)
        return None if known is None else math.exp(known)

    def chance_of_reuse(self, model: ModelId, now: float) -> float:
        """0..1: that it is asked for within REUSE_SECONDS, if arrivals are independent, at the usual rate or a lower one if overdue."""
        gap = self.gap_seconds(model)
        since = now - self.asked_at(model)
        pause = since if gap is None else max(gap, since)
        return 1.0 if pause <= 0 else 1.0 - math.exp(-REUSE_SECONDS / pause)


def _mix(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)
