# SPDX-License-Identifier: GPL-3.0-only
"""Who gave way to whom, and whether that was right: the invariants eviction, closing and needless; rule: judged when the step is booked."""

from __future__ import annotations

import math
from collections.abc import Callable

from modeld.core.model import ModelId, ModelSpec
from modeld.simulation.outside import Outside
from modeld.simulation.room import coming, fits, is_clear, need_mb, with_memory_of, without_need_of
from modeld.simulation.seen import LOADING, Asked, Seen

EPSILON = 1e-9


class Victims:
    """Stopped at once, or closed until they have drained."""

    def __init__(self, outside: Outside, checks: frozenset[str], fail: Callable[[str, str], None]) -> None:
        self._outside = outside
        self._fail = fail
        self._eviction, self._closing, self._needless = "eviction" in checks, "closing" in checks, "needless" in checks

    def gave_way(self, stopped: list[Seen], closed: list[Seen], now: float, demands: list[tuple[Asked, ModelId]]) -> None:
        """What this step stopped and closed; `demands` are those of before it."""
        chosen: dict[str, list[Seen]] = {}
        for seen in stopped:
            if not seen.victim_of:
                continue
            self._evicted(seen, now)
            if not seen.draining:
                chosen.setdefault(seen.victim_of, []).append(seen)
        for seen in closed:
            self._closed(seen, now)
            if seen.closed_for:
                chosen.setdefault(seen.closed_for, []).append(seen)
        if self._needless:
            for name, victims in chosen.items():
                self._needed(ModelId(name), victims, now, demands)

    def _evicted(self, seen: Seen, now: float) -> None:
        if not self._eviction:
            return
        outside, name = self._outside, seen.victim_of
        told = f"{seen.id} is stopped for {name}"
        if seen.leases:
            self._fail("eviction", f"{told} while {len(seen.leases)} requests run on it")
        if outside.is_pinned(seen) or seen.spec.external:
            self._fail("eviction", f"{told} and is pinned or not ours")
        line = outside.lines.get(seen.model)
        if seen.ready_at is None:
            if line or (seen.for_ticket == math.inf and seen.model in outside.wishes):
                self._fail("eviction", f"{told} while it loads for somebody")
        elif not self._is_due(name, now):
            if line:
                self._fail("eviction", f"{told}, which is not due, while {len(line)} requests wait for it")
            if seen.draining and seen.closed_for:
                self._fail("eviction", f"{told}, which is not due, after it was closed for {seen.closed_for}")
            self._fresh(seen, told, now)
        elif not seen.draining and outside.in_turn(seen, now):
            self._fail("eviction", f"{told} while its own turn lasts")

    def _fresh(self, seen: Seen, told: str, now: float) -> None:
        """Nothing is known of its rhythm: within min_residency it is kept until it has been idle for as long as its load took."""
        outside = self._outside
        if seen.ready_at is None or outside.asked_count.get(seen.model, 0) > 1:
            return
        until = min(
            seen.ready_at + outside.limits.min_residency_seconds, max(seen.idle_at, seen.ready_at) + outside.least_load.get(seen.model, 0.0)
        )
        if now < until - EPSILON:
            self._fail("eviction", f"{told}, which is not due, {now - seen.ready_at:.3f} s after it became ready")

    def _closed(self, seen: Seen, now: float) -> None:
        if not self._closing or not seen.closed_for:
            return
        told = f"{seen.id} is closed for {seen.closed_for}"
        if not self._is_due(seen.closed_for, now):
            self._fail("closing", f"{told}, which is not due")
        if self._outside.is_pinned(seen) or seen.spec.external or seen.ready_at is None:
            self._fail("closing", f"{told} and is pinned, not ours, or not ready")
        if self._outside.in_turn(seen, now):
            self._fail("closing", f"{told} while its own turn lasts")

    def _is_due(self, name: str, now: float) -> bool:
        line = self._outside.lines.get(ModelId(name))
        return line is not None and self._outside.due_at(next(iter(line.values()))) <= now + EPSILON

    def _needed(self, model: ModelId, victims: list[Seen], now: float, demands: list[tuple[Asked, ModelId]]) -> None:
        """Without any one of the victims there would not have been room; with all of them there is."""
        outside = self._outside
        spec = outside.models.get(model)
        if spec is None:
            self._fail("needless", f"{[seen.id for seen in victims]} give way for {model}, which is not there")
            return
        if not outside.is_checked(model):
            self._fail("needless", f"{[seen.id for seen in victims]} give way for {model}, whose launch check has not passed")
        mine = [seen for seen in outside.instances.values() if model in (seen.victim_of, seen.closed_for)]
        back = [seen for seen in coming(outside) if seen not in mine]
        line = outside.lines.get(model)
        ticket = math.inf if line is None else outside.rank_of_age(next(iter(line.values())), model)
        older = self._before(model, ticket, now, demands)
        room = with_memory_of(outside.free_mb(), [*mine, *back])
        later = [
            seen
            for seen in outside.instances.values()
            if seen not in mine
            and (seen.draining or (not outside.is_pinned(seen) and (seen.state is LOADING or outside.may_be_in_turn(seen, now))))
        ]
        capacity = outside.capacity_mb()
        if not is_clear(outside, spec):
            return
        in_reach = with_memory_of(room, later)
        if not fits(spec, in_reach, capacity):
            told = f"{need_mb(spec)} MB, {in_reach} after drains, loads and turns"
            self._fail("needless", f"{[seen.id for seen in mine]} give way for {model} in vain: there is no room without more ({told})")
        room = without_need_of(room, older)
        others = [seen for seen in back if seen.stopped_at == now]
        for victim in victims:
            # One that goes at once is as good a choice as those that go in the same step for somebody younger; a busy one is not.
            gone = [victim] if victim.draining and not victim.stopped_at else [victim, *others]
            less = {device: mb - sum(seen.frees_mb(device) for seen in gone) for device, mb in room.items()}
            if fits(spec, less, capacity):
                self._fail("needless", f"{victim.id} gives way for {model}, which would have room without it: {less}")

    def _before(self, model: ModelId, ticket: float, now: float, demands: list[tuple[Asked, ModelId]]) -> list[ModelSpec]:
        """Demands of before this step that went before `model`: older ones; for one that is not due, more urgent ones too."""
        outside = self._outside
        if not self._is_due(model, now) and model in outside.lines:
            names = who_goes_before(outside, model, [one for one in demands if one[1] in outside.lines], now)
        else:
            names = [name for asked, name in demands if outside.rank_of_age(asked, name) <= ticket]
        return [outside.models[name] for name in names if name != model and name in outside.models]


def who_goes_before(outside: Outside, model: ModelId, demands: list[tuple[Asked, ModelId]], now: float) -> list[ModelId]:
    """Who goes before a demand that is not due."""
    mine = (True, outside.best_rank(model), next(iter(outside.lines[model].values())).ticket)
    found = []
    for asked, name in demands:
        if name in outside.models and (outside.due_at(asked) > now + EPSILON, outside.best_rank(name), asked.ticket) < mine:
            found.append(name)
    return found
