# SPDX-License-Identifier: GPL-3.0-only
"""The server side of HTTP/1.1 under uvicorn; rule: every byte and every second a client can cost has a limit, and EOF means it left.

One `ModeldProtocol` per connection parses requests; one `Cycle` per request carries the answer. A cycle is also the `Connection` that
routes find in `scope["extensions"]["modeld"]`: synchronous writes for streams that are pushed, where ASGI would need a task per chunk.

Where the parser stands decides which clock runs:
  1. idle   between requests, none running: keep_alive_seconds, then closed without a word
  2. head   from the first byte of a request to the end of its headers: header_seconds, then 408 and closed
  3. body   body_seconds without a byte, or slower than body_bytes_per_second_min: the reader of the body gets BodyTimeout (408)
  4. busy   the whole request is here: no clock, the answer may take its time
A client that stops reading is cut when the write buffer has stayed above its high-water mark for write_seconds without getting smaller.

Answers leave in the order of the requests. Bytes sent ahead of an answer are read on, because only a read shows the end of file, up to
ahead_bytes; beyond that reading pauses, and a client that leaves then is noticed when its current answer ends.
An answer given before the request body has been read is followed by the end of file, and input is discarded for a while: closing at
once would make the kernel send a reset, which can destroy the answer before the client has read it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import urllib.parse
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from modeld.api.cycle import Cycle, render_error
from modeld.api.route import Reply
from modeld.errors import BadRequest, BodyTimeout, HeadersTooLarge, ModeldError

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")


@dataclass(frozen=True, slots=True)
class ProtocolLimits:
    """What one connection may cost."""

    header_count: int = 100
    header_bytes: int = 64 * 1024
    url_bytes: int = 8 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    body_bytes_per_second_min: int = 256
    keep_alive_seconds: float = 75.0
    write_seconds: float = 60.0
    write_buffer_bytes: int = 64 * 1024
    ahead_bytes: int = 64 * 1024
    ahead_requests: int = 32
    discard_bytes: int = 8 * 1024 * 1024
    discard_seconds: float = 2.0


TurnAway = Callable[[ModeldError, bytes], Reply]
"""Error and raw URL (as far as it was read) -> the answer; its media is JSON."""


def plain_refusal(error: ModeldError, url: bytes) -> Reply:
    """The native error shape, uncounted."""
    return Reply(error.http_status, render_error(error.http_status, error.kind, error.message))


def make_protocol(limits: ProtocolLimits, turn_away: TurnAway = plain_refusal) -> type[ModeldProtocol]:
    """The class to give to uvicorn as `http=`. `turn_away` words the answer to what never became a request, and counts it."""
    return type("BoundModeldProtocol", (ModeldProtocol,), {"limits": limits, "turn_away": staticmethod(turn_away)})


class ModeldProtocol(HttpToolsProtocol):
    """One client connection. `reading` is the request the parser is in or was in last, `running` the one being answered."""

    limits: ClassVar[ProtocolLimits] = ProtocolLimits()
    turn_away: ClassVar[staticmethod[[ModeldError, bytes], Reply]] = staticmethod(plain_refusal)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=self.limits.write_buffer_bytes)
        sock = transport.get_extra_info("socket")
        self.peer: str | None = None
        if sock is None or sock.family != socket.AF_UNIX:
            # A peer that has reset already has no address any more: it must not pass for a local one.
            self.peer = self.client[0].removeprefix("::ffff:") if self.client else "unknown"
            if sock is not None:
                # asyncio does so only for sockets that were made with an explicit protocol number.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reading: Cycle | None = None
        self.running: Cycle | None = None
        self.waiting: deque[Cycle] = deque()
        self.wants_socket = False  # the head that is parsed again wished for a WebSocket
        self.switched: Callable[[bytes], None] | None = None  # takes what comes, from the 101 on
        self.refusal: ModeldError | None = None  # answers what came after `running` and `waiting`
        self.in_head = self.head_is_new = self.body_grew = False
        self.deaf = self.lingering = self.gone = False
        self.head_bytes = self.raw_head_bytes = self.quiet_bytes = self.ahead_bytes = self.discarded_bytes = 0
        self.stall_bytes, self.stall_since = 0, 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.stall_timer: asyncio.TimerHandle | None = None
        self._arm(self.limits.keep_alive_seconds, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self._disarm()
        if self.stall_timer is not None:
            self.stall_timer.cancel()
        self._client_left()
        self.flow.resume_writing()
        self.parser = None  # type: ignore[assignment]  # parser and protocol hold each other
        self.switched = None  # so do the WebSocket, its request and this

    def eof_received(self) -> None:
        if self.running is None:
            self._close()
        else:
            self._client_left()
            self.transport.abort()

    def shutdown(self) -> None:
        """uvicorn is ending: idle connections close now, others after their answer."""
        if self.running is None:
            if not self.lingering:
                self._close()
        else:
            self.running.keep_alive = False

    # --- bytes in -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.lingering:
            self.discarded_bytes += len(data)
            if self.discarded_bytes > self.limits.discard_bytes:
                self._close()
        if self.deaf:
            return
        if self.switched is not None:
            self.switched(data)
            return
        busy = self.running is not None and not self.running.more_body
        self.body_grew = False
        error = self._feed(data) or self._check_raw_size(len(data))
        if error is not None:
            self._input_failed(error)
        if self.deaf:
            return
        self._watch()
        if busy:
            self.ahead_bytes += len(data)
            if self.ahead_bytes > self.limits.ahead_bytes:
                self.flow.pause_reading()

    def _feed(self, data: bytes) -> ModeldError | None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # The parser stops at an upgrade as if the request had no body. Few routes have something to switch to: the request is
                # parsed again without the wish, then what follows it; that a WebSocket was wished for is told to its cycle.
                self.wants_socket = self._wishes_socket()
                data = self._render_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                continue
            except httptools.HttpParserError as exc:
                if self.deaf:
                    return None
                cause = exc.__context__
                return cause if isinstance(cause, ModeldError) else BadRequest("This is not a valid HTTP/1.1 request.", detail=str(exc))
            return None

    def _check_raw_size(self, size: int) -> ModeldError | None:
        """Bound what the parser collects before it tells: one endless header, chunk extension or trailer."""
        if self.in_head:
            if not self.head_is_new:
                self.raw_head_bytes += size
            if self.raw_head_bytes > self.limits.header_bytes:
                return HeadersTooLarge("The headers of the request are too long.")
        elif self.reading is not None and self.reading.more_body and not self.body_grew:
            self.quiet_bytes += size
            if self.quiet_bytes > self.limits.header_bytes:
                return BadRequest("The body of the request holds more framing than data.")
        else:
            self.quiet_bytes = 0
        return None

    def _watch(self) -> None:
        """Choose the clock for where the parser stands."""
        reading = self.reading
        if self.in_head:
            if self.head_is_new:
                self.head_is_new = False
                self._arm(self.limits.header_seconds, self._head_expired)
        elif reading is not None and reading.more_body:
            now = self.loop.time()
            if not reading.body_since:
                reading.body_since = reading.body_grew_at = now
                self._arm(self.limits.body_seconds, self._body_expired)
            if self.body_grew:
                reading.body_grew_at = now
        elif self.running is not None:
            self._disarm()

    def on_message_begin(self) -> None:
        if self.deaf:
            raise BadRequest("A request after the last one of this connection.")
        super().on_message_begin()
        self.in_head = self.head_is_new = True
        self.head_bytes = self.raw_head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.url_bytes:
            raise HeadersTooLarge("The address of the request is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            return  # a trailer: must not look like a header
        self.head_bytes += len(name) + len(value) + 4
        if self.head_bytes + len(self.url) > self.limits.header_bytes or len(self.headers) >= self.limits.header_count:
            raise HeadersTooLarge("The request has too many headers, or they are too long.")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        method = self.parser.get_method()
        length = _check_head(method, self.url, version, self.headers)
        if self.parser.should_upgrade():
            return
        if self.running is not None and len(self.waiting) >= self.limits.ahead_requests:
            raise BadRequest("Too many requests were sent ahead of the answers.")
        parsed = httptools.parse_url(self.url)
        path = parsed.path.decode("ascii")
        scope = self.scope
        scope["method"] = method.decode("ascii")
        scope["http_version"] = version
        scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        scope["raw_path"] = parsed.path
        scope["query_string"] = parsed.query or b""
        cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            loop=self.loop,
            default_headers=self.server_state.default_headers,
            on_complete=self.on_response_complete,
            peer=self.peer,
            content_length=length,
            expects_continue=self.expect_100_continue and version == "1.1",
            keep_alive=version == "1.1" and self.parser.should_keep_alive(),
        )
        if self.wants_socket:
            self.wants_socket, cycle.wants_socket, cycle.on_switch = False, True, self._switch
        scope["extensions"] = {"modeld": cycle}  # type: ignore[dict-item]  # uvicorn knows only mappings here
        self.in_head = False
        self.reading = cycle
        if self.running is None:
            self._run(cycle)
        else:
            self.waiting.append(cycle)

    def on_body(self, body: bytes) -> None:
        if self.reading is not None:
            self.body_grew = True
            self.reading.take(body)

    def on_message_complete(self) -> None:
        if self.in_head or self.reading is None:
            return  # the end of a head that is parsed again, without its upgrade
        self.reading.end_body()
        if not self.reading.keep_alive:
            self.deaf = True
            self._disarm()

    def _wishes_socket(self) -> bool:
        wished = [value.strip().lower() for name, value in self.headers if name == b"upgrade"]
        return wished == [b"websocket"] and self.parser.get_method() == b"GET" and self.parser.get_http_version() == "1.1"

    def _switch(self, cycle: Cycle, receive: Callable[[bytes], None]) -> bool:
        """From now on `receive` gets what the client sends. False when it sent something before it was told that it may."""
        if self.running is not cycle or self.waiting or self.in_head or cycle.more_body or self.deaf:
            return False
        self.switched = receive
        return True

    def _render_without_upgrade(self) -> bytes:
        lines = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                lines += [name, b": ", value, b"\r\n"]
        lines.append(b"\r\n")
        return b"".join(lines)

    # --- the order of answers -----------------------------------------------------------------------------------------

    def _run(self, cycle: Cycle) -> None:
        self.running = cycle
        self._start_asgi_task(cycle, self.app)  # type: ignore[arg-type]  # only run_asgi of it is used

    def on_response_complete(self) -> None:
        """The running cycle has written its last byte."""
        self.server_state.total_requests += 1
        cycle, self.running = self.running, None
        if self.gone or cycle is None or self.transport.is_closing():
            return
        if cycle.more_body or self.switched is not None:
            self._linger()
        elif not cycle.keep_alive:
            self._close()
        else:
            self.ahead_bytes = 0
            self.flow.resume_reading()
            if self.waiting:
                self._run(self.waiting.popleft())
            elif self.refusal is not None:
                self._refuse(self.refusal)
            elif not self.in_head:
                self._arm(self.limits.keep_alive_seconds, self._close)

    def _input_failed(self, error: ModeldError) -> None:
        """Nothing that comes from now on can be understood. The error answers the request it happened in, in its turn."""
        self.deaf = True
        self._disarm()
        self.flow.resume_reading()
        if not self.in_head and self.reading is not None and self.reading.more_body:
            self.reading.fail(error)
        elif self.running is not None:
            self.refusal = error
        else:
            self._refuse(error)

    def _refuse(self, error: ModeldError) -> None:
        """Answer a request that never got a cycle, and close."""
        reply = self.turn_away(error, self.url or b"")
        lines = b"".join(b"%b: %b\r\n" % header for header in reply.headers)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(reply.body)
        self.transport.write(STATUS_LINE[reply.status] + lines + head + reply.body)
        self._linger()

    # --- clocks and endings -------------------------------------------------------------------------------------------

    def _head_expired(self) -> None:
        self.timer = None
        if self.flow.read_paused:
            self._arm(self.limits.header_seconds, self._head_expired)  # it is us who do not read
        else:
            self._input_failed(BodyTimeout("The headers of the request took too long. Send it again."))

    def _body_expired(self) -> None:
        self.timer = None
        cycle = self.reading
        if cycle is None:
            return
        now = self.loop.time()
        if self.flow.read_paused or cycle.waiting_for_continue:
            cycle.body_since = cycle.body_grew_at = now  # it is us who do not read, or have not asked for the body yet
        slow_at = cycle.body_since + self.limits.body_seconds + cycle.received / self.limits.body_bytes_per_second_min
        due = min(slow_at, cycle.body_grew_at + self.limits.body_seconds)
        if now < due:
            self._arm(due - now, self._body_expired)
        else:
            self._input_failed(BodyTimeout("The body of the request took too long. Send it again."))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stall_bytes = self.transport.get_write_buffer_size()
        self.stall_since = self.loop.time()
        if self.stall_timer is None:
            self.stall_timer = self.loop.call_later(self.limits.write_seconds / 4, self._check_stall)
        if self.running is not None and self.running.pause is not None:
            self.running.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stall_timer is not None and not self.transport.is_closing():
            self.stall_timer.cancel()
            self.stall_timer = None
        if self.running is not None and self.running.resume is not None:
            self.running.resume()

    def _check_stall(self) -> None:
        """Cut a reader that took nothing for write_seconds. Asked four times in that time: the transport tells of marks only."""
        now = self.loop.time()
        size = self.transport.get_write_buffer_size()
        if size < self.stall_bytes:
            self.stall_since = now
        self.stall_bytes = size
        if now - self.stall_since >= self.limits.write_seconds:
            self._client_left()
            self.transport.abort()
        else:
            self.stall_timer = self.loop.call_later(self.limits.write_seconds / 4, self._check_stall)

    def _client_left(self) -> None:
        if self.gone:
            return
        self.gone = self.deaf = True
        cycles = [self.running, *self.waiting] if self.running is not None else []
        self.waiting.clear()
        for cycle in cycles:
            if cycle is not None:
                cycle.lose_client()

    def _linger(self) -> None:
        """Send the end of file and discard what still comes, for a bounded time, so that the answer is received."""
        self.deaf = self.lingering = True
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arm(self.limits.discard_seconds, self._close)

    def _close(self) -> None:
        """Close after the last written byte has left; a client that does not take it is cut after write_seconds."""
        self.deaf = True
        self._disarm()
        if self.transport.is_closing():
            return
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.stall_bytes, self.stall_since = self.transport.get_write_buffer_size(), self.loop.time()
            self.stall_timer = self.stall_timer or self.loop.call_later(self.limits.write_seconds / 4, self._check_stall)

    def _arm(self, seconds: float, handler: Callable[[], None]) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(seconds, handler)

    def _disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _check_head(method: bytes, url: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> int:
    """The announced body size, 0 for none or unknown. Raises BadRequest for a head that two readers could understand differently."""
    hosts = [value for name, value in headers if name == b"host"]
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if version not in ("1.0", "1.1") or method == b"CONNECT":
        raise BadRequest("Send the request as HTTP/1.1, with a method like GET or POST.")
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise BadRequest("Send exactly one Host header.")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise BadRequest("The Host header is not valid.")
    if len(lengths) + len(codings) > 1:
        raise BadRequest("Send one Content-Length or one Transfer-Encoding, not both.")
    if codings and (codings[0].lower() != b"chunked" or version == "1.0"):
        raise BadRequest("The only Transfer-Encoding taken is chunked, with HTTP/1.1.")
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) < 19):
        raise BadRequest("The Content-Length is not valid.")
    if not url.startswith(b"/"):
        _check_absolute(url, hosts)
    return int(lengths[0]) if lengths else 0


def _check_absolute(url: bytes, hosts: list[bytes]) -> None:
    """`http://host/path` is taken when it names the host that the Host header names: rules about hosts look at the header alone."""
    scheme, _, rest = url.partition(b"://")
    if scheme.lower() not in (b"http", b"https") or not hosts or not rest.lower().startswith(hosts[0].lower() + b"/"):
        raise BadRequest("The address of the request must be a path such as /status.")
