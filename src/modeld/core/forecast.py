# SPDX-License-Identifier: GPL-3.0-only
"""How long a request would wait: what Retry-After, /status and `modeld why` say; rule: it reads the book and changes nothing.

The sum of three parts, each from learned seconds (pace.py):
1  Room: nothing where there is room now; the end of a child that stops; the rest of a protection; or the time until the model is due, then
   for each due model ahead that needs the same memory its drain, load and turn, then the own drain.
2  The own load, or what is left of it.
3  The line: those ahead over the slots, each for the usual time of an answer; those that run for what is left of theirs.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Final

from modeld.core.book import Book
from modeld.core.instance import EVICTED, Instance
from modeld.core.lifecycle import State
from modeld.core.model import HOST, DeviceId, ModelId
from modeld.core.placement import Vector

REST_SHARE: Final = 0.25
"""Of the usual time: what something that has taken longer than usual is expected to take on."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds. `guessed`: the load was never measured."""

    room_seconds: float
    load_seconds: float
    line_seconds: float
    guessed: bool = False

    @property
    def seconds(self) -> float:
        return self.room_seconds + self.load_seconds + self.line_seconds


def forecast(book: Book, model: ModelId, now: float, *, ahead: int) -> Forecast:
    """For a request with `ahead` others before it in the line of `model`, which is in the catalogue."""
    spec = book.models[model]
    slots = spec.options.parallel
    usual = book.pace.request_seconds(model)
    instance = book.by_model.get(model)
    if instance is not None and instance.state is State.READY:
        line = _line_seconds(book, instance, now, ahead, usual)
        return Forecast(max(0.0, instance.suspect_until - now), 0.0, line + _interrupted_seconds(book, model, now, line, 0.0))
    load = book.pace.load_seconds(model, book.need(model).total_mb)
    line = ahead // slots * usual
    line += _interrupted_seconds(book, model, now, line, book.limits.turn_seconds)
    guessed = not book.pace.knows_load(model) and not spec.external
    if instance is not None and instance.state is State.LOADING:
        return Forecast(0.0, _rest(load, now - instance.started), line, guessed)
    back = max(0.0, book.breaker.blocked_until(model) - now)
    if instance is not None:
        # Its old instance must end first: then it stands in line for room like any other.
        back = max(back, _ending(book, instance, now))
    return Forecast(max(back, _room_seconds(book, model, now)), load, line, guessed)


def _line_seconds(book: Book, instance: Instance, now: float, ahead: int, usual: float) -> float:
    """Until the slot after `ahead` others is free on a ready instance."""
    slots = instance.spec.options.parallel
    ends = sorted(_rest(usual, now - book.leases[request].granted) for request in instance.leases)
    free = slots - len(ends)
    if free > ahead:
        return 0.0
    heap = [0.0] * free + ends
    heapq.heapify(heap)
    at = 0.0
    for _ in range(min(ahead, 4096) + 1):
        at = heapq.heappop(heap)
        heapq.heappush(heap, at + usual)
    return at


def _room_seconds(book: Book, model: ModelId, now: float) -> float:
    """Until the memory for `model` is there."""
    places = book.places(model)
    if not places:
        return 0.0
    free, coming = book.free_mb(), book.coming_mb()
    short = [_short(place, free) for place in places]
    if not all(short):
        return 0.0
    place = places[min(range(len(places)), key=lambda n: sum(short[n].values()))]
    short_mb = _short(place, {device: amount + coming.get(device, 0) for device, amount in free.items()})
    stop = book.pace.stop_seconds()
    if not short_mb:
        return stop
    oldest = book.oldest(model)
    until_due = max(0.0, (book.due_at(oldest) if oldest is not None else now + book.limits.fairness_wait_seconds) - now)
    idle_in = _idle_seconds(book, model, short_mb, now)
    ahead = _ahead_seconds(book, model, place, now, until_due)
    drain = _drain_seconds(book, model, short_mb, now, until_due)
    return min(idle_in, max(until_due, ahead) + drain) + stop


def _idle_seconds(book: Book, model: ModelId, short: Vector, now: float) -> float:
    """Until enough instances are idle and unprotected, if those that run now end as usual and nobody else comes; +inf = never."""
    left = dict(short)
    freed: list[tuple[float, Instance]] = []
    for instance in book.instances.values():
        if (
            instance.state is State.READY
            and not book.is_pinned(instance)
            and instance.model != model
            and not book.lines.length(instance.model)
        ):
            usual = book.pace.request_seconds(instance.model)
            gap = book.pace.gap_seconds(instance.model)
            busy = max((_rest(usual, now - book.leases[lease].granted) for lease in instance.leases), default=0.0)
            if instance.leases and gap is not None and gap < usual:
                continue  # it is asked faster than it goes idle
            freed.append((busy if instance.leases else max(0.0, book.protected_until(instance, now) - now), instance))
    for seconds, instance in sorted(freed, key=lambda one: (one[0], one[1].id)):
        for device, amount in instance.need_mb.items():
            if device in left:
                left[device] -= amount
                if left[device] <= 0:
                    del left[device]
        if not left:
            return seconds
    return float("inf")


