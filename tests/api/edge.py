# SPDX-License-Identifier: GPL-3.0-only
"""The edge on a real uvicorn server over a Unix socket, with a driver that does as told and a scripted model server behind it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import httpx
import uvicorn
from uvicorn.server import ServerState

from modeld.api.metrics import Metrics
from modeld.api.protocol import ProtocolLimits, make_protocol
from modeld.api.server import App, EdgeOptions, build_app
from modeld.catalog.models import ModelTable
from modeld.core.estimate import Need
from modeld.core.footprint import Learned, Source
from modeld.core.model import LOCAL, InstanceId, LaunchOptions, Limits, ModelId, ModelSpec, Priority, Request
from modeld.core.scheduler import Scheduler
from modeld.core.snapshot import DeviceView, Explanation, InstanceView, LineView, Snapshot
from modeld.core.whatif import WhatIf
from modeld.errors import InstanceFault, ModeldError, Unloaded
from modeld.runtime.driver import Driver
from modeld.runtime.feed import Feed
from modeld.runtime.upstream import Endpoint, Exchange

SPEC = ModelSpec(
    ModelId("tiny.gguf"),
    "/models/tiny.gguf",
    name="Tiny",
    family="llama",
    quant="Q4_1",
    aliases=("small",),
    options=LaunchOptions(ctx=4096),
)
BROKEN = ModelSpec(ModelId("torn.gguf"), "/models/torn.gguf", name="torn", unavailable="the file is cut short")
JSON = {"content-type": "application/json"}

Script = Callable[["Upstream", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def snapshot(*states: str, **other: object) -> Snapshot:
    """A snapshot with one instance of SPEC in each of `states`."""
    views = tuple(
        InstanceView(InstanceId(f"i{n}"), SPEC.id, state, 120, 4, 1, 5.0, 40 + n, 1.0, False, {LOCAL: 120}, f"next{n}.gguf" * n)
        for n, state in enumerate(states)
    )
    given = {
        "instances": views,
        "lines": (LineView(SPEC.id, 3, 1.5, {Priority.NORMAL: 2, Priority.BATCH: 1}, 8.5, 12.25),),
        "devices": (DeviceView(LOCAL, 1000, 120),),
        "budget_mb": 1000,
        "used_mb": 120,
        "margin_mb": 10,
        "queue_depth_max": 32,
        "waiting_bytes": 0,
        "loads_total": 7,
        "load_failures_total": 1,
        "evictions_total": 2,
        "crashes_total": 3,
        "shutting_down": False,
        "error": None,
        "last_error": None,
        "fairness_closings_total": 4,
        "preemptions_total": 5,
        "requeued_total": 6,
        "stuck_total": 8,
    }
    return Snapshot(**(given | other))  # type: ignore[arg-type]


class Upstream:
    """A model server on a Unix socket that plays `script`. `left` is set when the daemon closes a connection before its end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.script: Script = answers(b"")
        self.asked: list[tuple[bytes, bytes]] = []
        self.was_asked = asyncio.Event()
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        self.asked.append((head, await reader.readexactly(length)))
        self.was_asked.set()
        try:
            await self.script(self, reader, writer)
        except (ConnectionError, BrokenPipeError):
            self.left.set()
        finally:
            writer.close()

    async def wait_until_left(self, reader: asyncio.StreamReader) -> None:
        assert await reader.read(1) == b""
        self.left.set()


