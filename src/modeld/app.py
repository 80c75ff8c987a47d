# SPDX-License-Identifier: GPL-3.0-only
"""The composition root: the only file that wires; rule: start-up, reload and shutdown are here in the order in which they happen.

Start:     sockets are bound (a mistake ends here, with exit code 2), the listener answers /healthz, then engine and folder are looked at.
Running:   the folder is looked at every rescan_interval, at once on SIGHUP and when a request names a model nobody knows.
Shutdown:  1 no new connections  2 core refuses who waits, ends who runs with a last record, stops all children  3 exit 0.
           A second signal, or shutdown_timeout, kills what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import zlib
from pathlib import Path
from typing import Final

import uvloop

from modeld import __version__, logs
from modeld.api.access import CorsOptions
from modeld.api.listen import Listener, bind
from modeld.api.metrics import Metrics
from modeld.api.protocol import ProtocolLimits
from modeld.api.server import App, EdgeOptions, build_app
from modeld.catalog import starter
from modeld.catalog.models import Catalog, ModelTable
from modeld.catalog.progress import ConsoleProgress
from modeld.config import Loaded, Settings
from modeld.core.budget import Budget, resolve, seen
from modeld.core.footprint import MIB, DeviceMemory
from modeld.core.messages import LoadRequested, ModelTableReplaced, SettingsReplaced, ShutdownRequested
from modeld.core.model import HOST, DeviceId, Limits, ModelSpec
from modeld.core.scheduler import Scheduler
from modeld.errors import ConfigError, Draining, InvariantError, ModeldError, UnknownModel, UpstreamUnreachable
from modeld.runtime.adapters.choice import choose
from modeld.runtime.adapters.embedded import EmbeddedAdapter
from modeld.runtime.adapters.external import ExternalAdapter
from modeld.runtime.adapters.interface import Adapter, EngineInfo
from modeld.runtime.background import in_background
from modeld.runtime.devices import Machine
from modeld.runtime.driver import Driver
from modeld.runtime.feed import Feed
from modeld.runtime.hostmemory import HostMemory, held_mb, read_host_memory
from modeld.runtime.memorywatch import watch_memory
from modeld.runtime.meter import Meter
from modeld.runtime.nvidia import Nvidia
from modeld.runtime.probe import Prober
from modeld.runtime.store import Store
from modeld.runtime.supervisor import Supervisor
from modeld.runtime.trace import TraceWriter

log = logging.getLogger("modeld.app")

EXIT_OK: Final = 0
EXIT_CONFIG: Final = 2
EXIT_INTERNAL: Final = 70
"""EX_SOFTWARE of sysexits.h: an invariant of ours was broken."""

HEADER_CACHE: Final = "headers-{folder:08x}.json"
"""One for each models folder that this state folder has seen."""
FOOTPRINTS: Final = "footprints.sqlite"
DRIVER_SECONDS_MAX: Final = 10.0
LAST_SECONDS: Final = 0.5
"""From the killing of what is left to the end of the process, whatever happens."""


def serve(loaded: Loaded, *, fetch_starter: bool = False) -> int:
    """Run the daemon until it is told to stop; the exit code. Raises ConfigError before anything listens."""
    settings = loaded.settings
    logs.set_up(settings.log_level, settings.log_format)
    if fetch_starter and not starter.has_models(settings.models_dir):
        _fetch(settings.models_dir)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would keep us from reaping
    sockets = bind(settings.addr.host, settings.addr.port, settings.addr.unix_path)
    try:
        return uvloop.run(_run(settings, sockets))
    except* ConfigError as several:  # found while the engine was looked for
        raise _first(several) from None
    finally:
        for one in sockets:
            one.close()
        if settings.addr.unix_path is not None:
            Path(settings.addr.unix_path).unlink(missing_ok=True)


async def _run(settings: Settings, sockets: list[socket.socket]) -> int:
    return await Daemon(settings, sockets).run()


def _first(several: BaseExceptionGroup[ConfigError]) -> ConfigError:
    found = several.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


def _fetch(models_dir: Path) -> None:
    display = ConsoleProgress(sys.stderr)
    try:
        starter.fetch_starter(models_dir, progress=display)
    except ModeldError as error:
        raise ConfigError(f"no model in {models_dir}, and the starter could not be fetched: {error.message}") from error
    finally:
        display.close()


async def choose_engine(settings: Settings) -> tuple[Adapter, EngineInfo]:
    """The engine that the settings ask for. Raises ConfigError."""
    return await choose(
        adapter=settings.adapter,
        llama_bin=settings.llama_bin,
        llama_url=settings.llama_url,
        llama_api_key=settings.llama_api_key,
        runtime_dir=settings.runtime_dir,
        stop_grace=settings.stop_grace,
    )


async def find_machine(engine: EngineInfo, host: HostMemory) -> Machine | None:
    """The cards behind the engine's devices. None where it does not say which devices it has."""
    found = engine.found
    if found is None:
        return None
    nvidia = None
    if any(one.computes for one in found):  # without a device nobody asks a driver
        try:
            async with asyncio.timeout(DRIVER_SECONDS_MAX):
                nvidia = await in_background(Nvidia.find, name="driver")
        except TimeoutError:
            log.warning("the driver of the NVIDIA cards gives no answer: what is free of them is not known")
    return await in_background(lambda: Machine(found, nvidia=nvidia, host_total_mb=host.total_mb, environment=os.environ), name="driver")


