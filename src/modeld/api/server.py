# SPDX-License-Identifier: GPL-3.0-only
"""The ASGI application: one route table that dispatches and describes; rule: every request gets one answer, in the dialect of its path.

What a request passes, in this order; the first that objects answers:
 1. request id     X-Request-Id if it is sane, else a new one; on every answer and in the log
 2. metrics, log   counted and timed under the route's path, whatever happens below
 3. access         peer, Host, Origin (access.py); not asked for routes of scope "open"
 4. CORS           preflights are answered; allowed origins get their headers
 5. route          exact match of the raw path, else of a path with `{names}`: no redirect, no trailing slash. 404 with a hint, 405 with
                   Allow; HEAD works as GET, OPTIONS tells the methods
 6. content type   a body must be what the route takes, nearly always application/json, and uncompressed, so that no simple cross-site
                   form can reach a handler
 7. body           read whole, up to the route's cap
 8. handler

A ModeldError becomes an answer here and nowhere else. Anything else that is raised is our fault: logged with the request id, 500.
"""

from __future__ import annotations

import difflib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from modeld import __version__
from modeld.api.access import Access, AccessOptions, Cors, CorsOptions
from modeld.api.admin import Admin
from modeld.api.dialects import dialect_of, error_body
from modeld.api.events import Events
from modeld.api.llamacpp import LlamaCpp
from modeld.api.metrics import UNMATCHED, Metrics
from modeld.api.native import Native
from modeld.api.ollama import Ollama
from modeld.api.openai import OpenAI
from modeld.api.openapi import Documents
from modeld.api.ops import Ops
from modeld.api.passthrough import Passthrough
from modeld.api.plans import Plans
from modeld.api.relay import Relay
from modeld.api.route import JSON, MULTIPART, Call, Dialect, Header, Reply, Route, Scope
from modeld.api.routing import Match, RouteTable
from modeld.api.schemas import retry_after
from modeld.core.model import ModelId
from modeld.errors import ClientGone, Forbidden, InvariantError, MethodNotAllowed, ModeldError, UnknownRoute, WrongContentType

if TYPE_CHECKING:
    from modeld.catalog.models import ModelTable
    from modeld.runtime.adapters.interface import EngineInfo, ExitReport
    from modeld.runtime.driver import Driver
    from modeld.runtime.feed import Feed

Message = MutableMapping[str, Any]
AsgiReceive = Callable[[], Awaitable[Message]]
AsgiSend = Callable[[Message], Awaitable[None]]

log = logging.getLogger("modeld.http")

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_WITH_EFFECT: Final = frozenset((Scope.INFER, Scope.ADMIN))
_QUIET: Final = frozenset(("/healthz", "/readyz", "/metrics"))
"""Asked every few seconds by machines: logged at debug level."""


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """What the edge takes of the settings.

    own_hosts             the bound address and this host's name, without port
    max_body_bytes        cap of an /infer body
    max_api_body_bytes    cap of every other body
    default_model         for requests that name none, or None
    heartbeat_seconds     between two comments on an event stream that waits; 0 = none
    """

    max_body_bytes: int = 1 << 20
    max_api_body_bytes: int = 64 << 20
    default_model: str | None = None
    heartbeat_seconds: float = 5.0
    allow_remote: bool = False
    allowed_hosts: tuple[str, ...] = ()
    own_hosts: tuple[str, ...] = ()
    cors: CorsOptions = field(default_factory=CorsOptions)


