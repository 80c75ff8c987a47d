# SPDX-License-Identifier: GPL-3.0-only
"""A request that is the model server's own: find the model, relay the bytes; rule: the body goes in and the answer comes out unchanged.

What is read of a JSON body: the model's name, whether it streams, and the numbers whose range is known (schemas.EngineBody).

Of an event stream only whole events are passed on: one that a failure cuts short would make the client's parser fail before it sees the
error record that follows. While such a request waits, comments keep its connection open (`Passed.beat`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from modeld.api.dialects import Dialect, error_event
from modeld.api.ndjson import INCOMPLETE, is_showable, upstream_message
from modeld.api.relay import REFUSAL_BYTES_MAX, Answer, Relay, refusal
from modeld.api.route import EVENT_STREAM, JSON, Call, Handler, Header, Reply, Route, Scope
from modeld.api.schemas import EngineBody, MessagesBody, decode, encode
from modeld.api.tasks import Task, check_task
from modeld.api.terms import PARAMETERS, terms_of, token_limit
from modeld.api.usage import read_usage
from modeld.core.model import ModelSpec
from modeld.errors import BadUpstreamReply, ModeldError, NotSupported, RefusedByModel

if TYPE_CHECKING:
    from modeld.runtime.upstream import Exchange

RELAYED: Final = "Relayed byte for byte from the model server."
HELD_BYTES_MAX: Final = 64 * 1024
"""The part of an event that is held back until it is whole; a longer one is passed on as it comes."""
HEAD_BYTES_MAX: Final = 2 * 1024
"""Of the first bytes of an answer kept for its usage: Anthropic tells the prompt's there."""
_TAIL_BYTES_MAX: Final = 16 * 1024
_PASSED_HEADERS: Final = frozenset((b"content-type", b"cache-control", b"content-length", b"content-encoding", b"x-accel-buffering"))
_STREAM_HEADERS: Final[list[Header]] = [
    (b"content-type", EVENT_STREAM.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_EVENT_ENDS: Final = (b"\n\n", b"\n\r\n")
_LAST: Final = {
    Dialect.OPENAI: (b"[DONE]",),
    Dialect.ANTHROPIC: (b'"message_stop"',),
    Dialect.RESPONSES: (b'"response.completed"', b'"response.incomplete"', b'"response.failed"'),
    Dialect.LLAMA: (b'"stop":true', b"[DONE]"),
}
"""What marks the last event of a complete stream. A quote inside a JSON string is written \\", so that text cannot look like it."""
_BEAT: Final = b": waiting for the model\n\n"
_bodies: Final = msgspec.json.Decoder(EngineBody)
_messages: Final = msgspec.json.Decoder(MessagesBody)


class Passthrough:
    """The way of all requests that go to the model server as they are."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def json(self, call: Call, path: str, dialect: Dialect, task: Task) -> Reply | None:
        """Relay `POST path` with the call's JSON body. Raises BadRequest for a model that is not for the task."""
        generates = task is Task.WRITE
        name, streams, asked = _read(call.body, dialect)
        spec = await self._relay.resolve(call, name or call.asked_of("model"))
        check_task(spec, task)
        call.terms = terms_of(call, spec, asked=asked if generates else 0, streams=streams and generates)
        return await self._relay.serve(call, spec.id, path, Passed(call, dialect, streams=streams and generates))

    async def whole(self, call: Call, spec: ModelSpec, path: str, dialect: Dialect, *, headers: list[Header] | None = None) -> Reply | None:
        """Relay any request, whatever its body is, with the call's own method."""
        call.terms = terms_of(call, spec, asked=None if call.body else 0, streams=False)
        return await self._relay.serve(call, spec.id, path, Passed(call, dialect), method=call.method, headers=headers)


def relayed_route(passthrough: Passthrough, path: str, what: str, dialect: Dialect, task: Task, to: str | None = None) -> Route:
    """A POST route whose JSON body goes to the model server's own `to` (by default the same path)."""

    async def handle(call: Call) -> Reply | None:
        return await passthrough.json(call, to or path, dialect, task)

    handler: Handler = handle
    return Route(
        "POST",
        path,
        Scope.INFER,
        f"{what} {RELAYED}",
        handler,
        dialect,
        body=MessagesBody if dialect is Dialect.ANTHROPIC else EngineBody,
        answer=dict[str, Any],
        parameters=PARAMETERS,
        streams=task is Task.WRITE,
    )


def _read(raw: bytes, dialect: Dialect) -> tuple[str | None, bool, int | None]:
    """Model, stream, most tokens asked for. A function of its own: what is decoded holds on to the whole body."""
    body = decode(_messages, raw) if dialect is Dialect.ANTHROPIC else decode(_bodies, raw)
    given = (body.max_completion_tokens, body.max_tokens, body.max_output_tokens, body.n_predict)
    return body.model, body.stream is True, token_limit(given)


class Passed(Answer):
    """The child's answer as it is. The head goes out with the first byte of the body, so that what fails earlier gets its status.

    streams   the client asked for an event stream: comments may keep it waiting, and from the first of them on a failure is in-band
    """

    def __init__(self, call: Call, dialect: Dialect = Dialect.OPENAI, *, streams: bool = False) -> None:
        super().__init__(call)
        self.beats = streams
        self._write = call.connection.write
        self._dialect = dialect
        self._marks = _LAST.get(dialect, ())
        self._status = 0
        self._headers: list[Header] = []
        self._is_events = False
        self._refused: Reply | None = None
        self._forget()

    def _forget(self) -> None:
        self._held = b""
        self._whole = True  # what went out ends at the end of an event
        self._complete = False  # the last event was seen
        self._head = b""
        self._last_two = (b"", b"")

    def beat(self) -> None:
        if not self.call.begun:
            self.call.start(200, _STREAM_HEADERS.copy())
        self.call.connection.write(_BEAT)

    async def begin(self, exchange: Exchange) -> bool:
        if not 200 <= exchange.status < 300:
            self._refused = await refusal_as_is(exchange, self._dialect, begun=self.call.begun)
            return False
        self._forget()
        self._status = exchange.status
        self._headers = [header for header in exchange.headers if header[0] in _PASSED_HEADERS]
        self._is_events = any(name == b"content-type" and value.startswith(EVENT_STREAM.encode()) for name, value in self._headers)
        if self._is_events:
            ours = (b"content-length", b"x-accel-buffering")  # an error record may make it longer than promised
            self._headers = [*(header for header in self._headers if header[0] not in ours), (b"x-accel-buffering", b"no")]
        elif self.call.begun:
            raise BadUpstreamReply("the model server was asked for an event stream and sent something else")
        return True

    def data(self, chunk: bytes) -> None:
        if self._is_events:
            if self._held or not chunk.endswith(b"\n\n"):
                chunk = self._whole_events(chunk)
                if not chunk:
                    return
                self._whole = chunk.endswith(_EVENT_ENDS)
            else:
                self._whole = True
            for mark in self._marks:
                if mark in chunk:
                    self._complete = True
        self._last_two = (self._last_two[1], chunk)
        if not self.call.answered:
            self._open(chunk)
        self._write(chunk)

    def _open(self, chunk: bytes) -> None:
        """The first byte of the answer."""
        self._head = chunk[:HEAD_BYTES_MAX]
        if not self.call.begun:
            self.call.start(self._status, self._headers)
        self.call.answer()

    def _whole_events(self, chunk: bytes) -> bytes:
        """What of the held bytes and `chunk` may go out now."""
        held = self._held + chunk
        lf, crlf = held.rfind(b"\n\n"), held.rfind(b"\n\r\n")
        end = max(lf + 2 if lf >= 0 else 0, crlf + 3 if crlf >= 0 else 0)
        if not end and len(held) > HELD_BYTES_MAX:
            end = len(held)
        self._held = held[end:]
        return held[:end]

    def end(self) -> None:
        self._count()
        if not self.call.answered:
            self._open(b"")
        if self._is_events and self._marks and not self._complete and not self._ends_with_its_own_error():
            raise BadUpstreamReply(INCOMPLETE)
        self.call.connection.finish(self._held)

    def _ends_with_its_own_error(self) -> bool:
        return b'"error"' in self._tail() or any(mark in self._held for mark in self._marks)

    def fail(self, error: ModeldError) -> None:
        self._count()
        if self.call.answered and not self._is_events:
            self.call.connection.cut()
            return
        gap = b"" if self._whole else b"\n\n"
        self.call.connection.finish(gap + error_event(self._dialect, error))

    def reply(self) -> Reply | None:
        return self._refused

    def _tail(self) -> bytes:
        return b"".join(self._last_two)[-_TAIL_BYTES_MAX:]

    def _count(self) -> None:
        self.usage = read_usage(self._head + b"\n" + self._tail() + self._held)


class _OwnWords(msgspec.Struct):
    message: str
    type: str = "invalid_request_error"
    param: str | None = None


class _OwnError(msgspec.Struct):
    error: _OwnWords


class _OwnMembers(msgspec.Struct):
    error: dict[str, Any]


_own_errors: Final = msgspec.json.Decoder(_OwnError)
_own_members: Final = msgspec.json.Decoder(_OwnMembers)


async def refusal_as_is(exchange: Exchange, dialect: Dialect, *, begun: bool) -> Reply:
    """A child's refusal of a bad request in its own words, where they may be shown and are of the dialect, with what we always say.

    Raises what any other error status means; everything, when the answer has begun.
    """
    status = exchange.status
    if status != 501 and (not 400 <= status < 500 or status in (401, 403, 407)):
        raise await refusal(exchange)  # a rejected key is the operator's, not the client's
    body = await exchange.read(REFUSAL_BYTES_MAX)
    message = upstream_message(body) or "the model server refused the request"
    told = NotSupported(message, source="model") if status == 501 else RefusedByModel(message)
    if begun or not is_showable(body.decode("utf-8", "replace")) or (own := _own(body, dialect, told, status)) is None:
        raise told
    retry = tuple((name, value) for name, value in exchange.headers if name == b"retry-after")
    return Reply(status, own, JSON, retry)


def _own(body: bytes, dialect: Dialect, told: ModeldError, status: int) -> bytes | None:
    """The child's error with the members that the dialect's schema has besides; None for dialects that llama.cpp does not word itself."""
    try:
        words, members = _own_errors.decode(body).error, _own_members.decode(body).error
    except (msgspec.DecodeError, RecursionError):
        return None
    ours: dict[str, Any] = {"type": words.type, "source": told.source}
    match dialect:
        case Dialect.OPENAI | Dialect.RESPONSES:
            ours |= {"code": told.kind, "param": words.param}  # llama.cpp's code is the status; OpenAI's is a word
        case Dialect.LLAMA:
            ours |= {"code": status, "kind": told.kind}
        case _:
            return None
    return encode({"error": members | ours})
