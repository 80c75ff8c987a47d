# SPDX-License-Identifier: GPL-3.0-only
"""modeld's own dialect: /models, /status, /infer; rule: translate, decide nothing.

/infer is a raw completion: the prompt goes to the model as it is. The child is always asked to stream, also when the client wants one
object: llama.cpp notices at each token that nobody listens any more.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET

from modeld.api.ndjson import INCOMPLETE, SseToNdjson
from modeld.api.relay import Answer, Relay, refusal
from modeld.api.route import NDJSON, Call, Header, Parameter, Reply, Route, Scope
from modeld.api.schemas import (
    DeviceStatus,
    EngineStatus,
    ExitStatus,
    InferBody,
    InstanceStatus,
    Model,
    Models,
    PartStatus,
    QueueStatus,
    Status,
    Token,
    WaitStatus,
    decode,
    encode,
)
from modeld.api.tasks import Task, check_task
from modeld.api.terms import PARAMETERS, terms_of
from modeld.core.estimate import Need
from modeld.core.lifecycle import State
from modeld.core.model import ModelId
from modeld.core.snapshot import DeviceView, Explanation, InstanceView, LineView, Snapshot
from modeld.errors import BadRequest, BadUpstreamReply, ModeldError

if TYPE_CHECKING:
    from modeld.catalog.models import ModelTable
    from modeld.runtime.adapters.interface import EngineInfo, ExitReport
    from modeld.runtime.upstream import Exchange

    Exits = Callable[[], Iterable[tuple[float, ModelId, ExitReport]]]

_infer_bodies: Final = msgspec.json.Decoder(InferBody)
_SAME_NAME: Final = ("temperature", "top_p", "top_k", "stop", "seed", "repeat_penalty", "ignore_eos")
# Without this the last event would echo the prompt and all settings.
_LAST_EVENT_FIELDS: Final = ["content", "stop", "stop_type", "tokens_predicted", "tokens_evaluated", "timings"]

_STREAM_HEADERS: Final[list[Header]] = [(b"content-type", NDJSON.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


class Native:
    """The handlers. `clock` is the monotonic clock that the snapshot's times are in."""

    def __init__(
        self,
        relay: Relay,
        *,
        table: Callable[[], Awaitable[ModelTable]],
        snapshot: Callable[[], Snapshot],
        need: Callable[[ModelId], Need],
        explain: Callable[[], Explanation],
        exits: Exits,
        engine: Callable[[], EngineInfo | None],
        exposure: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._relay = relay
        self._table = table
        self._snapshot = snapshot
        self._need = need
        self._explain = explain
        self._exits = exits
        self._engine = engine
        self._exposure = exposure
        self._clock = clock
        self._started = clock()

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/models", Scope.INFER, "The models on disk.", self.models, answer=Models),
            Route(
                "GET",
                "/status",
                Scope.READ,
                "What runs, what waits, and the memory; with `explain=1` also why.",
                self.status,
                answer=Status,
                parameters=(Parameter("explain", "query", "1: say why things are as they are.", {"type": "integer", "enum": [0, 1]}),),
            ),
            Route(
                "POST",
                "/infer",
                Scope.INFER,
                "Continue a text. Streams lines of JSON; the last one has `done`.",
                self.infer,
                body=InferBody,
                answer=Token,
                media=NDJSON,
                parameters=PARAMETERS,
                small_body=True,
            ),
        ]

    async def models(self, call: Call) -> Reply:
        table, held = await self._table(), {view.model: view.need_mb for view in self._snapshot().instances}
        found = [
            Model(
                spec.id,
                spec.name,
                spec.path,
                spec.quant,
                spec.family,
                unavailable=UNSET if spec.unavailable is None else spec.unavailable,
                aliases=list(spec.aliases) or UNSET,
                footprint_mb=UNSET if spec.unavailable is not None else held.get(spec.id) or self._need(spec.id).total_mb,
            )
            for spec in table.models.values()
        ]
        return Reply(200, encode(Models(found)))

    async def status(self, call: Call) -> Reply:
        explained = _asks_why(call)
        seen = self._status(self._snapshot(), self._clock(), time.time())
        if explained:
            _add_reasons(seen, self._explain())
        return Reply(200, encode(seen))

    async def infer(self, call: Call) -> Reply | None:
        body = decode(_infer_bodies, call.body)
        try:
            call.body.decode()
        except UnicodeDecodeError:
            raise BadRequest("the body is not valid JSON: it is not valid UTF-8") from None
        if not body.prompt.strip():
            raise BadRequest("prompt: it holds only white space")
        spec = await self._relay.resolve(call, body.model)
        check_task(spec, Task.WRITE)
        call.body = encode(_completion(body, spec.id))
        call.terms = terms_of(call, spec, asked=body.max_tokens, streams=True)
        answer = InferStream(call) if body.stream is not False else InferWhole(call)
        return await self._relay.serve(call, spec.id, "/completion", answer)

    def _status(self, seen: Snapshot, now: float, unix: float) -> Status:
        waiting = {line.model: line.length for line in seen.lines}
        engine = self._engine()
        count = [view.state for view in seen.instances].count
        return Status(
            instances=[
                _instance(view, int(unix - (now - view.last_used)), waiting.get(view.model, 0), seen.queue_depth_max)
                for view in seen.instances
            ],
            budget_mb=seen.budget_mb,
            used_est_mb=seen.used_mb,
            margin_mb=seen.margin_mb,
            uptime_seconds=int(now - self._started),
            server_time_unix=int(unix),
            evictions_total=seen.evictions_total,
            loads_total=seen.loads_total,
            state=overall_state(seen),
            warmups_in_progress=count(State.LOADING),
            draining_count=count(State.DRAINING),
            queues=[_line(line) for line in seen.lines if line.length],
            exits=[ExitStatus(model, int(at), report.code, report.reason, list(report.log_tail)) for at, model, report in self._exits()],
            exposure=self._exposure,
            devices=[_device(device) for device in seen.devices],
            fairness_closings_total=seen.fairness_closings_total,
            preemptions_total=seen.preemptions_total,
            requeued_total=seen.requeued_total,
            stuck_total=seen.stuck_total,
            out_of_memory_total=seen.out_of_memory_total,
            grown_total=seen.grown_total,
            engine=UNSET if engine is None else EngineStatus(engine.adapter, engine.build, list(engine.devices), engine.warning),
            error=UNSET if seen.error is None else seen.error,
            last_error=UNSET if seen.last_error is None else seen.last_error,
        )


