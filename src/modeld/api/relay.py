# SPDX-License-Identifier: GPL-3.0-only
"""One request's life, top to bottom: name -> lease -> ask the child -> copy its bytes -> release; rule: whoever leaves, the slot is freed.

1. `resolve`: a name becomes a model of the catalogue; an unknown one is looked for on disk once more.
2. The driver is asked for a lease. The client may leave while it waits: the wait is withdrawn.
3. The child is asked. The client may leave, or the lease be revoked, before the child's head is there: its connection is closed.
4. The child's bytes are pushed through the dialect's `Answer` to the client as they arrive, in no task of their own and through no queue.
   A client that reads slowly pauses the child; one that leaves ends the exchange at once, and with it the generation.
5. The lease is given back, then an error becomes a status (nothing sent yet) or the answer's last record.

A request that asked for an event stream and waits long gets the head of its answer and comments (`Heartbeat`): from then on a failure is
in-band, and nothing else changes, for of the model's answer the client has had nothing.

When the instance fails before the client has had anything of the answer, the request stands in its old place again and another instance
is asked: steps 2 to 4 once more, with the body that was kept for it. How often is core's decision. An answer of a healthy instance is
never asked for again, be it an error status or nonsense: it would be the same.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from modeld.api.ndjson import upstream_message
from modeld.api.route import Call, Header, Reply
from modeld.api.usage import TokenUsage
from modeld.core.model import ModelId, ModelSpec, Request, RequestId
from modeld.errors import (
    BadUpstreamReply,
    ClientGone,
    InstanceFault,
    InvariantError,
    ModeldError,
    ModelUnavailable,
    NoModelNamed,
    NotSupported,
    RefusedByModel,
    UnknownModel,
)

if TYPE_CHECKING:
    from modeld.api.metrics import Metrics
    from modeld.catalog.models import ModelTable
    from modeld.runtime.driver import Driver, Lease, PendingLease
    from modeld.runtime.upstream import Exchange

RESCAN_PAUSE_SECONDS: Final = 0.25
"""An unknown name makes the folder be read again, at most this often: guessing names is no way to keep the disk busy."""
LOOK_SECONDS_MAX: Final = 30.0
"""How long a request waits for the models folder to be read."""
REFUSAL_BYTES_MAX: Final = 64 * 1024
"""Longest error body of a child that is read."""

DEGRADED: Final = b"x-modeld-degraded"
"""`llama_ctx 8192 -> 4096`: the operator lets the model be loaded with less than its settings say, and it was."""

_CLIENTS: Final = re.compile(r"is too large to process|(?:image|audio) input is not supported|^Failed to parse messages")
"""llama.cpp's words for what is wrong with a request although it calls it a fault of its own (500)."""

_ASK_HEADERS: Final[list[Header]] = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]


class Answer(ABC):
    """How one dialect turns a child's answer into the client's. One object per request; it is the sink of the exchange."""

    usage = TokenUsage()
    beats = False
    """Whether `beat` may be called while the request waits for the model's first byte."""

    def __init__(self, call: Call) -> None:
        self.call = call

    @abstractmethod
    async def begin(self, exchange: Exchange) -> bool:
        """The child's head is there: True = push the body, False = `reply` has all of it. Raises what a bad status means.

        Called anew for each instance that is asked: what an earlier one said is forgotten here.
        """

    def beat(self) -> None:
        """Show the client that its request is alive: the head, if it has not gone out, and something that no client takes for an answer."""
        raise InvariantError("this answer has no way to say that it waits")

    @abstractmethod
    def data(self, chunk: bytes) -> None:
        """Body bytes of the child. Neither blocks nor raises."""

    @abstractmethod
    def end(self) -> None:
        """The child's message has ended properly. Raises BadUpstreamReply when it is not complete all the same."""

    @abstractmethod
    def fail(self, error: ModeldError) -> None:
        """Say so in the answer that has begun, and end it."""

    @abstractmethod
    def reply(self) -> Reply | None:
        """The whole answer, None when it was streamed."""


class Ending:
    """What ends a request from outside, whatever it waits for just then; the first reason counts."""

    def __init__(self, cut: Callable[[ModeldError], None]) -> None:
        self.error: ModeldError | None = None
        self._cut = cut

    def end(self, error: ModeldError) -> None:
        if self.error is None:
            self.error = error
            self._cut(error)

    def now(self, cut: Callable[[ModeldError], None]) -> None:
        """From now on `cut` is the way to end it; used at once if it is to end already."""
        self._cut = cut
        if self.error is not None:
            cut(self.error)


