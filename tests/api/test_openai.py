# SPDX-License-Identifier: GPL-3.0-only
"""/v1: byte for byte, and an error that a client's parser understands."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from api.edge import JSON, SPEC, SSE_END, SSE_HEAD, Edge, answers, chunk, http, post, snapshot, sse, staged

FIRST = b'data: {"choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
SECOND = b'data: {"choices":[{"index":0,"delta":{}}],"timings":{"cache_n":30,"prompt_n":1,"predicted_n":2}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = b'{"choices":[{"message":{"content":"\\"completion_tokens\\":99"}}],"usage":{"completion_tokens":2,"prompt_tokens":31}}'
CHAT = b'{ "model" : "tiny", "messages": [], "stream": true, "whatever": 1 }'
PATHS = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])


@PATHS
async def test_the_body_goes_in_and_the_answer_comes_out_unchanged(edge: Edge, path: str) -> None:
    edge.upstream.script = answers(http(WHOLE, media="application/json; charset=utf-8", X_Secret="/srv", Set_Cookie="a=b"))
    answer = await edge.client.post(path, content=CHAT, headers=JSON | {"authorization": "Bearer x"})
    head, body = edge.upstream.asked[0]
    assert head.startswith(f"POST {path} HTTP/1.1\r\n".encode())
    assert b"Bearer" not in head
    assert body == CHAT
    assert answer.content == WHOLE
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert not {"x-secret", "set-cookie", "server"} & answer.headers.keys()
    assert edge.driver.leases[0].tokens == 2
    assert 'modeld_tokens_total{kind="prompt"} 31.0' in edge.page()


async def test_a_stream_comes_out_unchanged(edge: Edge) -> None:
    edge.upstream.script = answers(sse(FIRST, SECOND, DONE))
    answer = await edge.client.post("/v1/chat/completions", content=CHAT, headers=JSON)
    assert answer.content == FIRST + SECOND + DONE
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-accel-buffering"] == "no"
    assert await edge.driver.ended() == "released"
    assert edge.driver.leases[0].tokens == 2


@pytest.mark.parametrize("end", ["\n", "\r\n"])
async def test_an_event_in_pieces_comes_out_whole(edge: Edge, end: str) -> None:
    raw = (FIRST + SECOND + DONE).replace(b"\n", end.encode())
    edge.upstream.script = answers(SSE_HEAD + b"".join(chunk(raw[n : n + 7]) for n in range(0, len(raw), 7)) + SSE_END)
    answer = await edge.client.post("/v1/chat/completions", content=CHAT, headers=JSON)
    assert answer.content == raw


async def test_an_event_is_on_the_wire_before_the_next_is_made(edge: Edge) -> None:
    seen = asyncio.Event()
    edge.upstream.script = staged(SSE_HEAD + chunk(FIRST), seen, chunk(DONE) + SSE_END)
    async with edge.client.stream("POST", "/v1/chat/completions", content=CHAT, headers=JSON) as answer:
        pieces = answer.aiter_raw()
        assert await anext(pieces) == FIRST
        seen.set()
        assert [piece async for piece in pieces] == [DONE]


@pytest.mark.parametrize(
    ("first", "rest", "kind", "shown"),
    [
        (FIRST, b"", "instance_died", FIRST),
        (FIRST, SSE_END, "bad_upstream_reply", FIRST),
        (FIRST, chunk(SECOND[:20]), "instance_died", FIRST),
        (FIRST, chunk(b"data: " + b"x" * 70_000), "instance_died", FIRST + b"data: " + b"x" * 70_000 + b"\n\n"),
    ],
)
async def test_a_failure_in_the_stream_is_the_last_event(edge: Edge, first: bytes, rest: bytes, kind: str, shown: bytes) -> None:
    seen = asyncio.Event()
    edge.upstream.script = staged(SSE_HEAD + chunk(first), seen, rest)
    async with edge.client.stream("POST", "/v1/chat/completions", content=CHAT, headers=JSON) as answer:
        pieces = answer.aiter_raw()
        body = await anext(pieces)
        seen.set()
        body += b"".join([piece async for piece in pieces])
    assert body.startswith(shown)
    last = body.removeprefix(shown)
    assert last.startswith(b"data: ")
    assert last.endswith(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == kind
    assert await edge.driver.ended() == "failed"


async def test_an_error_that_the_model_server_sent_stays_the_only_one(edge: Edge) -> None:
    error = b'data: {"error":{"code":500,"message":"x"}}\n\n'
    edge.upstream.script = answers(sse(FIRST, error))
    answer = await edge.client.post("/v1/chat/completions", content=CHAT, headers=JSON)
    assert answer.content == FIRST + error


async def test_a_json_answer_that_breaks_off_is_cut(edge: Edge) -> None:
    edge.upstream.script = answers(http(WHOLE)[:-10])
    reader, writer = await edge.raw(post("/v1/completions", CHAT))
    seen = await reader.read(-1)
    writer.close()
    assert seen.startswith(b"HTTP/1.1 200 ")
    assert seen.partition(b"\r\n\r\n")[2] == WHOLE[:-10]


@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        (http(b'{"error":{"code":400,"message":"bad grammar"}}', "400 Bad Request"), 400, "bad grammar"),
        (http(b'{"error":{"message":"slow down"}}', "429 Busy", Retry_After="9"), 429, "slow down"),
        (http(b'{"error":{"message":"no /srv/x"}}', "400 Bad Request"), 400, "refused"),
        (http(b"<html>/srv/x", "404 Not Found"), 400, "refused"),
        (http(b'{"error":{"message":"Invalid API Key"}}', "401 No"), 502, "Invalid API Key"),
        (http(b'{"error":{"message":"oops"}}', "500 Oops"), 502, "oops"),
        (http(b"", "302 Moved", Location="/x"), 502, "302"),
        (http(b"x" * 70_000, "500 Oops"), 502, "longer"),
        (http(b"{}")[:-2], 502, "ended"),
        (b"", 502, "ended before it answered"),
    ],
)
async def test_refusals_of_the_model_server(edge: Edge, raw: bytes, status: int, text: str) -> None:
    edge.upstream.script = answers(raw)
    answer = await edge.client.post("/v1/chat/completions", content=CHAT, headers=JSON)
    assert answer.status_code == status
    assert text in answer.json()["error"]["message"]
    assert "/srv" not in answer.text
    assert answer.headers.get("retry-after") == ("9" if status == 429 else None)


async def test_models(edge: Edge) -> None:
    seen = (await edge.client.get("/v1/models")).json()
    assert seen["object"] == "list"
    [model] = seen["data"]
    assert model.pop("created") > 1_700_000_000
    meta = model.pop("meta")
    assert model == {"id": "tiny.gguf", "object": "model", "owned_by": "modeld", "aliases": ["small"]}
    assert (meta["state"], meta["modalities"], meta["n_ctx"], meta["slots"]) == ("unloaded", ["text"], 4096, 4)
    assert meta["footprint_mb"] == 77
    view = replace(snapshot("ready").instances[0], options=replace(SPEC.options, ctx=2048))
    edge.driver.seen = snapshot(instances=(view,))
    meta = (await edge.client.get("/v1/models")).json()["data"][0]["meta"]
    assert (meta["state"], meta["n_ctx"], meta["footprint_mb"]) == ("ready", 2048, 120)
    assert (await edge.client.get("/v1/models/small")).json()["id"] == "tiny.gguf"
    wrong = await edge.client.get("/v1/models/tin%79x")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "unknown_model")
    assert "tiny.gguf" in wrong.json()["error"]["message"]


async def test_an_unknown_model(edge: Edge) -> None:
    answer = await edge.client.post("/v1/completions", json={"model": "tine"})
    assert answer.status_code == 404
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("unknown_model", "model")
