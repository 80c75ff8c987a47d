# SPDX-License-Identifier: GPL-3.0-only
"""Ollama's dialect: /api/*; rule: translate, decide nothing, and never load or unload a model otherwise than the scheduler would.

What its clients ask for is in ollama_in.py, what they get in ollama_out.py and ollama_models.py. What changes the models folder is not done
over HTTP: those routes say what to do instead.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from modeld import __version__
from modeld.api import ollama_in, ollama_models
from modeld.api.ndjson import INCOMPLETE, read_or_none
from modeld.api.ollama_in import Asked
from modeld.api.ollama_models import OllamaProcesses, OllamaShown, OllamaTags
from modeld.api.ollama_out import Frame, OllamaChatRecord, OllamaGenerateRecord, SseToOllama, loaded_record, nanoseconds
from modeld.api.relay import Answer, Relay, refusal
from modeld.api.route import JSON, NDJSON, PLAIN, Call, Dialect, Header, Reply, Route, Scope, Terms
from modeld.api.schemas import encode
from modeld.api.tasks import Task, check_task
from modeld.api.terms import PARAMETERS, terms_of
from modeld.api.usage import TokenUsage
from modeld.core.model import ModelSpec
from modeld.core.snapshot import Snapshot
from modeld.errors import BadUpstreamReply, ModeldError, NotSupported, UnknownModel

if TYPE_CHECKING:
    from modeld.catalog.models import ModelTable
    from modeld.runtime.adapters.interface import EngineInfo
    from modeld.runtime.upstream import Exchange

OLLAMA_LEVEL: Final = "0.12.6"
"""The release of Ollama whose interface this is: clients refuse to speak to one that is older than they know."""
EMBEDDINGS_BYTES_MAX: Final = 256 << 20
"""An answer beyond this is nonsense: 2,048 texts of 8,192 numbers are half of it."""

_STREAM_HEADERS: Final[list[Header]] = [(b"content-type", NDJSON.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
_ANY_BODY: Final = (JSON, "application/octet-stream")
_INSTEAD: Final = "modeld changes no models over HTTP; put a .gguf file into the models folder, or take one out: it is seen by itself"
_PULL: Final = f"{_INSTEAD}. `modeld pull` on the machine itself fetches one"


class OllamaVersion(Struct):
    """`version` is the release of Ollama whose interface is spoken, `modeld` our own."""

    version: str
    modeld: str


class OllamaEmbedded(Struct):
    """`POST /api/embed`: one list of numbers for each text. Durations in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbedding(Struct):
    """`POST /api/embeddings`: the numbers of one text."""

    embedding: list[float]


class _Vector(Struct):
    embedding: list[float]
    index: int = 0


class _VectorUsage(Struct):
    prompt_tokens: int = 0


class _Vectors(Struct):
    data: list[_Vector]
    usage: _VectorUsage | None = None


_vectors: Final = msgspec.json.Decoder(_Vectors)


