# SPDX-License-Identifier: GPL-3.0-only
"""The wrong way: every answer is a clear one, in its dialect, and nothing of ours leaks."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from e2e.daemon import Answer, Daemon, link_models, running


def fails(answer: Answer, status: int, kind: str | None = None) -> str:
    """Check the shape of a native error and return its text."""
    assert answer.status == status, answer.body
    assert set(answer.json) >= {"error", "code", "kind"}
    assert answer.json["code"] == status
    if kind is not None:
        assert answer.json["kind"] == kind
    text = answer.json["error"]
    assert "Traceback" not in text
    assert "/tmp" not in text
    return str(text)


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b'"x"', b"", b"\xff\xfe", b'{"prompt":"\\ud800"}',
        {"model": "a.gguf"}, {"model": "a.gguf", "prompt": ""}, {"model": "a.gguf", "prompt": " \n\t"}, {"model": "a.gguf", "prompt": 7},
        {"model": 3, "prompt": "x"}, {"model": "a.gguf", "prompt": "x", "max_tokens": 0},
        {"model": "a.gguf", "prompt": "x", "max_tokens": -1},
        {"model": "a.gguf", "prompt": "x", "max_tokens": 1.5}, {"model": "a.gguf", "prompt": "x", "max_tokens": True},
        {"model": "a.gguf", "prompt": "x", "max_tokens": "4"}, {"model": "a.gguf", "prompt": "x", "temperature": -1},
        {"model": "a.gguf", "prompt": "x", "top_p": 1.5}, {"model": "a.gguf", "prompt": "x", "top_k": -3},
        {"model": "a.gguf", "prompt": "x", "stop": 5}, {"model": "a.gguf", "prompt": "x", "stream": "yes"},
        {"model": "a.gguf", "prompt": "x", "seed": "a"}, {"model": "a.gguf", "prompt": "x", "repeat_penalty": 0},
    ],
)  # fmt: skip
def test_a_bad_body_is_a_400(daemon: Daemon, body: Any):
    fails(daemon.ask("POST", "/infer", body), 400, "bad_request")


def test_an_unknown_model_is_a_404_with_near_matches(daemon: Daemon):
    text = fails(daemon.infer("aa.gguf"), 404, "unknown_model")
    assert "a.gguf" in text
    for nasty in ("../../etc/passwd", "/etc/passwd", "a.gguf\x00", "x" * 5000, "%2e%2e"):
        fails(daemon.infer(nasty), 404, "unknown_model")


def test_no_model_named_and_no_default_is_a_404_that_says_so(daemon: Daemon):
    assert "default_model" in fails(daemon.infer(), 404, "no_model_named")


def test_routes_and_methods(daemon: Daemon):
    fails(daemon.ask("GET", "/nothing"), 404, "unknown_route")
    fails(daemon.ask("GET", "/models/"), 404, "unknown_route")
    answer = daemon.ask("DELETE", "/infer")
    fails(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]
    head = daemon.ask("HEAD", "/models")
    assert (head.status, head.body) == (200, b"")


def test_only_json_is_taken(daemon: Daemon):
    fails(daemon.ask("POST", "/infer", b"x=1", headers={"Content-Type": "application/x-www-form-urlencoded"}), 415, "wrong_content_type")


def test_too_big_a_body_is_refused_and_the_client_hears_it(daemon: Daemon):
    fails(daemon.ask("POST", "/infer", {"model": "a.gguf", "prompt": "x" * (3 << 20)}), 413, "body_too_large")


def test_too_many_headers(daemon: Daemon):
    """It never becomes a request, and has an id, a metric and the dialect's shape all the same."""
    many = {f"X-{n}": "y" for n in range(200)}
    answer = daemon.ask("GET", "/models", headers=many)
    fails(answer, 431, "headers_too_large")
    assert answer.headers["x-request-id"] in daemon.log
    assert daemon.metric('modeld_http_requests_total{method="OTHER",path="(unmatched)",status="431"}') == 1
    assert "message" in daemon.ask("GET", "/v1/models", headers=many).json["error"]


def test_a_foreign_host_or_origin_is_refused(daemon: Daemon):
    fails(daemon.ask("GET", "/models", headers={"Host": "evil.example"}), 421, "wrong_host")
    fails(daemon.ask("GET", "/models", headers={"Origin": "https://evil.example"}), 403, "forbidden")
    assert daemon.ask("GET", "/models", headers={"Host": "localhost:1"}).status == 200
    assert daemon.ask("GET", "/models", headers={"Host": socket.gethostname()}).status == 200
    assert daemon.ask("GET", "/models", headers={"Origin": f"http://localhost:{daemon.port}"}).status == 200


def test_what_was_passed_on_counts_as_remote(daemon: Daemon):
    for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host"):
        text = fails(daemon.ask("GET", "/models", headers={name: "for=1.2.3.4"}), 403, "forbidden")
        assert "--allow-remote" in text
    assert daemon.ask("GET", "/healthz", headers={"X-Forwarded-For": "1.2.3.4"}).status == 200


def test_a_supplied_credential_is_ignored_while_there_are_no_keys(daemon: Daemon):
    assert daemon.ask("GET", "/models", headers={"Authorization": "Bearer nonsense"}).status == 200


def test_openai_errors_have_openais_shape(daemon: Daemon):
    for body, status in (({"model": "nope", "messages": []}, 404), (b"{", 400), ({"model": 5, "messages": []}, 400)):
        answer = daemon.ask("POST", "/v1/chat/completions", body)
        assert answer.status == status
        assert {"message", "type", "code"} <= set(answer.json["error"])


def test_what_the_engine_refuses_is_a_400_too(daemon: Daemon):
    answer = daemon.ask("POST", "/v1/chat/completions", {"model": "a.gguf", "messages": "not a list"})
    assert answer.status == 400
    assert "error" in answer.json
    fails(daemon.infer("a.gguf", prompt="word " * 12_000), 400, "bad_request")


def test_garbage_on_the_wire_gets_a_400_and_the_daemon_goes_on(daemon: Daemon):
    for raw in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as one:
            one.sendall(raw)
            reply = http.client.HTTPResponse(one)
            reply.begin()
            assert reply.status == 400
            assert json.loads(reply.read())["code"] == 400
    assert daemon.ask("GET", "/healthz").body == b"ok"


def test_what_can_never_fit_is_a_507_with_the_numbers_and_evicts_nothing(tmp_path: Path, starter: Path):
    models = link_models(tmp_path / "models", starter, "a.gguf", "b.gguf")
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"vram_budget_mb": 500, "vram_margin_mb": 100, "models": {"b.gguf": {"vram_mb": 450}}}))
    with running(tmp_path, models, "--config", str(config)) as one:
        assert one.infer("a.gguf").status == 200
        text = fails(one.infer("b.gguf"), 507, "cannot_ever_fit")
        assert "450 MB" in text
        assert "400 MB" in text
        assert one.status()["evictions_total"] == 0
        one.wait_state("a.gguf", "ready")
