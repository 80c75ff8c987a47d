# SPDX-License-Identifier: GPL-3.0-only
"""Who holds how many MiB of which device: reserve -> commit -> releasing -> free; rule: it counts, it never decides.

Reserved when a load is decided, committed when it is ready, releasing while the child ends, free when its memory is back. All but
free count in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from modeld.core.model import DeviceId, InstanceId
from modeld.errors import InvariantError


class Hold(StrEnum):
    RESERVED = "reserved"
    COMMITTED = "committed"
    RELEASING = "releasing"


@dataclass(slots=True)
class Entry:
    """MiB per device of one instance."""

    need_mb: Mapping[DeviceId, int]
    hold: Hold


class Ledger:
    """Holdings by instance, totals by device."""

    def __init__(self) -> None:
        self._entries: dict[InstanceId, Entry] = {}
        self._used_mb: dict[DeviceId, int] = {}
        self._releasing_mb: dict[DeviceId, int] = {}

    def reserve(self, instance: InstanceId, need_mb: Mapping[DeviceId, int]) -> None:
        if instance in self._entries:
            raise InvariantError(f"{instance} holds memory already")
        self._entries[instance] = Entry(dict(need_mb), Hold.RESERVED)
        for device, amount in need_mb.items():
            self._used_mb[device] = self._used_mb.get(device, 0) + amount

    def commit(self, instance: InstanceId) -> None:
        self._entry(instance).hold = Hold.COMMITTED

    def correct(self, instance: InstanceId, need_mb: Mapping[DeviceId, int]) -> None:
        """It was measured: it holds so much, not what was reserved for it."""
        entry = self._entry(instance)
        for totals in (self._used_mb, *([self._releasing_mb] if entry.hold is Hold.RELEASING else [])):
            for device, amount in entry.need_mb.items():
                totals[device] = totals.get(device, 0) - amount
            for device, amount in need_mb.items():
                totals[device] = totals.get(device, 0) + amount
        entry.need_mb = dict(need_mb)

    def release(self, instance: InstanceId) -> None:
        """The child was told to end (or ended): it still counts until `free`."""
        entry = self._entry(instance)
        if entry.hold is not Hold.RELEASING:
            entry.hold = Hold.RELEASING
            for device, amount in entry.need_mb.items():
                self._releasing_mb[device] = self._releasing_mb.get(device, 0) + amount

    def free(self, instance: InstanceId) -> None:
        self.release(instance)
        for device, amount in self._entries.pop(instance).need_mb.items():
            self._used_mb[device] -= amount
            self._releasing_mb[device] -= amount

    def used_mb(self, device: DeviceId) -> int:
        return self._used_mb.get(device, 0)

    def releasing_mb(self, device: DeviceId) -> int:
        """What is on its way back."""
        return self._releasing_mb.get(device, 0)

    def held_as(self, device: DeviceId, hold: Hold) -> int:
        """MiB of the device that are held in this way."""
        return sum(entry.need_mb.get(device, 0) for entry in self._entries.values() if entry.hold is hold)

    def held(self, instance: InstanceId) -> Mapping[DeviceId, int]:
        """MiB per device, nothing for an instance that is gone."""
        entry = self._entries.get(instance)
        return {} if entry is None else entry.need_mb

    def devices(self) -> list[DeviceId]:
        return list(self._used_mb)

    def __iter__(self) -> Iterator[InstanceId]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self) -> None:
        """Totals equal the sum of the holders."""
        for device, used in self._used_mb.items():
            held = sum(entry.need_mb.get(device, 0) for entry in self._entries.values())
            if held != used or used < 0:
                raise InvariantError(f"{device}: {used} MB booked, holders sum to {held} MB")
            releasing = sum(entry.need_mb.get(device, 0) for entry in self._entries.values() if entry.hold is Hold.RELEASING)
            if releasing != self._releasing_mb.get(device, 0):
                raise InvariantError(f"{device}: {self._releasing_mb.get(device, 0)} MB on their way back, holders sum to {releasing} MB")

    def _entry(self, instance: InstanceId) -> Entry:
        entry = self._entries.get(instance)
        if entry is None:
            raise InvariantError(f"{instance} holds no memory")
        return entry
