# SPDX-License-Identifier: GPL-3.0-only
"""Would a model fit, if? Arithmetic over devices on what is known from outside; rule: written without looking at placement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from modeld.core.estimate import need
from modeld.core.model import HOST, DeviceId, ModelSpec
from modeld.simulation.outside import Outside
from modeld.simulation.seen import FAILED, STOPPING, Seen

Room = dict[DeviceId, float]
"""MiB that could be booked, by device; HOST only where it is limited."""


def fits(spec: ModelSpec, room: Mapping[DeviceId, float], capacity: Mapping[DeviceId, float]) -> bool:
    """On one device; over several, if it may be split and no single one is large enough, in proportion to their `capacity`.

    And in host memory, as far as that is limited.
    """
    total_mb = need_mb(spec)
    if spec.host_mb and HOST in room and spec.host_mb > room[HOST]:
        return False
    if spec.external or any(total_mb <= mb for device, mb in room.items() if device != HOST):
        return True
    devices = [device for device in capacity if device != HOST]
    if not spec.split or any(total_mb <= capacity[device] for device in devices):
        return False
    whole = sum(capacity[device] for device in devices)
    if total_mb > whole:
        return False
    shares = {device: math.floor(total_mb * capacity[device] / whole) for device in devices}
    shares[devices[0]] += total_mb - sum(shares.values())
    return all(share <= room[device] for device, share in shares.items())


def is_clear(outside: Outside, spec: ModelSpec) -> bool:
    """Where it could run follows from the settings: the shares of a split depend on what is pinned where, too."""
    return not spec.split or not outside.holds_any()


def is_hopeless(outside: Outside, spec: ModelSpec) -> bool:
    """On a machine with one device: it does not fit beside the pinned models, which are counted in order of id as far as they fit."""
    capacity = [mb for device, mb in outside.capacity_mb().items() if device != HOST]
    if len(capacity) != 1 or spec.external:
        return False
    left = capacity[0]
    held = [other for other in outside.models.values() if outside.is_held(other) and other.id != spec.id]
    for _, amount in sorted((other.id, need_mb(other)) for other in held):
        if amount <= left:
            left -= amount
    return need_mb(spec) > left


def need_mb(spec: ModelSpec) -> int:
    """MiB on its device, or over its devices."""
    return need(spec).total_mb


def with_memory_of(room: Mapping[DeviceId, float], instances: Iterable[Seen]) -> Room:
    """`room`, were these gone."""
    more = dict(room)
    for seen in instances:
        for device, amount in seen.need_mb:
            if device in more:
                more[device] += amount
    return more


def without_need_of(room: Mapping[DeviceId, float], specs: Iterable[ModelSpec]) -> Room:
    """`room`, less what these models need wherever they might be placed: each counts on every device."""
    less = dict(room)
    for spec in specs:
        amount = 0 if spec.external else need_mb(spec)
        for device in less:
            less[device] -= spec.host_mb if device == HOST else amount
    return less


def coming(outside: Outside) -> list[Seen]:
    """Instances whose memory returns without a further decision."""
    return [seen for seen in outside.instances.values() if seen.state is STOPPING or seen.state is FAILED]
