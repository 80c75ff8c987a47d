# SPDX-License-Identifier: GPL-3.0-only
"""Which instances give way: (candidates, MiB short) -> fewest sufficient victims, or none; rule: it neither mutates nor logs.

1  Idle instances first, least recently used first; busy ones only when the idle ones do not suffice. Among busy ones, those that
   drain already come first, so that a decision taken again is the same decision.
2  Take them in that order until the shortage is covered; if all together do not cover it, nobody is a victim.
3  A second pass drops every victim that turned out unnecessary, the most valuable (last in the order) first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modeld.core.model import InstanceId


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance that may be evicted. `last_used` in monotonic seconds, `frees_mb` on the device that is short."""

    id: InstanceId
    frees_mb: int
    last_used: float
    busy: bool
    draining: bool = False


def choose(candidates: Iterable[Candidate], short_mb: int) -> Sequence[Candidate] | None:
    """The victims, in the order of eviction, or None when nothing suffices. `short_mb` must be positive."""
    order = sorted(
        (candidate for candidate in candidates if candidate.frees_mb > 0),
        key=lambda c: (c.busy, not c.draining, c.last_used, c.id),  # 1
    )
    victims: list[Candidate] = []
    freed = 0
    for candidate in order:  # 2
        if freed >= short_mb:
            break
        victims.append(candidate)
        freed += candidate.frees_mb
    if freed < short_mb:
        return None
    for victim in reversed(victims[:-1] if victims else []):  # 3  (the last one taken was needed when it was taken)
        if freed - victim.frees_mb >= short_mb:
            victims.remove(victim)
            freed -= victim.frees_mb
    return victims