def answers(raw: bytes) -> Script:
    """Send `raw` and close."""

    async def play(up: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    return play


def hangs_after(raw: bytes) -> Script:
    """Send `raw`, then wait until the daemon leaves."""

    async def play(up: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        await up.wait_until_left(reader)

    return play


def staged(first: bytes, then: asyncio.Event, rest: bytes) -> Script:
    """Send `first`, wait for `then`, send `rest` and close."""

    async def play(up: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await then.wait()
        writer.write(rest)
        await writer.drain()

    return play


def http(body: bytes, status: str = "200 OK", media: str = "application/json", **headers: str) -> bytes:
    """A whole answer with a content-length."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


SSE_HEAD = b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SSE_END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def sse(*events: bytes) -> bytes:
    """An event stream that ends properly."""
    return SSE_HEAD + b"".join(chunk(event) for event in events) + SSE_END


@dataclass
class FakeServed:
    endpoint: Endpoint

    async def generate(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Exchange:
        return await Exchange.open(self.endpoint, method, path, headers, body)


@dataclass
class FakeLease:
    served: FakeServed
    request: Request
    tokens: int = 0
    revoke: Callable[[ModeldError], None] | None = None
    progress: Exchange | None = None
    degraded: tuple[str, ...] = ()

    def follow(self, progress: Exchange) -> None:
        self.progress = progress

    def on_revoke(self, callback: Callable[[ModeldError], None]) -> None:
        self.revoke = callback


@dataclass
class FakeDriver:
    """Grants at once, or refuses with `refusal`, or lets everybody wait while `hold` is set.

    Who failed is granted a second time, after `again` is set; the third time it is refused with what it failed with.
    """

    upstream: Upstream
    refusal: ModeldError | None = None
    hold: bool = False
    seen: Snapshot = field(default_factory=snapshot)
    told: Explanation = field(default_factory=lambda: Explanation({}, ()))
    learned: tuple[Learned, ...] = ()
    requests: list[Request] = field(default_factory=list)
    leases: list[FakeLease] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    faults: list[ModeldError] = field(default_factory=list)
    again: asyncio.Event = field(default_factory=asyncio.Event)
    given_up: list[tuple[str, ...]] = field(default_factory=list)
    """What was given up of the instance of each grant, first to last; of the last one from then on."""

    def __post_init__(self) -> None:
        self.again.set()

    def request(self, request: Request) -> FakePending:
        self.requests.append(request)
        return FakePending(self, request)

    def snapshot(self, *, estimates: bool = True) -> Snapshot:
        return self.seen

    def what_if(self, models: Sequence[ModelId]) -> WhatIf:
        return Scheduler(Limits(budget_mb={LOCAL: 1000}), {SPEC.id: SPEC, BROKEN.id: BROKEN}).what_if(models, 0.0)

    def footprints(self) -> tuple[Learned, ...]:
        return self.learned

    def explain(self) -> Explanation:
        return self.told

    def need(self, model: ModelId) -> Need:
        return Need(77, Source.FORMULA)

    def launch(self, model: ModelId) -> ModelSpec:
        return {SPEC.id: SPEC, BROKEN.id: BROKEN}.get(model, SPEC)

    def degraded(self, model: ModelId) -> tuple[str, ...]:
        return self.given_up[0] if self.given_up else ()

    def note(self, end: str) -> None:
        self.ends.append(end)
        self.changed.set()

    async def ended(self) -> str:
        """How the next request ended: withdrawn, released or failed."""
        while not self.ends:
            self.changed.clear()
            await self.changed.wait()
        return self.ends.pop(0)


class FakePending:
    def __init__(self, driver: FakeDriver, request: Request) -> None:
        self._driver = driver
        self._request = request
        self._granted: asyncio.Future[FakeLease] = asyncio.get_running_loop().create_future()
        self._failures = 0

    async def __aenter__(self) -> FakeLease:
        if self._driver.refusal is not None:
            raise self._driver.refusal
        if not self._driver.hold:
            self._grant()
        self._driver.arrived.set()
        return await self._granted

    async def again(self, error: ModeldError) -> FakeLease:
        self._driver.faults.append(error)
        self._driver.note("failed")
        self._failures += 1
        self._granted = asyncio.get_running_loop().create_future()
        if self._failures == 2 or isinstance(error, Unloaded):
            self._granted.set_exception(copy(error))
        else:
            asyncio.get_running_loop().call_soon(self._grant_when_it_may)
        return await self._granted

    def _grant_when_it_may(self) -> None:
        if self._driver.again.is_set():
            self._grant()
        elif not self._granted.done():
            asyncio.get_running_loop().call_later(0.001, self._grant_when_it_may)

    def _grant(self) -> None:
        if not self._granted.done():
            lease = FakeLease(FakeServed(Endpoint(socket=self._driver.upstream.path)), self._request)
            lease.degraded = self._driver.degraded(self._request.model)
            if len(self._driver.given_up) > 1:
                self._driver.given_up.pop(0)
            self._driver.leases.append(lease)
            self._granted.set_result(lease)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._granted.exception() is None:
            self._driver.note("failed" if isinstance(error, InstanceFault) else "released")

    def withdraw(self, error: ModeldError | None = None) -> None:
        if not self._granted.done():
            assert error is not None
            self._granted.set_exception(error)
            self._driver.note("withdrawn")


@dataclass
class Edge:
    """A running edge. `client` talks to it; `raw` opens a bare connection."""

    app: App
    driver: FakeDriver
    upstream: Upstream
    metrics: Metrics
    client: httpx.AsyncClient
    socket_path: str
    feed: Feed

    async def raw(self, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.socket_path)
        writer.write(request)
        await writer.drain()
        return reader, writer

    async def infer(self, **body: object) -> httpx.Response:
        return await self.client.post("/infer", json={"model": "tiny", "prompt": "Once"} | body)

    def page(self) -> str:
        return self.metrics.render().decode()


def post(path: str, body: bytes) -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@asynccontextmanager
async def running(
    folder: Path,
    options: EdgeOptions | None = None,
    *,
    driver: Driver | None = None,
    table: Callable[[], ModelTable] | None = None,
    rescan: Callable[[], Awaitable[None]] | None = None,
    at_hand: Callable[[], ModelTable | None] = lambda: None,
) -> AsyncIterator[Edge]:
    """The whole edge, started and ended."""
    upstream = Upstream(str(folder / "up.sock"))
    own = driver or FakeDriver(upstream)
    metrics = Metrics("1.2.3")
    feed = Feed(run="run")
    fixed = ModelTable({SPEC.id: SPEC, BROKEN.id: BROKEN})

    async def known() -> ModelTable:
        return table() if table is not None else fixed

    app = build_app(options or EdgeOptions(), driver=own, feed=feed, table=known, metrics=metrics, rescan=rescan, known=at_hand)  # type: ignore[arg-type]
    address = str(folder / "edge.sock")
    config = uvicorn.Config(
        app, http=make_protocol(ProtocolLimits()), ws="none", loop="none", lifespan="off", interface="asgi3", log_config=None
    )
    config.load()
    state = ServerState()
    protocol = functools.partial(config.http_protocol_class, config=config, server_state=state, app_state={})
    model_server = await asyncio.start_unix_server(upstream.serve, upstream.path)
    # The protocol without uvicorn's Server around it, which takes 0.1 s to stop.
    edge_server = await asyncio.get_running_loop().create_unix_server(protocol, address)
    async with model_server, edge_server:
        transport = httpx.AsyncHTTPTransport(uds=address, verify=False)  # saves 40 ms of reading certificates
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
            yield Edge(app, own, upstream, metrics, client, address, feed)
        feed.close()
        for connection in list(state.connections):
            connection.shutdown()
        await asyncio.gather(*state.tasks)
