# SPDX-License-Identifier: GPL-3.0-only
"""Exchange against scripted servers on real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import socket
import struct
import tempfile
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from modeld.errors import BadRequest, BadUpstreamReply, ClientGone, Died, InvariantError, Unloaded, UpstreamUnreachable
from modeld.runtime.upstream import HEAD_BYTES_MAX, PENDING_BYTES_MAX, Endpoint, Exchange, _render_request

BODY = bytes(range(256))
LENGTH = b"HTTP/1.1 200 OK\r\nX-One: 1\r\nContent-Length: 256\r\n\r\n" + BODY
CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx-one: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"64\r\n" + BODY[:100] + b"\r\n9c;ext=1\r\n" + BODY[100:] + b"\r\n0\r\nTrailer: x\r\n\r\n"
)
UNTIL_EOF = b"HTTP/1.1 200 OK\r\nX-One: 1\r\n\r\n" + BODY

Script = Callable[[socket.socket], Awaitable[None]]
Run = Callable[[Awaitable[None]], None]


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


class Sink:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.calls = 0
        self.grew = asyncio.Event()

    def data(self, chunk: bytes) -> None:
        self.got += chunk
        self.calls += 1
        self.grew.set()

    async def until(self, size: int) -> None:
        while len(self.got) < size:
            self.grew.clear()
            await self.grew.wait()


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Endpoint]:
    """A Unix socket whose connections are handled by `script`, one after the other; errors of the script come out here."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder) / "s")
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        loop = asyncio.get_running_loop()

        async def accept() -> None:
            while True:
                one, _ = await loop.sock_accept(listener)
                with one:
                    await script(one)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(accept())
            try:
                yield Endpoint(socket=path)
            finally:
                task.cancel()


async def read_request(one: socket.socket) -> bytes:
    """The head and as much body as the head announces."""
    loop = asyncio.get_running_loop()
    got = b""
    while b"\r\n\r\n" not in got:
        more = await loop.sock_recv(one, 65536)
        if not more:
            return got
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += await loop.sock_recv(one, 65536)
    return head + b"\r\n\r\n" + body


async def say(one: socket.socket, data: bytes) -> None:
    """Send, and return when the other side has read it all."""
    await asyncio.get_running_loop().sock_sendall(one, data)
    while struct.unpack("i", fcntl.ioctl(one, termios.TIOCOUTQ, b"\0\0\0\0"))[0]:  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(0)


async def until_eof(one: socket.socket) -> None:
    """Return when the other side has closed."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionResetError):
        while await loop.sock_recv(one, 65536):
            pass


def reset(one: socket.socket) -> None:
    """Make the coming close a reset (TCP only)."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def replying(*parts: bytes, stay: bool = False) -> Script:
    async def script(one: socket.socket) -> None:
        await read_request(one)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                await say(one, part)
            if stay:
                await until_eof(one)

    return script


async def get(endpoint: Endpoint, method: str = "GET") -> Exchange:
    return await Exchange.open(endpoint, method, "/x", [], b"")


def test_a_request_is_rebuilt_from_its_fields(run: Run) -> None:
    """Host, length, connection and key are ours; everything else is passed on in lower case."""
    seen: list[bytes] = []

    async def script(one: socket.socket) -> None:
        seen.append(await read_request(one))
        await say(one, LENGTH)

    async def story() -> None:
        async with serving(script) as plain:
            keyed = Endpoint(socket=plain.socket, prefix="/llama", api_key="s3cret")
            headers = [(b"Content-Type", b"text/x"), (b"Host", b"evil"), (b"Content-Length", b"9"), (b"Connection", b"keep-alive")]
            headers += [(b"Transfer-Encoding", b"chunked"), (b"Authorization", b"Bearer client"), (b"Expect", b"100-continue")]
            exchange = await Exchange.open(keyed, "POST", "/v1/x?a=%20b", headers, b"hello")
            assert (exchange.status, exchange.headers) == (200, [(b"x-one", b"1"), (b"content-length", b"256")])
            assert await exchange.read(256) == BODY
            await (await Exchange.open(plain, "POST", "/", [(b"authorization", b"Bearer client")], b"")).read(256)

    run(story())
    assert seen[0] == (
        b"POST /llama/v1/x?a=%20b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 5\r\n"
        b"content-type: text/x\r\nauthorization: Bearer s3cret\r\n\r\nhello"
    )
    assert b"content-length: 0\r\nauthorization: Bearer client\r\n" in seen[1]


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("GET /y HTTP/1.1\r\nX:", "/x", (b"a", b"b")),
        ("GET", "/x HTTP/1.1\r\nA: b", (b"a", b"b")),
        ("GET", "x", (b"a", b"b")),
        ("GET", "/ä", (b"a", b"b")),
        ("GET", "/x", (b"a: b\r\nc", b"d")),
        ("GET", "/x", (b"a", b"b\r\nc: d")),
        ("GET", "/x", (b"a", b"b\x00")),
    ],
)
def test_nothing_can_be_smuggled_into_a_request(method: str, path: str, header: tuple[bytes, bytes], run: Run) -> None:
    async def story() -> None:
        with pytest.raises(BadRequest):
            await Exchange.open(Endpoint(socket="/nonexistent"), method, path, [header], b"")

    run(story())