def build_app(
    options: EdgeOptions,
    *,
    driver: Driver,
    feed: Feed,
    table: Callable[[], Awaitable[ModelTable]],
    metrics: Metrics,
    engine: Callable[[], EngineInfo | None] = lambda: None,
    exits: Callable[[], Iterable[tuple[float, ModelId, ExitReport]]] = tuple,
    rescan: Callable[[], Awaitable[None]] | None = None,
    known: Callable[[], ModelTable | None] = lambda: None,
) -> App:
    """Wire the edge: handlers, table, documents.

    table    the catalogue as it is now; the first look at the folder is waited for
    known    the same without waiting, None where that would have to be done, or would fail
    rescan   reads the models folder again and replaces the table; asked once for a name that is not known
    """
    cors = Cors(options.cors)
    access = Access(AccessOptions(options.allow_remote, options.allowed_hosts, options.own_hosts), cors)
    relay = Relay(
        driver,
        table,
        metrics,
        default_model=options.default_model,
        heartbeat_seconds=options.heartbeat_seconds,
        rescan=rescan,
        known=known,
    )
    passthrough = Passthrough(relay)
    metrics.watch(driver.snapshot, engine)
    documents = Documents(__version__)
    native = Native(
        relay,
        table=table,
        snapshot=driver.snapshot,
        need=driver.need,
        explain=driver.explain,
        exits=exits,
        engine=engine,
        exposure=access.describe(),
    )
    routes = [
        *native.routes(),
        *Plans(driver, table).routes(),
        *OpenAI(relay, passthrough, driver, table=table).routes(),
        *LlamaCpp(relay, passthrough).routes(),
        *Ollama(relay, table=table, snapshot=driver.snapshot, engine=engine).routes(),
        *Admin(relay, driver).routes(),
        *Events(relay, feed, lambda: driver.snapshot(estimates=False)).routes(),
        *Ops(metrics, driver.snapshot).routes(),
        *documents.routes(),
    ]
    documents.describe(routes)
    return App(routes, options=options, access=access, cors=cors, metrics=metrics)


class App:
    """The ASGI callable. Needs `scope["extensions"]["modeld"]`, the Connection that our protocol puts there."""

    def __init__(self, routes: Iterable[Route], *, options: EdgeOptions, access: Access, cors: Cors, metrics: Metrics) -> None:
        self.routes = tuple(routes)
        self.access = access
        self._options = options
        self._cors = cors
        self._metrics = metrics
        self._table = RouteTable(self.routes)

    async def __call__(self, scope: Mapping[str, Any], receive: AsgiReceive, send: AsgiSend) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, send)
            case "lifespan":
                await _lifespan(receive, send)
            case _:
                await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Mapping[str, Any], send: AsgiSend) -> None:
        started = time.monotonic()
        path = scope["raw_path"].decode("latin-1")
        found = self._table.match(path)
        label = found.path or UNMATCHED
        call = _call(scope, path)
        dialect = found.dialect(call.method)
        if dialect is Dialect.ANTHROPIC:
            call.answer_headers.append((b"request-id", call.id.encode("ascii")))  # the name that Anthropic's clients look for
        self._metrics.arrived(label)
        try:
            try:
                reply = await self._answer(call, scope, found)
            except ModeldError as error:
                reply = _refused(call, dialect, error)
            except Exception as error:
                # The last resort: the client gets a 500, the log the story.
                log.exception("request %s %s: our fault", call.id, label)
                reply = _refused(call, dialect, InvariantError(str(error)))
            if reply is not None:
                call.status = reply.status
                await _send(call, reply, send)
        finally:
            self._finished(call, label, time.monotonic() - started)

    async def _answer(self, call: Call, scope: Mapping[str, Any], found: Match) -> Reply | None:
        """Steps 3 to 8."""
        methods = found.methods
        wanted = "GET" if call.method == "HEAD" else call.method
        if not any(route.scope is Scope.OPEN for route in methods.values()):
            server = scope.get("server")
            self.access.check(call.connection.peer, server[0] if server else None, scope["headers"])
        raw_origin = call.headers.get(b"origin")
        origin = None if raw_origin is None else raw_origin.decode("latin-1")
        call.answer_headers += self._cors.answer_headers(origin)
        if call.method == "OPTIONS" and origin is not None and b"access-control-request-method" in call.headers:
            allowed = self._cors.preflight_headers(origin)
            if allowed:
                return Reply(204, headers=allowed)
        route = methods.get(wanted)
        if route is None:
            return self._no_route(call, methods)
        if route.scope in _WITH_EFFECT and origin is None and call.headers.get(b"sec-fetch-site") == b"cross-site":
            # A browser asks for pictures and follows links without an Origin; the page cannot read the answer, but a model would be loaded.
            raise Forbidden("requests from web pages of other sites are refused")
        call.values = found.values
        if route.has_body:
            _check_content_type(call.headers, route)
            call.body = await call.connection.body(self._options.max_body_bytes if route.small_body else self._options.max_api_body_bytes)
        return await route.handler(call)

    def turn_away(self, error: ModeldError, url: bytes) -> Reply:
        """The answer to what never became a request (a broken or too large head): with an id, counted and logged like any other."""
        request_id = secrets.token_hex(8)
        self._metrics.arrived(UNMATCHED)
        self._metrics.answered(UNMATCHED, "OTHER", error.http_status, 0.0)
        log.info("- %s status=%d request=%s fault=%s", UNMATCHED, error.http_status, request_id, error.kind)
        body = error_body(dialect_of(url.partition(b"?")[0].decode("latin-1")), error)
        return Reply(error.http_status, body, headers=((b"x-request-id", request_id.encode()),))

    def _no_route(self, call: Call, methods: Mapping[str, Route]) -> Reply:
        if not methods:
            near = difflib.get_close_matches(call.path[:100], self._table.paths, n=1)
            hint = f"did you mean {near[0]}?" if near else "GET /docs lists the routes"
            raise UnknownRoute(f"there is no such route; {hint}")
        allow = tuple(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])}))
        if call.method == "OPTIONS":
            return Reply(204, headers=((b"allow", ", ".join(allow).encode()),))
        raise MethodNotAllowed(f"this route takes {' or '.join(methods)}", allow=allow)

    def _finished(self, call: Call, label: str, seconds: float) -> None:
        status = call.status or ClientGone.http_status
        self._metrics.answered(label, call.method, status, seconds)
        log.log(
            logging.DEBUG if label in _QUIET else logging.INFO,
            "%s %s status=%d model=%s wait_ms=%d total_ms=%d prompt=%d cached=%d tokens=%d speed=%.1f request=%s%s",
            call.method,
            label,
            status,
            call.model,
            round(call.wait_seconds * 1000),
            round(seconds * 1000),
            call.usage.prompt,
            call.usage.cached,
            call.usage.completion,
            call.usage.tokens_per_second,
            call.id,
            f" fault={call.fault}" if call.fault else "",
        )


