# SPDX-License-Identifier: GPL-3.0-only
"""One HTTP/1.1 request to a model server; rule: a fresh connection each time, bytes are pushed, nothing is queued in between.

`Exchange` is the connection, the response parser and the request at once. Body bytes go from `data_received` straight into the sink
as soon as they are parsed (one call per read of the socket). A sink that cannot take more calls `pause`: then the socket is not read,
and the model server feels it. An exchange ends once: at the end of the message, by an error, or by `abort`.
"""

from __future__ import annotations

import asyncio
import functools
import math
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Final, Protocol, cast

import httptools

from modeld.errors import BadRequest, BadUpstreamReply, ClientGone, Died, InvariantError, ModeldError, UpstreamUnreachable

HEAD_BYTES_MAX: Final = 64 * 1024
PENDING_BYTES_MAX: Final = 64 * 1024
CONNECT_SECONDS_MAX: Final = 10.0
CONNECT_RETRY_SECONDS: Final = 0.002

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH = re.compile(r"/[\x21-\x7e]*")
_HEADER_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# What frames or routes the message is ours: a caller's copy of it would contradict the request that is really sent.
_OURS: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"expect", b"upgrade", b"te", b"trailer")
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model server listens: a Unix socket path, or host and port (with or without TLS).

    `prefix` is put before every path; `api_key`, when given, becomes the `Authorization` header and replaces the caller's.
    """

    socket: str | None = None
    host: str = ""
    port: int = 0
    tls: bool = False
    prefix: str = ""
    api_key: str | None = None


class BodySink(Protocol):
    """Takes body bytes. Called synchronously while the socket is read: it must neither block nor raise."""

    def data(self, chunk: bytes) -> None: ...


class Exchange(asyncio.Protocol):
    """One request and its response. `status` and `headers` (lower-case names) are set when `open` returns.

    Only one task may await `finished` or `read` of an exchange at a time.
    """

    __slots__ = (
        "_bodyless",
        "_ended",
        "_error",
        "_head_bytes",
        "_head_done",
        "_interim",
        "_loop",
        "_message_done",
        "_moved_at",
        "_parser",
        "_parts",
        "_paused",
        "_pending",
        "_quiet_bytes",
        "_reading_stopped",
        "_resumed_at",
        "_sink",
        "_transport",
        "_until_eof",
        "_waiter",
        "headers",
        "on_body",
        "status",
    )

    status: int
    headers: list[tuple[bytes, bytes]]
    _sink: BodySink | None

    @classmethod
    async def open(cls, endpoint: Endpoint, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Exchange:
        """Connect, send the whole request and return when the response head is there. There is no time limit on the answer.

        Cancelling closes the socket at once. Raises UpstreamUnreachable (no connection: nothing was sent), Died (closed before its head
        was whole), BadUpstreamReply (the answer is not HTTP, or its head is above 64 KiB), BadRequest (a field that cannot be sent).
        """
        request = _render_request(endpoint, method, path, headers, body)
        exchange = cls(bodyless=method == "HEAD")
        try:
            await _connect(endpoint, exchange)
            transport = exchange._transport
            if transport is None:
                raise UpstreamUnreachable("The model server closed the connection. Try again.")
            transport.writelines([request, body] if body else [request])
            while not exchange._head_done:
                if exchange._ended:
                    raise exchange._error or InvariantError("an exchange ended without a head and without an error")
                await exchange._wait()
        except BaseException:
            exchange.abort()
            raise
        return exchange

    def attach(self, sink: BodySink) -> None:
        """Push body bytes into `sink` from now on; bytes that came before are handed over in this call. Call it once."""
        self._sink = sink
        if self._pending:
            chunk = b"".join(self._pending)
            self._pending.clear()
            sink.data(chunk)
        self._steer()

    def pause(self) -> None:
        """Stop reading the socket: the sink has enough. Kernel buffers fill, then the model server waits."""
        self._paused = True
        self._steer()

    def resume(self) -> None:
        """Read on after `pause`."""
        self._paused = False
        self._steer()

    @property
    def began(self) -> bool:
        """Whether a byte of the body has come."""
        return self._moved_at > -math.inf

    def moved_at(self, now: float) -> float:
        """When the body last moved (loop time), -inf = not yet. It is `now` while we do not read: then nobody but the sink keeps it."""
        return now if self._reading_stopped else max(self._moved_at, self._resumed_at)

    async def finished(self) -> None:
        """Return at the end of the message, after the sink has had its last byte.

        Raises Died (closed or reset in mid-body), BadUpstreamReply (garbage), or what `abort` was given. Cancelling it changes nothing.
        """
        while not self._ended:
            await self._wait()
        if self._error is not None:
            raise self._error

    async def read(self, limit: int) -> bytes:
        """The whole body of a small reply, at most `limit` bytes. Raises as `finished`, and BadUpstreamReply beyond the limit."""
        collector = _Collector(self, limit)
        self.attach(collector)
        try:
            await self.finished()
        except BaseException:
            self.abort()
            raise
        if len(collector.body) > limit:  # all of it was here before anybody asked for it
            raise _too_long()
        return bytes(collector.body)

    def abort(self, error: ModeldError | None = None) -> None:
        """Close the socket now; `finished` then raises `error` (ClientGone when none is given). Later calls do nothing."""
        self._end(error or ClientGone("The client left."))

    # --- from here on: called by the event loop and the parser --------------------------------------------------------

    def __init__(self, *, bodyless: bool) -> None:
        self.status = 0
        self.headers = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._sink = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: ModeldError | None = None
        self._pending: list[bytes] = []
        self._parts: list[bytes] = []
        # The parser appends to the list without entering Python; data_received hands the sum over, outside the parser.
        self.on_body = self._parts.append
        self._bodyless = bodyless
        self._paused = self._reading_stopped = False
        self._head_done = self._interim = self._message_done = self._ended = False
        self._until_eof = True
        self._head_bytes = 0
        self._quiet_bytes = 0
        self._moved_at = self._resumed_at = -math.inf
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        error: ModeldError | None = None
        head_was_done = self._head_done
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            # Bytes after the end of the message are of no interest: the connection is closed anyway.
            if not self._message_done:
                error = BadUpstreamReply("The model server sent something that is not HTTP.", detail=f"{type(exc).__name__}: {exc}")
        parts = self._parts
        if parts:
            self._moved_at = self._loop.time()
            self._quiet_bytes = 0
            chunk = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            if self._sink is not None:
                self._sink.data(chunk)
            else:
                self._pending.append(chunk)
                self._steer()
        else:
            # Everything that is not body (head, chunk extensions, trailers) comes in bounded amounts between two pieces of body.
            self._quiet_bytes += len(data)
            if self._quiet_bytes > HEAD_BYTES_MAX and not self._message_done:
                error = error or BadUpstreamReply("The model server sent headers that are too long.")
        if error is not None or self._message_done:
            self._end(error)
        elif self._head_done is not head_was_done:
            self._wake()

    def eof_received(self) -> None:
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)
        self._transport = None

    def on_message_begin(self) -> None:
        if self._message_done:
            raise BadUpstreamReply("The model server sent more than one answer.")
        self.headers = []
        self._until_eof = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > HEAD_BYTES_MAX:
            raise BadUpstreamReply("The model server sent headers that are too long.")
        name = name.lower()
        if name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower()):
            self._until_eof = False
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            if status == 101:
                raise BadUpstreamReply("The model server wants to change the protocol.")
            self._interim = True
            return
        self.status = status
        self._head_done = True
        if self._bodyless:
            self._message_done = True

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self._message_done = True

    def _lost(self, exc: Exception | None) -> None:
        """The other side closed or reset the connection, or our own callback failed."""
        if self._ended:
            return
        if exc is not None and not isinstance(exc, OSError):
            error: ModeldError = InvariantError("a body sink raised", detail=f"{type(exc).__name__}: {exc}")
            error.__cause__ = exc
            self._end(error)
        elif self._head_done:
            complete = self._until_eof and exc is None
            self._end(None if complete else Died("The model server ended in the middle of its answer. Try again.", detail=str(exc or "")))
        else:
            self._end(Died("The model server ended before it answered. Try again.", detail=str(exc or "")))

    def _end(self, error: ModeldError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _steer(self) -> None:
        """Make the transport read, or not, as the sink and the bytes held for a sink to come want it."""
        stop = self._paused or (self._sink is None and sum(map(len, self._pending)) > PENDING_BYTES_MAX)
        if stop is self._reading_stopped or self._ended or self._transport is None:
            return
        self._reading_stopped = stop
        if stop:
            self._transport.pause_reading()
        else:
            self._resumed_at = self._loop.time()
            self._transport.resume_reading()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Collector:
    """A sink that keeps the body, up to a limit."""

    __slots__ = ("body", "exchange", "limit")

    def __init__(self, exchange: Exchange, limit: int) -> None:
        self.body = bytearray()
        self.exchange = exchange
        self.limit = limit

    def data(self, chunk: bytes) -> None:
        self.body += chunk
        if len(self.body) > self.limit:
            self.exchange.abort(_too_long())


def _too_long() -> BadUpstreamReply:
    return BadUpstreamReply("The model server sent a longer answer than expected.")


def _render_request(endpoint: Endpoint, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The request head, from parsed fields only: nothing a client sent is copied without being checked."""
    target = endpoint.prefix + path
    if _TOKEN.fullmatch(method) is None or _PATH.fullmatch(target) is None:
        raise BadRequest("The method or the path of the request holds characters that are not allowed there.")
    host = "localhost" if endpoint.socket is not None else f"[{endpoint.host}]" if ":" in endpoint.host else _ascii_host(endpoint.host)
    if endpoint.socket is None and endpoint.port != (443 if endpoint.tls else 80):
        host = f"{host}:{endpoint.port}"
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n".encode("ascii")]
    if body or method not in ("GET", "HEAD", "OPTIONS", "DELETE"):
        lines.append(b"content-length: %d\r\n" % len(body))
    for name, value in headers:
        name = name.lower()
        if name in _OURS or (name == b"authorization" and endpoint.api_key is not None):
            continue
        if _HEADER_NAME.fullmatch(name) is None or _BAD_VALUE.search(value) is not None:
            raise BadRequest("A header of the request holds characters that are not allowed there.")
        lines.append(b"%b: %b\r\n" % (name, value))
    if endpoint.api_key is not None:
        lines.append(b"authorization: Bearer %b\r\n" % endpoint.api_key.encode("utf-8", errors="surrogateescape"))
    lines.append(b"\r\n")
    return b"".join(lines)


def _ascii_host(host: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as exc:
        raise UpstreamUnreachable("The model server cannot be reached. Try again.", detail=f"{type(exc).__name__}: {exc}") from exc


async def _connect(endpoint: Endpoint, exchange: Exchange) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            if endpoint.socket is not None:
                sock = await _connect_unix(endpoint.socket)
                await loop.create_unix_connection(lambda: exchange, sock=sock)
            else:
                tls = _tls_context() if endpoint.tls else None
                await loop.create_connection(lambda: exchange, endpoint.host, endpoint.port, ssl=tls)
    except (OSError, TimeoutError, UnicodeError) as exc:  # UnicodeError: no host name of the DNS (an empty or overlong label)
        raise UpstreamUnreachable("The model server cannot be reached. Try again.", detail=f"{type(exc).__name__}: {exc}") from exc


async def _connect_unix(path: str) -> socket.socket:
    """A connected socket. A full accept queue is EAGAIN on a Unix socket, and nothing tells when there is room: asked every 2 ms."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:
                await asyncio.sleep(CONNECT_RETRY_SECONDS)
    except BaseException:
        sock.close()
        raise


@functools.cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()
