# SPDX-License-Identifier: GPL-3.0-only
"""One request and its answer on a client connection; rule: the answer goes straight to the transport, and it ends exactly once.

A `Cycle` is what routes know as `Connection`: synchronous writes for streams that are pushed. It offers ASGI `receive` and `send` as
well, on the same way out. Framing is decided when the head leaves: a body that is complete by then gets a content-length, another one is
chunked, or ends with the connection for HTTP/1.0.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from modeld.errors import BadRequest, BodyTooLarge, ClientGone, InvariantError, ModeldError

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent, HTTPScope
    from uvicorn.protocols.http.flow_control import FlowControl

    from modeld.api.route import Connection

_BAD_NAME: Final = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FAULT: Final = "modeld failed to answer this request. This is a fault of modeld; its log says more."


class Cycle:
    """The `Connection` of one request. Written to by its route, fed by the protocol of its connection.

    Attributes the protocol reads: `more_body` (the request has not been read to its end), `keep_alive`, `waiting_for_continue`,
    `received` (body bytes so far), `body_since` and `body_grew_at` (loop time), `pause` and `resume`.
    """

    def __init__(
        self,
        *,
        scope: HTTPScope,
        transport: asyncio.Transport,
        flow: FlowControl,
        loop: asyncio.AbstractEventLoop,
        default_headers: list[tuple[bytes, bytes]],
        on_complete: Callable[[], None],
        peer: str | None,
        content_length: int,
        expects_continue: bool,
        keep_alive: bool,
    ) -> None:
        self.scope = scope
        self.peer = peer
        self.disconnected = False
        self.wants_socket = False
        self.on_switch: Callable[[Cycle, Callable[[bytes], None]], bool] | None = None
        self.keep_alive = keep_alive
        self._transport = transport
        self._flow = flow
        self._loop = loop
        self._default_headers = default_headers
        self._on_complete = on_complete
        # the request body
        self.more_body = True
        self.waiting_for_continue = expects_continue
        self.received = 0
        self.body_since = self.body_grew_at = 0.0
        self._content_length = content_length
        self._buffer = bytearray()
        self._limit: int | None = None
        self._failure: ModeldError | None = None
        self._changed = asyncio.Event()
        # the client
        self.pause: Callable[[], None] | None = None
        self.resume: Callable[[], None] | None = None
        self._leave_callbacks: list[Callable[[], None]] = []
        # the answer
        self._started = self._complete = False
        self._head: list[bytes] | None = None
        self._chunked = self._bodyless = False
        self._remaining: int | None = None

    # --- the request body ---------------------------------------------------------------------------------------------

    async def body(self, limit: int) -> bytes:
        """The whole request body. Raises BodyTooLarge (above `limit` bytes; before reading when announced), BodyTimeout,
        BadRequest (a broken chunk), ClientGone.
        """
        if self._content_length > limit or self.received > limit:
            self.fail(_body_too_large(limit))
        self._limit = limit
        if self._wants_body():
            self._ask()
        while self._wants_body():
            self._changed.clear()
            await self._changed.wait()
        if self.disconnected:
            raise ClientGone("The client left.")
        if self._failure is not None:
            raise self._failure
        whole = bytes(self._buffer)
        self._buffer.clear()
        return whole

    def take(self, chunk: bytes) -> None:
        """One piece of body from the parser."""
        self.received += len(chunk)
        if self._failure is not None or self._complete:
            return
        self._buffer += chunk
        if self._limit is None:
            if len(self._buffer) > HIGH_WATER_LIMIT:
                self._flow.pause_reading()
            self._changed.set()
        elif self.received > self._limit:
            self.fail(_body_too_large(self._limit))

    def end_body(self) -> None:
        """The request is here to its last byte."""
        self.more_body = False
        self._changed.set()

    def fail(self, error: ModeldError) -> None:
        """The rest of the body is not wanted, or will not come: the reader of the body gets `error`."""
        self._failure = error
        self._buffer.clear()
        self.keep_alive = False
        self._changed.set()

    def _wants_body(self) -> bool:
        return self.more_body and self._failure is None and not self.disconnected

    def _ask(self) -> None:
        """Let the client send. Where it was us who kept it waiting, its clock begins now."""
        if self.body_since and (self.waiting_for_continue or self._flow.read_paused):
            self.body_since = self.body_grew_at = self._loop.time()
        if self.waiting_for_continue:
            self.waiting_for_continue = False
            if self.more_body and not self.received:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._flow.resume_reading()

    # --- the client ---------------------------------------------------------------------------------------------------

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call back once when the client goes before the answer is complete; at once if it is gone already."""
        if self.disconnected:
            callback()
        else:
            self._leave_callbacks.append(callback)

    def on_pressure(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call `pause` when unsent bytes exceed the high-water mark (at once if they do now), `resume` when they are few again.

        After the end of the answer, or once the client is gone, neither is called.
        """
        if self._complete or self.disconnected:
            return
        self.pause, self.resume = pause, resume
        if self._flow.write_paused:
            pause()

    def lose_client(self) -> None:
        """The client is gone: tell whoever waits for it or writes to it."""
        if self._complete or self.disconnected:
            return
        self.disconnected = True
        self.pause = self.resume = self._head = None
        self._changed.set()
        callbacks, self._leave_callbacks = self._leave_callbacks, []
        for callback in callbacks:
            callback()

    # --- the answer ---------------------------------------------------------------------------------------------------

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The response head. It leaves with the first piece of body, or at the end of this turn of the loop when none comes."""
        if self._started:
            raise InvariantError("an answer was started twice")
        lines = [STATUS_LINE[status]]
        keep_alive = self.keep_alive
        remaining: int | None = None
        for name, value in [*self._default_headers, *headers]:
            if _BAD_NAME.search(name) is not None or _BAD_VALUE.search(value) is not None:
                raise InvariantError("a response header holds a character that is not allowed")
            name = name.lower()
            if name == b"content-length":
                remaining = int(value)
            elif name == b"connection":
                keep_alive = keep_alive and b"close" not in value.lower()
                continue
            elif name == b"transfer-encoding":
                continue
            lines += [name, b": ", value, b"\r\n"]
        self.keep_alive, self._remaining = keep_alive, remaining
        self._started = True
        self.waiting_for_continue = False
        self._bodyless = self.scope["method"] == "HEAD" or status in (204, 304)
        if not self.disconnected:
            self._head = lines
            self._loop.call_soon(self._flush_head)

    def switch(self, head: bytes, receive: Callable[[bytes], None]) -> None:
        """Answer with `head`, a whole 101, and be a pipe from then on: `write` sends bytes as they are, `receive` is called with those
        that come, `finish` ends both ways. Raises BadRequest when the client did not wait for the answer.
        """
        if self._started or self.on_switch is None:
            raise InvariantError("an answer was started twice, or nobody asked to switch")
        if not self.on_switch(self, receive):
            raise BadRequest("Wait for the answer to the handshake before you send more.")
        self._started, self.keep_alive = True, False
        if not self.disconnected:
            self._transport.write(head)

    def write(self, chunk: bytes) -> None:
        """One piece of body, sent as it is."""
        if self.disconnected or self._complete or not chunk:
            return
        if self._head is not None:
            self._transport.write(self._take_head(None) + self._frame(chunk))
        else:
            self._transport.write(self._frame(chunk))

    def finish(self, last: bytes = b"") -> None:
        """The last piece and the end of the message. An answer shorter than its content-length is cut instead."""
        if self.disconnected or self._complete:
            return
        head = b"" if self._head is None else self._take_head(len(last))
        tail = self._frame(last) if last else b""
        if self._remaining and not self._bodyless:
            self._transport.write(head + tail)
            self.cut()
            return
        if self._chunked:
            tail += b"0\r\n\r\n"
        if head or tail:
            self._transport.write(head + tail)
        self._end()

    def cut(self) -> None:
        """Close without a proper end, so that the client cannot take what it has for the whole."""
        if self.disconnected or self._complete:
            return
        self._flush_head()
        self.keep_alive = False
        self._end()

    def _take_head(self, body_bytes: int | None) -> bytes:
        """The head as bytes. `body_bytes` is the size of the whole body where that is known by now, else None."""
        lines = self._head or []
        self._head = None
        if self.more_body:
            self.keep_alive = False  # the rest of the request would have to be read before the next one
        if self._remaining is None and not self._bodyless:
            if body_bytes is not None:
                self._remaining = body_bytes
                lines.append(b"content-length: %d\r\n" % body_bytes)
            elif self.scope["http_version"] == "1.0":
                self.keep_alive = False
            else:
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        return b"".join(lines)

    def _frame(self, chunk: bytes) -> bytes:
        if self._chunked:
            return b"%x\r\n%b\r\n" % (len(chunk), chunk)
        if self._bodyless:
            return b""
        if self._remaining is not None:
            self._remaining -= len(chunk)
            if self._remaining < 0:
                self.cut()
                raise InvariantError("an answer is longer than its content-length")
        return chunk

    def _flush_head(self) -> None:
        if self._head is not None:
            self._transport.write(self._take_head(None))

    def _end(self) -> None:
        self._complete = True
        self._leave_callbacks.clear()
        self.pause = self.resume = None
        self._changed.set()
        self._on_complete()

    # --- ASGI ---------------------------------------------------------------------------------------------------------

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Run the application; whatever it does, the answer ends. An exception that comes here is a bug: the client is told 500."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self._complete and not self.disconnected:
                raise InvariantError("the application returned without completing its answer")
        except Exception:  # the outermost frame of a request
            logging.getLogger(__name__).exception("a request failed in the application")
            if not self._started:
                self._answer(500, InvariantError.kind, _FAULT)
        finally:
            self.cut()
            self.scope["extensions"] = {}  # the scope and the cycle hold each other

    async def receive(self) -> ASGIReceiveEvent:
        """ASGI: the next piece of the request body, or the news that the client is gone."""
        if not self.disconnected and not self._complete:
            self._ask()
            await self._changed.wait()
            self._changed.clear()
        if self._failure is not None and not self._started and not self.disconnected:
            self._answer(self._failure.http_status, self._failure.kind, self._failure.message)
        if self._failure is not None or self.disconnected or self._complete:
            return {"type": "http.disconnect"}
        body = bytes(self._buffer)
        self._buffer.clear()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: ASGISendEvent) -> None:
        """ASGI: head, or a piece of body. Waits while the client reads too slowly."""
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if message["type"] == "http.response.start":
            self.start(message["status"], list(message.get("headers", [])))
        elif message["type"] == "http.response.body":
            piece = message.get("body", b"")
            if message.get("more_body", False):
                self.write(piece)
            else:
                self.finish(piece)
        else:
            raise InvariantError(f"unexpected ASGI message {message['type']}")

    def _answer(self, status: int, kind: str, text: str) -> None:
        self.keep_alive = False
        self.start(status, [(b"content-type", b"application/json")])
        self.finish(render_error(status, kind, text))


def render_error(status: int, kind: str, text: str) -> bytes:
    """The body of an error, as every native route answers it."""
    return json.dumps({"error": text, "code": status, "kind": kind, "source": "modeld"}).encode()


def _body_too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body of the request is larger than {limit} bytes.")


if TYPE_CHECKING:

    def _is_a_connection(cycle: Cycle) -> Connection:
        return cycle
