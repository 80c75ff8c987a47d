# SPDX-License-Identifier: GPL-3.0-only
"""Which instances give way: (candidates in order, MiB short per device) -> fewest sufficient victims, or none; rule: no side effects.

1  Order (`in_order`): those that can go at once before those that cannot yet (loading, in their turn), idle ones before busy ones, those
   that are closed already before others, so that a decision taken again is the same decision; unprotected ones before protected
   ones; then the policy: least recently used first, or least worth keeping first.
2  Take them in that order until the shortage is covered on each device; who frees nothing of what is still short is passed over. If all
   together do not cover it, nobody is a victim.
3  A second pass drops every victim that turned out unnecessary, the most valuable (last in the order) first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modeld.core.model import DeviceId, InstanceId


@dataclass(slots=True, eq=False)
class Candidate:
    """An instance that may be evicted.

    frees_mb   MiB per device
    keep       what the policy orders by, least first: the time of last use, or `worth`
    idle       nothing runs on it, nobody waits for it, and nothing protects it: it may go for a model that is not due
    busy       requests run on it
    closed     it takes nothing new already
    later      it cannot go yet: it loads for somebody, or is in its turn
    """

    id: InstanceId
    frees_mb: Mapping[DeviceId, int]
    keep: float
    idle: bool
    busy: bool
    closed: bool = False
    later: bool = False


def in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Who goes first comes first."""
    return sorted(candidates, key=lambda c: (c.later, c.busy, not c.closed, not c.idle, c.keep, c.id))


def choose(ordered: Iterable[Candidate], short_mb: Mapping[DeviceId, int]) -> Sequence[Candidate] | None:
    """The victims in the order of eviction, or None when nothing suffices. `short_mb` holds the devices that are short, all positive."""
    left = dict(short_mb)
    victims: list[Candidate] = []
    for candidate in ordered:  # 2
        helps = False
        for device, amount in candidate.frees_mb.items():
            if amount > 0 and device in left:
                helps = True
                left[device] -= amount
                if left[device] <= 0:
                    del left[device]
        if helps:
            victims.append(candidate)
            if not left:
                break
    if left:
        return None
    if len(victims) > 1:  # 3  (the last one taken was needed when it was taken)
        surplus = {device: sum(v.frees_mb.get(device, 0) for v in victims) - amount for device, amount in short_mb.items()}
        for victim in reversed(victims[:-1]):
            if all(victim.frees_mb.get(device, 0) <= spare for device, spare in surplus.items()):
                victims.remove(victim)
                for device in surplus:
                    surplus[device] -= victim.frees_mb.get(device, 0)
    return victims


def worth(reload_seconds: float, chance_of_reuse: float, need_mb: int) -> float:
    """What keeping an instance is worth per MiB: seconds of loading expected to be saved.

    The value function of GreedyDual-Size (Cao and Irani, 1997), cost over size, with the chance of reuse in the place of its aging term.
    """
    return reload_seconds * chance_of_reuse / max(1, need_mb)