def _ahead_seconds(book: Book, model: ModelId, place: Vector, now: float, until_due: float) -> float:
    """What the older due demands take that need the same devices, one after another as far as they do not fit side by side."""
    devices = [device for device in place if device != HOST]
    room = sum(limit for device in devices if (limit := book.limit_mb(device)) is not None)
    total, ahead_mb = 0.0, 0
    for _, _, other in book.demands:
        if other == model:
            break
        oldest = book.oldest(other)
        if oldest is None or book.due_at(oldest) > now + until_due or not book.places(other):
            break
        ahead_mb += book.need(other).total_mb
        total += _visit_seconds(book, other)
    own_mb = sum(place[device] for device in devices)
    if room <= 0 or not total:
        return 0.0
    return total * min(1.0, (ahead_mb + own_mb) / room)


def _visit_seconds(book: Book, model: ModelId) -> float:
    """What a demand takes from its start until its memory is back, when others are due: load, turn, drain and stop."""
    usual = book.pace.request_seconds(model)
    rounds = (max(1, book.lines.length(model)) - 1) // book.models[model].options.parallel
    turn = min(rounds * usual, book.limits.turn_seconds)
    return book.pace.load_seconds(model, book.need(model).total_mb) + turn + usual + book.pace.stop_seconds()


def _interrupted_seconds(book: Book, model: ModelId, now: float, line: float, turn: float) -> float:
    """What other models take in between, when so long a line cannot be served in one go: it is closed when they are due.

    `turn` is for how long it is safe from them.
    """
    rivals = [(due_at, other) for due_at, _, other in book.demands if other != model and book.places(other)]
    if not rivals or line <= 0:
        return 0.0
    safe = max(turn, rivals[0][0] - now)
    if line <= safe:
        return 0.0
    needs = sum(book.need(other).total_mb for _, other in rivals) + book.need(model).total_mb
    room = sum(limit for device in book.devices if device != HOST and (limit := book.limit_mb(device)) is not None)
    if not 0 < room < needs:
        return 0.0
    rounds = 1 + (line - safe) // max(book.limits.turn_seconds, book.pace.request_seconds(model))
    between = sum(_visit_seconds(book, other) for _, other in rivals) * min(1.0, needs / room - 1.0)
    return rounds * (between + book.pace.load_seconds(model, book.need(model).total_mb))


def _drain_seconds(book: Book, model: ModelId, short: Vector, now: float, until_due: float) -> float:
    """Until those that run on the likeliest victims have ended, counted from when they are closed."""
    rests: list[float] = []
    for instance in sorted(book.instances.values(), key=lambda one: (not one.is_closed, one.last_used, one.id)):
        if instance.state not in (State.READY, State.DRAINING) or book.is_pinned(instance) or instance.model == model:
            continue
        if not any(device in short for device in instance.need_mb):
            continue
        usual = book.pace.request_seconds(instance.model)
        if instance.is_closed or until_due <= 0:
            rests.append(max((_rest(usual, now - book.leases[lease].granted) for lease in instance.leases), default=0.0))
        else:
            rests.append(usual * 0.5 if instance.leases else 0.0)
    return min(rests, default=0.0)


def _ending(book: Book, instance: Instance, now: float) -> float:
    """Until an instance that is to go is gone."""
    stop = book.pace.stop_seconds()
    if instance.state is not State.DRAINING:
        return _rest(stop, now - instance.stopping_since)
    usual = book.pace.request_seconds(instance.model)
    rest = max((_rest(usual, now - book.leases[lease].granted) for lease in instance.leases), default=0.0)
    if instance.drain_why != EVICTED:
        rest = min(rest, max(0.0, instance.drain_deadline - now))
    return rest + stop


def _rest(usual: float, taken: float) -> float:
    """What is left of something that usually takes `usual`."""
    return max(usual - max(0.0, taken), REST_SHARE * usual)


def _short(place: Vector, have: Vector) -> dict[DeviceId, int]:
    return {device: amount - have[device] for device, amount in place.items() if device in have and amount > have[device]}