class Ollama:
    """The handlers. `clock` is the monotonic clock that the snapshot's times are in."""

    def __init__(
        self,
        relay: Relay,
        *,
        table: Callable[[], Awaitable[ModelTable]],
        snapshot: Callable[[], Snapshot],
        engine: Callable[[], EngineInfo | None],
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._relay = relay
        self._table = table
        self._snapshot = snapshot
        self._engine = engine
        self._clock = clock
        self._unix = unix
        self._started = unix()

    def routes(self) -> list[Route]:
        return [*self._reading(), *self._generating(), *self._refusing()]

    def _reading(self) -> list[Route]:
        ollama = Dialect.OLLAMA
        return [
            Route("GET", "/", Scope.OPEN, "Whether somebody is there.", self.ping, dialect=ollama, media=PLAIN),
            Route("GET", "/api/version", Scope.INFER, "Whose interface this is.", self.version, dialect=ollama, answer=OllamaVersion),
            Route("GET", "/api/tags", Scope.INFER, "The models that can be served.", self.tags, dialect=ollama, answer=OllamaTags),
            Route("GET", "/api/ps", Scope.READ, "The models that run.", self.ps, dialect=ollama, answer=OllamaProcesses),
            Route(
                "POST",
                "/api/show",
                Scope.INFER,
                "One model in full.",
                self.show,
                dialect=ollama,
                body=ollama_in.OllamaShowBody,
                answer=OllamaShown,
                small_body=True,
            ),
        ]

    def _generating(self) -> list[Route]:
        """All of them take the headers of terms.py; the two that stream do so unless the body says otherwise."""
        return [
            Route(
                "POST",
                "/api/chat",
                Scope.INFER,
                "The next message of a chat. Streams lines of JSON; the last one has `done`.",
                self.chat,
                dialect=Dialect.OLLAMA,
                body=ollama_in.OllamaChatBody,
                answer=OllamaChatRecord,
                media=NDJSON,
                parameters=PARAMETERS,
            ),
            Route(
                "POST",
                "/api/generate",
                Scope.INFER,
                "Answer a prompt. Streams lines of JSON; the last one has `done`.",
                self.generate,
                dialect=Dialect.OLLAMA,
                body=ollama_in.OllamaGenerateBody,
                answer=OllamaGenerateRecord,
                media=NDJSON,
                parameters=PARAMETERS,
            ),
            Route(
                "POST",
                "/api/embed",
                Scope.INFER,
                "Texts as lists of numbers.",
                self.embed,
                dialect=Dialect.OLLAMA,
                body=ollama_in.OllamaEmbedBody,
                answer=OllamaEmbedded,
                parameters=PARAMETERS,
            ),
            Route(
                "POST",
                "/api/embeddings",
                Scope.INFER,
                "One text as a list of numbers.",
                self.embeddings,
                dialect=Dialect.OLLAMA,
                body=ollama_in.OllamaEmbeddingsBody,
                answer=OllamaEmbedding,
                parameters=PARAMETERS,
            ),
        ]

    def _refusing(self) -> list[Route]:
        """What Ollama does to its models. The refusals are routes, so that clients are told what to do instead."""
        no, ollama = "Not here (501): models are files in a folder.", Dialect.OLLAMA
        return [
            Route("POST", "/api/pull", Scope.INFER, no, self.no_pull, dialect=ollama, faults=(501,)),
            Route("POST", "/api/push", Scope.INFER, no, self.not_here, dialect=ollama, faults=(501,)),
            Route("POST", "/api/create", Scope.INFER, no, self.not_here, dialect=ollama, faults=(501,)),
            Route("POST", "/api/copy", Scope.INFER, no, self.not_here, dialect=ollama, faults=(501,)),
            Route("DELETE", "/api/delete", Scope.INFER, no, self.not_here, dialect=ollama, faults=(501,)),
            Route("GET", "/api/blobs/{digest}", Scope.INFER, no, self.not_here, dialect=ollama, faults=(501,)),
            Route("POST", "/api/blobs/{digest}", Scope.INFER, no, self.not_here, dialect=ollama, faults=(501,), takes=_ANY_BODY),
        ]

    async def ping(self, call: Call) -> Reply:
        return Reply(200, b"modeld is running", PLAIN)

    async def version(self, call: Call) -> Reply:
        return Reply(200, encode(OllamaVersion(OLLAMA_LEVEL, __version__)))

    async def tags(self, call: Call) -> Reply:
        return Reply(200, encode(ollama_models.tags(await self._table(), unknown=self._started)))

    async def ps(self, call: Call) -> Reply:
        engine = self._engine()
        table = await self._table()
        has_gpu = engine is not None and bool(engine.devices)
        seen = ollama_models.processes(table, self._snapshot(), now=self._clock(), unix=self._unix(), has_gpu=has_gpu)
        return Reply(200, encode(seen))

    async def show(self, call: Call) -> Reply:
        spec = await self._resolve(call, ollama_in.show(call.body))
        return Reply(200, encode(ollama_models.shown(await self._table(), spec, unknown=self._started)))

    async def chat(self, call: Call) -> Reply | None:
        return await self._generate(call, ollama_in.chat, chat=True)

    async def generate(self, call: Call) -> Reply | None:
        return await self._generate(call, ollama_in.generate, chat=False)

    async def embed(self, call: Call) -> Reply | None:
        return await self._embed(call, ollama_in.embed, legacy=False)

    async def embeddings(self, call: Call) -> Reply | None:
        return await self._embed(call, ollama_in.embeddings, legacy=True)

    async def not_here(self, call: Call) -> Reply:
        raise NotSupported(_INSTEAD)

    async def no_pull(self, call: Call) -> Reply:
        raise NotSupported(_PULL)

    async def _generate(self, call: Call, read: Callable[[bytes], Asked], *, chat: bool) -> Reply | None:
        came = self._clock()
        asked = read(call.body)
        spec = await self._resolve(call, asked.model)
        frame = Frame(asked.model or spec.id, chat, self._unix, lambda: (self._clock() - came, call.wait_seconds))
        if asked.members is None:
            return await self._load(call, asked, spec, frame)
        check_task(spec, Task.WRITE)
        # A server that is not ours has its own templates, of which the catalogue knows nothing.
        path, call.body = asked.body(spec.id, has_template=spec.has_chat_template or spec.external)
        call.terms = _terms(call, spec, asked, streams=True)
        answer = OllamaStream(call, frame) if asked.streams else OllamaWhole(call, frame)
        del asked  # a long answer need not hold a long prompt in memory
        return await self._relay.serve(call, spec.id, path, answer)

    async def _load(self, call: Call, asked: Asked, spec: ModelSpec, frame: Frame) -> Reply:
        """Nothing is to be generated: the model is to be there, or, with `keep_alive` 0, not to be."""
        media = NDJSON if asked.streams else JSON
        if asked.keep_seconds == 0:
            # Somebody else may be using it, and room is made when it is needed: when it goes is the scheduler's to say.
            call.model = spec.id
            return Reply(200, loaded_record(frame, "unload"), media)
        await self._wait_for(call, asked, spec)
        return Reply(200, loaded_record(frame, "load"), media)

    async def _wait_for(self, call: Call, asked: Asked, spec: ModelSpec) -> None:
        call.body = b""
        call.terms = _terms(call, spec, replace(asked, tokens=0), streams=True)
        await self._relay.load(call, spec.id)

    async def _embed(self, call: Call, read: Callable[[bytes], Asked], *, legacy: bool) -> Reply | None:
        came = self._clock()
        asked = read(call.body)
        spec = await self._resolve(call, asked.model)
        check_task(spec, Task.EMBED)
        answer = OllamaVectors(call, asked.dimensions)
        if asked.members is None:
            await self._wait_for(call, asked, spec)
        else:
            path, call.body = asked.body(spec.id)
            call.terms = _terms(call, spec, asked, streams=False)
            asked = replace(asked, members=None)  # an answer that takes long need not hold its texts in memory
            await self._relay.serve(call, spec.id, path, answer)
        if legacy:
            return Reply(200, encode(OllamaEmbedding(answer.vectors[0] if answer.vectors else [])))
        durations = nanoseconds(self._clock() - came), nanoseconds(call.wait_seconds)
        return Reply(200, encode(OllamaEmbedded(asked.model or spec.id, answer.vectors, *durations, answer.usage.prompt)))

    async def _resolve(self, call: Call, name: str | None) -> ModelSpec:
        try:
            return await self._relay.resolve(call, name)
        except UnknownModel as error:
            # Clients look for these words, to offer a pull.
            raise UnknownModel(error.message.replace(" is not here", " not found", 1)) from None


def _terms(call: Call, spec: ModelSpec, asked: Asked, *, streams: bool) -> Terms:
    return replace(terms_of(call, spec, asked=asked.tokens, streams=streams), keep_seconds=asked.keep_seconds or 0.0)


class _Translated(Answer):
    """What both forms of a generated answer have in common: the translator."""

    stream: bool

    def __init__(self, call: Call, frame: Frame) -> None:
        super().__init__(call)
        self._frame = frame
        self.translator = SseToOllama(frame, stream=self.stream)
        self._exchange: Exchange | None = None

    async def begin(self, exchange: Exchange) -> bool:
        self.translator = SseToOllama(self._frame, stream=self.stream)
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


class OllamaStream(_Translated):
    """Records as they come. The head goes out with the first of them, so that what fails earlier still gets its status."""

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


class OllamaWhole(_Translated):
    """The last record only, which holds the whole answer."""

    stream = False

    def __init__(self, call: Call, frame: Frame) -> None:
        super().__init__(call, frame)
        self._line = b""

    def emit(self, lines: bytes) -> None:
        self._line = lines

    def fail(self, error: ModeldError) -> None:
        raise error  # nothing has begun: the error gets its status

    def reply(self) -> Reply | None:
        return Reply(200, self._line)


class OllamaVectors(Answer):
    """The vectors of /v1/embeddings, in the order of the texts. `dimensions`: how many numbers of each to keep, None = all."""

    def __init__(self, call: Call, dimensions: int | None) -> None:
        super().__init__(call)
        self.vectors: list[list[float]] = []
        self._dimensions = dimensions
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._exchange: Exchange | None = None

    async def begin(self, exchange: Exchange) -> bool:
        self._pieces, self._bytes = [], 0
        if exchange.status != 200:
            raise await refusal(exchange)
        self._exchange = exchange
        return True

    def data(self, chunk: bytes) -> None:
        self._pieces.append(chunk)
        self._bytes += len(chunk)
        if self._bytes > EMBEDDINGS_BYTES_MAX and self._exchange is not None:
            self._pieces.clear()
            self._exchange.abort(BadUpstreamReply("the model server sent an answer that is too large"))

    def end(self) -> None:
        seen = read_or_none(_vectors, b"".join(self._pieces))
        self._pieces.clear()
        if seen is None:
            raise BadUpstreamReply("the model server sent embeddings that are not understood")
        self.vectors = [_cut(one.embedding, self._dimensions) for one in sorted(seen.data, key=lambda one: one.index)]
        if seen.usage is not None:
            self.usage = TokenUsage(prompt=seen.usage.prompt_tokens)

    def fail(self, error: ModeldError) -> None:
        raise error  # nothing has begun: the error gets its status

    def reply(self) -> Reply | None:
        return None


def _cut(vector: list[float], dimensions: int | None) -> list[float]:
    """The first numbers of a vector, of length 1 again as llama.cpp made it: what models that are trained for it allow."""
    if dimensions is None or dimensions >= len(vector):
        return vector
    kept = vector[:dimensions]
    length = math.hypot(*kept)
    return [number / length for number in kept] if length else kept
