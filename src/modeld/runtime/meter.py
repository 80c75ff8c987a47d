# SPDX-License-Identifier: GPL-3.0-only
"""What a model server really takes: looked at when it is ready, after its first request, then now and then; rule: it reads and reports.

Three sources, each for what it knows best:

    load lines       llama.cpp's own buffers, by device, before a page of them was touched
    the device       what its driver says the process holds: with the context of the process, and what grew
    /proc/PID/status anonymous and shared memory of the process. Not its resident size: that counts the mapped file
The mapped file counts with the weights that lie in it, once; the kernel may take those pages back, and the model is slow then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from modeld.core.footprint import Footprint, When
from modeld.core.messages import Event, FootprintMeasured
from modeld.core.model import InstanceId, ModelSpec
from modeld.runtime.adapters.interface import Served
from modeld.runtime.background import in_background
from modeld.runtime.loadlines import Reported

log = logging.getLogger("modeld.meter")

AGAIN_SECONDS: Final = 60.0
FREED_SECONDS_MAX: Final = 5.0
"""So long a child's device memory is waited for after its end; a driver that still names it then is not believed."""
FREED_POLL_SECONDS: Final = 0.05
PROC: Final = Path("/proc")
_HELD: Final = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)

DeviceBytes = Callable[[int], Mapping[str, int] | None]
"""Process id -> bytes by llama.cpp's name of the device; None where that cannot be read. May block."""


class Meter:
    """Looks at children. `post` takes the events; `device_bytes_of` may block, it runs in a thread."""

    def __init__(
        self,
        post: Callable[[Event], None],
        *,
        device_bytes_of: DeviceBytes | None = None,
        seconds: float = AGAIN_SECONDS,
        proc: Path = PROC,
    ) -> None:
        self._post = post
        self._device_bytes_of = device_bytes_of
        self._seconds = seconds
        self._proc = proc
        self._used: dict[InstanceId, asyncio.Event] = {}

    async def follow(self, instance: InstanceId, spec: ModelSpec, served: Served) -> None:
        """Look again and again, from ready until cancelled."""
        used = self._used[instance] = asyncio.Event()
        try:
            await self._look(instance, spec, served, When.READY)
            await used.wait()
            await self._look(instance, spec, served, When.FIRST)
            while True:
                await asyncio.sleep(self._seconds)
                await self._look(instance, spec, served, When.LATER)
        finally:
            del self._used[instance]

    def ran_out(self, instance: InstanceId, spec: ModelSpec, served: Served) -> None:
        """It ran out of memory while it loaded: what it told of until then it did have, and that was not all."""
        if (reported := served.reported()) is not None:
            self._post(FootprintMeasured(instance, replace(footprint(spec, reported, None, 0), complete=False), When.READY))

    def used(self, instance: InstanceId) -> None:
        """A request has ended there."""
        if (event := self._used.get(instance)) is not None:
            event.set()

    async def freed(self, pid: int) -> None:
        """Return when the driver no longer names `pid`, which has ended: what it held of a device is back. Gives up after a while."""
        if self._device_bytes_of is None:
            return
        with contextlib.suppress(TimeoutError, RuntimeError):
            async with asyncio.timeout(FREED_SECONDS_MAX):
                while await in_background(lambda: self._on_devices(pid), name="meter"):  # noqa: ASYNC110 - nobody tells us
                    await asyncio.sleep(FREED_POLL_SECONDS)

    async def _look(self, instance: InstanceId, spec: ModelSpec, served: Served, when: When) -> None:
        pid = served.pid
        if pid is None:
            return
        try:
            held, devices = await in_background(lambda: (held_bytes(pid, self._proc), self._on_devices(pid)), name="meter")
        except RuntimeError as error:  # no thread is to be had: there will be another look
            log.warning("%s cannot be looked at: %s", instance, error)
            return
        if held is not None:  # else it is gone, or not ours to look at
            self._post(FootprintMeasured(instance, footprint(spec, served.reported(), devices, held), when))

    def _on_devices(self, pid: int) -> Mapping[str, int] | None:
        if self._device_bytes_of is None:
            return None
        try:
            return self._device_bytes_of(pid)
        except Exception:
            log.exception("the devices cannot be looked at")
            return None


def held_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Anonymous and shared memory of a process; None when it is gone."""
    try:
        text = (proc / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = _HELD.findall(text)
    return sum(map(int, found)) << 10 if found else None


def footprint(spec: ModelSpec, reported: Reported | None, devices: Mapping[str, int] | None, held: int) -> Footprint:
    """Put together what is known of one process. `devices` None = its share of them cannot be read; `held` is its own host memory."""
    seen = devices or {}
    if reported is None:  # this build says nothing while it loads: all of the file counts
        return Footprint(dict(seen), held + (0 if seen else spec.size_bytes), complete=False)
    own = reported.device_bytes()
    device_bytes = {name: max(own.get(name, 0), seen.get(name, 0)) for name in dict.fromkeys([*own, *seen])}
    mapped = _mapped_bytes(spec, reported) if reported.mapped else 0
    host_bytes = max(reported.host_bytes(), held) + mapped
    # In a container the driver may name no process, or not ours: what it holds beyond its buffers is not known then.
    return Footprint(device_bytes, host_bytes, complete=own.keys() <= seen.keys(), reported_bytes=reported.total_bytes + mapped)


def _mapped_bytes(spec: ModelSpec, reported: Reported) -> int:
    """Weights that lie in mapped files, a draft model's too: those in no buffer. A token table that is the output head is in both."""
    loaded = [(spec.memory, spec.size_bytes), *([(spec.draft.memory, spec.draft.size_bytes)] if spec.draft is not None else [])]
    weights = sum(memory.weights_bytes or size_bytes for memory, size_bytes in loaded)
    in_buffers = reported.weights_bytes()
    copied = min(in_buffers, sum(memory.tied_bytes for memory, _ in loaded)) if reported.device_bytes() else 0
    return max(0, weights - (in_buffers - copied))