@pytest.mark.parametrize("whole", [LENGTH, CHUNKED, UNTIL_EOF], ids=["length", "chunked", "until-eof"])
def test_every_cut_of_a_response_gives_the_same_answer(whole: bytes, run: Run) -> None:
    async def story() -> None:
        cut = 0

        async def script(one: socket.socket) -> None:
            await read_request(one)
            await say(one, whole[:cut])
            await say(one, whole[cut:])

        async with serving(script) as endpoint:
            for cut in range(len(whole) + 1):  # noqa: B007 - the script reads it
                exchange = await get(endpoint)
                assert exchange.status == 200
                assert exchange.headers[0] == (b"x-one", b"1")
                assert len(exchange.headers) == (1 if whole is UNTIL_EOF else 2)
                assert await exchange.read(256) == BODY

    run(story())


@pytest.mark.parametrize("whole", [LENGTH, CHUNKED], ids=["length", "chunked"])
def test_an_end_at_every_stage_is_an_error_of_its_own(whole: bytes, run: Run) -> None:
    """F49: no answer, half a head and half a body are a death; never a success."""

    async def story() -> None:
        cut = 0

        async def script(one: socket.socket) -> None:
            await read_request(one)
            await say(one, whole[:cut])

        async with serving(script) as endpoint:
            for end in range(len(whole)):
                cut = end
                with pytest.raises(Died):
                    await (await get(endpoint)).read(256)

    run(story())


