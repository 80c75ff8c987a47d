# SPDX-License-Identifier: GPL-3.0-only
"""How a model is served, whatever runs it; rule: no decision here, only what every engine must be able to do.

An `Adapter` is one way to run llama.cpp (embedded, a llama-server binary, a server that runs elsewhere). It checks a model before
anything is evicted for it and starts it; the `Served` it returns is one running instance: wait for ready, generate, cancel, unload, health.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from modeld.core.model import InstanceId, ModelSpec
from modeld.runtime.devices import EngineDevice
from modeld.runtime.loadlines import Reported
from modeld.runtime.upstream import Endpoint, Exchange


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs, for the start-up line and /status. `warning` is shown once at start (for example an unused GPU).

    `devices` is for people; `found` what the engine told of each, None = it does not say.
    """

    adapter: str
    build: str
    devices: tuple[str, ...]
    warning: str = ""
    found: tuple[EngineDevice, ...] | None = None


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a child ended. `code` is the exit code, negative = the signal; None where there was no process.

    `reason` is one short plain sentence without a path; `log_tail` are the last lines the child wrote.
    `ran_out`: by these, of memory.
    """

    code: int | None
    reason: str
    log_tail: tuple[str, ...] = ()
    ran_out: bool = False


class Served(ABC):
    """One instance from spawn to reap. Made by `Adapter.start`; all methods belong to the event loop's thread."""

    endpoint: Endpoint

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Process id of the child, None where there is none."""

    @abstractmethod
    async def ready(self) -> None:
        """Return when the model is loaded and warmed up. Raises LoadFailed, OutOfMemory, LoadStalled, SpawnFailed or Died."""

    def reported(self) -> Reported | None:
        """What the server said of its memory while it loaded, None where it says nothing."""
        return None

    @abstractmethod
    async def exited(self) -> ExitReport:
        """Return when the process is reaped and its memory with it. May be awaited by several; cancelling it changes nothing."""

    @abstractmethod
    def stop(self) -> None:
        """Unload: TERM now, KILL after stop_grace. Returns at once, may be called again, never raises."""

    @abstractmethod
    def kill(self) -> None:
        """KILL now (second signal of the operator). Returns at once."""

    @abstractmethod
    async def health(self) -> bool:
        """True when the server answers its health route within 2 s."""

    @abstractmethod
    async def generate(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Exchange:
        """Send one request on a fresh connection and return when the response head is there. `Exchange.abort()` cancels.

        Raises UpstreamUnreachable, BadUpstreamReply.
        """

    @abstractmethod
    def log_tail(self) -> tuple[str, ...]:
        """The last lines of the child's log, oldest first."""


class Adapter(ABC):
    """One way to run llama.cpp."""

    name: str

    @abstractmethod
    async def describe(self) -> EngineInfo:
        """Engine, build and devices. Never hangs: a silent binary is an "unknown build" after 2 s."""

    @abstractmethod
    async def check(self, spec: ModelSpec) -> None:
        """File and arguments, before anything is evicted for the model. Raises ModelUnavailable, EngineMissing or LoadFailed."""

    @abstractmethod
    def start(self, instance: InstanceId, spec: ModelSpec, on_progress: Callable[[float], None]) -> Served:
        """Spawn and return at once; must run on the main thread. Raises SpawnFailed. `on_progress` gets 0..1."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what the adapter itself holds (folders, connections). Called after every Served has exited."""
