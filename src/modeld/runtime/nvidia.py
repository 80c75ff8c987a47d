# SPDX-License-Identifier: GPL-3.0-only
"""What NVIDIA's driver says of its cards and of who holds what: NVML through ctypes; rule: it only reads, and silence is no zero.

The library comes with the driver, so nothing is installed for it. Every call may take milliseconds: call from a thread. Inside a
container the driver may name no process at all, or name them by numbers of the machine outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Mapping
from ctypes import POINTER, byref, c_char, c_char_p, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any, Final

LIBRARY: Final = "libnvidia-ml.so.1"
CARDS_MAX: Final = 64
PROCESSES_MAX: Final = 4096
NAME_BYTES: Final = 96
SUCCESS: Final = 0
INSUFFICIENT_SIZE: Final = 7
NOT_AVAILABLE: Final = 2**64 - 1
"""`usedGpuMemory` where the driver does not know."""


class Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Process(ctypes.Structure):
    """nvmlProcessInfo_v2_t, which the functions with _v3 fill."""

    _fields_ = (("pid", c_uint), ("used", c_ulonglong), ("gpu_instance", c_uint), ("compute_instance", c_uint))


class Pci(ctypes.Structure):
    """nvmlPciInfo_t, version 3."""

    _fields_ = (
        ("legacy", c_char * 16),
        ("domain", c_uint),
        ("bus", c_uint),
        ("device", c_uint),
        ("device_id", c_uint),
        ("subsystem_id", c_uint),
        ("bus_id", c_char * 32),
    )


@dataclass(frozen=True, slots=True)
class NvidiaCard:
    """One card. `pci` as Linux writes it ("0000:01:00.0"), "" = unknown; bytes, total 0 = it does not say (memory shared with the host)."""

    uuid: str
    name: str
    pci: str
    total_bytes: int
    free_bytes: int


class Nvidia:
    """`library` is NVML, or what behaves like it. One at a time: calls from several threads wait for each other."""

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._lock = threading.Lock()
        self._handles: list[c_void_p] = []

    @classmethod
    def find(cls, load: Callable[[str], Any] = ctypes.CDLL) -> Nvidia | None:
        """NVML, started; None where there is no driver, or it does not answer."""
        try:
            found = cls(load(LIBRARY))
            found._start()
        except (OSError, AttributeError, _NoAnswer):
            return None
        return found

    def cards(self) -> tuple[NvidiaCard, ...]:
        """In the driver's order. A card that is lost is left out."""
        found: list[NvidiaCard] = []
        with self._lock:
            for handle in self._handles:
                with contextlib.suppress(_NoAnswer):
                    memory = self._memory(handle)
                    texts = [self._text("nvmlDeviceGetUUID", handle), self._text("nvmlDeviceGetName", handle)]
                    found.append(NvidiaCard(texts[0], texts[1], self._pci(handle), memory.total, memory.free))
        return tuple(found)

    def used_by(self, pid: int) -> Mapping[str, int] | None:
        """Bytes that a process holds, by the card's uuid; those without a figure are left out. None when no card told of its processes."""
        used: dict[str, int] = {}
        told = False
        with self._lock:
            for handle in self._handles:
                with contextlib.suppress(_NoAnswer):
                    sizes = [one.used for one in self._processes(handle) if one.pid == pid]
                    told = True
                    known = [size for size in sizes if size != NOT_AVAILABLE]
                    if known:
                        # A process that computes and draws is in both lists, with the same figure.
                        used[self._text("nvmlDeviceGetUUID", handle)] = max(known)
        return used if told else None

    def close(self) -> None:
        with self._lock, contextlib.suppress(_NoAnswer):
            self._call("nvmlShutdown")

    # --- one call each ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._call("nvmlInit_v2")
        count = c_uint()
        self._call("nvmlDeviceGetCount_v2", byref(count))
        for index in range(min(count.value, CARDS_MAX)):
            handle = c_void_p()
            with contextlib.suppress(_NoAnswer):  # one we may not use
                self._call("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle))
                self._handles.append(handle)

    def _memory(self, handle: c_void_p) -> Memory:
        memory = Memory()
        with contextlib.suppress(_NoAnswer):  # "not supported" where it shares the host's
            self._call("nvmlDeviceGetMemoryInfo", handle, byref(memory))
        return memory

    def _pci(self, handle: c_void_p) -> str:
        pci = Pci()
        try:
            self._call("nvmlDeviceGetPciInfo_v3", handle, byref(pci))
        except _NoAnswer:
            return ""
        return normal_pci(pci.bus_id.decode("ascii", "replace"))

    def _text(self, name: str, handle: c_void_p) -> str:
        text = ctypes.create_string_buffer(NAME_BYTES)
        self._call(name, handle, ctypes.cast(text, c_char_p), c_uint(NAME_BYTES))
        return text.value.decode("utf-8", "replace")

    def _processes(self, handle: c_void_p) -> list[Process]:
        found = self._list("nvmlDeviceGetComputeRunningProcesses_v3", handle)
        with contextlib.suppress(_NoAnswer):  # Vulkan counts as drawing
            found += self._list("nvmlDeviceGetGraphicsRunningProcesses_v3", handle)
        return found

    def _list(self, name: str, handle: c_void_p) -> list[Process]:
        room = 64
        while True:
            count, infos = c_uint(room), (Process * room)()
            status = self._status(name, handle, byref(count), ctypes.cast(infos, POINTER(Process)))
            if status == SUCCESS:
                return list(infos[: min(count.value, room)])
            if status != INSUFFICIENT_SIZE or room >= PROCESSES_MAX:
                raise _NoAnswer(name)
            room = min(max(2 * room, count.value), PROCESSES_MAX)

    def _call(self, name: str, *arguments: Any) -> None:
        if self._status(name, *arguments) != SUCCESS:
            raise _NoAnswer(name)

    def _status(self, name: str, *arguments: Any) -> int:
        try:
            return int(getattr(self._nvml, name)(*arguments))
        except AttributeError as error:  # an old driver
            raise _NoAnswer(name) from error


class _NoAnswer(Exception):
    """NVML did not do it."""


def normal_pci(text: str) -> str:
    """`00000000:01:00.0` or `0000:01:00.0` as Linux writes it, in small letters; "" for anything else."""
    domain, _, rest = text.strip().lower().partition(":")
    if rest.count(":") != 1 or not domain:
        return ""
    return f"{domain[-4:].rjust(4, '0')}:{rest}"
