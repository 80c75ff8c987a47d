# SPDX-License-Identifier: GPL-3.0-only
"""The invariant loads: a model is loaded for somebody, checked, not too soon after a failure, and served as it is now; rule: from outside.

1  A start is for somebody who waits, for a wish, or for a model whose file or options changed while it was resident.
2  The launch of that very file was checked since the last start.
3  After a load that failed the next start comes 1 s later at the earliest, less a fifth; after the fifth death within five minutes 60 s.
4  Who waited for a load that failed hears of it in the same step; who failed twice before the first byte is refused.
5  Nothing is granted on an instance whose file or options are no longer those of its model.
6  One demand alone has what idle instances hold once nothing can protect them any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from modeld.core.messages import (
    Command,
    Event,
    Grant,
    InstanceExited,
    InstanceFailed,
    LeaseFailed,
    ModelTableReplaced,
    StartInstance,
    StopInstance,
    UnloadRequested,
)
from modeld.core.model import InstanceId, ModelId, ModelSpec
from modeld.simulation.outside import STUCK, Outside
from modeld.simulation.room import coming, fits, is_clear, is_hopeless, with_memory_of
from modeld.simulation.seen import LOADING, READY, WAITING, Seen

SLACK = 1e-6
PAUSE_SECONDS, OPEN_SECONDS, JITTER = 1.0, 60.0, 0.2
DEATHS, WINDOW_SECONDS = 5, 300.0


def same_launch(one: ModelSpec, other: ModelSpec) -> bool:
    """Would both start the very same thing?"""
    fields = ("fingerprint", "options", "mmproj", "kind", "pooling")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


class Loads:
    """Watches starts and failures."""

    def __init__(self, outside: Outside, fail: Callable[[str, str], None]) -> None:
        self._outside = outside
        self._fail = fail
        self._checked: dict[ModelId, str] = {}
        self._renewed: set[ModelId] = set()
        """Models that may be loaded anew without a request."""
        self._deaths: dict[ModelId, list[float]] = {}
        self._not_before: dict[ModelId, float] = {}
        self._dying: dict[InstanceId, bool] = {}

    def before(self, event: Event, now: float) -> None:
        """Whose check has passed, and what this event says of a failure."""
        outside = self._outside
        self._checked = dict(outside.checked)
        if type(event) is ModelTableReplaced:
            self._table()
        elif type(event) is UnloadRequested:
            self._renewed.discard(event.model)
        elif type(event) in (InstanceFailed, InstanceExited):
            seen = outside.instances[event.instance]  # type: ignore[union-attr]
            if seen.stopped_at == now and seen.id not in self._dying and not seen.why:
                self._dying[seen.id] = True
                self._died(seen, now, failed=seen.ready_at is None)

    def after(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Everything is booked."""
        outside = self._outside
        if type(event) in (InstanceFailed, InstanceExited):
            seen = outside.instances[event.instance]  # type: ignore[union-attr]
            if seen.ready_at is None and not seen.why and seen.stopped_at == now and seen.model in outside.lines:  # 4
                self._fail("loads", f"{seen.id} did not load, and {len(outside.lines[seen.model])} requests that waited for it wait on")
        elif type(event) is LeaseFailed:
            asked = outside.requests.get(event.request)
            if asked is not None and asked.place is WAITING and asked.requeued > 1:  # 4
                self._fail("loads", f"{event.request} failed {asked.requeued} times before its first byte and stands in line again")
        for command in commands:
            if type(command) is StartInstance:
                self._started(command, now)
            elif type(command) is StopInstance and command.why == STUCK:
                self._died(outside.instances[command.instance], now, failed=False)
            elif type(command) is Grant:
                seen = outside.instances[command.instance]
                spec = outside.models.get(seen.model)
                if spec is None or not same_launch(spec, seen.spec):  # 5
                    self._fail("loads", f"{command.request} is granted on {seen.id}, whose model was replaced")
        self._idle_room(now)

    # --- starts -------------------------------------------------------------------------------------------------------

    def _started(self, command: StartInstance, now: float) -> None:
        outside, spec = self._outside, command.spec
        model = spec.id
        if model not in outside.lines and model not in outside.asked_for and model not in self._renewed:  # 1
            self._fail("loads", f"{command.instance} is started, and nobody wants it")
        self._renewed.discard(model)
        if not spec.external and self._checked.get(model) != spec.fingerprint:  # 2
            self._fail("loads", f"{command.instance} is started, and its launch check has not passed")
        if now < self._not_before.get(model, -math.inf) - SLACK:  # 3
            self._fail("loads", f"{command.instance} is started {self._not_before[model] - now:.3f} s too soon after it failed")

    def _died(self, seen: Seen, now: float, *, failed: bool) -> None:
        """3"""
        model = seen.model
        spec = self._outside.models.get(model)
        if spec is None or spec.fingerprint != seen.spec.fingerprint:
            return  # the record is clean again
        deaths = self._deaths[model] = [*(at for at in self._deaths.get(model, ()) if now - at < WINDOW_SECONDS), now]
        pause = PAUSE_SECONDS if failed else 0.0
        if len(deaths) >= DEATHS:
            pause = OPEN_SECONDS
        self._not_before[model] = max(self._not_before.get(model, -math.inf), now + pause * (1 - JITTER))

    def _table(self) -> None:
        """Models were replaced."""
        outside = self._outside
        for seen in outside.instances.values():
            spec = outside.models.get(seen.model)
            if seen.state in (LOADING, READY) and spec is not None and not same_launch(spec, seen.spec):
                self._renewed.add(seen.model)
        self._deaths.clear()
        self._not_before.clear()

    # --- idle ---------------------------------------------------------------------------------------------------------

    def _idle_room(self, now: float) -> None:
        """6"""
        outside = self._outside
        if outside.wishes or self._renewed or not outside.lines or outside.shutting_down:
            return
        demands = outside.demands()
        if len(demands) != 1:
            return
        model = demands[0][1]
        spec = outside.models.get(model)
        if spec is None or not outside.is_checked(model) or not is_clear(outside, spec) or is_hopeless(outside, spec):
            return
        if model in self._deaths or (len(outside.limits.budget_mb) > 1 and outside.holds_any()):
            return  # it may back off; where it could run depends on where pinned models are
        going = [*coming(outside), *(seen for seen in outside.instances.values() if seen.draining and seen.state is READY)]
        room, capacity = with_memory_of(outside.free_mb(), going), outside.capacity_mb()
        if fits(spec, room, capacity):
            return
        idle = [seen for seen in outside.instances.values() if self._is_idle(seen, now)]
        if fits(spec, with_memory_of(room, idle), capacity):
            self._fail("loads", f"{demands[0][0].request.id} waits for {model}, and {[seen.id for seen in idle]} are idle for no reason")

    def _is_idle(self, seen: Seen, now: float) -> bool:
        """Whatever its rhythm, it is kept no longer than min_residency after it became ready or its last request ended."""
        outside = self._outside
        if seen.state is not READY or seen.draining or seen.leases or seen.ready_at is None or seen.model in outside.lines:
            return False
        if outside.is_pinned(seen) or seen.spec.external:
            return False
        return max(seen.ready_at, seen.idle_at) + outside.limits.min_residency_seconds < now - SLACK
