# SPDX-License-Identifier: GPL-3.0-only
"""llama.cpp's own routes, and the way to all the rest of one model's server; rule: relayed as they are (passthrough.py).

`/upstream/{model}/…` takes any path and method, for what has no route here (slots, adapters, routes of newer builds). It holds a slot like
every request. It is for the operator: what is asked there is between the caller and the model server.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

from modeld.api.passthrough import Passthrough, relayed_route
from modeld.api.relay import Relay
from modeld.api.route import JSON, MULTIPART, Call, Dialect, Header, Parameter, Reply, Route, Scope
from modeld.api.tasks import Task
from modeld.api.terms import PARAMETERS
from modeld.errors import BadRequest

MODEL: Final = Parameter("model", "query", "Id, id without .gguf, or alias; default: the daemon's default_model.", {"type": "string"})
_PASSED: Final = (b"content-type", b"accept")
_METHODS: Final = ("GET", "POST", "PUT", "DELETE")


class LlamaCpp:
    """The handlers."""

    def __init__(self, relay: Relay, passthrough: Passthrough) -> None:
        self._relay = relay
        self._passthrough = passthrough

    def routes(self) -> list[Route]:
        rest = "Anything else of one model's server: the path after the model's name is asked of it. The body may be empty."
        return [
            self._own("/completion", "Text completion in llama.cpp's own form.", Task.WRITE),
            self._own("/completions", "The same as /completion.", Task.WRITE, to="/completion"),
            self._own("/chat/completions", "The same as /v1/chat/completions.", Task.WRITE, dialect=Dialect.OPENAI),
            self._own("/infill", "Text between a prefix and a suffix, of a model made for it.", Task.WRITE),
            self._own("/tokenize", "Tokens of a text.", Task.READ),
            self._own("/detokenize", "Text of tokens.", Task.READ),
            self._own("/apply-template", "The prompt that the model's chat template makes of messages.", Task.READ),
            self._own("/embedding", "Embeddings in llama.cpp's own form.", Task.EMBED),
            self._own("/embeddings", "The same as /v1/embeddings.", Task.EMBED, to="/v1/embeddings", dialect=Dialect.OPENAI),
            Route(
                "GET",
                "/props",
                Scope.INFER,
                "Settings and chat template of a model, which is loaded for it.",
                self.props,
                Dialect.LLAMA,
                answer=dict[str, Any],
                parameters=(MODEL, *PARAMETERS),
            ),
            *(
                Route(
                    method,
                    "/upstream/{model}/{rest}",
                    Scope.ADMIN,
                    rest,
                    self.upstream,
                    Dialect.LLAMA,
                    body=None if method in ("GET", "DELETE") else dict[str, Any],
                    parameters=PARAMETERS,
                    takes=(JSON, MULTIPART),
                    body_optional=True,
                )
                for method in _METHODS
            ),
        ]

    def _own(self, path: str, what: str, task: Task, to: str | None = None, dialect: Dialect = Dialect.LLAMA) -> Route:
        return relayed_route(self._passthrough, path, what, dialect, task, to=to)

    async def props(self, call: Call) -> Reply | None:
        spec = await self._relay.resolve(call, call.asked_of("model"))
        return await self._passthrough.whole(call, spec, "/props", Dialect.LLAMA, headers=[])

    async def upstream(self, call: Call) -> Reply | None:
        if ".." in unquote(call.values["rest"]).split("/"):
            raise BadRequest("the path after the model's name must not lead upwards")
        spec = await self._relay.resolve(call, call.values["model"])
        path = "/" + call.values["rest"] + (f"?{call.query.decode('latin-1')}" if call.query else "")
        headers: list[Header] = [(name, call.headers[name]) for name in _PASSED if name in call.headers]
        return await self._passthrough.whole(call, spec, path, Dialect.LLAMA, headers=headers)