def overall_state(seen: Snapshot) -> str:
    """draining (the daemon shuts down) | ready (a model is) | loading (one is) | idle."""
    states = {view.state for view in seen.instances}
    if seen.shutting_down:
        return "draining"
    if State.READY in states:
        return "ready"
    return "loading" if State.LOADING in states else "idle"


def _instance(view: InstanceView, last_used_unix: int, waiting: int, depth_max: int) -> InstanceStatus:
    cost, options = view.cost, view.options
    return InstanceStatus(
        model_id=view.model,
        state=view.state,
        last_used_unix=last_used_unix,
        est_vram_mb=view.need_mb,
        queue_len=waiting,
        inflight=view.inflight,
        max_queue_depth=depth_max,
        pid=view.pid,
        closed_for=view.closed_for,
        devices_mb={str(device): held for device, held in view.devices_mb.items()},
        pinned=view.pinned,
        parts=[] if cost is None else [PartStatus(part.name, part.bytes, part.source.value, part.on_host) for part in cost.parts],
        source=None if cost is None else cost.source.value,
        predicted_bytes=None if cost is None else cost.total_bytes,
        measured_bytes=None if view.measured is None else view.measured.total_bytes,
        ctx=None if options is None or view.external else options.ctx,
        degraded=list(view.degraded),
    )