class Heartbeat:
    """Beats for an answer that waits for its model's first byte: after `seconds`, and again each time they are over; 0 = never."""

    def __init__(self, call: Call, answer: Answer, seconds: float, degraded: Callable[[], tuple[str, ...]] = tuple) -> None:
        """`degraded` says what the head of the answer is to tell of the model, should it go out with the first beat."""
        self._call = call
        self._answer = answer
        self._seconds = seconds
        self._degraded = degraded
        self._timer: asyncio.TimerHandle | None = None
        if answer.beats and seconds > 0:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._beat)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        if self._call.answered or self._call.connection.disconnected:
            return
        if not self._call.begun and (degraded := self._degraded()):
            _tell_degraded(self._call, degraded)
        self._answer.beat()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._beat)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a child is asked, besides the body."""

    method: str
    path: str
    headers: list[Header]


class Relay:
    """The way of a request to a model, shared by all dialects."""

    def __init__(
        self,
        driver: Driver,
        table: Callable[[], Awaitable[ModelTable]],
        metrics: Metrics,
        *,
        default_model: str | None,
        heartbeat_seconds: float = 0.0,
        rescan: Callable[[], Awaitable[None]] | None,
        known: Callable[[], ModelTable | None] = lambda: None,
    ) -> None:
        """`known` is `table` where nothing has to be waited for, else None: most requests then need neither a clock nor a callback."""
        self._driver = driver
        self._known = known
        self._table = table
        self._metrics = metrics
        self._default_model = default_model
        self._heartbeat_seconds = heartbeat_seconds
        self._rescan = rescan
        self._rescan_lock = asyncio.Lock()
        self._rescanned_at = float("-inf")
        # A client chooses its request id and may use one twice: the core's key is made unique here.
        self._numbers = itertools.count(1)

    async def resolve(self, call: Call, name: str | None) -> ModelSpec:
        """The model of a request. Raises NoModelNamed, UnknownModel, ModelUnavailable (the folder does not answer), ClientGone."""
        name = name or self._default_model
        if not name:
            raise NoModelNamed(
                'the request names no model and there is no default_model; put "model" into the body, GET /models lists them'
            )
        known = self._known()
        if known is None:
            async with _while_the_client_stays(call):
                known = await self._table()
        try:
            return _named(known, name)
        except UnknownModel:
            if self._rescan is None:
                raise
        async with _while_the_client_stays(call):
            async with self._rescan_lock:
                if time.monotonic() - self._rescanned_at >= RESCAN_PAUSE_SECONDS:
                    await self._rescan()
                    self._rescanned_at = time.monotonic()
            return _named(await self._table(), name)

    async def serve(
        self, call: Call, model: ModelId, path: str, answer: Answer, *, method: str = "POST", headers: list[Header] | None = None
    ) -> Reply | None:
        """Have the child of `model` answer `method path` with `call.body`. Raises whatever went wrong before the head of the answer.

        headers   of the request to the child; by default they say that the body is JSON
        """
        call.model = model
        ask = Ask(method, path, _ASK_HEADERS if headers is None else headers)
        heart = Heartbeat(call, answer, self._heartbeat_seconds, lambda: self._driver.degraded(model))
        try:
            await self._run(call, model, ask, answer)
        except ModeldError as error:
            if not call.begun or isinstance(error, ClientGone):
                raise
            call.fault = error.kind
            answer.fail(error)
            return None
        finally:
            heart.stop()
            call.body = b""  # an error may keep our frames alive, it must not keep the prompt
            call.usage = answer.usage
            self._metrics.tokens(answer.usage)
        return answer.reply()

    async def load(self, call: Call, model: ModelId) -> None:
        """Have `model` loaded: stand in line as any request, and give the slot back at once. Raises whatever went wrong."""
        call.model = model
        pending = self._line_up(call, model)
        ending = Ending(pending.withdraw)
        call.connection.on_disconnect(lambda: ending.end(ClientGone("the client left")))
        since = time.monotonic()
        try:
            async with pending:
                pass
        finally:
            call.wait_seconds += time.monotonic() - since
            ending.now(_nothing)

    def _line_up(self, call: Call, model: ModelId) -> PendingLease:
        if call.connection.disconnected:
            raise ClientGone("the client left")
        number = f"{call.id}-{next(self._numbers)}"
        return self._driver.request(_request(RequestId(number), model, call))

    async def _run(self, call: Call, model: ModelId, ask: Ask, answer: Answer) -> None:
        connection = call.connection
        pending = self._line_up(call, model)
        ending = Ending(pending.withdraw)
        connection.on_disconnect(lambda: ending.end(ClientGone("the client left")))
        since, waits = time.monotonic(), True
        try:
            async with pending as lease:
                while True:
                    call.wait_seconds += time.monotonic() - since
                    waits = False
                    lease.on_revoke(ending.end)
                    failure = await self._ask(call, lease, ask, answer, ending)
                    if failure is None:
                        return
                    if connection.disconnected:
                        raise ClientGone("the client left")
                    ending = Ending(pending.withdraw)  # a new one: what ended the lease does not end the request
                    since, waits = time.monotonic(), True
                    lease = await pending.again(failure)
        finally:
            if waits:
                call.wait_seconds += time.monotonic() - since
            ending.now(_nothing)

    async def _ask(self, call: Call, lease: Lease, ask: Ask, answer: Answer, ending: Ending) -> InstanceFault | None:
        """None when the child has answered; what it failed with when another may be asked, for the client has had nothing yet."""
        answer.usage = TokenUsage()  # of an instance that was asked before
        if lease.degraded or call.is_told(DEGRADED):
            _tell_degraded(call, lease.degraded)
        try:
            exchange = await _open(call, lease, ask, ending)
            try:
                lease.follow(exchange)
                ending.now(exchange.abort)
                if await answer.begin(exchange):
                    call.connection.on_pressure(exchange.pause, exchange.resume)
                    exchange.attach(answer)
                    await exchange.finished()
                    answer.end()
            finally:
                ending.now(_nothing)
                exchange.abort()
        except InstanceFault as fault:
            if call.answered or isinstance(fault, BadUpstreamReply):
                raise
            return copy(fault)  # its traceback would hold all of this while the request waits
        finally:
            lease.tokens = answer.usage.completion
        return None


def _tell_degraded(call: Call, degraded: tuple[str, ...]) -> None:
    """The header of the answer that says what of its model was given up; none where nothing was. No effect once the head is out."""
    call.answer_headers = [header for header in call.answer_headers if header[0] != DEGRADED]
    if degraded:
        call.answer_headers.append((DEGRADED, ", ".join(degraded).encode("ascii", "replace")))


def _named(table: ModelTable, name: str) -> ModelSpec:
    return table.models[table.resolve(name)]


def _request(number: RequestId, model: ModelId, call: Call) -> Request:
    terms = call.terms
    return Request(
        number,
        model,
        body_bytes=len(call.body),
        priority=terms.priority,
        work=terms.work,
        prompt_tokens=terms.prompt_tokens,
        answer_tokens=terms.answer_tokens,
        timeout_seconds=terms.timeout_seconds,
        keep_seconds=terms.keep_seconds,
    )


async def _open(call: Call, lease: Lease, ask: Ask, ending: Ending) -> Exchange:
    """Ask the child and wait for its head; `ending` closes the connection. A timeout without a time is what a callback can cancel."""
    if ending.error is not None:
        raise ending.error
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as bound:
            ending.now(lambda _: bound.reschedule(loop.time() - 1))
            try:
                exchange = await lease.served.generate(ask.method, ask.path, ask.headers, call.body)
            finally:
                ending.now(_nothing)
    except TimeoutError:
        if ending.error is not None:
            raise ending.error from None
        raise
    if ending.error is not None:
        exchange.abort()
        raise ending.error
    return exchange


@asynccontextmanager
async def _while_the_client_stays(call: Call) -> AsyncIterator[None]:
    """Bound a look at the folder: it ends when the client leaves, or when a dead mount has not answered for long enough."""
    loop, inside = asyncio.get_running_loop(), True
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX) as bound:

            def left() -> None:
                if inside:
                    bound.reschedule(loop.time() - 1)

            call.connection.on_disconnect(left)
            try:
                yield
            finally:
                inside = False
    except TimeoutError:
        if call.connection.disconnected:
            raise ClientGone("the client left") from None
        raise ModelUnavailable("the models folder does not answer; try again later", retry_after_seconds=30) from None


def _nothing(_: ModeldError) -> None:
    """There is nothing to cut."""


async def refusal(exchange: Exchange) -> ModeldError:
    """What a child's answer with an error status means for the client."""
    message = upstream_message(await exchange.read(REFUSAL_BYTES_MAX))
    status = exchange.status
    if status in (400, 413, 422) or (status == 500 and _CLIENTS.search(message)):
        return RefusedByModel(message or "the model server refused the request")
    if status == 501:
        return NotSupported(message or "the model server cannot do this", source="model")
    if status == 503:
        return ModelUnavailable(
            f"the model server cannot answer now: {message}" if message else "the model server cannot answer now; try again"
        )
    return BadUpstreamReply(f"the model server failed: {message}" if message else f"the model server answered with status {status}")
