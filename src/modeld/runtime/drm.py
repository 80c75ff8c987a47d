# SPDX-License-Identifier: GPL-3.0-only
"""What the kernel says of AMD's and Intel's cards and of who holds what; rule: a few small files, and one that is missing is no zero.

/sys/class/drm/cardN/device/mem_info_vram_{total,used}     AMD: what the card has, what all hold of it
/sys/class/drm/cardN/lmem_{total,avail}_bytes              Intel, where its driver has them
/proc/PID/fdinfo/N          what a process holds through one open file of the card; files of one client show the same, and count once
/sys/class/kfd/kfd/proc/PID/vram_ID                        AMD's compute, which is not in the former with older kernels
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
SYS: Final = Path("/sys")
FILES_MAX: Final = 4096
"""Open files of one process that are looked at."""
TEXT_CHARS_MAX: Final = 1 << 14
VENDORS: Final = {"0x1002": "amd", "0x8086": "intel"}

_CARD: Final = re.compile(r"card\d+")
_REGION: Final = re.compile(r"^drm-(resident|memory|total)-(?:vram|local)(\d*):\s*(\d{1,18})\s*(KiB|MiB|)\s*$", re.MULTILINE)
_FIELD: Final = re.compile(r"^(drm-client-id|drm-pdev):\s*(\S+)\s*$", re.MULTILINE)
_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}
_BEST: Final = ("resident", "memory", "total")
"""Which figure of a region counts when there are several: what is on the card before what was asked for."""


@dataclass(frozen=True, slots=True)
class DrmCard:
    """One card. Bytes, 0 = its driver does not say; `free_bytes` None = unknown."""

    pci: str
    vendor: str
    total_bytes: int
    free_bytes: int | None


def cards(sys: Path = SYS) -> tuple[DrmCard, ...]:
    """AMD's and Intel's, by number."""
    found: list[DrmCard] = []
    for folder in sorted(_children(sys / "class" / "drm"), key=lambda one: (len(one.name), one.name)):
        device = folder / "device"
        if _CARD.fullmatch(folder.name) is None or (vendor := VENDORS.get(_text(device / "vendor").strip())) is None:
            continue
        total, used = _number(device / "mem_info_vram_total"), _number(device / "mem_info_vram_used")
        free = None if total is None or used is None else max(0, total - used)
        if total is None:
            total, free = _number(folder / "lmem_total_bytes"), _number(folder / "lmem_avail_bytes")
        found.append(DrmCard(os.path.basename(os.path.realpath(device)), vendor, total or 0, free))  # noqa: PTH119 - of what the link names
    return tuple(found)


def used_by(pid: int, proc: Path = PROC, sys: Path = SYS) -> Mapping[str, int] | None:
    """Bytes that a process holds of the memory of cards, by their address. None when it may not be looked at, or says nothing of them.

    A process that has ended holds nothing.
    """
    folder = proc / str(pid)
    if not folder.is_dir():
        return {}
    opened = _opened(folder)
    compute = _by_compute(pid, sys)
    if opened is None and not compute:
        return None
    merged = opened or {}
    return {pci: max(merged.get(pci, 0), compute.get(pci, 0)) for pci in dict.fromkeys([*merged, *compute])}


def _opened(folder: Path) -> dict[str, int] | None:
    """By the files it has open; None where no file of a card tells of memory."""
    clients: dict[tuple[str, str], int] = {}
    try:
        numbers = sorted(os.listdir(folder / "fd"))[:FILES_MAX]  # noqa: PTH208 - names only
    except OSError:
        return None
    for number in numbers:
        try:
            target = os.readlink(folder / "fd" / number)  # noqa: PTH115 - text only, hundreds of them
        except OSError:
            continue  # closed meanwhile
        if target.startswith("/dev/dri/"):
            text = _text(folder / "fdinfo" / number)
            fields = dict(_FIELD.findall(text))
            if (size := region_bytes(text)) is not None and "drm-pdev" in fields:
                client = fields["drm-pdev"], fields.get("drm-client-id", f"file {number}")
                clients[client] = max(clients.get(client, 0), size)
    if not clients:
        return None
    found: dict[str, int] = {}
    for (pci, _client), size in clients.items():
        found[pci] = found.get(pci, 0) + size
    return found


def region_bytes(text: str) -> int | None:
    """What one fdinfo file says is held of the card's own memory; None when it does not say."""
    regions: dict[str, dict[str, int]] = {}
    for kind, region, size, unit in _REGION.findall(text):
        regions.setdefault(region, {})[kind] = int(size) * _UNITS[unit]
    if not regions:
        return None
    return sum(next(kinds[best] for best in _BEST if best in kinds) for kinds in regions.values())


def _by_compute(pid: int, sys: Path) -> dict[str, int]:
    """By AMD's compute driver, which counts its own."""
    kfd = sys / "class" / "kfd" / "kfd"
    held = {file.name.removeprefix("vram_"): _number(file) for file in _children(kfd / "proc" / str(pid)) if file.name.startswith("vram_")}
    if not held:
        return {}
    found: dict[str, int] = {}
    for node in _children(kfd / "topology" / "nodes"):
        size = held.get(_text(node / "gpu_id").strip())
        properties = dict(line.split(None, 1) for line in _text(node / "properties").splitlines() if len(line.split()) == 2)
        if size and (pci := _address(properties)):
            found[pci] = size
    return found


def _address(properties: Mapping[str, str]) -> str:
    """The card's address from the numbers of its node."""
    try:
        domain, location = int(properties["domain"]), int(properties["location_id"])
    except (KeyError, ValueError):
        return ""
    return f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(TEXT_CHARS_MAX)
    except OSError:
        return ""
