# SPDX-License-Identifier: GPL-3.0-only
"""What is relayed as it is: every dialect's streams and errors, uploads, and requests that wait long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from api.edge import JSON, SPEC, SSE_END, SSE_HEAD, Edge, answers, chunk, hangs_after, http, post, running, sse, staged
from modeld.api.server import EdgeOptions
from modeld.catalog.models import ModelTable
from modeld.core.model import ModelId, ModelKind
from modeld.errors import Died

TOKEN = b'data: {"content":"a","stop":false}\n\n'
ENDS = {
    "/v1/chat/completions": b"data: [DONE]\n\n",
    "/completion": b'data: {"content":"","stop":true,"tokens_predicted":2,"tokens_evaluated":9}\n\n',
    "/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "/v1/responses": b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n',
}
BODY = b'{"model":"tiny","stream":true,"x":1,"messages":[{}]}'
OWN = {"message": "bad grammar", "n_ctx": 9, "type": "invalid_request_error", "source": "model"}
RELAYED = (
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/chat/completions/input_tokens",
    "/v1/messages/count_tokens",
    "/v1/responses/input_tokens",
    "/infill",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/embedding",
)


def body_for(path: str) -> bytes:
    kind = "embed" if "embed" in path else "rank" if "rank" in path else "tiny"
    return BODY.replace(b"tiny", kind.encode())


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    """One model of each kind."""
    kinds = {
        "tiny": SPEC,
        "embed": replace(SPEC, kind=ModelKind.EMBED, logits=False),
        "rank": replace(SPEC, kind=ModelKind.RERANK, logits=False),
        "ear": replace(SPEC, modalities=("text", "audio")),
    }
    table = ModelTable({ModelId(f"{name}.gguf"): replace(spec, id=ModelId(f"{name}.gguf"), aliases=()) for name, spec in kinds.items()})
    async with running(tmp_path, table=lambda: table) as one:
        yield one


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[Edge]:
    """An edge whose streams beat each 30 ms."""
    async with running(tmp_path, EdgeOptions(heartbeat_seconds=0.03)) as edge:
        yield edge


@pytest.mark.parametrize("path", RELAYED)
async def test_each_route_asks_its_own_path_with_the_body_as_it_came(edge: Edge, path: str) -> None:
    edge.upstream.script = answers(http(b'{"ok":1}'))
    answer = await edge.client.post(path, content=body_for(path), headers=JSON)
    assert (answer.status_code, answer.json()) == (200, {"ok": 1})
    head, body = edge.upstream.asked[0]
    assert head.startswith(f"POST {path} HTTP/1.1\r\n".encode())
    assert body == body_for(path)


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/rerank", "/v1/rerank"), ("/v1/reranking", "/v1/rerank"), ("/completions", "/completion"), ("/embeddings", "/v1/embeddings")],
)
async def test_an_alias_asks_the_path_it_stands_for(edge: Edge, path: str, asked: str) -> None:
    edge.upstream.script = answers(http(b"{}"))
    await edge.client.post(path, content=body_for(path), headers=JSON)
    assert edge.upstream.asked[0][0].startswith(f"POST {asked} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize("path", list(ENDS))
async def test_a_stream_is_complete_with_its_dialects_last_event(edge: Edge, path: str) -> None:
    edge.upstream.script = answers(sse(TOKEN, ENDS[path]))
    assert (await edge.client.post(path, content=BODY, headers=JSON)).content == TOKEN + ENDS[path]
    edge.upstream.script = answers(sse(TOKEN))
    broken = (await edge.client.post(path, content=BODY, headers=JSON)).content
    assert broken.startswith(TOKEN)
    last = broken.removeprefix(TOKEN)
    assert last.startswith(b"event: error\ndata: " if path in ("/v1/messages", "/v1/responses") else b"data: ")
    told = json.loads(last.partition(b"data: ")[2])["error"]
    assert (told["source"], "complete" in told["message"]) == ("model", True)


async def test_text_that_looks_like_the_end_is_not_the_end(edge: Edge) -> None:
    sly = b'data: {"content":"\\"stop\\":true","stop":false}\n\n'
    edge.upstream.script = answers(sse(sly))
    assert (await edge.client.post("/completion", content=BODY, headers=JSON)).content != sly


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", OWN | {"code": "bad_request", "param": None}),
        ("/v1/responses", OWN | {"code": "bad_request", "param": None}),
        ("/completion", OWN | {"code": 400, "kind": "bad_request"}),
        (
            "/v1/messages",
            {"type": "invalid_request_error", "message": "bad grammar", "code": "bad_request", "source": "model"},
        ),
    ],
)
async def test_an_error_of_the_model_server_says_so(edge: Edge, path: str, shape: object) -> None:
    edge.upstream.script = answers(http(b'{"error":{"code":400,"message":"bad grammar","n_ctx":9}}', "400 Bad Request"))
    answer = await edge.client.post(path, content=BODY, headers=JSON)
    assert (answer.status_code, answer.json()["error"]) == (400, shape)


async def test_an_error_without_members_is_worded_here(edge: Edge) -> None:
    edge.upstream.script = answers(http(b'{"error":"bad grammar"}', "400 Bad Request"))
    answer = await edge.client.post("/v1/completions", content=BODY, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"] == {key: value for key, value in OWN.items() if key != "n_ctx"} | {"code": "bad_request", "param": None}


@pytest.mark.parametrize("messages", [b"", b',"messages":null', b',"messages":"Hello"', b',"messages":["Hello"]'])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_anthropics_messages_are_there(edge: Edge, path: str, messages: bytes) -> None:
    answer = await edge.client.post(path, content=b'{"model":"tiny"' + messages + b"}", headers=JSON)
    assert answer.status_code == 400
    assert "messages" in answer.json()["error"]["message"]
    assert edge.upstream.asked == []


async def test_anthropics_clients_find_the_id_of_a_request(edge: Edge) -> None:
    edge.upstream.script = answers(http(b"{}"))
    answer = await edge.client.post("/v1/messages", content=BODY, headers=JSON | {"X-Request-Id": "mine-7"})
    assert (answer.headers["request-id"], answer.headers["x-request-id"]) == ("mine-7", "mine-7")
    edge.upstream.script = answers(http(b"{}"))
    assert "request-id" not in (await edge.client.post("/v1/completions", content=BODY, headers=JSON)).headers


async def test_what_the_model_server_does_not_support_is_a_501(edge: Edge) -> None:
    edge.upstream.script = answers(http(b'{"error":{"code":501,"message":"no embeddings"}}', "501 Not Implemented"))
    answer = await edge.client.post("/infill", content=BODY, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["source"]) == (501, "model")


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/embeddings", "tiny"),
        ("/embedding", "rank"),
        ("/v1/rerank", "tiny"),
        ("/rerank", "embed"),
        ("/v1/chat/completions", "embed"),
        ("/v1/messages", "rank"),
        ("/infer", "embed"),
    ],
)
async def test_what_a_model_is_not_for_is_said_before_it_is_loaded(edge: Edge, path: str, model: str) -> None:
    answer = await edge.client.post(path, json={"model": model, "prompt": "a", "messages": [{"role": "user", "content": "a"}]})
    assert (answer.status_code, edge.driver.requests) == (400, [])
    assert f"{model}.gguf" in answer.text


@pytest.mark.parametrize(
    "said",
    [
        "input (9 tokens) is too large to process. increase the physical batch size",
        "image input is not supported - hint: you may need to provide the mmproj",
        "Failed to parse messages: Missing tool call type: 1",
    ],
)
async def test_what_the_model_server_takes_for_its_own_fault_is_the_clients(edge: Edge, said: str) -> None:
    raw = json.dumps({"error": {"code": 500, "message": said}}).encode()
    edge.upstream.script = answers(http(raw, "500 Internal Server Error"))
    answer = await edge.client.post("/v1/embeddings", content=body_for("/v1/embeddings"), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["source"]) == (400, "model")
    assert said[:20] in answer.text


async def test_numbers_out_of_range_reach_nobody(edge: Edge) -> None:
    for path in ("/completion", "/v1/messages", "/v1/embeddings"):
        answer = await edge.client.post(path, content=b'{"model":"tiny","n_discard":-1}', headers=JSON)
        assert answer.status_code == 400
        assert "n_discard" in answer.text
    assert edge.upstream.asked == []


async def test_props_names_its_model_in_the_query(edge: Edge) -> None:
    edge.upstream.script = answers(http(b'{"n_ctx":1}'))
    assert (await edge.client.get("/props?model=tiny")).json() == {"n_ctx": 1}
    assert edge.upstream.asked[0][0].startswith(b"GET /props HTTP/1.1\r\n")
    assert (await edge.client.get("/props?model=nobody")).status_code == 404


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_upstream_takes_any_path_and_method(edge: Edge, method: str) -> None:
    edge.upstream.script = answers(http(b"[]"))
    answer = await edge.client.request(method, "/upstream/tiny/slots/0%20?action=erase&x=1")
    assert (answer.status_code, answer.content) == (200, b"[]")
    assert edge.upstream.asked[0][0].startswith(f"{method} /slots/0%20?action=erase&x=1 HTTP/1.1\r\n".encode())


@pytest.mark.parametrize("rest", ["..", "../x", "a/%2e%2e/x", "a/..%2Fx"])
async def test_upstream_does_not_lead_upwards(edge: Edge, rest: str) -> None:
    reader, writer = await edge.raw(f"GET /upstream/tiny/{rest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert b" 400 " in await reader.readline()
    assert edge.upstream.asked == []
    writer.close()


@pytest.mark.parametrize(
    ("path", "status"), [("/props?model=tiny", 403), ("/upstream/tiny/slots", 403), ("/v1/models", 403), ("/status", 200)]
)
async def test_a_page_of_another_site_loads_nothing(edge: Edge, path: str, status: int) -> None:
    assert (await edge.client.get(path, headers={"sec-fetch-site": "cross-site"})).status_code == status
    assert edge.upstream.asked == []


async def test_a_body_needs_its_content_type_also_where_it_is_optional(edge: Edge) -> None:
    assert (await edge.client.post("/upstream/tiny/x", content=b"a=b", headers={"content-type": "text/plain"})).status_code == 415
    assert (await edge.client.post("/upstream/tiny/x", content=b"{}")).status_code == 415
    assert (await edge.client.post("/v1/embeddings", content=b"")).status_code == 415
    assert edge.upstream.asked == []


async def test_a_recording_is_handed_on_as_it_came(edge: Edge) -> None:
    edge.upstream.script = answers(http(b'{"text":"hello"}'))
    answer = await edge.client.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"\x00\r\nRIFF")}, data={"model": "ear"})
    assert answer.json() == {"text": "hello"}
    head, body = edge.upstream.asked[0]
    assert b"content-type: multipart/form-data; boundary=" in head
    assert b"\x00\r\nRIFF" in body
    assert (await edge.client.post("/v1/audio/transcriptions", json={"model": "ear"})).status_code == 415
    deaf = await edge.client.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"RIFF")}, data={"model": "tiny"})
    assert (deaf.status_code, "mmproj" in deaf.text) == (400, True)


# --- long waits -------------------------------------------------------------------------------------------------------


async def test_who_waits_for_a_stream_gets_the_head_and_comments(patient: Edge) -> None:
    seen = asyncio.Event()
    patient.driver.given_up = [("llama_ctx 8192 -> 4096",)]
    patient.upstream.script = staged(b"", seen, sse(TOKEN, ENDS["/v1/chat/completions"]))
    async with patient.client.stream("POST", "/v1/chat/completions", content=BODY, headers=JSON) as answer:
        assert answer.headers["x-modeld-degraded"] == "llama_ctx 8192 -> 4096"
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-accel-buffering"] == "no"
        pieces = answer.aiter_raw()
        assert (await anext(pieces)).startswith(b": ")
        assert (await anext(pieces)).endswith(b"\n\n")
        seen.set()
        rest = b"".join([piece async for piece in pieces])
    assert rest.endswith(TOKEN + ENDS["/v1/chat/completions"])


async def test_a_failure_after_the_first_comment_is_in_band(patient: Edge) -> None:
    seen = asyncio.Event()
    raw = http(b'{"error":{"code":400,"message":"bad grammar"}}', "400 Bad Request")
    patient.upstream.script = staged(b"", seen, raw)
    async with patient.client.stream("POST", "/v1/chat/completions", content=BODY, headers=JSON) as answer:
        assert answer.status_code == 200
        pieces = answer.aiter_raw()
        await anext(pieces)
        seen.set()
        rest = b"".join([piece async for piece in pieces])
    told = json.loads(rest.rpartition(b"data: ")[2])
    assert (told["error"]["message"], told["error"]["source"]) == ("bad grammar", "model")


async def test_a_request_in_line_gets_comments_and_its_refusal_in_band(patient: Edge) -> None:
    patient.driver.hold = True
    patient.driver.given_up = [("llama_ctx 8192 -> 4096",)]
    reader, writer = await patient.raw(post("/v1/messages", BODY))
    await reader.readuntil(b": waiting")
    writer.close()
    assert await patient.driver.ended() == "withdrawn"


async def test_after_comments_another_instance_may_still_be_asked(patient: Edge) -> None:
    patient.driver.again.clear()
    patient.upstream.script = answers(b"")
    async with patient.client.stream("POST", "/v1/chat/completions", content=BODY, headers=JSON) as answer:
        pieces = answer.aiter_raw()
        assert (await anext(pieces)).startswith(b": ")
        patient.upstream.script = answers(sse(TOKEN, ENDS["/v1/chat/completions"]))
        patient.driver.again.set()
        rest = b"".join([piece async for piece in pieces])
    assert rest.endswith(TOKEN + ENDS["/v1/chat/completions"])
    assert isinstance(patient.driver.faults[0], Died)
    assert patient.upstream.asked[1][1] == BODY


@pytest.mark.parametrize(("path", "body"), [("/infer", b'{"model":"tiny","prompt":"a"}'), ("/v1/completions", b'{"model":"tiny"}')])
async def test_what_is_no_event_stream_gets_no_comment(patient: Edge, path: str, body: bytes) -> None:
    patient.upstream.script = hangs_after(b"")
    reader, writer = await patient.raw(post(path, body))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await reader.read(1)
    writer.close()


async def test_between_tokens_nothing_is_sent(patient: Edge) -> None:
    seen = asyncio.Event()
    patient.upstream.script = staged(SSE_HEAD + chunk(TOKEN), seen, chunk(ENDS["/v1/chat/completions"]) + SSE_END)
    reader, writer = await patient.raw(post("/v1/chat/completions", BODY))
    await reader.readuntil(TOKEN)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await reader.readuntil(b": ")
    seen.set()
    writer.close()
