# SPDX-License-Identifier: GPL-3.0-only
"""A WebSocket on a connection that wished for one; rule: the protocol's bytes are the library's, nothing here waits or reads a clock.

Access rules were asked before: a handshake is a GET like any other. Messages of the client are read and ignored, up to a size; its pings
are answered. No extensions: compressing small events costs more than it saves, and holds memory for each reader.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from modeld.api.route import Call
from modeld.errors import BadRequest

if TYPE_CHECKING:
    from websockets.server import ServerProtocol

MESSAGE_BYTES_MAX: Final = 4096
"""The longest message that is taken from a client: it has nothing to say here."""
GOING_AWAY, SLOW, SILENT = 1001, 1013, 1011
"""Close codes of RFC 6455 and its registry: the daemon ends; try again later; it did not answer a ping."""


class Socket:
    """One side of a WebSocket. `put` is called with the bytes to be sent, `gone` once when the client has closed or broken the rules.

    `heard` is set with whatever comes, for whoever wants to know that somebody is still there.
    """

    def __init__(self, protocol: ServerProtocol, put: Callable[[bytes], None], gone: Callable[[], None]) -> None:
        self._protocol = protocol
        self._put = put
        self._gone = gone
        self._over = False
        self.heard = True

    def receive(self, data: bytes) -> None:
        """Bytes of the client."""
        self.heard = True
        if self._over:
            return
        self._protocol.receive_data(data)
        self._protocol.events_received()
        self._flush()
        if self._protocol.close_expected() and not self._over:
            self._over = True
            self._gone()

    def text(self, message: bytes) -> bytes:
        """One text message, as the bytes to be sent."""
        self._protocol.send_text(message)
        return self._taken()

    def ping(self) -> bytes:
        self._protocol.send_ping(b"modeld")
        return self._taken()

    def close(self, code: int, reason: str) -> bytes:
        """The close frame. Nothing may be sent after it."""
        if self._over:
            return b""
        self._over = True
        self._protocol.send_close(code, reason)
        return self._taken()

    def _flush(self) -> None:
        if data := self._taken():
            self._put(data)

    def _taken(self) -> bytes:
        """What the library has to send; the empty piece by which it marks the end of the stream is the connection's business."""
        return b"".join(self._protocol.data_to_send())


def handshake(call: Call) -> tuple[ServerProtocol, bytes]:
    """The protocol, open, and the whole 101. Raises BadRequest for a handshake that is none."""
    from websockets.exceptions import InvalidHandshake
    from websockets.http11 import Request
    from websockets.server import ServerProtocol

    quiet = logging.getLogger("modeld.websocket")
    quiet.setLevel(logging.ERROR)  # the library tells of each frame at debug level, and of each connection at info
    protocol = ServerProtocol(max_size=MESSAGE_BYTES_MAX, logger=quiet)
    # The edge has taken the wish off the head, and joins nothing: what the library needs of it is put together again.
    wanted = [(name, value) for name, value in call.headers.items() if name.startswith(b"sec-websocket-")]
    lines = [b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"]
    lines += [name + b": " + value + b"\r\n" for name, value in wanted]
    protocol.receive_data(b"".join(lines) + b"\r\n")
    asked = [event for event in protocol.events_received() if isinstance(event, Request)]
    if not asked:
        raise BadRequest("this is not the handshake of a WebSocket")
    answer = protocol.accept(asked[0])
    if answer.status_code != 101:
        cause = protocol.handshake_exc
        why = str(cause) if isinstance(cause, InvalidHandshake) else "it is not valid"
        raise BadRequest(f"the handshake of the WebSocket was refused: {why}"[:300])
    for name, value in call.answer_headers:
        answer.headers[name.decode("latin-1")] = value.decode("latin-1")
    protocol.send_response(answer)
    return protocol, b"".join(protocol.data_to_send())
