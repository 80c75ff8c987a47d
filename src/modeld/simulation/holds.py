# SPDX-License-Identifier: GPL-3.0-only
"""The invariant pins: the operator's word holds, and what is pinned together has room for all of it; rule: from outside, by sums.

1  The snapshot's pins are those of the settings, as the operator changed them since. A pin that was refused to who asked changes nothing.
2  A pin is refused when the pinned models need more than there is of all devices, or of host memory; with one device only then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from modeld.core.messages import Command, Event, ModelTableReplaced, PinChanged
from modeld.core.model import HOST, ModelId
from modeld.core.snapshot import Snapshot
from modeld.simulation.outside import Outside
from modeld.simulation.room import need_mb


class Seen(Protocol):
    """What is looked at."""

    def snapshot(self, now: float, *, estimates: bool = True) -> Snapshot: ...


class Pins:
    """Watches pins and the catalogues that come after them."""

    def __init__(self, outside: Outside, watched: Seen, fail: Callable[[str, str], None]) -> None:
        self._outside = outside
        self._watched = watched
        self._fail = fail

    def before(self, event: Event, now: float) -> None:
        """The event is booked outside."""
        outside = self._outside
        if type(event) is not PinChanged or not event.pinned or outside.shutting_down:
            return
        spec = outside.models.get(event.model)
        if spec is None or (outside.pin_refused and spec.unavailable is not None) or spec.external:
            return
        if not outside.pin_refused and not outside.pin_is_new:
            return  # it was pinned before: no word of it is asked for
        exceeded = self._exceeded(event.model)  # 2
        if exceeded and not outside.pin_refused:
            self._fail("pins", f"{event.model} is pinned, and then {exceeded}")
        if not exceeded and outside.pin_refused and len([device for device in outside.limits.budget_mb if device != HOST]) == 1:
            self._fail("pins", f"{event.model} may not be pinned, and everything pinned would have room")

    def after(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """1"""
        if type(event) in (PinChanged, ModelTableReplaced):
            outside = self._outside
            known = frozenset(spec.id for spec in outside.models.values() if outside.is_held(spec))
            seen = self._watched.snapshot(now, estimates=False).pinned
            if seen != known:
                self._fail("pins", f"pinned are {sorted(seen)} in the snapshot, {sorted(known)} outside")

    def _exceeded(self, model: ModelId) -> str:
        """What is too little for all that are pinned and `model`, or ""."""
        outside = self._outside
        specs = [spec for spec in outside.models.values() if (spec.id == model or outside.is_held(spec)) and not spec.external]
        capacity = outside.capacity_mb()
        room, host_mb = sum(mb for device, mb in capacity.items() if device != HOST), capacity.get(HOST, math.inf)
        if (needed := sum(need_mb(spec) for spec in specs)) > room:
            return f"{needed} MB are pinned of {room}"
        if (needed := sum(spec.host_mb for spec in specs)) > host_mb:
            return f"{needed} MB of host memory are pinned of {host_mb}"
        return ""
