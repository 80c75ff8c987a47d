# SPDX-License-Identifier: GPL-3.0-only
"""The protocol under a real uvicorn server, driven by raw sockets, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn
import uvloop

from modeld.api.protocol import ModeldProtocol, ProtocolLimits, _check_head, make_protocol
from modeld.api.route import Connection
from modeld.errors import BadRequest, BodyTooLarge, ClientGone, InvariantError, ModeldError

Run = Callable[[Awaitable[None]], None]
App = Callable[[dict[str, Any], Connection], Awaitable[None]]
HOST = b"Host: x\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
LAST_GET = b"GET /z HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine to its end; what it left behind (tasks, loop errors) fails the test."""

    async def guarded(story: Awaitable[None]) -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(20):
            await story
        assert complaints == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda story: runner.run(guarded(story))


class Served:
    """A running server: where it listens, and the protocols of its connections."""

    def __init__(self, server: uvicorn.Server) -> None:
        self.server = server
        self.port: int = server.servers[0].sockets[0].getsockname()[1]

    @property
    def protocols(self) -> list[ModeldProtocol]:
        return list(self.server.server_state.connections)  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def client(self, receive_bytes: int = 0) -> AsyncIterator[Client]:
        with socket.socket() as one:
            if receive_bytes:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            one.setblocking(False)
            await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", self.port))
            yield Client(one)

    async def ask(self, data: bytes) -> bytes:
        """Send, and read to the end of file."""
        async with self.client() as client:
            await client.send(data)
            return await client.rest()


class Client:
    """A raw socket."""

    def __init__(self, one: socket.socket) -> None:
        self.socket = one
        self.loop = asyncio.get_running_loop()
        self.got = b""

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.socket, data)

    async def rest(self) -> bytes:
        """Everything up to the end of file. A reset is an error."""
        while more := await self.loop.sock_recv(self.socket, 1 << 20):
            self.got += more
        return self.got

    async def until(self, text: bytes) -> bytes:
        """Everything up to and with `text`."""
        while text not in self.got:
            more = await self.loop.sock_recv(self.socket, 65536)
            assert more, f"end of file after {self.got!r}"
            self.got += more
        head, _, self.got = self.got.partition(text)
        return head + text


@contextlib.asynccontextmanager
async def serving(app: App, **limits: float) -> AsyncIterator[Served]:
    """A uvicorn server with our protocol; at the end no connection and no task of it is left."""

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        scope["asgi.receive"], scope["asgi.send"] = receive, send
        await app(scope, scope["extensions"]["modeld"])

    protocol = make_protocol(ProtocolLimits(**limits))  # type: ignore[arg-type]
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # what the kernel hides from a test about slow readers
    config = uvicorn.Config(asgi, http=protocol, ws="none", loop="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    try:
        yield Served(server)
    finally:
        server.servers[0].close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        while server.server_state.connections or server.server_state.tasks:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0)


async def echo(scope: dict[str, Any], connection: Connection) -> None:
    """Answers with method, path and body; errors of the body as their status."""
    try:
        body = await connection.body(1 << 20)
    except ModeldError as error:
        text = error.kind.encode()
        connection.start(error.http_status, [(b"content-length", b"%d" % len(text))])
        connection.finish(text)
    else:
        connection.start(200, [])
        connection.finish(f"{scope['method']} {scope['path']} ".encode() + body)


def post(body: bytes, *headers: bytes) -> bytes:
    return b"".join([b"POST /p HTTP/1.1\r\n", HOST, *(h + b"\r\n" for h in headers), b"Content-Length: %d\r\n\r\n" % len(body), body])


def refusal(reply: bytes) -> tuple[int, str]:
    """Status and kind of an error that the protocol itself answered, checked for form."""
    head, _, body = reply.partition(b"\r\n\r\n")
    parsed = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % parsed["code"])
    assert b"connection: close" in head
    assert b"content-type: application/json" in head
    assert set(parsed) == {"error", "code", "kind", "source"}
    return parsed["code"], parsed["kind"]


# --- the plain way ----------------------------------------------------------------------------------------------------


def test_a_request_and_its_answer(run: Run) -> None:
    async def story() -> None:
        async with serving(echo) as served:
            reply = await served.ask(post(b"hello", b"Connection: close"))
            assert reply == b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\nconnection: close\r\n\r\nPOST /p hello"

    run(story())


