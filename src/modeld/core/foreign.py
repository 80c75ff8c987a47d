# SPDX-License-Identifier: GPL-3.0-only
"""What other programs hold of a device, as far as it lasts; rule: a short rise or fall changes nothing, so that nobody is evicted for it.

The figure moves only when all that was seen for SETTLE_SECONDS lies on one side of it, by STEP_MB at least; then to the nearest of those.
A load that ran out of memory is no longer nothing: then the last look counts at once, where it is higher.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from modeld.core.model import DeviceId

SETTLE_SECONDS: Final = 10.0
STEP_MB: Final = 64
SAMPLES_MAX: Final = 256


class Foreign:
    """MiB per device."""

    def __init__(self) -> None:
        self._settled: dict[DeviceId, int] = {}
        self._seen: dict[DeviceId, deque[tuple[float, int]]] = {}

    def settled_mb(self, device: DeviceId) -> int:
        """What others hold for good, as far as is known."""
        return self._settled.get(device, 0)

    def observe(self, device: DeviceId, foreign_mb: int, now: float) -> bool:
        """Take one look. True when the figure moved. The first look counts at once: nothing was decided without it."""
        seen = self._seen.setdefault(device, deque(maxlen=SAMPLES_MAX))
        seen.append((now, foreign_mb))
        if device not in self._settled:
            self._settled[device] = foreign_mb
            return foreign_mb > 0
        while len(seen) > 1 and seen[1][0] <= now - SETTLE_SECONDS:
            seen.popleft()
        if seen[0][0] > now - SETTLE_SECONDS:
            return False
        settled, amounts = self._settled[device], [amount for _, amount in seen]
        if min(amounts) >= settled + STEP_MB:
            self._settled[device] = min(amounts)
        elif max(amounts) <= settled - STEP_MB:
            self._settled[device] = max(amounts)
        return self._settled[device] != settled

    def believe(self, device: DeviceId) -> bool:
        """The last look counts, where it is higher. True when the figure moved."""
        seen = self._seen.get(device)
        if not seen or seen[-1][1] <= self.settled_mb(device):
            return False
        self._settled[device] = seen[-1][1]
        return True
