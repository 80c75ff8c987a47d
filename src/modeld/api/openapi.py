# SPDX-License-Identifier: GPL-3.0-only
"""/openapi.json and /docs, made of the route table; rule: what is not in the table is not there, and nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import msgspec

from modeld.api.route import EVENT_STREAM, JSON, MULTIPART, NDJSON, PLAIN, Call, Dialect, Reply, Route, Scope
from modeld.api.schemas import AnthropicFault, Done, Failed, Fault, LlamaFault, OpenAIFault, Token, encode
from modeld.api.terms import TIMEOUT_HEADER

_SEGMENT: Final = {"type": "string", "minLength": 1}
_IN_PATH: Final = re.compile(r"\{([a-z]+)\}")
_NO_BRACES: Final = str.maketrans("", "", "{}")
_REF: Final = "#/components/schemas/{name}"
_HTML: Final = "text/html; charset=utf-8"
_POLICY: Final = b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_FAULTS: Final = {
    Dialect.NATIVE: Fault,
    Dialect.OLLAMA: Fault,
    Dialect.OPENAI: OpenAIFault,
    Dialect.RESPONSES: OpenAIFault,
    Dialect.ANTHROPIC: AnthropicFault,
    Dialect.LLAMA: LlamaFault,
}
_UPLOAD: Final = {"type": "object", "properties": {"model": {"type": "string"}, "file": {"type": "string", "format": "binary"}}}
_ERRORS: Final = (
    "400 bad request · 403 Origin or peer refused · 404 unknown model or route · 405 method · 408 body too slow · 413 body too big · "
    "415 content type · 421 Host · 429 queue full or waited too long (Retry-After) · 431 headers too big · 500 our fault · "
    "501 not supported · 502 the model server failed · 503 unavailable, draining or backing off (Retry-After) · 504 deadline · "
    "507 can never fit"
)


_MODEL_FAULTS: Final = {
    501: "not supported by the model, or not at all",
    502: "the model server failed",
    503: "unavailable, draining or backing off (Retry-After)",
    504: "deadline",
    507: "can never fit",
}


class Documents:
    """The two pages, made when first asked for: that takes 10 ms, which the start of the daemon has better use for."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._table: Sequence[Route] = ()

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/openapi.json", Scope.READ, "This interface in OpenAPI 3.1.", self.openapi, answer=dict[str, Any]),
            Route("GET", "/docs", Scope.READ, "This interface as a page.", self.docs, media=_HTML),
        ]

    def describe(self, table: Sequence[Route]) -> None:
        """What to describe. Called once the table is complete, so that these two routes are in it as well."""
        self._table = table

    @cached_property
    def _document(self) -> dict[str, Any]:
        return document(self._table, self._version)

    @cached_property
    def _page(self) -> bytes:
        return page(self._table, self._document).encode()

    async def openapi(self, call: Call) -> Reply:
        return Reply(200, encode(self._document))

    async def docs(self, call: Call) -> Reply:
        return Reply(200, self._page, _HTML, ((b"content-security-policy", _POLICY),))


def document(table: Sequence[Route], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a route table."""
    roots = [schema for route in table for schema in (route.body, route.answer) if schema is not None]
    roots += [Token, Done, Failed, *_FAULTS.values()]
    unique = list({repr(root): root for root in roots}.values())
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    by_root = {repr(root): schema for root, schema in zip(unique, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_root)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "modeld",
            "version": version,
            "description": f"Every error is JSON: {_ERRORS}",
            "license": {"name": "GPL-3.0-only"},
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(route: Route, schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if route.media == NDJSON:
        lines, whole = ((Token, Done, Failed), Done) if route.answer is Token else ((route.answer, Fault), route.answer)
        answer: dict[str, Any] = {NDJSON: {"schema": {"oneOf": [schemas[repr(kind)] for kind in lines]}}}
        answer[JSON] = {"schema": schemas[repr(whole)]}
    else:
        text: dict[str, Any] = {} if route.media in (EVENT_STREAM, JSON) else {"type": "string"}  # whatever it is
        answer = {route.media: {"schema": schemas[repr(route.answer)] if route.answer is not None else text}}
    if route.streams:
        answer[EVENT_STREAM] = {"schema": {}}  # its events are objects to some readers
    wrong = {"content": {JSON: {"schema": schemas[repr(_FAULTS[route.dialect])]}}}
    fault = {"content": answer} if route.media == PLAIN else wrong  # a word, for machines that look at the status
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method} {route.path}".lower().replace("/", "_").replace(".", "_").replace(" ", "").translate(_NO_BRACES),
        "x-scope": route.scope.value,
        "responses": {
            "200": {"description": "OK", "content": answer},
            **{str(status): {"description": said, **fault} for status, said in _faults_of(route).items()},
            "default": {"description": _ERRORS, **wrong},
        },
    }
    if route.may_be_accepted:
        operation["responses"]["202"] = {"description": "Begun", "content": answer}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _IN_PATH.findall(route.path)
    ]
    parameters += [
        {"name": one.name, "in": one.place, "required": False, "description": one.summary, "schema": dict(one.schema)}
        for one in route.parameters
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.has_body:
        schema = {"type": "object"} if route.body is None else schemas[repr(route.body)]
        content = {media: {"schema": _UPLOAD if media == MULTIPART else schema} for media in route.takes}
        operation["requestBody"] = {"required": not route.body_optional, "content": content}
    return operation


def _faults_of(route: Route) -> dict[int, str]:
    """The 5xx that an answer may have although modeld makes no mistake. Where none stands, there is none."""
    waits = any(one.name == TIMEOUT_HEADER for one in route.parameters)
    return {status: said for status, said in _MODEL_FAULTS.items() if waits or status in route.faults}


def page(table: Sequence[Route], described: dict[str, Any]) -> str:
    """The table, and its document, as one HTML page without scripts."""
    parts = [_section(route, described) for route in table]
    components = encode_pretty(described["components"]["schemas"])
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>modeld</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
        "color-scheme:light dark}h2 code{font-size:1.1rem}pre{overflow:auto;padding:.5rem;border:1px solid #8886}</style>"
        f"<h1>modeld {html.escape(described['info']['version'])}</h1><p>{html.escape(_ERRORS)}</p>{''.join(parts)}"
        f"<h2 id=schemas>Schemas</h2><pre>{html.escape(components)}</pre></html>"
    )


def _section(route: Route, described: dict[str, Any]) -> str:
    operation = described["paths"][route.path][route.method.lower()]
    wanted = ""
    if "requestBody" in operation:
        schema = next(iter(operation["requestBody"]["content"].values()))["schema"]
        shown = described["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], schema)
        wanted = f"<details><summary>body</summary><pre>{html.escape(encode_pretty(shown))}</pre></details>"
    for one in route.parameters:
        wanted += f"<p>{html.escape(one.place)} <code>{html.escape(one.name)}</code>: {html.escape(one.summary)}</p>"
    media = ", ".join(operation["responses"]["200"]["content"])
    return (
        f"<h2><code>{html.escape(route.method)} {html.escape(route.path)}</code></h2><p>{html.escape(route.summary)} "
        f"Answers {html.escape(media)}; scope {html.escape(route.scope.value)}.</p>{wanted}"
    )


def encode_pretty(value: Any) -> str:
    return msgspec.json.format(encode(value), indent=2).decode()