def _call(scope: Mapping[str, Any], path: str) -> Call:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    asked = headers.get(b"x-request-id", b"")
    request_id = asked.decode("ascii") if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(8)
    call = Call(request_id, scope["method"], headers, scope["extensions"]["modeld"], path=path, query=scope["query_string"])
    call.answer_headers += [(b"x-request-id", request_id.encode("ascii")), (b"x-content-type-options", b"nosniff")]
    return call


def _check_content_type(headers: Mapping[bytes, bytes], route: Route) -> None:
    media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    is_empty = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0").strip() == b"0"
    if media not in route.takes and not (route.body_optional and is_empty and not media):
        what = {JSON: "JSON", MULTIPART: "a multipart upload"}
        raise WrongContentType(
            f"the body must be {' or '.join(what.get(one, one) for one in route.takes)}; send Content-Type: {' or '.join(route.takes)}"
        )
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise WrongContentType("the body must not be compressed; send it without Content-Encoding")


def _refused(call: Call, dialect: Dialect, error: ModeldError) -> Reply | None:
    """An error as an answer; None when there is nobody left to tell, or no way to any more."""
    call.fault = error.kind
    if isinstance(error, ClientGone):
        call.status = error.http_status
        return None
    if call.begun:
        call.connection.cut()
        return None
    if isinstance(error, InvariantError):
        log.error("request %s: %s %s", call.id, error.message, error.detail)
    headers: list[Header] = [(b"cache-control", b"no-store")]
    seconds = retry_after(error)
    if seconds is not None:
        headers.append((b"retry-after", str(seconds).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allow).encode()))
    return Reply(error.http_status, error_body(dialect, error), headers=tuple(headers))


async def _send(call: Call, reply: Reply, send: AsgiSend) -> None:
    headers = [*call.answer_headers, *reply.headers]
    if reply.status != 204:
        headers += [(b"content-type", reply.media.encode()), (b"content-length", str(len(reply.body)).encode())]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if call.method == "HEAD" else reply.body})


async def _lifespan(receive: AsgiReceive, send: AsgiSend) -> None:
    """Start and stop belong to the composition root; a server that asks is told that all is well."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
