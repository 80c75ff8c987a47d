# SPDX-License-Identifier: GPL-3.0-only
"""The OpenAI surface under /v1; rule: find the model, relay the bytes. The body goes in unchanged, the answer comes out unchanged.

Of an event stream only whole events are passed on: one that a failure cuts short would make the client's parser fail before it sees the
error record that follows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from modeld.api.ndjson import INCOMPLETE
from modeld.api.relay import Answer, Relay, refusal_as_is
from modeld.api.route import EVENT_STREAM, Call, Header, Reply, Route, Scope
from modeld.api.schemas import OpenAIBody, OpenAIModel, OpenAIModels, decode, encode, openai_fault
from modeld.api.terms import PARAMETERS, terms_of, token_limit
from modeld.errors import BadUpstreamReply, ModeldError

if TYPE_CHECKING:
    from modeld.catalog.models import ModelTable
    from modeld.runtime.upstream import Exchange

HELD_BYTES_MAX: Final = 64 * 1024
"""The part of an event that is held back until it is whole; a longer one is passed on as it comes."""
_TAIL_BYTES_MAX: Final = 16 * 1024
_PASSED_HEADERS: Final = frozenset((b"content-type", b"cache-control", b"content-length", b"content-encoding", b"x-accel-buffering"))
_EVENT_ENDS: Final = (b"\n\n", b"\n\r\n")
_bodies: Final = msgspec.json.Decoder(OpenAIBody)
# A quote inside a JSON string is written \", so that generated text cannot look like these members.
_COUNTS: Final = re.compile(rb'(?<!\\)"(prompt_tokens|completion_tokens|cache_n|prompt_n|predicted_n)" ?: ?(\d{1,9})')


class OpenAI:
    """The handlers."""

    def __init__(self, relay: Relay, *, table: Callable[[], Awaitable[ModelTable]]) -> None:
        self._relay = relay
        self._table = table
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        chat = "Chat completion, relayed byte for byte from the model server."
        text = "Text completion, relayed byte for byte from the model server."
        return [
            Route("GET", "/v1/models", Scope.INFER, "The models that can be served.", self.models, answer=OpenAIModels),
            Route(
                "POST",
                "/v1/chat/completions",
                Scope.INFER,
                chat,
                self.chat,
                body=OpenAIBody,
                answer=dict[str, Any],
                parameters=PARAMETERS,
            ),
            Route(
                "POST",
                "/v1/completions",
                Scope.INFER,
                text,
                self.completion,
                body=OpenAIBody,
                answer=dict[str, Any],
                parameters=PARAMETERS,
            ),
        ]

    async def models(self, call: Call) -> Reply:
        served = [spec for spec in (await self._table()).models.values() if spec.unavailable is None]
        return Reply(200, encode(OpenAIModels([OpenAIModel(spec.id, self._created) for spec in served])))

    async def chat(self, call: Call) -> Reply | None:
        return await self._relayed(call, "/v1/chat/completions")

    async def completion(self, call: Call) -> Reply | None:
        return await self._relayed(call, "/v1/completions")

    async def _relayed(self, call: Call, path: str) -> Reply | None:
        name, streams, asked = _read(call.body)
        spec = await self._relay.resolve(call, name)
        call.terms = terms_of(call, spec, asked=asked, streams=streams)
        return await self._relay.serve(call, spec.id, path, Passed(call))


def _read(raw: bytes) -> tuple[str | None, bool, int | None]:
    """Model, stream, most tokens asked for. A function of its own: what is decoded holds on to the whole body."""
    body = decode(_bodies, raw)
    limits = (body.max_completion_tokens, body.max_tokens, body.n_predict)
    return body.model, body.stream is True, token_limit(bytes(limit) for limit in limits)


class Passed(Answer):
    """The child's answer as it is. The head goes out with the first byte of the body, so that what fails earlier gets its status."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._status = 0
        self._headers: list[Header] = []
        self._is_events = False
        self._refused: Reply | None = None
        self._held = b""
        self._whole = True  # what went out ends at the end of an event
        self._last_two = (b"", b"")

    async def begin(self, exchange: Exchange) -> bool:
        if not 200 <= exchange.status < 300:
            self._refused = await refusal_as_is(exchange)
            return False
        self._held, self._whole, self._last_two = b"", True, (b"", b"")
        self._status = exchange.status
        self._headers = [header for header in exchange.headers if header[0] in _PASSED_HEADERS]
        self._is_events = any(name == b"content-type" and value.startswith(EVENT_STREAM.encode()) for name, value in self._headers)
        if self._is_events:
            ours = (b"content-length", b"x-accel-buffering")  # an error record may make it longer than promised
            self._headers = [*(header for header in self._headers if header[0] not in ours), (b"x-accel-buffering", b"no")]
        return True

    def data(self, chunk: bytes) -> None:
        if self._is_events and (self._held or not chunk.endswith(b"\n\n")):
            chunk = self._whole_events(chunk)
            if not chunk:
                return
        self._last_two = (self._last_two[1], chunk)
        self._whole = chunk.endswith(_EVENT_ENDS)
        if not self.call.begun:
            self.call.start(self._status, self._headers)
        self.call.connection.write(chunk)

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
        if not self.call.begun:
            self.call.start(self._status, self._headers)
        if self._is_events and b"[DONE]" not in self._tail() + self._held and b'"error"' not in self._tail():
            raise BadUpstreamReply(INCOMPLETE)
        self.call.connection.finish(self._held)

    def fail(self, error: ModeldError) -> None:
        self._count()
        if not self._is_events:
            self.call.connection.cut()
            return
        gap = b"" if self._whole else b"\n\n"
        self.call.connection.finish(gap + b"data: " + encode(openai_fault(error)) + b"\n\n")

    def reply(self) -> Reply | None:
        return self._refused

    def _tail(self) -> bytes:
        return b"".join(self._last_two)[-_TAIL_BYTES_MAX:]

    def _count(self) -> None:
        """Tokens, from the usage or the timings at the end of the answer; 0 where there are none."""
        counts = {name: int(number) for name, number in _COUNTS.findall(self._tail())}
        self.prompt_tokens = counts.get(b"prompt_tokens", counts.get(b"prompt_n", 0) + counts.get(b"cache_n", 0))
        self.completion_tokens = counts.get(b"completion_tokens", counts.get(b"predicted_n", 0))
