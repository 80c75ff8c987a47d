# SPDX-License-Identifier: GPL-3.0-only
"""What is relayed as it is: every dialect's streams and errors, uploads, and requests that wait long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.edge import JSON, SSE_END, SSE_HEAD, Edge, answers, chunk, hangs_after, http, post, running, sse, staged
from modeld.api.server import EdgeOptions
from modeld.errors import Died

TOKEN = b'data: {"content":"a","stop":false}\n\n'
ENDS = {
    "/v1/chat/completions": b"data: [DONE]\n\n",
    "/completion": b'data: {"content":"","stop":true,"tokens_predicted":2,"tokens_evaluated":9}\n\n',
    "/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "/v1/responses": b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n',
}
BODY = b'{"model":"tiny","stream":true,"x":1}'
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


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[Edge]:
    """An edge whose streams beat each 30 ms."""
    async with running(tmp_path, EdgeOptions(heartbeat_seconds=0.03)) as edge:
        yield edge


@pytest.mark.parametrize("path", RELAYED)
async def test_each_route_asks_its_own_path_with_the_body_as_it_came(edge: Edge, path: str) -> None:
    edge.upstream.script = answers(http(b'{"ok":1}'))
    answer = await edge.client.post(path, content=BODY, headers=JSON)
    assert (answer.status_code, answer.json()) == (200, {"ok": 1})
    head, body = edge.upstream.asked[0]
    assert head.startswith(f"POST {path} HTTP/1.1\r\n".encode())
    assert body == BODY


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/rerank", "/v1/rerank"), ("/v1/reranking", "/v1/rerank"), ("/completions", "/completion"), ("/embeddings", "/v1/embeddings")],
)
async def test_an_alias_asks_the_path_it_stands_for(edge: Edge, path: str, asked: str) -> None:
    edge.upstream.script = answers(http(b"{}"))
    await edge.client.post(path, content=BODY, headers=JSON)
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
        ("/v1/chat/completions", {"error": {"code": 400, "message": "bad grammar", "source": "model"}}),
        ("/completion", {"error": {"code": 400, "message": "bad grammar", "source": "model"}}),
        (
            "/v1/messages",
            {
                "type": "error",
                "error": {"type": "invalid_request_error", "message": "bad grammar", "code": "bad_request", "source": "model"},
            },
        ),
    ],
)
async def test_an_error_of_the_model_server_says_so(edge: Edge, path: str, shape: object) -> None:
    edge.upstream.script = answers(http(b'{"error":{"code":400,"message":"bad grammar"}}', "400 Bad Request"))
    answer = await edge.client.post(path, content=BODY, headers=JSON)
    assert (answer.status_code, answer.json()) == (400, shape)


async def test_what_the_model_server_does_not_support_is_a_501(edge: Edge) -> None:
    edge.upstream.script = answers(http(b'{"error":{"code":501,"message":"no embeddings"}}', "501 Not Implemented"))
    answer = await edge.client.post("/v1/embeddings", content=BODY, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["source"]) == (501, "model")


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


async def test_a_body_needs_its_content_type_also_where_it_is_optional(edge: Edge) -> None:
    assert (await edge.client.post("/upstream/tiny/x", content=b"a=b", headers={"content-type": "text/plain"})).status_code == 415
    assert (await edge.client.post("/upstream/tiny/x", content=b"{}")).status_code == 415
    assert (await edge.client.post("/v1/embeddings", content=b"")).status_code == 415
    assert edge.upstream.asked == []


async def test_a_recording_is_handed_on_as_it_came(edge: Edge) -> None:
    edge.upstream.script = answers(http(b'{"text":"hello"}'))
    answer = await edge.client.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"\x00\r\nRIFF")}, data={"model": "tiny"})
    assert answer.json() == {"text": "hello"}
    head, body = edge.upstream.asked[0]
    assert b"content-type: multipart/form-data; boundary=" in head
    assert b"\x00\r\nRIFF" in body
    assert (await edge.client.post("/v1/audio/transcriptions", json={"model": "tiny"})).status_code == 415


# --- long waits -------------------------------------------------------------------------------------------------------


async def test_who_waits_for_a_stream_gets_the_head_and_comments(patient: Edge) -> None:
    seen = asyncio.Event()
    patient.upstream.script = staged(b"", seen, sse(TOKEN, ENDS["/v1/chat/completions"]))
    async with patient.client.stream("POST", "/v1/chat/completions", content=BODY, headers=JSON) as answer:
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
