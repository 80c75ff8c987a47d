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

    def reserve(self, instance: InstanceId, need_mb: Mapping[DeviceId, int]) -> None:
        if instance in self._entries:
            raise InvariantError(f"{instance} holds memory already")
        self._entries[instance] = Entry(dict(need_mb), Hold.RESERVED)
        for device, amount in need_mb.items():
            self._used_mb[device] = self._used_mb.get(device, 0) + amount

    def commit(self, instance: InstanceId) -> None:
        self._entry(instance).hold = Hold.COMMITTED

    def release(self, instance: InstanceId) -> None:
        """The child was told to end (or ended): it still counts until `free`."""
        self._entry(instance).hold = Hold.RELEASING

    def free(self, instance: InstanceId) -> None:
        entry = self._entry(instance)
        del self._entries[instance]
        for device, amount in entry.need_mb.items():
            self._used_mb[device] -= amount

    def used_mb(self, device: DeviceId) -> int:
        return self._used_mb.get(device, 0)

    def releasing_mb(self, device: DeviceId) -> int:
        """What is on its way back."""
        return sum(entry.need_mb.get(device, 0) for entry in self._entries.values() if entry.hold is Hold.RELEASING)

    def held_mb(self, instance: InstanceId, device: DeviceId) -> int:
        entry = self._entries.get(instance)
        return 0 if entry is None else entry.need_mb.get(device, 0)

    def __iter__(self) -> Iterator[InstanceId]:
        return iter(self._entries)

    def check(self) -> None:
        """Totals equal the sum of the holders."""
        for device, used in self._used_mb.items():
            held = sum(entry.need_mb.get(device, 0) for entry in self._entries.values())
            if held != used or used < 0:
                raise InvariantError(f"{device}: {used} MB booked, holders sum to {held} MB")

    def _entry(self, instance: InstanceId) -> Entry:
        entry = self._entries.get(instance)
        if entry is None:
            raise InvariantError(f"{instance} holds no memory")
        return entry
