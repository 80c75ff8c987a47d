# SPDX-License-Identifier: GPL-3.0-only
"""A llama.cpp server that already runs; rule: it is asked, never started, stopped or evicted.

Its models come from `/v1/models`; they take 0 MB of our budget.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from modeld.core.model import InstanceId, LaunchOptions, ModelId, ModelSpec
from modeld.errors import ConfigError, Died, LoadFailed, ModeldError, UpstreamUnreachable
from modeld.runtime.adapters.interface import Adapter, EngineInfo, ExitReport, Served
from modeld.runtime.adapters.process import POLL_SECONDS, answers_health
from modeld.runtime.upstream import Endpoint, Exchange

ASK_SECONDS_MAX: Final = 5.0
READY_SECONDS_MAX: Final = 60.0
LIST_BYTES_MAX: Final = 4 << 20
POLL_SECONDS_MAX: Final = 1.0
SLOTS_MAX: Final = 1024


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a foreign answer can raise: no JSON of that shape, no UTF-8, nested too deep."""


class _Entry(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[_Entry]


class _Props(msgspec.Struct):
    total_slots: Annotated[int, msgspec.Meta(ge=0)] = 0
    build_info: str = ""


class ExternalAdapter(Adapter):
    """`url` is http(s)://host[:port][/prefix]; a closing `/v1` is left out. `api_key` is sent as a bearer token. Raises ConfigError."""

    name = "external"

    def __init__(self, *, url: str, api_key: str | None = None, ready_seconds_max: float = READY_SECONDS_MAX) -> None:
        self.endpoint = endpoint_of(url, api_key)
        self._ready_seconds_max = ready_seconds_max
        self._slots = 1

    async def describe(self) -> EngineInfo:
        try:
            props = await self._props()
        except ModeldError as error:
            return EngineInfo(self.name, "unknown build", (), f"llama_url: {error.message}")
        return EngineInfo(self.name, props.build_info or "unknown build", ())

    async def models(self) -> list[ModelSpec]:
        """What the server has now, in id order, each with the slots it told last (1 before it has told any).

        Raises UpstreamUnreachable, BadUpstreamReply, LoadFailed (not allowed, or nonsense).
        """
        try:
            listed = msgspec.json.decode(await self._get("/v1/models"), type=_List).data
        except _UNREADABLE as error:
            raise LoadFailed("The server at llama_url does not list its models as llama.cpp does.", detail=str(error)) from error
        with contextlib.suppress(ModeldError):  # a server that hides /props still serves
            # What was known stays known: another number of slots is another model to core, which ends what runs on the old one.
            self._slots = min((await self._props()).total_slots, SLOTS_MAX) or self._slots
        options = LaunchOptions(parallel=self._slots)
        ids = sorted({entry.id for entry in listed if entry.id})
        return [ModelSpec(ModelId(one), path="", name=one, fingerprint="external", options=options, external=True) for one in ids]

    async def check(self, spec: ModelSpec) -> None:
        if spec.id not in {one.id for one in await self.models()}:
            raise LoadFailed("The server at llama_url does not have this model any more.")

    def start(self, instance: InstanceId, spec: ModelSpec, on_progress: Callable[[float], None]) -> Served:
        return ServedExternal(self.endpoint, self._ready_seconds_max)

    async def close(self) -> None:
        """Nothing is held."""

    async def _props(self) -> _Props:
        body = await self._get("/props")
        try:
            return msgspec.json.decode(body, type=_Props)
        except _UNREADABLE as error:
            raise LoadFailed("The server at llama_url does not describe itself as llama.cpp does.", detail=str(error)) from error

    async def _get(self, path: str) -> bytes:
        try:
            async with asyncio.timeout(ASK_SECONDS_MAX):
                exchange = await Exchange.open(self.endpoint, "GET", path, [], b"")
                body = await exchange.read(LIST_BYTES_MAX)
        except TimeoutError as error:
            raise UpstreamUnreachable(f"The server at llama_url gave no answer in {ASK_SECONDS_MAX:.0f} s.") from error
        if exchange.status in (401, 403):
            raise LoadFailed("The server at llama_url refuses the key: set llama_api_key.")
        if exchange.status != 200:
            raise LoadFailed(f"The server at llama_url answered {exchange.status} when it was asked for its models.")
        return body


class ServedExternal(Served):
    """A model of the other server. There is no process of ours: `stop` only forgets it."""

    def __init__(self, endpoint: Endpoint, ready_seconds_max: float) -> None:
        self.endpoint = endpoint
        self._ready_seconds_max = ready_seconds_max
        self._forgotten = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return None

    async def ready(self) -> None:
        pause = POLL_SECONDS
        try:
            async with asyncio.timeout(self._ready_seconds_max):
                while not await answers_health(self.endpoint):
                    if self._forgotten.is_set():
                        raise Died("The model was unloaded.")
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._forgotten.wait()
                    pause = min(2 * pause, POLL_SECONDS_MAX)
        except TimeoutError as error:
            raise LoadFailed("The server at llama_url does not answer, or is still loading.") from error

    async def exited(self) -> ExitReport:
        await self._forgotten.wait()
        return ExitReport(None, "forgotten; it runs elsewhere")

    def stop(self) -> None:
        self._forgotten.set()

    def kill(self) -> None:
        self._forgotten.set()

    async def health(self) -> bool:
        return await answers_health(self.endpoint)

    async def generate(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Exchange:
        return await Exchange.open(self.endpoint, method, path, headers, body)

    def log_tail(self) -> tuple[str, ...]:
        return ()


def endpoint_of(url: str, api_key: str | None) -> Endpoint:
    """Where the server is. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"llama_url: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("llama_url: write it as http://host:port or https://host:port")
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Endpoint(host=parts.hostname, port=port or (443 if tls else 80), tls=tls, prefix=prefix, api_key=api_key)
