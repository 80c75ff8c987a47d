# SPDX-License-Identifier: GPL-3.0-only
"""Would a model fit, if? Arithmetic over devices on what is known from outside; rule: written without looking at placement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modeld.core.estimate import need
from modeld.core.model import HOST, DeviceId, ModelSpec
from modeld.simulation.outside import FAILED, STOPPING, Outside, Seen

Room = dict[DeviceId, float]
"""MiB that could be booked, by device; HOST only where it is limited."""


def fits(spec: ModelSpec, room: Mapping[DeviceId, float]) -> bool:
    """On one device, or over several when it may be split; and in host memory."""
    total_mb = need_mb(spec)
    if HOST in room and spec.host_mb > room[HOST]:
        return False
    if spec.external:
        return True
    rooms = [mb for device, mb in room.items() if device != HOST]
    if any(total_mb <= mb for mb in rooms):
        return True
    return spec.split and total_mb <= sum(mb for mb in rooms if mb > 0)


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
