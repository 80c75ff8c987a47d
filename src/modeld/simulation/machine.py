# SPDX-License-Identifier: GPL-3.0-only
"""What a machine under pressure really has, and what models really take of it; rule: it gives what is there, whoever booked what.

All in MiB. The scheduler sees nothing of this but what it is told: footprints, looks at the devices, and loads that ran out of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modeld.core.footprint import MIB, DeviceMemory, Footprint
from modeld.core.messages import MemorySeen
from modeld.core.model import HOST, DeviceId, InstanceId


@dataclass(frozen=True, slots=True)
class Truth:
    """What a model really takes.

    steps_mb     allocations on its device while it loads, in their order
    host_mb      in host memory, where that is not the same memory
    growth_mb    more on its device, with its first request
    """

    steps_mb: tuple[int, ...]
    host_mb: int = 0
    growth_mb: int = 0

    @property
    def device_mb(self) -> int:
        """On its device, at the most."""
        return sum(self.steps_mb) + self.growth_mb


@dataclass(slots=True, eq=False)
class Child:
    """A model server: where it was told to run, and what it holds there."""

    instance: InstanceId
    truth: Truth
    place: Mapping[DeviceId, int]
    holds_mb: dict[DeviceId, int] = field(default_factory=dict)
    stopping: bool = False
    ending: bool = False
    has_served: bool = False

    def shares(self, mb: int) -> dict[DeviceId, int]:
        """So much more, spread as what was booked is spread."""
        devices = {device: booked for device, booked in self.place.items() if device != HOST}
        left, total, found = mb, sum(devices.values()), {}
        for device, booked in devices.items():
            found[device] = mb * booked // max(1, total)
            left -= found[device]
        first = next(iter(found))
        found[first] += left
        return found


class Machine:
    """The devices, with what children and other programs hold of them."""

    def __init__(self, total_mb: Mapping[DeviceId, int], *, one_pool: bool) -> None:
        self.total_mb = dict(total_mb)
        self.one_pool = one_pool
        self.foreign_mb = dict.fromkeys(total_mb, 0)
        self.children: dict[InstanceId, Child] = {}

    def ours_mb(self, device: DeviceId) -> int:
        """What all children hold of it."""
        return sum(child.holds_mb.get(device, 0) for child in self.children.values())

    def free_mb(self, device: DeviceId) -> int:
        """What nobody holds."""
        return self.total_mb[device] - self.ours_mb(device) - self.foreign_mb[device]

    def give(self, child: Child, mb: int) -> bool:
        """One allocation. False when there is not so much: then it holds what it held before."""
        wanted = child.shares(mb)
        if any(amount > self.free_mb(device) for device, amount in wanted.items()):
            return False
        for device, amount in wanted.items():
            child.holds_mb[device] = child.holds_mb.get(device, 0) + amount
        return True

    def give_host(self, child: Child) -> None:
        """What it takes in host memory, which nobody is short of."""
        if not self.one_pool:
            child.holds_mb[HOST] = child.truth.host_mb

    def take_foreign(self, device: DeviceId, mb: int) -> int:
        """Another program takes as much of it as there is. What it got."""
        got = max(0, min(mb, self.free_mb(device)))
        self.foreign_mb[device] += got
        return got

    def footprint(self, child: Child, *, complete: bool) -> Footprint:
        """What can be read of it."""
        devices = {device.partition("/")[2]: mb * MIB for device, mb in child.holds_mb.items() if device != HOST}
        return Footprint(devices, child.holds_mb.get(HOST, 0) * MIB, complete)

    def look(self) -> MemorySeen:
        """As a look at the devices shows it."""
        return MemorySeen(
            {device: DeviceMemory(self.total_mb[device], self.free_mb(device), self.ours_mb(device)) for device in self.total_mb}
        )