async def find_limits(settings: Settings) -> Limits:
    """What a daemon with these settings would decide by on this machine. Raises ConfigError."""
    adapter, engine = await choose_engine(settings)
    await adapter.close()
    if isinstance(adapter, ExternalAdapter):
        return Budget().put_into(settings.limits())
    host = await in_background(read_host_memory, name="memory")
    machine = await find_machine(engine, host)
    return find_budget(settings, machine, host).put_into(settings.limits())


def find_budget(settings: Settings, machine: Machine | None, host: HostMemory) -> Budget:
    """What follows from the settings for the devices that the engine has. Raises ConfigError for a device that is not there."""
    return resolve(settings.budget_wish(), None if machine is None else machine.facts(), host.total_mb)


class Daemon:
    """One run of the service."""

    def __init__(self, settings: Settings, sockets: list[socket.socket]) -> None:
        self._settings = settings
        self._sockets = sockets
        self._table = ModelTable({})
        self._notes: tuple[str, ...] = ()
        self._unreachable = ""
        self._engine: EngineInfo | None = None
        self._adapter: Adapter | None = None
        self._supervisor: Supervisor | None = None
        self._store: Store | None = None
        self._machine: Machine | None = None
        self._host = HostMemory(0, 0)
        self._budget = Budget()
        self._stop = asyncio.Event()
        self._first_look: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._look = asyncio.Event()
        self._signals = 0
        self._exit_code = EXIT_OK
        self._catalog = Catalog(
            settings.models_dir,
            settings.override_for,
            settings.state_dir / HEADER_CACHE.format(folder=zlib.crc32(os.fsencode(settings.models_dir.absolute()))),
            override_names=tuple(settings.models),
        )
        self._scan_lock = asyncio.Lock()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._look.set)
        metrics = Metrics(__version__)
        limits, place = self._settings.limits(), self._settings.trace_file
        trace = None if place is None else TraceWriter(place, limits, now=loop.time())
        self._driver = driver = Driver(Scheduler(limits, {}), observer=metrics, on_fatal=self._on_fatal, trace=trace)
        self._feed = feed = Feed()
        driver.watch(feed.take)
        app = self._edge(driver, metrics, feed)
        self._listener = listener = Listener(app, ProtocolLimits(), self._settings.shutdown_timeout, app.turn_away)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(listener.serve(sockets=self._sockets), name="listener")
            log.info("modeld %s listening on %s; %s", __version__, self._shown_address(), app.access.describe())
            working = group.create_task(self._work(), name="engine and folder")
            await self._stop.wait()
            self._end_hard_in(self._settings.shutdown_timeout + LAST_SECONDS)
            listener.stop_accepting()
            await self._wind_up(working)
            await serving
        driver.close()
        if trace is not None:
            trace.close()
        log.info("stopped")
        return self._exit_code

    def _edge(self, driver: Driver, metrics: Metrics, feed: Feed) -> App:
        settings = self._settings
        options = EdgeOptions(
            max_body_bytes=settings.max_body_bytes,
            max_api_body_bytes=settings.max_api_body_bytes,
            default_model=settings.default_model,
            heartbeat_seconds=settings.sse_heartbeat,
            allow_remote=settings.allow_remote,
            allowed_hosts=settings.allowed_hosts,
            own_hosts=tuple(name for name in (settings.addr.host, socket.gethostname()) if name),
            cors=CorsOptions(
                enabled=settings.cors_enabled,
                origins=settings.cors_allowed_origins,
                methods=settings.cors_allowed_methods,
                headers=settings.cors_allowed_headers,
            ),
        )
        return build_app(
            options,
            driver=driver,
            feed=feed,
            table=self._known_table,
            metrics=metrics,
            engine=lambda: self._engine,
            exits=lambda: () if self._supervisor is None else self._supervisor.exits,
            rescan=self._rescan,
            known=self._table_at_hand,
        )

    def _shown_address(self) -> str:
        """The bound address as a URL, with the real port where 0 was asked for."""
        address = self._settings.addr
        if address.unix_path is not None:
            return f"unix:{address.unix_path}"
        host, port = self._sockets[0].getsockname()[:2]
        if not address.host:
            return f"http://localhost:{port} (every interface)"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    # --- start and run ------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Engine, then folder, for as long as the daemon runs. A request that comes earlier waits in `_known_table`."""
        try:
            await self._serve_models()
        finally:
            if self._store is not None:
                await self._store.close()
            if self._adapter is not None:
                await self._adapter.close()

    async def _serve_models(self) -> None:
        settings = self._settings
        self._adapter, self._engine = await choose_engine(settings)
        engine = self._engine
        log.info("engine: %s, %s%s", engine.adapter, engine.build, f", on {', '.join(engine.devices)}" if engine.devices else "")
        if engine.warning:
            log.warning("%s", engine.warning)
            self._notes = (engine.warning,)
        if isinstance(self._adapter, EmbeddedAdapter) and (named := settings.models_with_extra_args()):
            raise ConfigError(f"llama_extra_args ({named}) need a llama-server binary: set llama_bin, or leave them out")
        post, holds = self._driver.post, None
        if not isinstance(self._adapter, ExternalAdapter):  # the memory of a server that runs elsewhere is not ours
            self._host = await in_background(read_host_memory, name="memory")
            self._machine = await find_machine(engine, self._host)
            if self._machine is not None and self._machine.facts():
                holds = self._machine.device_bytes_of
            self._store = Store(settings.state_dir / FOOTPRINTS, f"{engine.build} on {', '.join(engine.devices)}")
        keep = None if self._store is None else self._store.remember
        # Another build of llama.cpp than the one that serves would answer for itself.
        prober = Prober(settings.runtime_dir / "probe") if isinstance(self._adapter, EmbeddedAdapter) else None
        self._supervisor = supervisor = Supervisor(self._adapter, post, prober=prober, keep=keep, meter=Meter(post, device_bytes_of=holds))
        self._driver.attach(supervisor)
        if self._store is not None:
            post(await self._store.open())
        self._find_budget()
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.run(), name="supervisor")
            group.create_task(self._watch(), name="folder")
            if self._budget.is_limited:
                group.create_task(watch_memory(self._look_at_memory, post), name="memory")

    def _find_budget(self) -> None:
        """Before the first model is known: what the ledger may give out. Raises ConfigError for a device that is not there."""
        if isinstance(self._adapter, ExternalAdapter):
            return  # its memory is not ours
        self._budget = budget = find_budget(self._settings, self._machine, self._host)
        self._driver.post(SettingsReplaced(budget.put_into(self._settings.limits())))
        for device, budget_mb in budget.budget_mb.items():
            margin_mb = budget.host_margin_mb if device == HOST else budget.margin_mb
            log.info("memory of %s: %s", device, f"{budget_mb} MiB, {margin_mb} of them kept free" if budget_mb else "no budget")

    async def _look_at_memory(self) -> dict[DeviceId, DeviceMemory]:
        """Devices and host. Of host memory our children hold what they hold just now; of a device what the ledger has for them."""
        now, budget, machine = self._driver.snapshot(estimates=False), self._budget, self._machine
        pids = [view.pid for view in now.instances if view.pid is not None]
        host, held, cards = await in_background(
            lambda: (read_host_memory(), held_mb(pids), {} if machine is None else machine.memory()), name="memory"
        )
        ours_mb = {view.id: view.used_mb for view in now.devices}
        # One figure of the ledger may stand for several devices: their sum counts.
        of_device = {names[0]: ours_mb.get(device, 0) for device, names in budget.names.items() if names}
        devices = {name: DeviceMemory(total // MIB, free // MIB, of_device.get(name, 0)) for name, (total, free) in cards.items()}
        return seen(budget, devices, DeviceMemory(host.total_mb, host.free_mb, held) if host.total_mb else None)

    async def _watch(self) -> None:
        """The file system cannot tell us of changes on every mount: look again and again."""
        await self._rescan()
        for spec in self._table.models.values():
            if spec.preload:
                self._driver.post(LoadRequested(spec.id, may_evict=False))
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.rescan_interval):
                    await self._look.wait()
            self._look.clear()
            await self._rescan()

    def _tell_models(self) -> None:
        """After the first look at the folder, before the first request is let in. Raises ConfigError for pins that do not fit together."""
        settings, table = self._settings, self._table
        where = settings.llama_url if isinstance(self._adapter, ExternalAdapter) else settings.models_dir
        if table.models:
            log.info("%d model%s in %s", len(table.models), "s" if len(table.models) > 1 else "", where)
        elif not isinstance(self._adapter, ExternalAdapter):
            log.warning("no model in %s: put a .gguf file there, or run `modeld pull starter`", where)
        self._check_pins(table)
        if settings.default_model is not None and table.models:
            try:
                table.resolve(settings.default_model)
            except UnknownModel as error:
                log.warning("default_model: %s", error.message)

    def _check_pins(self, table: ModelTable) -> None:
        """Raises ConfigError when the models that the settings pin do not fit together."""
        limits = self._budget.budget_mb
        rooms = [mb - self._budget.margin_mb for device, mb in limits.items() if device != HOST]
        pins = {spec.id: self._driver.need(spec.id).total_mb for spec in table.models.values() if spec.pinned and spec.unavailable is None}
        pinned_mb, room_mb = sum(pins.values()), sum(rooms)
        if pinned_mb > room_mb and all(mb for device, mb in limits.items() if device != HOST):
            each = ", ".join(f"{model} {size_mb} MiB" for model, size_mb in pins.items())
            raise ConfigError(
                f"the pinned models need {pinned_mb} MiB together ({each}), more than vram_budget_mb - vram_margin_mb = {room_mb}; "
                "unpin one or raise the budget"
            )

    async def _known_table(self) -> ModelTable:
        """The catalogue; a request that comes before the first look at the folder waits for it. Raises what an external server lacks."""
        await asyncio.shield(self._first_look)
        if self._unreachable and not self._table.models:
            raise UpstreamUnreachable(self._unreachable)
        return self._table

    def _table_at_hand(self) -> ModelTable | None:
        """The catalogue, None where `_known_table` would wait or raise."""
        looked = self._first_look.done() and self._first_look.exception() is None
        return self._table if looked and (self._table.models or not self._unreachable) else None

    async def _rescan(self) -> None:
        async with self._scan_lock:
            try:
                table = await self._read_table()
            except Exception:
                log.exception("the models could not be looked at; the catalogue stays as it was")
                table = self._table
            for note in table.notes:
                if note not in self._notes:
                    log.warning("%s", note)
            self._notes = table.notes
            if table != self._table:
                self._table = table
                self._driver.post(ModelTableReplaced(table.models))
            if not self._first_look.done():
                self._tell_models()
                self._first_look.set_result(None)

    async def _read_table(self) -> ModelTable:
        if not isinstance(self._adapter, ExternalAdapter):
            return await in_background(self._catalog.scan)
        try:
            specs: list[ModelSpec] = await self._adapter.models()
        except ModeldError as error:
            self._unreachable = f"the server at llama_url has no answer: {error.message}"
            return ModelTable(self._table.models, (f"llama_url: {error.message}",))
        self._unreachable = ""
        return ModelTable({spec.id: spec for spec in specs})

    # --- end ----------------------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            log.info("stopping; a second signal kills what is left at once")
            self._stop.set()
        else:
            self._kill_rest("second signal")
            self._listener.force_exit = True
            self._end_hard_in(LAST_SECONDS)

    def _on_fatal(self, error: InvariantError) -> None:
        self._exit_code = EXIT_INTERNAL
        self._stop.set()

    async def _wind_up(self, working: asyncio.Task[None]) -> None:
        """Core ends all requests and children; past shutdown_timeout they are killed. Then the supervisor may go."""
        if not self._first_look.done():
            self._first_look.set_exception(Draining("modeld is shutting down; try again when it is back", retry_after_seconds=5))
            self._first_look.exception()  # seen, also when nobody waited for it
        if self._supervisor is not None:
            self._driver.post(ShutdownRequested())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.shutdown_timeout):
                    await self._driver.empty()
            await self._supervisor.close()
        self._feed.close()  # after the last event; who follows them would keep the listener from ending
        working.cancel()
        await asyncio.wait([working])

    def _end_hard_in(self, seconds: float) -> None:
        """Whatever still holds us then (a child that KILL does not end, an event that was lost) must not: the kernel ends our children."""
        asyncio.get_running_loop().call_later(seconds, self._end_hard)

    def _end_hard(self) -> None:
        log.error("something did not end in time; leaving without it")
        logging.shutdown()
        if self._settings.addr.unix_path is not None:
            Path(self._settings.addr.unix_path).unlink(missing_ok=True)
        os._exit(self._exit_code)

    def _kill_rest(self, why: str) -> None:
        log.warning("killing what is left: %s", why)
        if self._supervisor is not None:
            self._supervisor.kill_all()
