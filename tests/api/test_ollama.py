# SPDX-License-Identifier: GPL-3.0-only
"""/api/* over a real socket, with a scripted model server."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.edge import SPEC, SSE_END, SSE_HEAD, Edge, answers, chunk, hangs_after, http, running, snapshot, sse, staged
from modeld.api.ollama import OLLAMA_LEVEL
from modeld.api.server import EdgeOptions
from modeld.catalog.models import ModelTable
from modeld.core.model import ModelKind
from modeld.errors import QueueFull

HI = [{"role": "user", "content": "Hi"}]


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(finish: str | None = None, **what: Any) -> bytes:
    return data({"choices": [{"index": 0, "finish_reason": finish, "delta": what}]})


FIRST = delta(role="assistant", content=None)
WORD = delta(content="Hello")
TIMINGS = {"cache_n": 1, "prompt_n": 3, "prompt_ms": 12.5, "predicted_n": 2, "predicted_ms": 40.0, "predicted_per_second": 50.0}
USAGE = data({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}, "timings": TIMINGS})
END = delta("stop") + USAGE + b"data: [DONE]\n\n"


async def ask(edge: Edge, path: str = "/api/chat", **body: Any) -> httpx.Response:
    usual = {"messages": HI} if path == "/api/chat" else {"prompt": "Hi"} if path == "/api/generate" else {}
    return await edge.client.post(path, json={"model": "tiny"} | usual | body)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_chat_streams_records_and_is_counted(edge: Edge) -> None:
    edge.upstream.script = answers(sse(FIRST, WORD, END))
    answer = await ask(edge, options={"num_predict": 9, "num_ctx": 64}, keep_alive="10m")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    word, last = lines(answer)
    assert word["message"] == {"role": "assistant", "content": "Hello"}
    assert (word["model"], word["done"], last["done"], last["done_reason"]) == ("tiny", False, True, "stop")
    assert (last["prompt_eval_count"], last["eval_count"]) == (4, 2)
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (12_500_000, 40_000_000)
    assert 0 <= last["load_duration"] <= last["total_duration"] < 20 * 10**9
    head, sent = edge.upstream.asked[0]
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert json.loads(sent) == {
        "model": "tiny.gguf", "messages": HI, "stream": True, "stream_options": {"include_usage": True}, "cache_prompt": True,
        "n_predict": 9,
    }  # fmt: skip
    assert await edge.driver.ended() == "released"
    assert edge.driver.leases[0].tokens == 2
    request = edge.driver.requests[0]
    assert (request.answer_tokens, request.body_bytes) == (1, len(sent))
    assert 'modeld_tokens_total{kind="prompt"} 4.0' in edge.page()


async def test_one_object_where_no_stream_is_wanted(edge: Edge) -> None:
    edge.upstream.script = answers(sse(FIRST, WORD, END))
    answer = await ask(edge, "/api/generate", stream=False)
    assert answer.headers["content-type"] == "application/json"
    seen = answer.json()
    assert (seen["response"], seen["done"], seen["eval_count"]) == ("Hello", True, 2)
    assert json.loads(edge.upstream.asked[0][1])["stream"] is True


async def test_a_record_is_on_the_wire_before_the_next_token_is_made(edge: Edge) -> None:
    seen = asyncio.Event()
    edge.upstream.script = staged(SSE_HEAD + chunk(FIRST + WORD), seen, chunk(END) + SSE_END)
    async with edge.client.stream("POST", "/api/chat", json={"model": "tiny", "messages": HI}) as answer:
        records = answer.aiter_lines()
        assert json.loads(await anext(records))["message"]["content"] == "Hello"
        seen.set()
        assert json.loads(await anext(records))["done"] is True


async def test_a_model_without_template_is_asked_for_a_completion(tmp_path: Path) -> None:
    for has_template, path in ((True, b"/v1/chat/completions "), (False, b"/completion ")):
        spec = replace(SPEC, has_chat_template=has_template)
        async with running(tmp_path, table=lambda spec=spec: ModelTable({spec.id: spec})) as edge:  # type: ignore[misc]
            edge.upstream.script = answers(sse(data({"content": "x", "stop": True}) if not has_template else FIRST + END))
            assert (await ask(edge, "/api/generate")).status_code == 200
            assert edge.upstream.asked[0][0].startswith(b"POST " + path)


async def test_nothing_is_sent_while_the_model_is_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path, EdgeOptions(heartbeat_seconds=0.01)) as edge:
        edge.driver.hold = True
        reader, writer = await edge.raw(
            b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 64\r\n\r\n"
            + json.dumps({"model": "tiny", "messages": [{"role": "user"}]}).encode().ljust(64)
        )
        await edge.driver.arrived.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        writer.close()
        assert await edge.driver.ended() == "withdrawn"


async def test_a_client_that_leaves_frees_the_slot(edge: Edge) -> None:
    edge.upstream.script = hangs_after(SSE_HEAD + chunk(FIRST + WORD))
    async with edge.client.stream("POST", "/api/chat", json={"model": "tiny", "messages": HI}) as answer:
        await anext(answer.aiter_lines())
    async with asyncio.timeout(10):
        await edge.upstream.left.wait()
    assert await edge.driver.ended() == "released"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("raw", "status", "kind", "source"),
    [
        (http(b'{"error":{"code":400,"message":"too long"}}', "400 Bad Request"), 400, "bad_request", "model"),
        (http(b'{"error":{"code":501,"message":"no infill"}}', "501 No"), 501, "not_supported", "model"),
        (http(b'{"error":{"message":"slot broke"}}', "500 Oops"), 502, "bad_upstream_reply", "model"),
        (sse(FIRST), 502, "bad_upstream_reply", "model"),
        (b"", 502, "instance_died", "model"),
    ],
)
async def test_what_fails_before_the_first_byte_has_its_status(
    edge: Edge, stream: bool, raw: bytes, status: int, kind: str, source: str
) -> None:
    edge.upstream.script = answers(raw)
    answer = await ask(edge, stream=stream)
    seen = answer.json()
    assert (answer.status_code, seen["code"], seen["kind"], seen["source"]) == (status, status, kind, source)
    assert isinstance(seen["error"], str)


async def test_a_failure_after_the_first_byte_is_the_last_line(edge: Edge) -> None:
    edge.upstream.script = answers(SSE_HEAD + chunk(FIRST + WORD))
    answer = await ask(edge)
    assert answer.status_code == 200
    word, last = lines(answer)
    assert word["message"]["content"] == "Hello"
    assert (last["kind"], last["source"]) == ("instance_died", "model")
    assert await edge.driver.ended() == "failed"


async def test_who_is_refused_is_told_in_ollamas_shape(edge: Edge) -> None:
    edge.driver.refusal = QueueFull("32 wait", retry_after_seconds=3)
    for body in ({}, {"messages": []}):
        answer = await ask(edge, **body)
        assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (429, "32 wait", "3")


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"])
async def test_a_wrong_name_is_not_found(edge: Edge, path: str) -> None:
    answer = await ask(edge, path, model="tinny")
    assert answer.status_code == 404
    assert 'model "tinny" not found; did you mean "tiny.gguf"' in answer.json()["error"]
    assert answer.json()["source"] == "modeld"
    assert edge.driver.requests == []


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/chat", {"options": {"temperature": -1}}, "options.temperature"),
        ("/api/chat", {"messages": "Hi"}, "messages"),
        ("/api/generate", {"keep_alive": "soon"}, "keep_alive"),
        ("/api/embed", {"input": {}}, "input"),
        ("/api/embed", {"input": "x", "options": {"seed": "x"}}, "options.seed"),
        ("/api/show", {"model": 5}, "model"),
    ],
)
async def test_what_is_wrong_is_named(edge: Edge, path: str, body: dict[str, Any], field: str) -> None:
    answer = await ask(edge, path, **body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(field)
    assert edge.driver.requests == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"), ("DELETE", "/api/delete"),
     ("HEAD", "/api/blobs/sha256:00"), ("POST", "/api/blobs/sha256:00")],
)  # fmt: skip
async def test_the_models_folder_is_not_changed_over_http(edge: Edge, method: str, path: str) -> None:
    answer = await edge.client.request(method, path, json={"model": "x"})
    assert answer.status_code == 501
    if method != "HEAD":
        assert answer.json()["kind"] == "not_supported"
        assert "models folder" in answer.json()["error"]
        assert ("modeld pull" in answer.json()["error"]) == (path == "/api/pull")
    bare = await edge.client.post("/api/blobs/sha256:00", content=b"\x00", headers={"content-type": "application/octet-stream"})
    assert bare.status_code == 501


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), [("/api/chat", {"messages": []}), ("/api/generate", {"prompt": ""})])
async def test_nothing_to_say_loads_the_model(edge: Edge, path: str, body: dict[str, Any]) -> None:
    answer = await ask(edge, path, **body)
    (seen,) = lines(answer)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert (seen["done"], seen["done_reason"]) == (True, "load")
    assert seen["load_duration"] <= seen["total_duration"]
    assert await edge.driver.ended() == "released"
    assert edge.upstream.asked == []
    request = edge.driver.requests[0]
    assert (request.model, request.body_bytes, request.work) == (SPEC.id, 0, 0)
    whole = await ask(edge, path, **body, stream=False)
    assert (whole.headers["content-type"], whole.json()["done_reason"]) == ("application/json", "load")


async def test_unloading_is_answered_and_left_to_the_scheduler(edge: Edge) -> None:
    (seen,) = lines(await ask(edge, "/api/generate", prompt="", keep_alive=0))
    assert (seen["done"], seen["done_reason"], seen["response"]) == (True, "unload", "")
    assert edge.driver.requests == []


async def test_a_client_that_leaves_while_the_model_loads_is_withdrawn(edge: Edge) -> None:
    edge.driver.hold = True
    _, writer = await edge.raw(
        b'POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"model":"tiny"}'
    )
    await edge.driver.arrived.wait()
    writer.close()
    assert await edge.driver.ended() == "withdrawn"


@pytest.mark.parametrize(("given", "seconds"), [(None, 0), ("5m", 300), (-1, math.inf), (0, 0)])
async def test_keep_alive_is_told_to_the_scheduler(edge: Edge, given: Any, seconds: float) -> None:
    edge.upstream.script = answers(sse(FIRST, END))
    assert (await ask(edge, keep_alive=given)).status_code == 200
    assert edge.driver.requests[0].keep_seconds == seconds


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def embedder(tmp_path: Path) -> AsyncIterator[Edge]:
    spec = replace(SPEC, kind=ModelKind.EMBED, logits=False)
    async with running(tmp_path, table=lambda: ModelTable({spec.id: spec})) as started:
        yield started


def vectors(*rows: list[float]) -> bytes:
    listed = [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)]
    return http(json.dumps({"object": "list", "data": listed[::-1], "usage": {"prompt_tokens": 5, "total_tokens": 5}}).encode())


async def test_texts_are_embedded_in_their_order(embedder: Edge) -> None:
    embedder.upstream.script = answers(vectors([0.5, 0.5], [1.0, 0.0]))
    seen = (await ask(embedder, "/api/embed", input=["a", "b"])).json()
    assert (seen["model"], seen["embeddings"], seen["prompt_eval_count"]) == ("tiny", [[0.5, 0.5], [1.0, 0.0]], 5)
    assert 0 <= seen["load_duration"] <= seen["total_duration"]
    head, sent = embedder.upstream.asked[0]
    assert head.startswith(b"POST /v1/embeddings ")
    assert json.loads(sent) == {"model": "tiny.gguf", "input": ["a", "b"], "encoding_format": "float"}
    embedder.upstream.script = answers(vectors([0.6, 0.8]))
    assert (await ask(embedder, "/api/embeddings", prompt="a")).json() == {"embedding": [0.6, 0.8]}


async def test_a_shorter_embedding_has_length_one_again(embedder: Edge) -> None:
    embedder.upstream.script = answers(vectors([3.0, 4.0, 12.0], [0.0, 0.0, 1.0]))
    seen = (await ask(embedder, "/api/embed", input=["a", "b"], dimensions=2)).json()
    assert seen["embeddings"] == [[0.6, 0.8], [0.0, 0.0]]
    embedder.upstream.script = answers(vectors([3.0, 4.0]))
    assert (await ask(embedder, "/api/embed", input="a", dimensions=9)).json()["embeddings"] == [[3.0, 4.0]]


async def test_nothing_to_embed_loads_the_model(embedder: Edge) -> None:
    assert (await ask(embedder, "/api/embed", input=[])).json()["embeddings"] == []
    assert (await ask(embedder, "/api/embeddings", prompt="")).json() == {"embedding": []}
    assert len(embedder.driver.requests) == 2
    assert embedder.upstream.asked == []


@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        (
            http(b'{"error":{"code":501,"message":"This server does not support embeddings."}}', "501 No"),
            501,
            "does not support embeddings",
        ),
        (http(b"{}"), 502, "not understood"),
        (http(b'{"data":[{"embedding":"base64"}]}'), 502, "not understood"),
    ],
)
async def test_embeddings_that_fail(embedder: Edge, raw: bytes, status: int, text: str) -> None:
    embedder.upstream.script = answers(raw)
    answer = await ask(embedder, "/api/embed", input="a")
    assert (answer.status_code, text in answer.json()["error"]) == (status, True)


async def test_what_a_model_is_not_made_for_is_said_at_once(edge: Edge) -> None:
    answer = await ask(edge, "/api/embed", input="a")
    assert (answer.status_code, "writes text" in answer.json()["error"]) == (400, True)
    assert edge.driver.requests == []


async def test_a_model_that_only_embeds_writes_nothing(embedder: Edge) -> None:
    for path in ("/api/chat", "/api/generate"):
        answer = await ask(embedder, path)
        assert (answer.status_code, "cannot write text" in answer.json()["error"]) == (400, True)
    assert (await ask(embedder, "/api/show")).json()["capabilities"] == ["embedding"]
    assert embedder.driver.requests == []


# --- what there is ----------------------------------------------------------------------------------------------------


async def test_somebody_is_there(edge: Edge) -> None:
    answer = await edge.client.get("/")
    assert (answer.status_code, answer.text) == (200, "modeld is running")
    assert (await edge.client.head("/")).status_code == 200
    assert (await edge.client.get("/api/version")).json()["version"] == OLLAMA_LEVEL


async def test_models_are_listed_by_ollamas_names(edge: Edge) -> None:
    (one,) = (await edge.client.get("/api/tags")).json()["models"]
    assert (one["name"], one["model"], one["size"], len(one["digest"])) == ("tiny:latest", "tiny:latest", 0, 64)
    assert one["details"]["quantization_level"] == "Q4_1"
    assert one["modified_at"].endswith("Z")
    shown = (await ask(edge, "/api/show", model="tiny:latest")).json()
    assert shown["details"] == one["details"]
    assert shown["parameters"] == "num_ctx 4096"
    assert (await edge.client.post("/api/show", json={"name": "small"})).json()["capabilities"] == ["completion"]


async def test_what_runs(edge: Edge) -> None:
    edge.driver.seen = snapshot("loading", "ready")
    (one,) = (await edge.client.get("/api/ps")).json()["models"]
    assert (one["model"], one["size"], one["size_vram"], one["context_length"]) == ("tiny:latest", 120 << 20, 0, 4096)