def test_every_cut_of_a_request_gives_the_same_answer(run: Run) -> None:
    """F45 for requests: wherever the bytes are split, the parser, the clocks and the order hold."""
    request = (
        b"POST /one%20two?q=%20 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;e=f\r\nde\r\n0\r\nT: 1\r\n\r\n"
        + LAST_GET
    )
    seen: list[Any] = []

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        await echo(scope, connection)
        seen.append((scope["raw_path"], scope["query_string"], len(scope["headers"])))

    async def story() -> None:
        async with serving(app) as served:
            for cut in range(1, len(request)):
                async with served.client() as client:
                    await client.send(request[:cut])
                    # The first part has been parsed when a second connection is answered.
                    await served.ask(LAST_GET)
                    await client.send(request[cut:])
                    reply = await client.rest()
                    assert reply.count(b"HTTP/1.1 200 OK\r\n") == 2
                    assert reply.index(b"POST /one two abcde") < reply.index(b"GET /z")
            assert set(seen) == {(b"/one%20two", b"q=%20", 2), (b"/z", b"", 2)}

    run(story())


def test_streams_are_chunked_and_short_answers_are_not(run: Run) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.start(200, [(b"X-A", b"b")])
        if scope["path"] == "/a":
            connection.write(b"one")
            connection.write(b"")
            connection.write(b"t" * 40_000)
            connection.finish(b"three")
        else:
            connection.finish(b"whole")

    async def story() -> None:
        async with serving(app) as served:
            reply = await served.ask(GET + LAST_GET)
            first = (
                b"HTTP/1.1 200 OK\r\nx-a: b\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n9c40\r\n"
                + b"t" * 40_000
                + b"\r\n5\r\nthree\r\n0\r\n\r\n"
            )
            assert reply == first + b"HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 5\r\nconnection: close\r\n\r\nwhole"

    run(story())


def test_a_lone_head_is_not_held_back(run: Run) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.start(200, [])
        await go.wait()
        connection.finish()

    go = asyncio.Event()

    async def story() -> None:
        async with serving(app) as served, served.client() as client:
            await client.send(LAST_GET)
            assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            go.set()
            assert await client.rest() == b"0\r\n\r\n"

    run(story())


