# SPDX-License-Identifier: GPL-3.0-only
"""What a request passes before its handler, and the routes that describe and watch."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from api.edge import JSON, Edge, answers, running, snapshot, sse
from modeld.api.access import CorsOptions
from modeld.api.server import App, EdgeOptions
from modeld.errors import InvariantError

LAST = b'data: {"content":"a","stop":true,"tokens_predicted":1,"tokens_evaluated":4,"stop_type":"eos"}\n\n'
PAGE = {"origin": "https://page.example"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "kind"),
    [
        ("POST", "/infer", JSON, b"{", 400, "bad_request"),
        ("POST", "/infer", JSON, b'{"prompt":"a","max_tokens":0}', 400, "bad_request"),
        ("POST", "/infer", JSON, b'{"prompt":"a","x":"\xff"}', 400, "bad_request"),
        ("POST", "/infer", JSON, b'{"prompt":" \\n\\t\\u2003"}', 400, "bad_request"),
        ("POST", "/infer", JSON, b"", 400, "bad_request"),
        ("GET", "/models", {"x-forwarded-for": "127.0.0.1"}, b"", 403, "forbidden"),
        ("GET", "/models", {"origin": "http://evil.example"}, b"", 403, "forbidden"),
        ("GET", "/nothing", {"origin": "null"}, b"", 403, "forbidden"),
        ("GET", "/models", {"host": "evil.example"}, b"", 421, "wrong_host"),
        ("POST", "/infer", JSON, b'{"model":"tine","prompt":"a"}', 404, "unknown_model"),
        ("POST", "/infer", JSON, b'{"model":"../tiny.gguf","prompt":"a"}', 404, "unknown_model"),
        ("GET", "/model", {}, b"", 404, "unknown_route"),
        ("GET", "/models/", {}, b"", 404, "unknown_route"),
        ("GET", "/%6dodels", {}, b"", 404, "unknown_route"),
        ("GET", "/MODELS", {}, b"", 404, "unknown_route"),
        ("POST", "/models", JSON, b"{}", 405, "method_not_allowed"),
        ("GET", "/infer", {}, b"", 405, "method_not_allowed"),
        ("HEAD", "/infer", {}, b"", 405, ""),
        ("DELETE", "/healthz", {}, b"", 405, "method_not_allowed"),
        ("POST", "/infer", JSON, b" " * 1025, 413, "body_too_large"),
        ("POST", "/infer", {}, b"{}", 415, "wrong_content_type"),
        ("POST", "/infer", {"content-type": "text/plain"}, b"{}", 415, "wrong_content_type"),
        ("POST", "/infer", {"content-type": "application/json-seq"}, b"{}", 415, "wrong_content_type"),
        ("POST", "/infer", JSON | {"content-encoding": "gzip"}, b"{}", 415, "wrong_content_type"),
    ],
)
async def test_the_first_that_objects_answers(
    tmp_path: Path, method: str, path: str, headers: dict[str, str], body: bytes, status: int, kind: str
) -> None:
    async with running(tmp_path, EdgeOptions(max_body_bytes=1024, default_model="tiny")) as edge:
        answer = await edge.client.request(method, path, headers=headers, content=body)
        assert answer.status_code == status
        assert answer.headers["x-request-id"]
        assert answer.headers["content-type"] == "application/json"
        if kind:
            seen = answer.json()
            assert (seen["code"], seen["kind"]) == (status, kind)
            assert seen["error"]
        assert edge.driver.requests == []


async def test_hints(edge: Edge) -> None:
    assert "/models" in (await edge.client.get("/model")).json()["error"]
    assert (await edge.client.get("/infer")).headers["allow"] == "OPTIONS, POST"
    assert (await edge.client.post("/models", json={})).headers["allow"] == "GET, HEAD, OPTIONS"
    assert "--allow-remote" in (await edge.client.get("/status", headers={"forwarded": "for=1"})).json()["error"]


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/chat/completions"])
async def test_under_v1_errors_have_openais_shape(edge: Edge, path: str) -> None:
    seen = (await edge.client.get(path)).json()["error"]
    assert set(seen) == {"message", "type", "param", "code", "source"}


async def test_the_larger_cap_is_for_the_other_routes(tmp_path: Path) -> None:
    async with running(tmp_path, EdgeOptions(max_body_bytes=10, max_api_body_bytes=1000)) as edge:
        body = json.dumps({"model": "tine", "x": "y" * 500})
        assert (await edge.client.post("/v1/completions", content=body, headers=JSON)).status_code == 404
        assert (await edge.client.post("/v1/completions", content=body * 3, headers=JSON)).status_code == 413


@pytest.mark.parametrize("media", ["application/json", "Application/JSON; charset=utf-8"])
async def test_content_types_that_are_json(edge: Edge, media: str) -> None:
    edge.upstream.script = answers(sse(LAST))
    answer = await edge.client.post("/infer", content=b'{"model":"tiny","prompt":"a"}', headers={"content-type": media})
    assert answer.status_code == 200


async def test_health_is_told_to_anybody_and_nothing_else(edge: Edge) -> None:
    for headers in ({}, {"host": "balancer.example", "x-forwarded-for": "10.0.0.1", "origin": "null"}):
        answer = await edge.client.get("/healthz", headers=headers)
        assert (answer.status_code, answer.content) == (200, b"ok")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        answer = await edge.client.get("/readyz", headers=headers)
        assert (answer.status_code, answer.content) == (503, b"loading")
    edge.driver.seen = snapshot("loading", "ready")
    answer = await edge.client.get("/readyz")
    assert (answer.status_code, answer.content) == (200, b"ready")


async def test_head_is_get_without_the_body(edge: Edge) -> None:
    full = await edge.client.get("/models")
    head = await edge.client.head("/models")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == full.headers["content-length"] == str(len(full.content))


async def test_options_tells_the_methods(edge: Edge) -> None:
    answer = await edge.client.options("/infer")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, "OPTIONS, POST", b"")
    assert (await edge.client.options("/nothing")).status_code == 404


@pytest.mark.parametrize("sane", ["a", "A-b_c.9", "x" * 128])
async def test_a_sane_request_id_is_kept(edge: Edge, sane: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modeld.http")
    answer = await edge.client.get("/nothing", headers={"x-request-id": sane})
    assert answer.headers["x-request-id"] == sane
    assert f"request={sane}" in caplog.text


@pytest.mark.parametrize("odd", ["", "a b", "x" * 129, "a;b", "\xe4"])
async def test_any_other_is_replaced(edge: Edge, odd: str) -> None:
    answer = await edge.client.get("/nothing", headers={b"x-request-id": odd.encode("latin-1")})
    assert answer.headers["x-request-id"] != odd
    assert len(answer.headers["x-request-id"]) == 16


async def test_a_request_leaves_one_line_in_the_log(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modeld.http")
    edge.upstream.script = answers(sse(LAST))
    await edge.infer()
    await edge.client.get("/healthz")
    [line] = [record.getMessage() for record in caplog.records if record.name == "modeld.http"]
    assert line.startswith("POST /infer status=200 model=tiny.gguf wait_ms=")
    assert " tokens=1 speed=" in line


async def test_requests_are_counted_under_their_route(edge: Edge) -> None:
    await edge.client.get("/nothing/at/all")
    await edge.client.get("/models?x=1")
    page = (await edge.client.get("/metrics")).text
    assert 'modeld_http_requests_total{method="GET",path="(unmatched)",status="404"} 1.0' in page
    assert 'modeld_http_requests_total{method="GET",path="/models",status="200"} 1.0' in page
    assert 'modeld_http_inflight_requests{path="/metrics"} 1.0' in page
    assert "nothing" not in page


async def test_without_cors_a_preflight_of_another_page_is_refused(edge: Edge) -> None:
    answer = await edge.client.options("/infer", headers=PAGE | {"access-control-request-method": "POST"})
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_with_cors(tmp_path: Path) -> None:
    options = EdgeOptions(cors=CorsOptions(True, (PAGE["origin"],)))
    async with running(tmp_path, options) as edge:
        answer = await edge.client.options("/infer", headers=PAGE | {"access-control-request-method": "POST"})
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == PAGE["origin"]
        assert answer.headers["access-control-allow-methods"] == "GET, POST"
        edge.upstream.script = answers(sse(LAST))
        answer = await edge.client.post("/infer", json={"model": "tiny", "prompt": "a"}, headers=PAGE)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE["origin"])
        assert answer.headers["vary"] == "Origin"
        assert answer.headers["access-control-expose-headers"] == "x-request-id, retry-after, x-modeld-degraded"
        answer = await edge.client.get("/nothing", headers=PAGE)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (404, PAGE["origin"])
        assert (await edge.client.get("/models", headers={"origin": "https://other.example"})).status_code == 403


async def test_the_document_lists_every_route(edge: Edge) -> None:
    document = (await edge.client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert listed == {(route.method, route.path) for route in edge.app.routes}
    assert ("POST", "/infer") in listed
    body = document["paths"]["/infer"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/InferBody"}
    assert document["components"]["schemas"]["InferBody"]["required"] == ["prompt"]
    told = {(route.path, one.name) for route in edge.app.routes for one in route.parameters}
    told |= {(route.path, name) for route in edge.app.routes for name in re.findall(r"\{([a-z]+)\}", route.path)}
    assert {
        (path, one["name"]) for path, item in document["paths"].items() for x in item.values() for one in x.get("parameters", ())
    } == told
    assert told >= {("/infer", "X-Modeld-Priority"), ("/v1/completions", "X-Modeld-Timeout"), ("/status", "explain")}
    for name in references(document):
        assert name.removeprefix("#/components/schemas/") in document["components"]["schemas"]
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [name for item in value.values() for name in references(item)]
    return [name for item in value for name in references(item)] if isinstance(value, list) else []


async def test_the_page_needs_nobody_else(edge: Edge) -> None:
    answer = await edge.client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    for route in edge.app.routes:
        assert f"{route.method} {route.path}" in answer.text
    for outside in ("<script", "http:", "https:", "src=", "@import"):
        assert outside not in answer.text


async def test_two_rows_for_one_route_are_a_mistake(edge: Edge) -> None:
    route = edge.app.routes[0]
    with pytest.raises(InvariantError, match="two routes"):
        App([route, route], options=EdgeOptions(), access=edge.app.access, cors=None, metrics=edge.metrics)  # type: ignore[arg-type]


async def test_other_kinds_of_scope(edge: Edge) -> None:
    sent: list[Any] = []
    asked = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(asked)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await edge.app({"type": "lifespan"}, receive, send)
    await edge.app({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
