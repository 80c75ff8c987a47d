# SPDX-License-Identifier: GPL-3.0-only
"""How much main memory we may use, and how much of it is free; rule: what our group of processes is allowed counts, not the machine alone.

/proc/meminfo, and cgroup v2's `memory.max`, `memory.current` and `memory.stat` of our own group and of all above it; version 1 has other
names for them, and a folder of its own. A file that is missing or says "max" is no limit; version 1 writes a number that is more than any
machine has. The page cache counts as free, as the kernel's MemAvailable has it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
CGROUP: Final = Path("/sys/fs/cgroup")
DEPTH_MAX: Final = 64
_LINE: Final = re.compile(r"^(\w+):?\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class HostMemory:
    """MiB; 0 = it could not be read."""

    total_mb: int
    free_mb: int


def read_host_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> HostMemory:
    """The tightest of the machine's memory and the limits above us. A few small reads; never raises."""
    machine = _numbers(proc / "meminfo")
    total, free = machine.get("MemTotal", 0) << 10, machine.get("MemAvailable", 0) << 10
    if not total:
        total, free = _by_sysconf()
    for group in (*_groups(proc, cgroup), *_groups(proc, cgroup / "memory", "memory")):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if limit is None:
            continue
        stat = _numbers(group / "memory.stat")
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        # Version 1 has the sums over all groups below under names of their own.
        held = used - sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))
        total, free = min(total or limit, limit), min(free, max(0, limit - max(0, held)))
    return HostMemory(total >> 20, min(free, total) >> 20)


def held_mb(pids: Iterable[int], proc: Path = PROC) -> int:
    """MiB of main memory that is not free because of these processes: anonymous and shared. Files they have mapped count as free, as above.

    A process that has ended holds nothing.
    """
    status = [_numbers(proc / str(pid) / "status") for pid in pids]
    return sum(one.get("RssAnon", 0) + one.get("RssShmem", 0) for one in status) >> 10


def _groups(proc: Path, cgroup: Path, controller: str = "") -> Iterator[Path]:
    """Our group's folder and those above it, as far as they can be seen from here. Version 2 has no controller in its line."""
    pattern = rf"^\d+:(?:\w+,)*{controller}(?:,\w+)*:(/.*)$" if controller else r"^0::(/.*)$"
    found = re.search(pattern, _text(proc / "self" / "cgroup"), re.MULTILINE)
    inner = [part for part in (found[1] if found else "/").split("/") if part and part != ".."][:DEPTH_MAX]
    for depth in range(len(inner), -1, -1):
        yield cgroup.joinpath(*inner[:depth])


def _by_sysconf() -> tuple[int, int]:
    """Where there is no /proc."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        free = os.sysconf("SC_AVPHYS_PAGES") * page if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    except (OSError, ValueError):
        return 0, 0
    return max(0, total), max(0, free)


def _numbers(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in _LINE.findall(_text(path))}


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""
