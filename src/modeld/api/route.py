# SPDX-License-Identifier: GPL-3.0-only
"""What a route is, what a handler gets and gives back; rule: plain records, no behaviour but reading their own fields.

A handler is `async (Call) -> Reply | None`. It returns a Reply for a whole answer, or None when it has answered through
`Call.connection` itself (a stream). The two ways are never mixed in one request.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import parse_qsl

from modeld.api.usage import NO_USAGE, TokenUsage
from modeld.core.model import Priority

Header = tuple[bytes, bytes]
"""One header line: lower-case name, value."""

JSON = "application/json"
MULTIPART = "multipart/form-data"
NDJSON = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"
PLAIN = "text/plain; charset=utf-8"


class Scope(StrEnum):
    """What a credential must allow for a route. OPEN is for everybody, from anywhere: such a route says nothing worth hiding."""

    OPEN = "open"
    READ = "read"
    INFER = "infer"
    ADMIN = "admin"


class Dialect(StrEnum):
    """Whose shapes a route speaks: that of its errors above all (dialects.py)."""

    NATIVE = "modeld"
    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"
    LLAMA = "llama.cpp"
    OLLAMA = "ollama"


class Connection(Protocol):
    """The client's side of one request, below ASGI: the protocol puts it in `scope["extensions"]["modeld"]`."""

    @property
    def peer(self) -> str | None:
        """IP address of the peer; None for a unix socket, which counts as this machine."""

    @property
    def disconnected(self) -> bool:
        """True once the client is gone."""

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call back once, synchronously, when the client is gone; at once if it is gone already."""

    def start(self, status: int, headers: list[Header]) -> None:
        """Send the head; chunked unless a content-length is given."""

    def write(self, chunk: bytes) -> None:
        """Send a body chunk now. Nothing happens after the client has gone."""

    def finish(self, last: bytes = b"") -> None:
        """Send the last chunk and the end of the message."""

    def cut(self) -> None:
        """Close without a proper end, where the promised length cannot be kept."""

    def on_pressure(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call `pause` when the client reads too slowly, `resume` when it has caught up."""

    @property
    def wants_socket(self) -> bool:
        """Whether the client wished to switch to a WebSocket. Routes without one answer as if it had not."""

    def switch(self, head: bytes, receive: Callable[[bytes], None]) -> None:
        """Send a whole 101 and be a pipe from then on. Raises BadRequest when the client did not wait for it."""

    async def body(self, limit: int) -> bytes:
        """The whole request body, at most `limit` bytes. Raises BodyTooLarge, BodyTimeout, ClientGone."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes = b""
    media: str = JSON
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """How urgent a request is, how long it may wait, and how much work it is likely to be. core.model.Request explains the fields."""

    priority: Priority | None = None
    timeout_seconds: float = math.inf
    work: float = 1.0
    prompt_tokens: int = 0
    answer_tokens: int = 1
    keep_seconds: float = 0.0


@dataclass(slots=True)
class Call:
    """One request at the edge, from its first header to its log line. The only record here that changes while it lives.

    id              the request id of the client, or ours
    headers         lower-case name -> value; of a repeated name the last one
    query           what follows the `?` of the address, as it came
    path            what was asked for, as it came
    values          what stands at the `{names}` of the route's path, percent-decoded; a last `{rest}` as it came
    answer_headers  what every answer to this request carries: request id, CORS, type sniffing off
    body            the request's body; emptied when the model's answer begins: until then another instance may have to be asked
    terms           what the scheduler is told of it besides its model
    begun           the head of the answer went out through `connection`
    answered        a byte of the model's answer went out: it can be asked of nobody else any more
    status, model, wait_seconds, usage, fault   for the log line
    """

    id: str
    method: str
    headers: Mapping[bytes, bytes]
    connection: Connection
    answer_headers: list[Header] = field(default_factory=list)
    path: str = ""
    query: bytes = b""
    values: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    terms: Terms = Terms()
    begun: bool = False
    answered: bool = False
    status: int = 0
    model: str = "-"
    wait_seconds: float = 0.0
    usage: TokenUsage = NO_USAGE
    fault: str = ""

    def start(self, status: int, headers: list[Header]) -> None:
        """Send the head of a streamed answer."""
        self.begun = True
        self.status = status
        self.connection.start(status, [*headers, *self.answer_headers])

    def is_told(self, name: bytes) -> bool:
        """Whether the answer carries a header of that name."""
        return any(header[0] == name for header in self.answer_headers)

    def asked_of(self, name: str) -> str | None:
        """The last value of `name` in the query, None when there is none."""
        if not self.query:
            return None
        values = [value for key, value in parse_qsl(self.query.decode("latin-1"), keep_blank_values=True) if key == name]
        return values[-1] if values else None

    def answer(self) -> None:
        """The model's own answer begins now."""
        self.answered = True
        self.body = b""  # a long answer need not hold a long prompt in memory


Handler = Callable[[Call], Awaitable[Reply | None]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A header or a part of the query that a route reads. `place` is OpenAPI's `in`: header or query."""

    name: str
    place: str
    summary: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the route table: it dispatches, and /openapi.json is made of it.

    path       exact, or with `{names}` for a segment each; a last `{rest}` stands for all that follows
    dialect    whose shapes its answers and errors have
    takes      media types of the body
    body       schema of the JSON body, None when the route takes none
    body_optional  whether an empty body, then without a content type, will do
    answer     schema of the 200 answer, None when it is not JSON of ours
    media      content type of the 200 answer
    parameters what it reads besides the body
    may_be_accepted  whether it can answer 202 as well, in the form of its 200
    small_body whether the tighter body cap (`max_body_bytes`) holds instead of `max_api_body_bytes`
    streams    whether the 200 answer may be an event stream instead
    faults     5xx that it answers although nothing is broken, besides those of every route that waits for a model
    """

    method: str
    path: str
    scope: Scope
    summary: str
    handler: Handler
    dialect: Dialect = Dialect.NATIVE
    body: Any = None
    answer: Any = None
    media: str = JSON
    parameters: tuple[Parameter, ...] = ()
    small_body: bool = False
    takes: tuple[str, ...] = (JSON,)
    body_optional: bool = False
    streams: bool = False
    faults: tuple[int, ...] = ()
    may_be_accepted: bool = False

    @property
    def has_body(self) -> bool:
        """Whether a body is read."""
        return self.method in ("POST", "PUT", "PATCH") or self.body is not None