def test_a_reset_in_the_middle_is_a_death(run: Run) -> None:
    """F49, over TCP, where a reset exists."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            endpoint = Endpoint(host="127.0.0.1", port=listener.getsockname()[1])
            async with asyncio.TaskGroup() as group:
                opening = group.create_task(get(endpoint))
                one, _ = await loop.sock_accept(listener)
                with one:
                    request = await read_request(one)
                    await loop.sock_sendall(one, LENGTH[:100])
                    exchange = await opening
                    reset(one)
                with pytest.raises(Died):
                    await exchange.read(256)
        assert f"host: 127.0.0.1:{endpoint.port}\r\n".encode() in request

    run(story())


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * (HEAD_BYTES_MAX + 1) + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 400_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"a" * 400_000,
    ],
    ids=[
        "ssh",
        "status",
        "lengths",
        "length+chunked",
        "upgrade",
        "chunk-size",
        "long-header",
        "many-headers",
        "many-100s",
        "trailer",
        "extension",
    ],
)
def test_garbage_is_named_as_such(reply: bytes, run: Run) -> None:
    async def story() -> None:
        async with serving(replying(reply, stay=True)) as endpoint:
            with pytest.raises(BadUpstreamReply):
                await (await get(endpoint)).read(10)

    run(story())


def test_bytes_after_the_message_are_ignored_and_the_socket_is_closed(run: Run) -> None:
    async def story() -> None:
        closed = asyncio.Event()

        async def script(one: socket.socket) -> None:
            await read_request(one)
            await asyncio.get_running_loop().sock_sendall(one, LENGTH + b"garbage\r\n" + LENGTH)
            await until_eof(one)
            closed.set()

        async with serving(script) as endpoint:
            exchange = await get(endpoint)
            assert await exchange.read(256) == BODY
            await closed.wait()
            assert exchange.status == 200

    run(story())


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"])
def test_answers_without_a_body_end_with_their_head(head: bytes, run: Run) -> None:
    async def story() -> None:
        async with serving(replying(head, stay=True)) as endpoint:
            assert await (await get(endpoint)).read(0) == b""

    run(story())


def test_the_answer_to_head_has_no_body(run: Run) -> None:
    async def story() -> None:
        async with serving(replying(LENGTH[:-256], stay=True)) as endpoint:
            exchange = await get(endpoint, "HEAD")
            assert (exchange.status, await exchange.read(0)) == (200, b"")

    run(story())


def test_a_read_beyond_the_limit_is_refused_and_closes(run: Run) -> None:
    async def story() -> None:
        async with serving(replying(LENGTH, stay=True)) as endpoint:
            with pytest.raises(BadUpstreamReply):
                await (await get(endpoint)).read(255)

    run(story())


def test_bytes_before_attach_are_kept_and_bounded(run: Run) -> None:
    """A body nobody takes yet stays in the kernel beyond a small buffer, and is complete once somebody does."""
    size = 8 * 1024 * 1024

    async def story() -> None:
        sent = 0
        full = asyncio.Event()

        async def script(one: socket.socket) -> None:
            nonlocal sent
            await read_request(one)
            await say(one, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            sent = await fill(one, size)
            full.set()
            await asyncio.get_running_loop().sock_sendall(one, b"x" * (size - sent))

        async with serving(script) as endpoint:
            exchange = await get(endpoint)
            await full.wait()
            assert PENDING_BYTES_MAX < sent < 3 * 1024 * 1024
            sink = Sink()
            exchange.attach(sink)
            assert 0 < len(sink.got) < PENDING_BYTES_MAX + 512 * 1024
            await exchange.finished()
            assert len(sink.got) == size

    run(story())


async def fill(one: socket.socket, size: int) -> int:
    """Send until the other side has stopped reading; the number of bytes the kernel took."""
    sent = stuck = 0
    while stuck < 50 and sent < size:
        try:
            sent += one.send(b"x" * min(65536, size - sent))
            stuck = 0
        except BlockingIOError:
            stuck += 1
        await asyncio.sleep(0.001)
    return sent


def test_pause_stops_reading_and_resume_goes_on(run: Run) -> None:
    """F35: what is paused stays with the model server, except for what the kernel holds."""
    size = 8 * 1024 * 1024

    async def story() -> None:
        go, full = asyncio.Event(), asyncio.Event()
        sent = 0

        async def script(one: socket.socket) -> None:
            nonlocal sent
            await read_request(one)
            await say(one, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\nfirst" % size)
            await go.wait()
            sent = await fill(one, size - 5)
            full.set()
            await asyncio.get_running_loop().sock_sendall(one, b"x" * (size - 5 - sent))

        async with serving(script) as endpoint:
            exchange = await get(endpoint)
            sink = Sink()
            exchange.attach(sink)
            await sink.until(5)
            exchange.pause()
            exchange.pause()
            go.set()
            await full.wait()
            assert sent < 3 * 1024 * 1024
            assert sink.got == b"first"
            exchange.resume()
            await exchange.finished()
            assert len(sink.got) == size
            exchange.pause()
            exchange.resume()

    run(story())


def test_when_the_body_moved(run: Run) -> None:
    """Only bytes of the body count; while we do not read, the silence is ours."""
    head, _, body = LENGTH.partition(b"\r\n\r\n")

    async def story() -> None:
        loop = asyncio.get_running_loop()
        more, end = asyncio.Event(), asyncio.Event()

        async def script(one: socket.socket) -> None:
            await read_request(one)
            await say(one, head + b"\r\n\r\n")
            await more.wait()
            await say(one, body[:10])
            await end.wait()

        async with serving(script) as endpoint:
            exchange = await get(endpoint)
            sink = Sink()
            exchange.attach(sink)
            assert (exchange.began, exchange.moved_at(loop.time())) == (False, -math.inf)
            exchange.pause()
            assert (exchange.began, exchange.moved_at(7.5)) == (False, 7.5)
            exchange.resume()
            resumed = exchange.moved_at(math.inf)
            assert not exchange.began
            assert -math.inf < resumed <= loop.time()
            more.set()
            await sink.until(10)
            assert exchange.began
            assert resumed <= exchange.moved_at(math.inf) <= loop.time()
            exchange.pause()
            assert exchange.moved_at(math.inf) == math.inf
            exchange.abort()
            end.set()

    run(story())


@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
def test_abort_closes_now_and_gives_its_reason(paused: bool, run: Run) -> None:
    """F33: the model server sees the end of file, the sink sees nothing more, and a second abort changes nothing."""

    async def story() -> None:
        left = asyncio.Event()

        async def script(one: socket.socket) -> None:
            await read_request(one)
            await say(one, b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nfirst")
            await until_eof(one)
            left.set()

        async with serving(script) as endpoint:
            exchange = await get(endpoint)
            sink = Sink()
            exchange.attach(sink)
            await sink.until(5)
            if paused:
                exchange.pause()
            exchange.abort(Unloaded("gone"))
            exchange.abort()
            with pytest.raises(Unloaded):
                await exchange.finished()
            await left.wait()
            assert sink.got == b"first"

    run(story())


def test_abort_ends_a_wait_for_the_end(run: Run) -> None:
    async def story() -> None:
        async with serving(replying(LENGTH[:100], stay=True)) as endpoint:
            exchange = await get(endpoint)
            exchange.attach(Sink())
            asyncio.get_running_loop().call_soon(exchange.abort)
            with pytest.raises(ClientGone):
                await exchange.finished()

    run(story())


def test_cancelling_open_closes_the_socket(run: Run) -> None:
    """F32: a model server that has not answered yet learns at once that nobody waits."""

    async def story() -> None:
        asked, left = asyncio.Event(), asyncio.Event()

        async def script(one: socket.socket) -> None:
            await read_request(one)
            await say(one, b"HTTP/1.1 200 OK\r\nslow: head")
            asked.set()
            await until_eof(one)
            left.set()

        async with serving(script) as endpoint, asyncio.TaskGroup() as group:
            opening = group.create_task(get(endpoint))
            await asked.wait()
            opening.cancel()
            await left.wait()
            assert opening.cancelled()

    run(story())


def test_cancelling_at_every_step_of_open_leaves_nothing_behind(run: Run) -> None:
    async def story() -> None:
        async with serving(replying(LENGTH)) as endpoint:
            for steps in range(8):
                opening = asyncio.get_running_loop().create_task(get(endpoint))
                for _ in range(steps):
                    await asyncio.sleep(0)
                opening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    (await opening).abort()

    run(story())


def test_cancelling_finished_changes_nothing(run: Run) -> None:
    async def story() -> None:
        async with serving(replying(LENGTH[:100], LENGTH[100:])) as endpoint:
            exchange = await get(endpoint)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await exchange.finished()
            assert await exchange.read(256) == BODY
            await exchange.finished()

    run(story())


@pytest.mark.parametrize("endpoint", [Endpoint(socket="/nonexistent/socket"), Endpoint(host="127.0.0.1", port=1)], ids=["unix", "tcp"])
def test_nobody_listens(endpoint: Endpoint, run: Run) -> None:
    async def story() -> None:
        with pytest.raises(UpstreamUnreachable) as caught:
            await get(endpoint)
        assert "nonexistent" not in caught.value.message

    run(story())


def test_a_full_accept_queue_is_waited_for(run: Run) -> None:
    """A burst on a Unix socket with a short backlog connects late instead of failing."""

    async def story() -> None:
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = str(Path(folder) / "s")
            listener.bind(path)
            listener.listen(0)
            listener.setblocking(False)
            loop = asyncio.get_running_loop()
            script = replying(LENGTH)
            async with asyncio.TaskGroup() as group:
                openings = [group.create_task(get(Endpoint(socket=path))) for _ in range(5)]
                await asyncio.sleep(0)
                for _ in openings:
                    one, _ = await loop.sock_accept(listener)
                    with one:
                        await script(one)
                assert [(await opening).status for opening in openings] == [200] * 5
                for opening in openings:
                    assert await opening.result().read(256) == BODY

    run(story())


def test_a_sink_that_raises_is_our_fault(run: Run) -> None:
    class Broken:
        def data(self, chunk: bytes) -> None:
            raise ZeroDivisionError

    async def story() -> None:
        loop = asyncio.get_running_loop()
        complaints: list[object] = []
        async with serving(replying(LENGTH[:100], LENGTH[100:], stay=True)) as endpoint:
            exchange = await get(endpoint)
            with contextlib.suppress(ZeroDivisionError):
                exchange.attach(Broken())
            loop_handler = loop.get_exception_handler()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            with pytest.raises(InvariantError):
                await exchange.finished()
            loop.set_exception_handler(loop_handler)

    run(story())


def test_one_call_per_read_of_the_socket(run: Run) -> None:
    """Many small chunks that arrive together are one call of the sink."""
    pieces = b"".join(b"5\r\nhello\r\n" for _ in range(100))

    async def story() -> None:
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        async with serving(replying(head, pieces, b"0\r\n\r\n")) as endpoint:
            exchange = await get(endpoint)
            sink = Sink()
            exchange.attach(sink)
            await exchange.finished()
            assert (bytes(sink.got), sink.calls) == (b"hello" * 100, 1)

    run(story())


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".y", "\u00fc..b"])
def test_a_host_that_is_no_name_is_unreachable(run: Run, host: str) -> None:
    async def story() -> None:
        with pytest.raises(UpstreamUnreachable):
            await Exchange.open(Endpoint(host=host, port=80), "GET", "/", [], b"")

    run(story())


def test_a_host_of_other_letters_is_sent_as_the_dns_knows_it() -> None:
    assert b"\r\nhost: xn--mller-kva.test:8080\r\n" in _render_request(Endpoint(host="m\u00fcller.test", port=8080), "GET", "/", [], b"")


def test_a_key_that_is_no_text_is_sent_as_it_was_given() -> None:
    key = b"k\xff".decode("utf-8", errors="surrogateescape")  # as an environment variable comes
    assert b"Bearer k\xff\r\n" in _render_request(Endpoint(host="h", port=80, api_key=key), "GET", "/", [], b"")
