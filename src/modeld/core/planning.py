# SPDX-License-Identifier: GPL-3.0-only
"""From the book to a plan and back: who wants room, who could give way, what placement.py made of it; rule: no choice of its own.

Due demands first (oldest first), then the others by class and age, then what the operator wished for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from modeld.core import placement
from modeld.core.book import Alarm, Book
from modeld.core.bookings import Bookings
from modeld.core.eviction import Candidate, choose, in_order, worth
from modeld.core.instance import EVICTED, Instance
from modeld.core.lifecycle import State
from modeld.core.model import EvictionPolicy, InstanceId, ModelId
from modeld.core.placement import Demand, Room


class Planner:
    """Makes the plan anew and books it."""

    def __init__(self, book: Book, bookings: Bookings) -> None:
        self._book = book
        self._do = bookings
        self._again_at = math.inf
        """The alarm that is set for the next plan."""

    def run(self, now: float) -> None:
        """Check new demands, decide, book. Sets an alarm for when the same facts would give another plan."""
        book, do = self._book, self._do
        if self._again_at <= now:
            self._again_at = math.inf
        unchecked, do.unchecked = do.unchecked, {}
        for model in unchecked:
            if model not in book.by_model and (book.is_demand(model) or model in book.wishes):
                do.check(model)
        room = self._relieved(Room(book.free_mb(), book.coming_mb()), now)
        due = book.due_count(now)
        plan = placement.plan(self._demands(due, now), in_order(self._candidates(now)), room, book.least_mb())
        book.waits = plan.waits
        for instance in book.instances.values():
            if instance.is_closed and instance.id not in plan.evict:
                do.reopen(instance)
        for victim, for_model in plan.evict.items():
            instance = book.instances[victim]
            if not instance.is_closed:
                book.give_way(instance.model, now)
            if instance.leases:
                do.close(instance, for_model, now)
            else:
                do.stop(instance, f"{EVICTED} for {for_model}", now)
        for model, place in plan.start.items():
            do.start(model, place, now)
        self._set_alarm(now)

    def _relieved(self, room: Room, now: float) -> Room:
        """More may be held than we may have: something grew, or other programs took memory. Then idle ones go, the deficit only.

        What grew goes after all others, and what grew last stays. Without a deficit nothing is said about who grew any more.
        """
        book = self._book
        short = {device: mb for device, free in room.free.items() if (mb := -free - room.coming.get(device, 0)) > 0}
        if not short:
            book.grown.clear()
            return room
        grown = {key: place for place, key in enumerate(book.grown, start=1)}
        latest = next(reversed(book.grown), None)
        pool = [one for one in in_order(self._candidates(now)) if one.id != latest and not one.busy and not one.later]
        pool = sorted((one for one in pool if self._may_go(one.id)), key=lambda one: grown.get(one.id, 0))
        can_come = {device: min(mb, sum(one.frees_mb.get(device, 0) for one in pool)) for device, mb in short.items()}
        for victim in choose(pool, {device: mb for device, mb in can_come.items() if mb > 0}) or ():
            self._do.stop(book.instances[victim.id], f"{EVICTED}, memory is short", now)
        return Room(book.free_mb(), book.coming_mb())

    def _may_go(self, key: InstanceId) -> bool:
        """It is ready, nothing is asked of it, and it is not closed for somebody already."""
        instance = self._book.instances[key]
        return instance.state is State.READY and not self._book.is_wanted(instance)

    # --- demands ------------------------------------------------------------------------------------------------------

    def demands(self, now: float) -> Iterator[Demand]:
        """Who waits for room, in the order of their turn, for those who ask what would be."""
        return self._demands(self._book.due_count(now), now)

    def _demands(self, due: int, now: float) -> Iterator[Demand]:
        """The first `due` demands, then the others."""
        book = self._book
        for _, _, model in book.demands[:due]:
            if (demand := self._demand(model, now, due=True)) is not None:
                yield demand
        rest = book.demands[due:]
        rest.sort(key=lambda one: line.best_rank() if (line := book.lines.of(one[2])) is not None else 0)
        for _, _, model in rest:
            if (demand := self._demand(model, now, due=False)) is not None:
                yield demand
        for model, may_evict in book.wishes.items():
            if model not in book.by_model and not book.is_demand(model):
                demand = self._demand(model, now, due=False)
                if demand is not None:
                    demand.may_evict = may_evict
                    yield demand

    def _demand(self, model: ModelId, now: float, *, due: bool) -> Demand | None:
        """None while a start is held back after a failure, or while llama.cpp is asked: nobody waits for that but a due one's juniors."""
        book = self._book
        if book.breaker.blocked_until(model) > now or (model in book.probing and not due):
            return None
        checked = model not in book.probing and (book.checked.get(model) == book.models[model].fingerprint)
        return Demand(model, book.places(model), due, checked)

    # --- residents ----------------------------------------------------------------------------------------------------

    def candidates(self, now: float) -> list[Candidate]:
        """Who may be evicted at all, for those who ask what would be."""
        return self._candidates(now)

    def _candidates(self, now: float) -> list[Candidate]:
        """Who may be evicted at all: never the pinned, never what is not ours, never what is on its way out already."""
        book = self._book
        by_cost = book.limits.eviction is EvictionPolicy.COST
        found: list[Candidate] = []
        for instance in book.instances.values():
            state = instance.state
            closed = state is State.DRAINING
            if (closed and instance.drain_why != EVICTED) or state is State.STOPPING or state is State.FAILED:
                continue
            if instance.external or book.is_pinned(instance):
                continue
            busy = bool(instance.leases)
            if state is State.LOADING:
                later = book.is_wanted(instance)
                idle = not later
            else:
                later = instance.turn_until > now and book.turn_waits(instance)
                idle = not (closed or busy or book.is_wanted(instance)) and book.protected_until(instance, now) <= now
            keep = self._worth(instance, now) if by_cost else instance.last_used
            found.append(Candidate(instance.id, instance.need_mb, keep, idle, busy, closed, later))
        return found

    def _worth(self, instance: Instance, now: float) -> float:
        pace, need_mb = self._book.pace, instance.device_mb
        return worth(pace.load_seconds(instance.model, need_mb), pace.chance_of_reuse(instance.model, now), need_mb)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _set_alarm(self, now: float) -> None:
        """The next moment at which a demand becomes due, a protection or a turn ends, or a model may be started again."""
        book = self._book
        if not book.demands and not book.wishes:
            self._again_at = math.inf  # it means nothing now and may be dropped: the next demand sets its own
            return
        due = book.due_count(now)
        at = book.demands[due][0] if due < len(book.demands) else math.inf
        for instance in book.instances.values():
            if instance.state is State.READY:
                if due and instance.turn_until > now:
                    at = min(at, instance.turn_until)
                if not instance.leases and (protected := book.protected_until(instance, now)) > now:
                    at = min(at, protected)
        for model in book.breaker.models():
            if now < (until := book.breaker.blocked_until(model)) and (book.is_demand(model) or model in book.wishes):
                at = min(at, until)
        if at < self._again_at:
            self._again_at = at
            book.alarm(at, Alarm.PLAN)