@pytest.mark.parametrize(
    ("request_line", "connection_header", "expected"),
    [
        (b"HEAD /a HTTP/1.1", b"close", b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"),
        (b"GET /a HTTP/1.0", b"keep-alive", b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nab"),
        (b"GET /none HTTP/1.1", b"close", b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"),
        (
            b"OPTIONS /a HTTP/1.1",
            b"close",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
        ),
        (
            b"GET http://x/a HTTP/1.1",
            b"close",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
        ),
    ],
)
def test_oddities_have_defined_answers(request_line: bytes, connection_header: bytes, expected: bytes, run: Run) -> None:
    """F44: HEAD and 204 have no body, HTTP/1.0 gets no chunks."""

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        assert scope["path"] in ("/a", "/none")
        connection.start(204 if scope["path"] == "/none" else 200, [])
        connection.write(b"a")
        connection.finish(b"b")

    async def story() -> None:
        async with serving(app) as served:
            assert await served.ask(request_line + b"\r\n" + HOST + b"Connection: " + connection_header + b"\r\n\r\n") == expected

    run(story())


def test_asgi_send_and_receive_work_as_well(run: Run) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        body, more = b"", True
        while more:
            event = await scope["asgi.receive"]()
            body += event["body"]
            more = event["more_body"]
        await scope["asgi.send"]({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await scope["asgi.send"]({"type": "http.response.body", "body": body[:1000], "more_body": True})
        await scope["asgi.send"]({"type": "http.response.body", "body": body[1000:]})
        assert (await scope["asgi.receive"]())["type"] == "http.disconnect"

    async def story() -> None:
        big = bytes(1_000_000)
        async with serving(app) as served:
            reply = await served.ask(post(big, b"Connection: close"))
            assert reply == b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\nconnection: close\r\n\r\n" + big

    run(story())


def test_100_continue_is_sent_when_the_body_is_wanted(run: Run) -> None:
    async def story() -> None:
        async with serving(echo) as served:
            async with served.client() as client:
                await client.send(post(b"12345", b"Expect: 100-continue", b"Connection: close")[:-5])
                assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                await client.send(b"12345")
                assert (await client.rest()).endswith(b"POST /p 12345")
            # One that would be too large is refused instead, and nobody waits for it.
            async with served.client() as client:
                await client.send(b"POST /p HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n\r\n")
                assert (await client.rest()).startswith(b"HTTP/1.1 413 ")

    run(story())


@pytest.mark.parametrize(
    "upgrade",
    [b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n"],
    ids=["h2c", "websocket"],
)
def test_an_upgrade_is_an_ordinary_request(upgrade: bytes, run: Run) -> None:
    """Also with a body, as Java's HTTP client sends it; the body must not be taken for the next request."""

    async def story() -> None:
        async with serving(echo) as served:
            with_body = b"POST /p HTTP/1.1\r\nHost: x\r\n" + upgrade + b"Content-Length: %d\r\n\r\n" % len(GET) + GET
            chunked = b"POST /c HTTP/1.1\r\nHost: x\r\n" + upgrade + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
            reply = await served.ask(with_body + chunked + LAST_GET)
            assert reply.count(b"HTTP/1.1 200 OK") == 3
            assert b"POST /p " + GET in reply
            assert b"POST /c hi" in reply

    run(story())


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x y\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x/y\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: user@x\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX-A: b\r\n folded: c\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\n X-A: b\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX-A: b\x00c\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX\x00A: b\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX-A : b\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX-A: b\rX-B: c\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: x\n\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET ftp://x/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/2.0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"FOO /a HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_head_that_two_readers_could_read_differently_is_refused(request_bytes: bytes, run: Run) -> None:
    """F40: 400 and closed; nothing that follows is taken for a request, and the application never sees it."""
    seen: list[str] = []

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        seen.append(scope["path"])
        await echo(scope, connection)

    async def story() -> None:
        async with serving(app) as served:
            assert refusal(await served.ask(request_bytes + GET)) == (400, "bad_request")
            assert seen == []

    run(story())


@pytest.mark.parametrize(
    "chunk", [b"zz\r\n", b"5\r\nhelloX\r\n", b"-1\r\n", b"11111111111111111\r\n", b"5 \r\nhello\r\n", b"5\nhello\n", b"\r\n"]
)
def test_a_broken_chunk_is_told_to_the_reader_of_the_body(chunk: bytes, run: Run) -> None:
    """F40: the answer is the application's, and the connection ends with it."""

    async def story() -> None:
        async with serving(echo) as served:
            reply = await served.ask(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n" + chunk + GET)
            assert reply == b"HTTP/1.1 400 Bad Request\r\ncontent-length: 11\r\nconnection: close\r\n\r\nbad_request"

    run(story())


@pytest.mark.parametrize(
    "head",
    [
        b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(10)) + b"\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 2000 + b"\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 600_000,
        b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"y" * 600_000,
        b"GET /" + b"a" * 101 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 600_000,
    ],
    ids=["count", "size", "endless-value", "endless-name", "url", "endless-url"],
)
def test_header_bombs_are_refused(head: bytes, run: Run) -> None:
    """F39"""

    async def story() -> None:
        async with serving(echo, header_count=10, header_bytes=1000, url_bytes=100) as served:
            assert refusal(await served.ask(head)) == (431, "headers_too_large")
            exact = b"".join(b"X%d: y\r\n" % n for n in range(8))
            assert (await served.ask(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + exact + b"\r\n")).startswith(b"HTTP/1.1 200 ")

    run(story())


@pytest.mark.parametrize("bomb", [b"0\r\nX: " + b"y" * 600_000, b"1;" + b"y" * 600_000], ids=["trailer", "extension"])
def test_framing_without_data_is_bounded(bomb: bytes, run: Run) -> None:
    """F39: trailers and chunk extensions are headers by another name."""

    async def story() -> None:
        async with serving(echo, header_bytes=1000) as served:
            reply = await served.ask(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + bomb)
            assert reply.endswith(b"bad_request")

    run(story())


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"5"), (b"content-length", b"5")],
        [(b"content-length", b"5_0")],
        [(b"transfer-encoding", b"gzip, chunked")],
    ],
)
def test_ambiguous_framing_is_refused_whatever_the_parser_lets_through(headers: list[tuple[bytes, bytes]]) -> None:
    """F40: today's parser refuses most of these itself; ours must not depend on its version."""
    with pytest.raises(BadRequest):
        _check_head(b"POST", b"/a", "1.1", [(b"host", b"x"), *headers])
    assert _check_head(b"POST", b"/a", "1.1", [(b"host", b"x"), (b"content-length", b"5")]) == 5


# --- clocks -----------------------------------------------------------------------------------------------------------


async def drip(client: Client, data: bytes, seconds: float) -> None:
    """Send byte by byte until the server closes."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for n in range(len(data)):
            await client.send(data[n : n + 1])
            await asyncio.sleep(seconds)


def test_slow_headers_are_a_408(run: Run) -> None:
    """F36: bytes alone do not help, the head has to be complete in time."""

    async def story() -> None:
        async with serving(echo, header_seconds=0.05) as served, served.client() as client, asyncio.TaskGroup() as group:
            dripping = group.create_task(drip(client, b"GET /a HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"y" * 10_000, 0.005))
            assert refusal(await client.rest())[0] == 408
            dripping.cancel()

    run(story())


@pytest.mark.parametrize(("pause", "rate"), [(0.0, 1), (0.005, 1_000_000)], ids=["stopped", "too-slow"])
def test_slow_bodies_are_a_408(pause: float, rate: int, run: Run) -> None:
    """F36: both a body that stops and one that crawls."""

    async def story() -> None:
        async with serving(echo, body_seconds=0.05, body_bytes_per_second_min=rate) as served, served.client() as client:
            await client.send(post(b"x" * 100_000)[:-99_999])
            async with asyncio.TaskGroup() as group:
                dripping = group.create_task(drip(client, b"x" * 90_000 if pause else b"", pause))
                assert await client.rest() == b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 12\r\nconnection: close\r\n\r\nbody_timeout"
                dripping.cancel()

    run(story())


def test_a_slow_body_ends_an_asgi_reader_too(run: Run) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        while (event := await scope["asgi.receive"]())["type"] == "http.request":
            assert event["more_body"]

    async def story() -> None:
        async with serving(app, body_seconds=0.05) as served, served.client() as client:
            await client.send(post(b"x" * 1000)[:-1])
            head, _, body = (await client.rest()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert json.loads(body)["kind"] == "body_timeout"

    run(story())


class Clock:
    """An event loop whose timers run on a clock that only `advance` moves."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.now = 1000.0
        self.timers: list[Timer] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now + seconds, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass; what becomes due is called when it is due."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.callback is not None and timer.at <= end]:
            first = min(due, key=lambda timer: timer.at)
            callback, first.callback, self.now = first.callback, None, first.at
            if callback is not None:
                callback()
        self.now = end


class Timer:
    """What `call_later` gives back."""

    def __init__(self, at: float, callback: Callable[[], None] | None) -> None:
        self.at = at
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None


async def use_clock(served: Served, client: Client, clock: Clock) -> ModeldProtocol:
    """Put the one connection of a server, which has not sent anything yet, on a clock of the test."""
    while len(served.protocols) < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    (protocol,) = served.protocols
    assert client.got == b""
    protocol._disarm()
    protocol.loop = clock  # type: ignore[assignment]
    return protocol


@pytest.mark.parametrize("why", ["continue", "unread"])
def test_a_body_that_was_not_asked_for_yet_is_not_late(why: str, run: Run) -> None:
    """A client that waits for 100-continue, or whose bytes we do not read, waits for us; its clock begins when we ask."""
    big = 8 * 1024 * 1024

    async def story() -> None:
        go = asyncio.Event()
        clock = Clock()

        async def app(scope: dict[str, Any], connection: Connection) -> None:
            await go.wait()
            body = await connection.body(big)
            connection.start(200, [])
            connection.finish(b"%d" % len(body))

        async with serving(app, body_seconds=200, body_bytes_per_second_min=1 << 40) as served, served.client() as client:
            protocol = await use_clock(served, client, clock)
            if why == "continue":
                await client.send(post(b"12", b"Expect: 100-continue", b"Connection: close")[:-2])
            else:
                await client.send(post(bytes(big), b"Connection: close")[: -big + 100_000])
            while protocol.reading is None or not (protocol.reading.waiting_for_continue or protocol.flow.read_paused):  # noqa: ASYNC110
                await asyncio.sleep(0)
            clock.advance(399)  # just before the clock is looked at for the second time
            go.set()
            while protocol.reading.waiting_for_continue or protocol.flow.read_paused:  # noqa: ASYNC110
                await asyncio.sleep(0)
            clock.advance(100)
            await client.send(b"12" if why == "continue" else bytes(big - 100_000))
            reply = await client.rest()
            assert b"HTTP/1.1 200 OK" in reply
            assert reply.endswith(b"\r\n\r\n%d" % (2 if why == "continue" else big))

    run(story())


def test_idle_connections_are_closed_without_a_word(run: Run) -> None:
    async def story() -> None:
        async with serving(echo, keep_alive_seconds=0.05) as served:
            assert await served.ask(b"") == b""
            assert await served.ask(b"\r\n\r\n") == b""
            assert (await served.ask(GET)).endswith(b"GET /a ")

    run(story())


def test_an_answer_may_take_longer_than_every_clock(run: Run) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        assert await connection.body(10) == b"hi"
        await asyncio.sleep(0.15)
        connection.start(200, [])
        connection.finish(b"late")

    async def story() -> None:
        async with serving(app, header_seconds=0.03, body_seconds=0.03, keep_alive_seconds=0.03, write_seconds=0.03) as served:
            assert (await served.ask(post(b"hi", b"Connection: close"))).endswith(b"late")

    run(story())


# --- bodies that are too large ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_413_is_received_while_the_client_still_sends(chunked: bool, run: Run) -> None:
    """The client sends all of its 4 MiB first and reads then: no reset may have destroyed the answer."""
    size = 4 * 1024 * 1024
    framing = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size if chunked else b"Content-Length: %d\r\n\r\n" % size

    async def story() -> None:
        async with serving(echo) as served, served.client() as client:
            await client.send(b"POST /p HTTP/1.1\r\nHost: x\r\n" + framing)
            await client.send(bytes(size))
            reply = await client.rest()
            phrase = http.HTTPStatus(413).phrase.encode()  # another one since Python 3.13
            assert reply == b"HTTP/1.1 413 " + phrase + b"\r\ncontent-length: 14\r\nconnection: close\r\n\r\nbody_too_large"

    run(story())


def test_an_announced_excess_is_refused_before_it_is_read(run: Run) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        with pytest.raises(BodyTooLarge):
            await connection.body(10)
        connection.start(413, [])
        connection.finish(b"no")

    async def story() -> None:
        async with serving(app) as served:
            assert (await served.ask(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
            # The body that came with the head is no different.
            assert (await served.ask(post(b"x" * 11))).startswith(b"HTTP/1.1 413 ")

    run(story())


@pytest.mark.parametrize(("limit", "value"), [("discard_bytes", 100_000), ("discard_seconds", 0.05)])
def test_discarding_has_an_end(limit: str, value: float, run: Run) -> None:
    async def story() -> None:
        async with serving(echo, **{limit: value}) as served, served.client() as client:
            await client.send(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000\r\n\r\n")
            await client.until(b"body_too_large")
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                while True:
                    await client.send(bytes(65536))
                    await asyncio.sleep(0)

    run(story())


# --- who left ---------------------------------------------------------------------------------------------------------


class Watcher:
    """An application that notes when its client leaves."""

    def __init__(self) -> None:
        self.running, self.left = asyncio.Event(), asyncio.Event()
        self.calls = 0
        self.connection: Connection | None = None

    def leave(self) -> None:
        self.calls += 1
        self.left.set()

    async def __call__(self, scope: dict[str, Any], connection: Connection) -> None:
        self.connection = connection
        connection.on_disconnect(self.leave)
        if scope["path"] == "/stream":
            connection.start(200, [])
            connection.write(b"x")
        self.running.set()
        await self.left.wait()


@pytest.mark.parametrize("path", [b"/wait", b"/stream"])
@pytest.mark.parametrize("way", ["close", "half-close", "reset"])
def test_the_end_of_file_means_the_client_left(way: str, path: bytes, run: Run) -> None:
    """F32, F33, F34: told once, at once, whether or not the answer has begun; what is written then goes nowhere."""

    async def story() -> None:
        watcher = Watcher()
        async with serving(watcher) as served, served.client() as client:
            await client.send(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
            await watcher.running.wait()
            if way == "half-close":
                client.socket.shutdown(socket.SHUT_WR)
            else:
                if way == "reset":
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.socket.close()
            await watcher.left.wait()
            connection = watcher.connection
            assert connection is not None
            assert connection.disconnected
            connection.on_disconnect(watcher.leave)
            if path == b"/wait":
                connection.start(200, [])
            connection.write(b"y")
            connection.finish()
            connection.cut()
            while served.protocols:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert watcher.calls == 2  # one for each registration

    run(story())


def test_the_reader_of_a_body_learns_that_the_client_left(run: Run) -> None:
    ended: list[type[BaseException]] = []

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        try:
            await connection.body(100)
        except ModeldError as error:
            ended.append(type(error))

    async def story() -> None:
        async with serving(app) as served, served.client() as client:
            await client.send(post(b"12345")[:-1])
            while not served.protocols or served.protocols[0].running is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            client.socket.close()
            while not ended:  # noqa: ASYNC110
                await asyncio.sleep(0)

    run(story())
    assert ended == [ClientGone]


def test_after_the_answer_nobody_is_called(run: Run) -> None:
    calls: list[str] = []

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.on_disconnect(lambda: calls.append("left"))
        connection.start(200, [])
        connection.finish(b"done")
        connection.on_pressure(lambda: calls.append("pause"), lambda: calls.append("resume"))
        connection.write(b"more")
        connection.finish(b"more")

    async def story() -> None:
        async with serving(app) as served:
            async with served.client() as client:
                await client.send(GET)
                await client.until(b"done")
            while served.protocols:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert calls == []
            assert await served.ask(LAST_GET) == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\ndone"

    run(story())


class Pusher:
    """An application that writes whenever it may, until `size` bytes; or regardless of pressure."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.events: list[str] = []
        self.paused, self.free = asyncio.Event(), asyncio.Event()
        self.left = asyncio.Event()
        self.sent = 0

    def pause(self) -> None:
        self.events.append("pause")
        self.free.clear()
        self.paused.set()

    def resume(self) -> None:
        self.events.append("resume")
        self.free.set()

    def leave(self) -> None:
        self.events.append("left")
        self.left.set()
        self.free.set()

    async def __call__(self, scope: dict[str, Any], connection: Connection) -> None:
        connection.on_disconnect(self.leave)
        connection.on_pressure(self.pause, self.resume)
        self.free.set()
        connection.start(200, [(b"content-length", b"%d" % self.size)])
        while self.sent < self.size and not connection.disconnected:
            connection.write(bytes(32_768))
            self.sent += 32_768
            await asyncio.sleep(0)
            await self.free.wait()
        connection.finish()


def test_pressure_calls_come_in_pairs(run: Run) -> None:
    """F35: a slow reader gets everything, and no more than the water mark waits here."""
    size = 4 * 1024 * 1024

    async def story() -> None:
        pusher = Pusher(size)
        async with serving(pusher) as served, served.client(receive_bytes=65536) as client:
            await client.send(LAST_GET)
            await pusher.paused.wait()
            assert pusher.sent < 1024 * 1024
            assert served.protocols[0].transport.get_write_buffer_size() < 200_000
            reply = await client.rest()
            assert len(reply) - reply.index(b"\r\n\r\n") - 4 == size
            assert pusher.events[0] == "pause"
            assert pusher.events[::2] == ["pause"] * len(pusher.events[::2])
            assert pusher.events[1::2] == ["resume"] * len(pusher.events[1::2])

    run(story())


def test_a_reader_that_stopped_is_cut(run: Run) -> None:
    """F35: it counts as gone after write_seconds in which not a byte left."""

    async def story() -> None:
        pusher = Pusher(1 << 30)
        async with serving(pusher, write_seconds=0.1) as served, served.client(receive_bytes=65536) as client:
            await client.send(GET)
            await pusher.left.wait()
            assert pusher.events[-2:] == ["pause", "left"]
            assert pusher.events.count("left") == 1
            while served.protocols:  # noqa: ASYNC110
                await asyncio.sleep(0)

    run(story())


def test_a_reader_that_crawls_is_not_cut(run: Run) -> None:
    """All of the answer waits above the high-water mark for longer than write_seconds, but it gets less all the time."""
    size = 4 * 1024 * 1024

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.start(200, [])
        connection.finish(bytes(size))

    async def story() -> None:
        async with serving(app, write_seconds=0.5) as served, served.client(receive_bytes=65536) as client:
            await client.send(LAST_GET)
            await client.until(b"\r\n\r\n")
            got = len(client.got)
            while more := await client.loop.sock_recv(client.socket, 65536):
                got += len(more)
                await asyncio.sleep(0.02)
            assert got == size

    run(story())


def test_pressure_that_is_there_already_is_told_at_once(run: Run) -> None:
    calls: list[str] = []

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.start(200, [])
        connection.write(bytes(8 * 1024 * 1024))
        await asyncio.sleep(0)  # uvloop looks at the marks at the end of the turn
        resumed = asyncio.Event()
        connection.on_pressure(lambda: calls.append("pause"), resumed.set)
        assert calls == ["pause"]
        await resumed.wait()
        connection.finish(b"end")

    async def story() -> None:
        async with serving(app) as served:
            assert (await served.ask(LAST_GET)).endswith(b"3\r\nend\r\n0\r\n\r\n")

    run(story())


def test_a_client_that_neither_reads_nor_sends_any_more_has_left(run: Run) -> None:
    """F34: its end of file counts at once, although unsent bytes would keep the connection open."""

    async def story() -> None:
        pusher = Pusher(1 << 30)
        async with serving(pusher) as served, served.client(receive_bytes=65536) as client:
            await client.send(GET)
            await pusher.paused.wait()
            client.socket.shutdown(socket.SHUT_WR)
            await pusher.left.wait()
            while served.protocols:  # noqa: ASYNC110
                await asyncio.sleep(0)

    run(story())


def test_a_whole_answer_nobody_reads_is_cut_too(run: Run) -> None:
    """The answer is complete, the connection only waits for its bytes to leave."""

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.start(200, [])
        connection.finish(bytes(4 * 1024 * 1024))

    async def story() -> None:
        async with serving(app, write_seconds=0.1) as served, served.client(receive_bytes=65536) as client:
            await client.send(LAST_GET)
            await client.until(b"\r\n\r\n")
            while served.protocols:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    run(story())


# --- the order of answers ---------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order_one_at_a_time(run: Run) -> None:
    """F41"""
    active: list[str] = []

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        assert active == []
        active.append(scope["path"])
        body = await connection.body(100)
        connection.start(200, [])
        connection.write(scope["path"].encode())
        await asyncio.sleep(0)
        active.clear()
        connection.finish(body)

    async def story() -> None:
        requests = [b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" % n for n in range(20)]
        async with serving(app) as served:
            reply = await served.ask(b"".join(requests) + LAST_GET)
            places = [reply.index(b"\r\n/%d\r\n" % n) for n in range(20)]
            assert places == sorted(places)
            assert reply.count(b"HTTP/1.1 200 OK") == 21

    run(story())


def test_garbage_behind_a_request_is_answered_in_its_turn(run: Run) -> None:
    """F41: the error must not land in the middle of the running answer."""
    go = asyncio.Event()

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.start(200, [])
        connection.write(b"be")
        await go.wait()
        connection.finish(b"gun")

    async def story() -> None:
        async with serving(app) as served, served.client() as client:
            await client.send(GET + GET + b"garbage\r\n\r\n")
            await client.until(b"\r\nbe\r\n")
            go.set()
            first = await client.until(b"\r\n0\r\n\r\n")
            assert first == b"3\r\ngun\r\n0\r\n\r\n"
            await client.until(b"\r\n0\r\n\r\n")
            assert refusal(await client.rest()) == (400, "bad_request")

    run(story())


def test_requests_ahead_are_bounded_in_number(run: Run) -> None:
    async def story() -> None:
        async with serving(echo, ahead_requests=3) as served:
            reply = await served.ask(GET * 10)
            assert reply.count(b"HTTP/1.1 200 OK") == 4
            assert reply.count(b"HTTP/1.1 400 ") == 1

    run(story())


def test_bytes_ahead_are_bounded(run: Run) -> None:
    """What a client sends while its answer runs stays in the kernel beyond the limit, and is served afterwards."""
    go = asyncio.Event()

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        if scope["path"] == "/a":
            await go.wait()
        body = await connection.body(1 << 30)
        connection.start(200, [])
        connection.finish(b"%d" % len(body))

    size = 16 * 1024 * 1024

    async def story() -> None:
        async with serving(app, ahead_bytes=1000) as served, served.client() as client, asyncio.TaskGroup() as group:
            await client.send(GET)
            sending = group.create_task(client.send(post(bytes(size), b"Connection: close")))
            while not served.protocols or not served.protocols[0].flow.read_paused:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert served.protocols[0].ahead_bytes < 1_000_000
            assert not sending.done()
            go.set()
            assert (await client.rest()).endswith(b"\r\n\r\n%d" % size)

    run(story())


def test_heads_ahead_are_bounded_in_bytes(run: Run) -> None:
    """Requests without a body fill memory by their heads: reading stops, and goes on when answers leave."""
    go = asyncio.Event()
    count = 400

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        await go.wait()
        connection.start(200, [])
        connection.finish(b"done")

    async def story() -> None:
        big = b"GET /a HTTP/1.1\r\nHost: x\r\nX-Big: " + b"y" * 20_000 + b"\r\n\r\n"
        async with (
            serving(app, ahead_bytes=10_000, ahead_requests=count) as served,
            served.client() as client,
            asyncio.TaskGroup() as group,
        ):
            await client.send(GET)
            while not served.protocols or served.protocols[0].running is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            sending = group.create_task(client.send(big * count + LAST_GET))
            protocol = served.protocols[0]
            while not protocol.ahead_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)  # time to read more, if it wanted to
            assert protocol.flow.read_paused
            assert protocol.ahead_bytes < 600_000
            assert not sending.done()
            go.set()
            assert (await client.rest()).count(b"HTTP/1.1 200 OK") == count + 2

    run(story())


def test_nothing_is_answered_after_the_last_request(run: Run) -> None:
    async def story() -> None:
        async with serving(echo) as served:
            assert (await served.ask(GET + LAST_GET + GET)).count(b"HTTP/1.1 200 OK") == 2
            assert (await served.ask(b"GET /a HTTP/1.0\r\n\r\n" + GET)).count(b"HTTP/1.1 200 OK") == 1

    run(story())


# --- what an application can do wrong, and the end --------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raise", "nothing", "bad-header", "bad-status"])
def test_a_fault_of_the_application_is_a_500(fault: str, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        match fault:
            case "raise":
                raise ZeroDivisionError("secret")
            case "bad-header":
                connection.start(200, [(b"a", b"b\r\nc: d")])
            case "bad-status":
                connection.start(42, [])

    async def story() -> None:
        async with serving(app) as served:
            reply = await served.ask(GET)
            assert refusal(reply) == (500, "invariant")
            assert b"secret" not in reply

    with caplog.at_level(logging.ERROR):
        run(story())
    assert "a request failed in the application" in caplog.text


@pytest.mark.parametrize("fault", ["raise", "return", "short", "long", "cut"])
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_an_answer_that_cannot_be_completed_is_visibly_cut(fault: str, framing: str, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.start(200, [(b"content-length", b"9")] if framing == "length" else [])
        connection.write(b"half")
        match fault:
            case "raise":
                raise ZeroDivisionError
            case "short" if framing == "length":
                connection.finish(b".")
            case "long" if framing == "length":
                with pytest.raises(InvariantError):
                    connection.write(b"123456")
            case "cut":
                connection.cut()

    async def story() -> None:
        async with serving(app) as served:
            reply = await served.ask(GET)
            assert b"half" in reply
            assert not reply.endswith(b"0\r\n\r\n")
            if framing == "length":
                assert len(reply.partition(b"\r\n\r\n")[2]) < 9

    with caplog.at_level(logging.CRITICAL):
        run(story())


def test_starting_twice_is_refused(run: Run) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.start(200, [])
        with pytest.raises(InvariantError):
            connection.start(200, [])
        connection.finish(b"once")

    async def story() -> None:
        async with serving(app) as served:
            assert (await served.ask(LAST_GET)).endswith(b"\r\n\r\nonce")

    run(story())


def test_shutdown_closes_the_idle_and_lets_the_busy_finish(run: Run) -> None:
    go = asyncio.Event()

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        if scope["path"] == "/busy":
            await go.wait()
        connection.start(200, [])
        connection.finish(b"done")

    async def story() -> None:
        async with serving(app) as served, served.client() as idle, served.client() as fresh, served.client() as busy:
            await idle.send(GET)
            await idle.until(b"done")
            await busy.send(b"GET /busy HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
            while sum(p.running is not None for p in served.protocols) < 1 or len(served.protocols) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0)
            async with asyncio.TaskGroup() as group:
                group.create_task(served.server.shutdown())
                assert await idle.rest() == b""
                assert await fresh.rest() == b""
                go.set()
                assert await busy.rest() == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\ndone"

    run(story())


def test_the_peer_is_known_and_small_writes_are_not_delayed(run: Run) -> None:
    async def app(scope: dict[str, Any], connection: Connection) -> None:
        connection.start(200, [])
        connection.finish(str(connection.peer).encode())

    async def story() -> None:
        async with serving(app) as served, served.client() as client:
            await client.send(GET)
            assert (await client.until(b"127.0.0.1")).startswith(b"HTTP/1.1 200 ")
            one = served.protocols[0].transport.get_extra_info("socket")
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(story())


def test_a_unix_socket_has_no_peer_and_a_lost_address_is_not_taken_for_one(run: Run, tmp_path: Any) -> None:
    peers: list[str | None] = []

    async def app(scope: dict[str, Any], connection: Connection) -> None:
        peers.append(connection.peer)
        connection.start(200, [])
        connection.finish(b"done")

    async def story() -> None:
        async with serving(app) as served:
            loop = asyncio.get_running_loop()
            path = str(tmp_path / "s")
            config, state = served.server.config, served.server.server_state
            unix = await loop.create_unix_server(lambda: config.http_protocol_class(config, state, {}), path)  # type: ignore[call-arg,arg-type]
            with socket.socket(socket.AF_UNIX) as one:
                one.setblocking(False)
                await loop.sock_connect(one, path)
                client = Client(one)
                await client.send(LAST_GET)
                assert (await client.rest()).endswith(b"done")
            unix.close()
            with socket.socket(socket.AF_INET) as lost:
                transport = LostTransport(lost)
                protocol = config.http_protocol_class(config, state, {})  # type: ignore[call-arg]
                protocol.connection_made(transport)
                assert protocol.peer == "unknown"  # type: ignore[union-attr]
                protocol.connection_lost(None)

    run(story())
    assert peers == [None]


class LostTransport(asyncio.Transport):
    """A connection whose other side was gone before it was looked at: its socket has no peer."""

    def __init__(self, one: socket.socket) -> None:
        super().__init__({"socket": one})

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
