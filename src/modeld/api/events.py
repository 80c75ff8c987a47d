# SPDX-License-Identifier: GPL-3.0-only
"""GET /events: what happens, as server-sent events or on a WebSocket; rule: a reader costs a bounded buffer and no task switch per event.

1  `hello` comes first: what is loaded, who waits and what is pinned now, and `last_id`, the newest event that is in it already.
2  Who names the last id it has seen (`Last-Event-ID`, else `?since=`) then gets all later events that are still known; when some are not,
   `lost` says so before them.
3  Then each event as it happens; every BEAT_SECONDS a comment (on a WebSocket a ping) keeps proxies from closing a quiet stream.
4  The last one is `bye`, with the reason: the daemon ends, or the reader is too far behind. A reader that does not take its bytes is cut.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from modeld.api.relay import Relay
from modeld.api.route import EVENT_STREAM, Call, Header, Parameter, Reply, Route, Scope
from modeld.api.schemas import encode
from modeld.api.socket import GOING_AWAY, SILENT, SLOW, Socket, handshake
from modeld.core.snapshot import Snapshot
from modeld.errors import BadRequest, ClientGone, TooManyReaders
from modeld.runtime.feed import TYPES, Feed, Told

if TYPE_CHECKING:
    from modeld.core.model import ModelId

READERS_MAX: Final = 64
BEHIND_BYTES_MAX: Final = 256 * 1024
"""So much is kept for a reader that does not keep up."""
BEAT_SECONDS: Final = 15.0
SILENT_BEATS_MAX: Final = 4
"""So many pings in a row without a byte from the client end a WebSocket."""
RETRY_SECONDS: Final = 5
ID_CHARS_MAX: Final = 64

_HEADERS: Final[list[Header]] = [
    (b"content-type", EVENT_STREAM.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_STOPPING, _BEHIND, _SILENCE = "modeld is shutting down", "this reader is too far behind", "no answer to a ping"
_CODES: Final = {_STOPPING: GOING_AWAY, _BEHIND: SLOW, _SILENCE: SILENT}


class Wire(Protocol):
    """How events become bytes."""

    def event(self, identity: str, kind: str, json: bytes) -> bytes: ...
    def beat(self) -> bytes | None:
        """Something that keeps the connection open; None when nobody is there any more."""

    def bye(self, why: str, json: bytes) -> bytes: ...


class SseWire:
    """Server-sent events."""

    def event(self, identity: str, kind: str, json: bytes) -> bytes:
        line = f"id: {identity}\n" if identity else ""
        return f"{line}event: {kind}\ndata: ".encode() + json + b"\n\n"

    def beat(self) -> bytes | None:
        return b": still here\n\n"

    def bye(self, why: str, json: bytes) -> bytes:
        return self.event("", "bye", json)


class SocketWire:
    """A text message each; the type stands in the JSON."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._silent = 0

    def event(self, identity: str, kind: str, json: bytes) -> bytes:
        return self._socket.text(json)

    def beat(self) -> bytes | None:
        self._silent = 0 if self._socket.heard else self._silent + 1
        self._socket.heard = False
        return None if self._silent >= SILENT_BEATS_MAX else self._socket.ping()

    def bye(self, why: str, json: bytes) -> bytes:
        return self._socket.text(json) + self._socket.close(_CODES[why], why)


class Reader:
    """One client. Its `put` sends at once, or keeps what a slow one has not taken yet, up to BEHIND_BYTES_MAX."""

    def __init__(self, call: Call, wants: Callable[[Told], bool]) -> None:
        self._call = call
        self._wants = wants
        self._wire: Wire = SseWire()
        self._paused = False
        self._behind: deque[bytes] = deque()
        self._behind_bytes = 0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beat: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Send the head of the answer. Raises BadRequest for a handshake that is none."""
        call, connection = self._call, self._call.connection
        if connection.wants_socket:
            protocol, head = handshake(call)
            socket = Socket(protocol, self.put, self.leave)
            connection.switch(head, socket.receive)
            call.begun, call.status = True, 101
            self._wire = SocketWire(socket)
        else:
            call.start(200, _HEADERS.copy())
        connection.on_pressure(self._pause, self._resume)
        connection.on_disconnect(self.leave)
        self._beat = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._keep_open)

    def say(self, kind: str, json: bytes, identity: str = "") -> None:
        """An event that is this reader's alone."""
        if not self._over.done():
            self.put(self._wire.event(identity, kind, json))

    def tell(self, told: Told) -> None:
        """An event of the feed, if it is one of those that are wanted."""
        if not self._over.done() and self._wants(told):
            self.put(self._wire.event(told.event.id, told.event.kind, told.json))

    def put(self, data: bytes) -> None:
        """Bytes for the client."""
        if self._over.done():
            return
        if not self._paused:
            self._call.connection.write(data)
            return
        self._behind.append(data)
        self._behind_bytes += len(data)
        if self._behind_bytes > BEHIND_BYTES_MAX:
            self.end(_BEHIND)

    def end(self, why: str) -> None:
        """Say why, and end. What a slow reader has not been sent is given up: it asks for it by the last id that it got."""
        if self._over.done():
            return
        self._behind.clear()
        self._call.connection.finish(self._wire.bye(why, encode({"type": "bye", "why": why})))
        self._over.set_result(None)

    def stop(self) -> None:
        """The daemon ends."""
        self.end(_STOPPING)

    def leave(self) -> None:
        """The client has gone, or closed."""
        if not self._over.done():
            self._over.set_result(None)
            self._call.connection.finish()

    async def over(self) -> None:
        """Return when it has ended."""
        try:
            await self._over
        finally:
            if self._beat is not None:
                self._beat.cancel()
            self._behind.clear()

    def _pause(self) -> None:
        self._paused = True

    def _resume(self) -> None:
        """What was kept goes out in one piece; if that is too much at once, the connection says `pause` again."""
        self._paused = False
        if self._behind and not self._over.done():
            data = b"".join(self._behind)
            self._behind.clear()
            self._behind_bytes = 0
            self._call.connection.write(data)

    def _keep_open(self) -> None:
        if self._over.done():
            return
        data = self._wire.beat()
        if data is None:
            self.end(_SILENCE)
            return
        self.put(data)
        self._beat = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._keep_open)


