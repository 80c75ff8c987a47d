# SPDX-License-Identifier: GPL-3.0-only
"""A story that fails -> the smallest one found that fails in the same way; rule: only leaving out, never changing what stays.

Models, requests and faults are left out in ever smaller chunks (delta debugging) as long as the same invariant is violated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from modeld.simulation.faults import Act, CheckFate, ChildFate, Faults, LeaseFate
from modeld.simulation.seen import Violation
from modeld.simulation.story import Story
from modeld.simulation.workload import Ask, SimModel
from modeld.simulation.world import World

Part = TypeVar("Part")


def violation_of(story: Story) -> Violation | None:
    """Run it with every check; what it violates, or None."""
    world = World(story.workload, faults=story.faults, seed=story.seed)
    try:
        world.run()
    except Violation as violation:
        return violation
    return None


def shrink(story: Story, violation: Violation, seconds_max: float, find: Callable[[Story], Violation | None] = violation_of) -> Story:
    """The smallest found within `seconds_max` that violates the same invariant (`find` says which)."""
    until = time.monotonic() + seconds_max

    def fails(candidate: Story) -> bool:
        found = find(candidate)
        return found is not None and found.name == violation.name

    earlier = _until(story, violation.time)
    best = earlier if fails(earlier) else story
    size = -1
    while size != _size(best) and time.monotonic() < until:
        size = _size(best)
        for reduce in (_models, _asks, _children, _leases, _checks, _acts):
            best = reduce(best, fails, until)
    return best


def _until(story: Story, time_max: float) -> Story:
    """Without what comes after the violation."""
    asks = tuple(ask for ask in story.workload.asks if ask.at <= time_max)
    acts = tuple(act for act in story.faults.acts if act.at <= time_max)
    return replace(story, workload=replace(story.workload, asks=asks), faults=replace(story.faults, acts=acts))


def _size(story: Story) -> int:
    return len(story.workload.models) + len(story.workload.asks) + len(story.faults)


Fails = Callable[[Story], bool]


def _models(story: Story, fails: Fails, until: float) -> Story:
    def build(models: Sequence[SimModel]) -> Story:
        names = {model.id for model in models}
        faults = Faults(
            tuple(fate for fate in story.faults.children if fate.model in names),
            story.faults.leases,
            tuple(fate for fate in story.faults.checks if fate.model in names),
            tuple(act for act in story.faults.acts if act.model in names),
        )
        asks = tuple(ask for ask in story.workload.asks if ask.model in names)
        return replace(story, workload=replace(story.workload, models=tuple(models), asks=asks), faults=faults)

    return build(_least(story.workload.models, lambda models: fails(build(models)), until))


def _asks(story: Story, fails: Fails, until: float) -> Story:
    def build(asks: Sequence[Ask]) -> Story:
        return replace(story, workload=replace(story.workload, asks=tuple(asks)))

    return build(_least(story.workload.asks, lambda asks: fails(build(asks)), until))


def _children(story: Story, fails: Fails, until: float) -> Story:
    def build(kept: Sequence[ChildFate]) -> Story:
        return replace(story, faults=replace(story.faults, children=tuple(kept)))

    return build(_least(story.faults.children, lambda kept: fails(build(kept)), until))


def _leases(story: Story, fails: Fails, until: float) -> Story:
    def build(kept: Sequence[LeaseFate]) -> Story:
        return replace(story, faults=replace(story.faults, leases=tuple(kept)))

    return build(_least(story.faults.leases, lambda kept: fails(build(kept)), until))


def _checks(story: Story, fails: Fails, until: float) -> Story:
    def build(kept: Sequence[CheckFate]) -> Story:
        return replace(story, faults=replace(story.faults, checks=tuple(kept)))

    return build(_least(story.faults.checks, lambda kept: fails(build(kept)), until))


def _acts(story: Story, fails: Fails, until: float) -> Story:
    def build(kept: Sequence[Act]) -> Story:
        return replace(story, faults=replace(story.faults, acts=tuple(kept)))

    return build(_least(story.faults.acts, lambda kept: fails(build(kept)), until))


def _least(parts: Sequence[Part], fails: Callable[[Sequence[Part]], bool], until: float) -> Sequence[Part]:
    """Leave out halves, quarters, ... single ones, as long as it still fails."""
    size = len(parts)
    while size >= 1 and parts:
        for start in _backwards(len(parts), size):
            if time.monotonic() > until:
                return parts
            fewer = [*parts[:start], *parts[start + size :]]
            if len(fewer) < len(parts) and fails(fewer):
                parts = fewer
        size //= 2
    return parts


def _backwards(length: int, size: int) -> Iterator[int]:
    """Starts of the chunks, the last one first: what comes late matters least."""
    return iter(range((length - 1) // size * size, -1, -size))