def _device(view: DeviceView) -> DeviceStatus:
    return DeviceStatus(
        id=view.id,
        budget_mb=view.budget_mb,
        used_mb=view.used_mb,
        total_mb=view.total_mb,
        room_mb=view.room_mb,
        free_mb=view.free_mb,
        reserved_mb=view.reserved_mb,
        committed_mb=view.committed_mb,
        releasing_mb=view.releasing_mb,
        foreign_mb=view.foreign_mb,
    )


def _line(line: LineView) -> QueueStatus:
    return QueueStatus(
        line.model,
        line.length,
        _seconds(line.oldest_wait_seconds),
        by_class={priority.value: count for priority, count in line.by_class.items()},
        due_in_seconds=None if line.due_in_seconds is None else _seconds(line.due_in_seconds),
        estimate_seconds=_seconds(line.estimate_seconds),
    )


def _seconds(exact: float) -> float:
    return round(exact, 3)


def _asks_why(call: Call) -> bool:
    """Whether `explain=1` is in the query. Raises BadRequest for another value than 0 and 1; what else is asked is ignored."""
    asked = call.asked_of("explain")
    if asked not in (None, "0", "1"):
        raise BadRequest("explain: write explain=1 to be told why, explain=0 (or nothing) not to be")
    return asked == "1"


def _add_reasons(status: Status, told: Explanation) -> None:
    status.why = {str(model): text for model, text in told.models.items()}
    status.waiting = [
        WaitStatus(
            one.request,
            one.model,
            one.principal,
            one.priority.value,
            one.position,
            waited_seconds=_seconds(one.waited_seconds),
            estimate_seconds=_seconds(one.estimate_seconds),
            why=one.why,
        )
        for one in told.requests
    ]


def _completion(body: InferBody, model: ModelId) -> dict[str, Any]:
    """The body for llama.cpp's /completion."""
    asked: dict[str, Any] = {
        "model": model,
        "prompt": body.prompt,
        "stream": True,
        "cache_prompt": True,
        "response_fields": _LAST_EVENT_FIELDS,
    }
    if body.max_tokens is not None:
        asked["n_predict"] = body.max_tokens
    asked |= {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    if isinstance(body.stop, str):
        asked["stop"] = [body.stop]
    return asked


class _Infer(Answer):
    """What both forms of the answer have in common: the translator."""

    stream: bool

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.translator = SseToNdjson(stream=self.stream)
        self._exchange: Exchange | None = None

    async def begin(self, exchange: Exchange) -> bool:
        self.translator = SseToNdjson(stream=self.stream)
        if exchange.status != 200:
            raise await refusal(exchange)
        self._exchange = exchange
        return True

    def data(self, chunk: bytes) -> None:
        translator = self.translator
        lines = translator.feed(chunk)
        self.usage = translator.usage
        if translator.error is not None and self._exchange is not None:
            # The error itself becomes a status, or the last line, where the lease has been given back.
            self._exchange.abort(translator.error)
        if lines:
            self.emit(lines)

    @abstractmethod
    def emit(self, lines: bytes) -> None: ...

    def end(self) -> None:
        if self.translator.error is not None:
            raise self.translator.error
        if not self.translator.done:
            raise BadUpstreamReply(INCOMPLETE)


class InferStream(_Infer):
    """Lines as they come. The head goes out with the first of them, so that what fails earlier still gets its status."""

    stream = True

    def emit(self, lines: bytes) -> None:
        call = self.call
        if not call.begun:
            if self.translator.error is not None:
                return
            call.start(200, _STREAM_HEADERS.copy())
            call.answer()
        call.connection.write(lines)

    def end(self) -> None:
        super().end()
        self.call.connection.finish()

    def fail(self, error: ModeldError) -> None:
        self.call.connection.finish(self.translator.fail(error))

    def reply(self) -> Reply | None:
        return None


class InferWhole(_Infer):
    """The last line only."""

    stream = False

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._line = b""

    def emit(self, lines: bytes) -> None:
        self._line = lines

    def fail(self, error: ModeldError) -> None:
        raise error  # nothing has begun: the error gets its status

    def reply(self) -> Reply | None:
        return Reply(200, self._line)