class Events:
    """The handler."""

    def __init__(self, relay: Relay, feed: Feed, snapshot: Callable[[], Snapshot]) -> None:
        self._relay = relay
        self._feed = feed
        self._snapshot = snapshot
        self._readers = 0

    def routes(self) -> list[Route]:
        text = {"type": "string"}
        return [
            Route(
                "GET",
                "/events",
                Scope.READ,
                "What happens, as server-sent events; on a WebSocket the same, one message each.",
                self.events,
                media=EVENT_STREAM,
                parameters=(
                    Parameter("since", "query", "The id of the last event seen: those after it come first.", text),
                    Parameter("model", "query", "Only events of this model.", text),
                    Parameter("type", "query", f"Only events of these types, with commas between: {', '.join(TYPES)}.", text),
                    Parameter("Last-Event-ID", "header", "As `since`, which it goes before: what a browser sends by itself.", text),
                ),
            )
        ]

    async def events(self, call: Call) -> Reply | None:
        """Stream until the client leaves, the daemon ends, or the reader is too slow."""
        kinds, since = _kinds(call), _since(call)
        asked = call.asked_of("model")
        model = None if asked is None else (await self._relay.resolve(call, asked)).id
        if call.method == "HEAD":
            return Reply(200, media=EVENT_STREAM)
        if self._readers >= READERS_MAX:
            raise TooManyReaders(f"{READERS_MAX} readers follow the events already; try again later", retry_after_seconds=RETRY_SECONDS)
        if call.connection.disconnected:
            raise ClientGone("the client left")
        call.model = model or "-"
        reader = Reader(call, _wants(model, kinds))
        reader.open()
        self._readers += 1
        subscription = None
        try:
            self._greet(reader, model, since, _wants(model, kinds))
            subscription = self._feed.subscribe(reader.tell, reader.stop)
            await reader.over()
        finally:
            self._readers -= 1
            if subscription is not None:
                subscription.cancel()
        return None

    def _greet(self, reader: Reader, model: ModelId | None, since: str, wants: Callable[[Told], bool]) -> None:
        """1 and 2. In one turn of the loop with the subscription: nothing happens in between."""
        hello = _states(self._snapshot(), model) | {"last_id": self._feed.last_id}
        reader.say("hello", encode({"type": "hello"} | hello), "" if since else self._feed.last_id)
        if not since:
            return
        replay = self._feed.since(since)
        if replay.lost:
            reader.say("lost", encode({"type": "lost", "since": since, "why": "some events after this id are no longer known"}))
        for told in filter(wants, replay.events):
            reader.tell(told)


def _states(seen: Snapshot, model: ModelId | None) -> dict[str, Any]:
    """What is there now, of one model or of all."""
    return {
        "instances": [
            {"model_id": view.model, "instance_id": view.id, "state": view.state, "progress": round(view.progress, 4)}
            for view in seen.instances
            if model in (None, view.model)
        ],
        "lines": {line.model: line.length for line in seen.lines if line.length and model in (None, line.model)},
        "pinned": sorted(one for one in seen.pinned if model in (None, one)),
    }


def _wants(model: ModelId | None, kinds: frozenset[str]) -> Callable[[Told], bool]:
    def wants(told: Told) -> bool:
        event = told.event
        return (not kinds or event.kind in kinds) and (model is None or event.model_id in ("", model))

    return wants


def _kinds(call: Call) -> frozenset[str]:
    """The types asked for, empty = all. Raises BadRequest for one that does not exist."""
    kinds = frozenset(one.strip() for one in (call.asked_of("type") or "").split(",") if one.strip())
    if unknown := sorted(kinds.difference(TYPES)):
        raise BadRequest(f"type: {unknown[0][:40]!r} is none; there are {', '.join(TYPES)}")
    return kinds


def _since(call: Call) -> str:
    """The id that the client has seen last, "" = none. A browser that comes back sends it as a header, with the address it first used."""
    header = call.headers.get(b"last-event-id")
    since = (call.asked_of("since") or "") if header is None else header.decode("latin-1").strip()
    if len(since) > ID_CHARS_MAX or not since.isprintable():
        raise BadRequest("since: this is not the id of an event")
    return since
