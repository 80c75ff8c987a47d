# SPDX-License-Identifier: GPL-3.0-only
"""The OpenAI and Anthropic surfaces under /v1; rule: list the models here, everything else is relayed as it is (passthrough.py)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from modeld.api.passthrough import RELAYED, Passthrough, relayed_route
from modeld.api.relay import Relay
from modeld.api.route import MULTIPART, Call, Dialect, Reply, Route, Scope
from modeld.api.schemas import ModelMeta, OpenAIModel, OpenAIModels, encode
from modeld.api.tasks import Task, check_task
from modeld.api.terms import PARAMETERS
from modeld.api.upload import model_of
from modeld.core.model import ModelId, ModelSpec
from modeld.core.snapshot import InstanceView, Snapshot

if TYPE_CHECKING:
    from modeld.catalog.models import ModelTable
    from modeld.runtime.driver import Driver

UNLOADED: Final = "unloaded"


class OpenAI:
    """The handlers."""

    def __init__(self, relay: Relay, passthrough: Passthrough, driver: Driver, *, table: Callable[[], Awaitable[ModelTable]]) -> None:
        self._relay = relay
        self._passthrough = passthrough
        self._driver = driver
        self._table = table
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/v1/models", Scope.INFER, "The models that can be served.", self.models, Dialect.OPENAI, answer=OpenAIModels),
            Route(
                "GET",
                "/v1/models/{model}",
                Scope.INFER,
                "One, by any of its names.",
                self.model,
                Dialect.OPENAI,
                answer=OpenAIModel,
            ),
            self._relayed("/v1/chat/completions", "Chat completion.", Task.WRITE),
            self._relayed("/v1/chat/completions/input_tokens", "Tokens that a chat completion would read.", Task.READ),
            self._relayed("/v1/completions", "Text completion.", Task.WRITE),
            self._relayed("/v1/responses", "OpenAI's newer interface for answers.", Task.WRITE, Dialect.RESPONSES),
            self._relayed("/v1/responses/input_tokens", "Tokens that a response would read.", Task.READ, Dialect.RESPONSES),
            self._relayed("/v1/embeddings", "Embeddings, of a model that makes them.", Task.EMBED),
            self._relayed("/v1/rerank", "Documents in the order of their relevance, of a model that ranks.", Task.RANK),
            self._relayed("/v1/reranking", "The same as /v1/rerank.", Task.RANK, to="/v1/rerank"),
            self._relayed("/rerank", "The same as /v1/rerank.", Task.RANK, to="/v1/rerank"),
            self._relayed("/reranking", "The same as /v1/rerank.", Task.RANK, to="/v1/rerank"),
            self._relayed("/v1/messages", "Anthropic's messages.", Task.WRITE, Dialect.ANTHROPIC),
            self._relayed("/v1/messages/count_tokens", "Tokens that a message would read.", Task.READ, Dialect.ANTHROPIC),
            Route(
                "POST",
                "/v1/audio/transcriptions",
                Scope.INFER,
                f"Text of a recording, as multipart/form-data, of a model that hears. {RELAYED}",
                self.transcribe,
                Dialect.OPENAI,
                body=dict[str, Any],
                answer=dict[str, Any],
                parameters=PARAMETERS,
                takes=(MULTIPART,),
            ),
        ]

    def _relayed(self, path: str, what: str, task: Task, dialect: Dialect = Dialect.OPENAI, to: str | None = None) -> Route:
        return relayed_route(self._passthrough, path, what, dialect, task, to=to)

    async def models(self, call: Call) -> Reply:
        served = [spec for spec in (await self._table()).models.values() if spec.unavailable is None]
        views = _views(self._driver.snapshot())
        return Reply(200, encode(OpenAIModels([self._model(spec, views) for spec in served])))

    async def model(self, call: Call) -> Reply:
        spec = await self._relay.resolve(call, call.values["model"])
        return Reply(200, encode(self._model(spec, _views(self._driver.snapshot()))))

    async def transcribe(self, call: Call) -> Reply | None:
        media = call.headers[b"content-type"]
        spec = await self._relay.resolve(call, model_of(media, call.body) or call.asked_of("model"))
        check_task(spec, Task.HEAR)
        return await self._passthrough.whole(call, spec, "/v1/audio/transcriptions", Dialect.OPENAI, headers=[(b"content-type", media)])

    def _model(self, spec: ModelSpec, views: dict[ModelId, InstanceView]) -> OpenAIModel:
        view = views.get(spec.id)
        options = (None if view is None else view.options) or self._driver.launch(spec.id).options
        meta = ModelMeta(
            n_ctx=options.ctx,
            n_ctx_train=spec.ctx_train,
            slots=options.parallel,
            kind=spec.kind.value,
            modalities=list(spec.modalities),
            parameters=spec.parameters,
            state=UNLOADED if view is None else view.state,
            footprint_mb=(0 if view is None else view.need_mb) or self._driver.need(spec.id).total_mb,
            quant=spec.quant,
            family=spec.family,
            size_bytes=spec.size_bytes,
        )
        return OpenAIModel(spec.id, self._created, meta, list(spec.aliases))


def _views(seen: Snapshot) -> dict[ModelId, InstanceView]:
    """The instance of each model that has one."""
    return {view.model: view for view in seen.instances}
