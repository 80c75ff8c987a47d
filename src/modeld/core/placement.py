# SPDX-License-Identifier: GPL-3.0-only
"""Who is started and who gives way: (demands, residents, room) -> plan; rule: a plain function of now, decided anew each time.

Due demands come first, oldest first, then the others, most urgent class first. For each:
1  Where it could run (`places`): each single device that is large enough, and a split over all where the operator allows it.
2  It fits into what is free: start it, on the device where least is left over.
3  It fits with what is on its way back (stopping children, drains that somebody ordered): wait for that.
4  Victims (eviction.py), on the device where fewest busy ones, then fewest of all, must go. For a demand that is not due only idle,
   unprotected ones. For a due one also busy ones, which are closed and never cut, and those that cannot go yet (loading for somebody, or in
   their turn): the others are closed for it already now.
5  Nothing suffices: a due demand keeps its room, where least is missing, and all of what is short there, from younger ones, else they
   could overtake it for ever; another one keeps nothing, for all that younger ones start can be closed for it once it is due.
Meanwhile a demand whose launch is not checked touches nobody; what is free is kept for it.
What is not chosen any more is opened again by the caller: a closing for a demand that went away ends with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modeld.core.eviction import Candidate, choose
from modeld.core.model import HOST, DeviceId, InstanceId, ModelId

Vector = Mapping[DeviceId, int]
"""MiB per device."""


@dataclass(slots=True)
class Demand:
    """A model that should be resident and is not. `places` are the vectors it could take, none of which exceeds what a device has."""

    model: ModelId
    places: tuple[Vector, ...]
    due: bool
    checked: bool
    may_evict: bool = True


@dataclass(slots=True)
class Room:
    """MiB per limited device; a device that is not named has no limit. `free` may be negative; `coming` returns by itself."""

    free: dict[DeviceId, int]
    coming: dict[DeviceId, int]


@dataclass(slots=True)
class Plan:
    """What to do, and who waits for what.

    start    models to start, with where
    evict    instances to evict, with the model they make room for
    waits    why a demand waits: a word of `Wait`
    """

    start: dict[ModelId, Vector] = field(default_factory=dict)
    evict: dict[InstanceId, ModelId] = field(default_factory=dict)
    waits: dict[ModelId, str] = field(default_factory=dict)


CHECKING, COMING, VICTIMS, LOADS, OTHERS = "checking", "coming", "victims", "loads", "others"
"""Why a demand waits: for its launch check, for memory on its way back, for its victims, for loads and turns, for others to go idle."""


def plan(demands: Iterable[Demand], residents: Sequence[Candidate], room: Room, least_mb: int = 0) -> Plan:
    """Decide for all demands. `residents` in the order of eviction; no place of any demand takes less than `least_mb` of a device."""
    result = Plan()
    pool = list(residents)
    due: bool | None = None
    reach: dict[DeviceId, int] = {}
    for demand in demands:
        if demand.due is not due:
            due = demand.due
            if not due:
                pool = [one for one in pool if one.idle]
            reach = _reach(pool, room)
        if _is_over(pool, room, least_mb):
            break
        if _best_fit(demand.places, reach) is None:  # 5
            result.waits[demand.model] = OTHERS
            if due:
                pool = _keep(demand, pool, room, reach)
                reach = _reach(pool, room)
        elif not demand.checked:
            result.waits[demand.model] = CHECKING
            fitting = [place for place in demand.places if _fits(place, room.free)] or demand.places
            _take(room, min(fitting, key=lambda place: _left_over(place, room.free)), only_free=True)
            reach = _reach(pool, room)
        else:
            pool, taken = _decide(demand, pool, room, result)
            if due and demand.model in result.start:  # younger due ones count on it as on any load in progress
                pool = [*pool, Candidate(InstanceId(demand.model), taken, 0.0, idle=False, busy=False, later=True)]
                continue
            for device, amount in taken.items():
                if device in reach:
                    reach[device] -= amount  # what it waits for has only moved from the pool to what is coming
    return result


def _decide(demand: Demand, pool: list[Candidate], room: Room, result: Plan) -> tuple[list[Candidate], Vector]:
    """One demand. Books what it takes in `room` and `result`; the candidates that are left for the next one, and the place it took."""
    place = _best_fit(demand.places, room.free)
    if place is not None:  # 2
        result.start[demand.model] = place
        _take(room, place)
        return pool, place
    soon = _sum(room.free, room.coming)
    place = _best_fit(demand.places, soon)
    if place is not None:  # 3
        result.waits[demand.model] = COMING
        _take(room, place)
        return pool, place
    found = _victims(demand.places, pool, soon) if demand.may_evict else None  # 4
    if found is None:
        result.waits[demand.model] = OTHERS
        return pool, {}
    place, victims = found
    wait = VICTIMS
    for victim in victims:
        if victim.later:
            wait = LOADS
        else:
            result.evict[victim.id] = demand.model
        for device, amount in victim.frees_mb.items():
            if device in room.coming:
                room.coming[device] += amount
        pool.remove(victim)
    _take(room, place)
    result.waits[demand.model] = wait
    return pool, place


def _victims(places: Sequence[Vector], pool: list[Candidate], soon: Mapping[DeviceId, int]) -> tuple[Vector, Sequence[Candidate]] | None:
    """Who gives way, and where: the place for which fewest must wait, then fewest busy ones are closed, then fewest drain already, then
    fewest of all go."""
    best: tuple[Vector, Sequence[Candidate]] | None = None
    best_rank: tuple[int, ...] | None = None
    for place in places:
        short = {device: amount - soon[device] for device, amount in place.items() if device in soon and amount > soon[device]}
        victims = choose(pool, short)
        if victims is None:
            continue
        if len(places) == 1:
            return place, victims
        opened = [victim for victim in victims if not victim.closed]
        busy = sum(v.busy for v in opened), sum(v.busy for v in victims)
        rank = (sum(v.later for v in victims), *busy, len(opened), sum(sum(v.frees_mb.values()) for v in victims))
        if best_rank is None or rank < best_rank:
            best, best_rank = (place, victims), rank
    return best


def _keep(demand: Demand, pool: list[Candidate], room: Room, reach: Mapping[DeviceId, int]) -> list[Candidate]:
    """Leave its room to a due demand for which not enough is in reach; the candidates that are left."""

    def missing(place: Vector) -> dict[DeviceId, int]:
        return {device: amount - reach[device] for device, amount in place.items() if device in reach and amount > reach[device]}

    if not demand.places:
        return pool
    place = min(demand.places, key=lambda one: sum(missing(one).values()))
    short = missing(place)
    _take(room, place)
    for device in short:
        for have in (room.free, room.coming):
            have[device] = min(have.get(device, 0), 0)
    return [one for one in pool if short.keys().isdisjoint(one.frees_mb)]


def places(need_mb: int, host_mb: int, capacity: Mapping[DeviceId, int | None], *, split: bool) -> tuple[Vector, ...]:
    """Where a model could run if all that may go went: MiB per device. `capacity` holds what each device has at most, None = unlimited.

    A split gives each device a share in proportion to its capacity, as llama.cpp's tensor split does by default; only where no single
    device is large enough.
    """
    if host_mb and (limit := capacity.get(HOST)) is not None and host_mb > limit:
        return ()
    beside = {HOST: host_mb} if host_mb else {}
    devices = {device: limit for device, limit in capacity.items() if device != HOST}
    found: list[Vector] = [{device: need_mb, **beside} for device, limit in devices.items() if limit is None or need_mb <= limit]
    if found or not split or len(devices) < 2:
        return tuple(found)
    limits = {device: limit for device, limit in devices.items() if limit is not None and limit > 0}
    total = sum(limits.values())
    if need_mb > total:
        return ()
    shares = {device: need_mb * limit // total for device, limit in limits.items()}
    rest = need_mb - sum(shares.values())
    for device in limits:
        extra = min(rest, limits[device] - shares[device])
        shares[device] += extra
        rest -= extra
    return ({**{device: share for device, share in shares.items() if share}, **beside},)


def _reach(pool: Sequence[Candidate], room: Room) -> dict[DeviceId, int]:
    """All that a demand could still get, if everybody in the pool went."""
    total = _sum(room.free, room.coming)
    for one in pool:
        for device, amount in one.frees_mb.items():
            if device in total:
                total[device] += amount
    return total


def _is_over(pool: Sequence[Candidate], room: Room, least_mb: int) -> bool:
    """Nothing is left that anybody could be given or that could be closed for him now: who comes later waits."""
    if pool and not pool[0].later:  # those that cannot go yet come last
        return False
    limited = False
    for device, amount in room.free.items():
        if device != HOST:
            limited = True
            if max(0, amount) + room.coming.get(device, 0) >= least_mb:
                return False
    return limited


def _best_fit(places: Sequence[Vector], have: Mapping[DeviceId, int]) -> Vector | None:
    """The place that fits with the least left over, None when none fits."""
    best: Vector | None = None
    for place in places:
        if _fits(place, have) and (best is None or _left_over(place, have) < _left_over(best, have)):
            best = place
    return best


def _fits(place: Vector, have: Mapping[DeviceId, int]) -> bool:
    for device, amount in place.items():  # noqa: SIM110  a generator costs three times as much, on the hot path
        if device in have and amount > have[device]:
            return False
    return True


def _left_over(place: Vector, have: Mapping[DeviceId, int]) -> int:
    return sum(have[device] - amount for device, amount in place.items() if device in have)


def _sum(one: Mapping[DeviceId, int], other: Mapping[DeviceId, int]) -> dict[DeviceId, int]:
    return {device: amount + other.get(device, 0) for device, amount in one.items()}


def _take(room: Room, place: Vector, *, only_free: bool = False) -> None:
    """Book a place: of what is free first, the rest of what is coming. What is kept of free memory may not exceed it."""
    for device, amount in place.items():
        if device not in room.free:
            continue
        now = min(amount, max(0, room.free[device]))
        room.free[device] -= now
        if not only_free:
            room.coming[device] -= amount - now
