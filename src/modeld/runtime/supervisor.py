# SPDX-License-Identifier: GPL-3.0-only
"""Starts and stops instances; rule: every start ends in exactly one chain of events, whatever happens.

    start    InstanceSpawned, LoadProgressed…, InstanceReady | InstanceFailed, …, InstanceExited, MemoryFreed
    stop     while it loads: neither InstanceReady nor InstanceFailed comes any more; InstanceExited, MemoryFreed as always
    check    LaunchChecked | LaunchRejected
    probe    FootprintProbed | ProbeFailed

Each instance has one task from spawn to reap; a bug in one costs that instance and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from modeld.core.footprint import Probe
from modeld.core.messages import (
    Event,
    FootprintProbed,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    InstanceSpawned,
    LaunchChecked,
    LaunchRejected,
    LoadProgressed,
    MemoryFreed,
    ProbeFailed,
    Remember,
)
from modeld.core.model import InstanceId, ModelId, ModelSpec
from modeld.errors import InstanceFault, InvariantError, LoadFailed, ModeldError, NotSupported, OutOfMemory, Refused, SpawnFailed
from modeld.runtime.adapters.interface import Adapter, ExitReport, Served
from modeld.runtime.meter import Meter

log = logging.getLogger("modeld.supervisor")

EXITS_MAX: Final = 32
PROGRESS_STEP: Final = 0.01
CANCEL_SECONDS_MAX: Final = 5.0


class Prober(Protocol):
    """What asks llama.cpp for the footprint of a launch: runtime.probe."""

    async def ask(self, spec: ModelSpec, *, around: bool) -> Probe:
        """Raises ModeldError when there is no answer."""


class _Entry:
    """One instance from start to reap."""

    __slots__ = ("ends_all", "progress", "served", "stopping")

    def __init__(self) -> None:
        self.served: Served | None = None
        self.stopping = False
        self.ends_all = False
        """It ends with the daemon: nobody waits for its memory any more."""
        self.progress = 0.0


class Supervisor:
    """Carries out what core commands. `post` takes the events; all methods belong to the event loop's thread."""

    def __init__(
        self,
        adapter: Adapter,
        post: Callable[[Event], None],
        *,
        prober: Prober | None = None,
        keep: Callable[[Remember], None] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.exits: deque[tuple[float, ModelId, ExitReport]] = deque(maxlen=EXITS_MAX)
        """Unix time, model and report of the last endings, oldest first."""
        self._adapter = adapter
        self._post = post
        self._prober = prober
        self._keep = keep
        self._meter = meter
        self._entries: dict[InstanceId, _Entry] = {}
        self._checks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()

    async def run(self) -> None:
        """Own the tasks of all instances until `close`. When it is cancelled, all children are killed and reaped first."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._closing.wait()
                self._group = None
        finally:
            self._group = None
            await self._reap_all()
            self._closed.set()

    async def close(self) -> None:
        """Kill what is left and return when it is reaped. Nothing can be started any more."""
        running = self._group is not None
        self._closing.set()
        self.kill_all()
        for task in self._checks:
            task.cancel()
        if running:
            await self._closed.wait()

    def check(self, spec: ModelSpec) -> None:
        task = self._running().create_task(self._check(spec), name=f"check {spec.id}")
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def start(self, instance: InstanceId, spec: ModelSpec) -> None:
        """Spawn now; everything that comes of it is posted later, never from inside this call."""
        group = self._running()
        if instance in self._entries:
            raise InvariantError(f"instance {instance} was started twice")
        entry = self._entries[instance] = _Entry()
        failure: InstanceFault | Refused | None = None
        try:
            entry.served = self._adapter.start(instance, spec, lambda fraction: self._on_progress(instance, fraction))
        except (InstanceFault, Refused) as error:
            failure = error
        except Exception as error:
            log.exception("cannot start %s", instance)
            failure = SpawnFailed("The model server could not be started because of a fault in modeld.", detail=repr(error))
        if entry.served is not None:
            group.create_task(self._live(instance, spec, entry, entry.served), name=f"instance {instance}")
        elif failure is not None:
            group.create_task(self._fail(instance, spec, failure), name=f"instance {instance}")

    def probe(self, spec: ModelSpec, key: str, *, around: bool = True) -> None:
        """Ask what the launch would take, beside everything else."""
        task = self._running().create_task(self._probe(spec, key, around), name=f"probe {spec.id}")
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def remember(self, what: Remember) -> None:
        """Keep it across restarts."""
        if self._keep is not None:
            self._keep(what)

    def used(self, instance: InstanceId) -> None:
        """A request has ended on it."""
        if self._meter is not None:
            self._meter.used(instance)

    def stop(self, instance: InstanceId, why: str) -> None:
        """Unload. No effect on an instance that is gone or is being stopped."""
        entry = self._entries.get(instance)
        if entry is not None and not entry.stopping:
            log.debug("stopping %s: %s", instance, why)
            entry.stopping, entry.ends_all = True, why == "shutdown"
            if entry.served is not None:
                entry.served.stop()

    def kill_all(self) -> None:
        """KILL to every child, now."""
        for entry in self._entries.values():
            entry.stopping = entry.ends_all = True
            if entry.served is not None:
                entry.served.kill()

    def served(self, instance: InstanceId) -> Served | None:
        """The running instance, None once it is gone."""
        entry = self._entries.get(instance)
        return None if entry is None else entry.served

    # --- one task each ------------------------------------------------------------------------------------------------

    async def _check(self, spec: ModelSpec) -> None:
        try:
            await self._adapter.check(spec)
        except (InstanceFault, Refused) as error:
            self._post(LaunchRejected(spec.id, spec.fingerprint, error))
        except Exception as error:
            log.exception("cannot check %s", spec.id)
            fault = LoadFailed("The model could not be checked because of a fault in modeld.", detail=repr(error))
            self._post(LaunchRejected(spec.id, spec.fingerprint, fault))
        else:
            self._post(LaunchChecked(spec.id, spec.fingerprint))

    async def _probe(self, spec: ModelSpec, key: str, around: bool) -> None:
        try:
            if self._prober is None:
                raise NotSupported("this engine cannot be asked")
            probe = await self._prober.ask(spec, around=around)
        except ModeldError as error:
            log.debug("no dry pass of %s: %s (%s)", spec.id, error.message, error.detail)
            self._post(ProbeFailed(spec.id, key, error.message))
        except Exception:
            log.exception("cannot ask about %s", spec.id)
            self._post(ProbeFailed(spec.id, key, "it could not be asked because of a fault in modeld"))
        else:
            self._post(FootprintProbed(spec.id, key, probe))

    async def _fail(self, instance: InstanceId, spec: ModelSpec, error: InstanceFault | Refused) -> None:
        """The spawn failed: there is no process, and the chain is the same."""
        log.warning("failed %s: %s (%s)", instance, error.message, error.detail)
        self._post(InstanceFailed(instance, error))
        self._end(instance, spec, ExitReport(None, error.message))
        self._post(MemoryFreed(instance))

    async def _live(self, instance: InstanceId, spec: ModelSpec, entry: _Entry, served: Served) -> None:
        if served.pid is not None:
            self._post(InstanceSpawned(instance, served.pid))
        failure = await self._load(instance, served)
        looks: asyncio.Task[None] | None = None
        if entry.stopping:
            pass
        elif failure is None:
            self._post(InstanceReady(instance, served.pid))
            if self._meter is not None and self._group is not None:
                looks = self._group.create_task(self._meter.follow(instance, spec, served), name=f"meter of {instance}")
        else:
            log.warning("failed %s: %s (%s)", instance, failure.message, failure.detail)
            entry.stopping = True
            served.stop()
            if self._meter is not None and isinstance(failure, OutOfMemory):
                self._meter.ran_out(instance, spec, served)
            self._post(InstanceFailed(instance, failure))
        report = await self._report(instance, served)
        if looks is not None:
            looks.cancel()
        if not entry.stopping:
            log.warning("%s %s", instance, report.reason)
        self._end(instance, spec, report)
        if self._meter is not None and served.pid is not None and not entry.ends_all:
            await self._meter.freed(served.pid)
        self._post(MemoryFreed(instance))

    async def _load(self, instance: InstanceId, served: Served) -> InstanceFault | Refused | None:
        try:
            await served.ready()
        except (InstanceFault, Refused) as error:
            return error
        except Exception as error:
            log.exception("cannot load %s", instance)
            return LoadFailed("The model could not be loaded because of a fault in modeld.", detail=repr(error))
        return None

    async def _report(self, instance: InstanceId, served: Served) -> ExitReport:
        """How it ended. A bug on the way there costs this instance: it is killed, and taken for gone."""
        try:
            return await served.exited()
        except Exception:
            log.exception("the end of %s cannot be seen", instance)
            with contextlib.suppress(Exception):
                served.kill()
            return ExitReport(None, "lost sight of because of a fault in modeld")

    def _end(self, instance: InstanceId, spec: ModelSpec, report: ExitReport) -> None:
        del self._entries[instance]
        self.exits.append((time.time(), spec.id, report))
        self._post(InstanceExited(instance, report.code, report.reason, report.ran_out))

    def _on_progress(self, instance: InstanceId, fraction: float) -> None:
        entry = self._entries.get(instance)
        if entry is None or entry.stopping or fraction <= entry.progress:
            return
        if fraction - entry.progress >= PROGRESS_STEP or fraction >= 1.0:
            entry.progress = fraction
            self._post(LoadProgressed(instance, fraction))

    async def _reap_all(self) -> None:
        """After a cancel the tasks are gone, the children are not."""
        left = [(instance, entry.served) for instance, entry in self._entries.items() if entry.served is not None]
        for _instance, served in left:
            served.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_SECONDS_MAX):
                for instance, served in left:
                    await self._report(instance, served)

    def _running(self) -> asyncio.TaskGroup:
        if self._group is None:
            raise InvariantError("the supervisor does not run")
        return self._group
