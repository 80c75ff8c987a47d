# SPDX-License-Identifier: GPL-3.0-only
"""Who is started and who gives way: (demands, residents, room) -> plan; rule: a plain function of now, decided anew each time.

Demands are taken oldest first. For each:
1  Its file and arguments must have been checked before anything is touched for it; meanwhile the room it needs is kept for it.
2  It fits into what is free: start it.
3  It fits with what is on its way back (stopping children, drains that somebody ordered): wait for that.
4  Evict: idle instances first, then busy ones, which are drained and never cut. Not a candidate: an instance whose own line holds a
   request older than this demand (it goes first), nor one already chosen for somebody else.
5  Nothing suffices now. If it is only loads in progress that stand in the way (they can be evicted once they are ready), it keeps
   what is in reach from younger demands: else loads that overlap, one after another, could starve it for ever.
6  Otherwise it waits and keeps nothing from others: all they can start can be drained for it later.
What is not chosen any more is resumed by the caller: a drain for a demand that went away ends with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from modeld.core.eviction import Candidate, choose
from modeld.core.model import InstanceId, ModelId


@dataclass(frozen=True, slots=True)
class Demand:
    """A model that should be resident and is not. `since` is the ticket of its oldest request, +inf for an operator's wish."""

    model: ModelId
    need_mb: int
    since: float
    checked: bool
    may_evict: bool = True
    may_drain: bool = True


@dataclass(frozen=True, slots=True)
class Resident:
    """An instance that may be evicted at all. `line_since` is the ticket of the oldest request in its own line, or None."""

    candidate: Candidate
    line_since: float | None


@dataclass(slots=True)
class Plan:
    """What to do: models to check, models to start, instances to evict with the model they make room for, and who waits for what."""

    check: list[ModelId] = field(default_factory=list)
    start: list[ModelId] = field(default_factory=list)
    evict: dict[InstanceId, ModelId] = field(default_factory=dict)
    waits: dict[ModelId, str] = field(default_factory=dict)


def plan(demands: Sequence[Demand], residents: Sequence[Resident], free_mb: int | None, coming_mb: int, loading_mb: int = 0) -> Plan:
    """Decide for all demands. `free_mb` is budget - margin - used (None = unlimited, may be < 0), `coming_mb` returns by itself,
    `loading_mb` is held by loads in progress that can be evicted once they are ready.
    """
    result = Plan()
    kept: set[InstanceId] = set()
    for demand in demands:
        if not demand.checked:  # 1
            result.check.append(demand.model)
            if free_mb is not None:
                free_mb -= min(demand.need_mb, max(0, free_mb))
            continue
        if free_mb is None or demand.need_mb <= free_mb:  # 2
            result.start.append(demand.model)
            free_mb = None if free_mb is None else free_mb - demand.need_mb
            continue
        short_mb = demand.need_mb - free_mb
        if short_mb <= coming_mb:  # 3
            free_mb, coming_mb = _split(coming_mb - short_mb, free_mb)
            result.waits[demand.model] = "memory that is being given back"
            continue
        short_mb -= coming_mb
        in_reach = [one for one in _candidates(demand, residents, result) if one.id not in kept] if demand.may_evict else []
        victims = choose(in_reach, short_mb)  # 4
        if victims is None:
            if demand.may_drain and short_mb <= sum(one.frees_mb for one in in_reach) + loading_mb:  # 5
                kept.update(one.id for one in in_reach)
                free_mb = coming_mb = loading_mb = 0
            result.waits[demand.model] = "memory that other models still need"
            continue
        for victim in victims:
            result.evict[victim.id] = demand.model
        free_mb, coming_mb = _split(sum(victim.frees_mb for victim in victims) - short_mb, free_mb)
        result.waits[demand.model] = "other models to give their memory back"
    return result


def _split(left_over_mb: int, free_mb: int) -> tuple[int, int]:
    """What later demands may have of the left-over: as much as is free now, the rest when it has come back."""
    now_mb = min(left_over_mb, max(0, free_mb))
    return now_mb, left_over_mb - now_mb


def _candidates(demand: Demand, residents: Sequence[Resident], so_far: Plan) -> list[Candidate]:
    return [
        resident.candidate
        for resident in residents
        if resident.candidate.id not in so_far.evict
        and (resident.line_since is None or resident.line_since > demand.since)
        and (demand.may_drain or not resident.candidate.busy)
    ]
