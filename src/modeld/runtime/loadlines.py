# SPDX-License-Identifier: GPL-3.0-only
"""What llama.cpp says of its memory while it loads: log lines -> bytes; rule: no I/O, bounded, and a line that is not understood is none.

    load_tensors:   CPU_Mapped model buffer size =    92.10 MiB      a span of the mapped file, not memory
    load_tensors:   CPU_REPACK model buffer size =   648.00 MiB      weights copied into a layout of the CPU's own
    llama_kv_cache:        CPU KV buffer size =    90.00 MiB         also RS (recurrent state), output, compute, LoRA, state

With two kinds of layers a cache prints two lines, which add up; a compute buffer that is reserved anew replaces the one before. A second
"loading model tensors" begins another model (a draft) - or the real load after a dry run, which had no weights and counts for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LINES_MAX: Final = 4096
"""So many lines with a size are taken; a load has about ten."""
MIB: Final = 1 << 20

_SIZE: Final = re.compile(
    rb"(\w+):\s+(\S{1,80})\s+(?:DSV4 \S+ )?(model|KV|RS|output|compute|LoRA|state)\s+buffer size\s*=\s*(\d{1,9}(?:\.\d{1,4})?) MiB"
)
_BEGIN: Final = b"loading model tensors"
_FAILED: Final = re.compile(
    rb"(?:failed to allocate|unable to allocate|attempted to allocate|allocating)\D{0,60}?(\d{1,18}(?:\.\d{1,4})?) ?(MiB|MB|bytes|$)"
)
_FAILED_OF: Final = re.compile(rb"(?:failed|unable) to allocate \S{1,80} buffer of size (\d{1,18})")
_MAPPED: Final = "_Mapped"


@dataclass(frozen=True, slots=True)
class Reported:
    """Bytes by (llama.cpp's buffer type, kind), spans of the mapped file left out; rounded to a hundredth of a MiB each.

    mapped  names of the buffer types that are spans of the file
    """

    buffers: Mapping[tuple[str, str], int]
    mapped: frozenset[str] = frozenset()

    @property
    def total_bytes(self) -> int:
        return sum(self.buffers.values())

    def device_bytes(self) -> dict[str, int]:
        """By device; none of host memory."""
        found: dict[str, int] = {}
        for (name, _), size in self.buffers.items():
            if not is_host(name):
                found[name] = found.get(name, 0) + size
        return found

    def host_bytes(self) -> int:
        """Of host memory, pinned for a device or not."""
        return sum(size for (name, _), size in self.buffers.items() if is_host(name))

    def weights_bytes(self) -> int:
        """Weights in buffers of their own, wherever."""
        return sum(size for (_, kind), size in self.buffers.items() if kind == "model")


def is_host(name: str) -> bool:
    """Whether a buffer of this type lies in host memory: `CPU`, `CPU_REPACK`, `CUDA_Host`, `AMX`, …"""
    return name.startswith(("CPU", "AMX", "BLAS")) or name.endswith("_Host") or name == "Host"


class LoadLines:
    """Takes the lines as they come. `asked_bytes` is the allocation that failed last, 0 = none did."""

    def __init__(self) -> None:
        self.asked_bytes = 0
        self._models: list[dict[tuple[str, str, str], int]] = [{}]
        self._mapped: set[str] = set()
        self._taken = 0

    def feed(self, line: bytes) -> None:
        """One line, without its end."""
        if _BEGIN in line:
            if not any(size for (_, _, kind), size in self._models[-1].items() if kind == "model"):
                self._models.pop()
            self._models.append({})
        elif b"buffer size" in line and self._taken < LINES_MAX and (found := _SIZE.search(line)) is not None:
            self._taken += 1
            self._take(*found.groups())
        elif b"llocat" in line and (failed := _FAILED_OF.search(line) or _FAILED.search(line)) is not None:
            unit = MIB if failed.re is _FAILED and failed[2] in (b"MiB", b"MB") else 1
            self.asked_bytes = int(float(failed[1]) * unit)

    def reported(self) -> Reported | None:
        """All that was said so far; None when nothing was."""
        buffers: dict[tuple[str, str], int] = {}
        for model in self._models:
            for (_, name, kind), size in model.items():
                if not name.endswith(_MAPPED):
                    buffers[name, kind] = buffers.get((name, kind), 0) + size
        return Reported(buffers, frozenset(self._mapped)) if buffers or self._mapped else None

    def _take(self, component: bytes, device: bytes, kind: bytes, mebibytes: bytes) -> None:
        name, size = device.decode("utf-8", "replace"), round(float(mebibytes) * MIB)
        if name.endswith(_MAPPED):
            self._mapped.add(name)
        key = (component.decode("utf-8", "replace"), name, kind.decode())
        model = self._models[-1]
        model[key] = size if kind in (b"compute", b"output") else model.get(key, 0) + size
