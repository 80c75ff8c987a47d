# SPDX-License-Identifier: GPL-3.0-only
"""/models, /status and /infer over a real socket."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from api.edge import SPEC, SSE_END, SSE_HEAD, Edge, answers, chunk, http, snapshot, sse, staged
from modeld.core.estimate import Need, Part
from modeld.core.footprint import Footprint, Source
from modeld.core.model import ANONYMOUS, LOCAL, Priority, RequestId
from modeld.core.snapshot import DeviceView, Explanation, LineView, WaitView
from modeld.errors import Died

TOKEN = b'data: {"index":0,"content":" the","tokens":[260],"stop":false,"id_slot":-1,"tokens_predicted":1,"tokens_evaluated":4}\n\n'
LAST = (
    b'data: {"content":"","stop":true,"model":"tiny.gguf","tokens_predicted":1,"tokens_evaluated":4,"truncated":false,'
    b'"stop_type":"limit","stopping_word":""}\n\n'
)
DONE = {
    "done": True,
    "content": " the",
    "finish_reason": "length",
    "usage": {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5},
}


async def test_infer_streams_tokens_and_one_last_line(edge: Edge) -> None:
    edge.upstream.script = answers(sse(TOKEN, LAST))
    answer = await edge.infer(max_tokens=1, stop="x", temperature=0, ignore_eos=True)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in answer.text.splitlines()] == [{"token": " the"}, DONE]
    head, body = edge.upstream.asked[0]
    assert head.startswith(b"POST /completion HTTP/1.1\r\n")
    sent = json.loads(body)
    assert sent.pop("response_fields")
    assert sent == {
        "model": "tiny.gguf",
        "prompt": "Once",
        "stream": True,
        "cache_prompt": True,
        "n_predict": 1,
        "stop": ["x"],
        "temperature": 0,
        "ignore_eos": True,
    }
    assert await edge.driver.ended() == "released"
    assert edge.driver.leases[0].tokens == 1
    assert edge.driver.requests[0].body_bytes == len(body)
    assert 'modeld_tokens_total{kind="prompt"} 4.0' in edge.page()


async def test_a_token_is_on_the_wire_before_the_next_is_made(edge: Edge) -> None:
    seen = asyncio.Event()
    edge.upstream.script = staged(SSE_HEAD + chunk(TOKEN), seen, chunk(LAST) + SSE_END)
    async with edge.client.stream("POST", "/infer", json={"model": "tiny", "prompt": "x"}) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == '{"token":" the"}'
        seen.set()
        assert json.loads(await anext(lines)) == DONE


async def test_infer_without_stream_gives_the_last_line_only(edge: Edge) -> None:
    edge.upstream.script = answers(sse(TOKEN, LAST))
    answer = await edge.infer(stream=False)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == DONE
    assert json.loads(edge.upstream.asked[0][1])["stream"] is True


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("raw", "status", "kind", "text"),
    [
        (
            http(b'{"error":{"code":400,"message":"request (18001 tokens) exceeds the available context size"}}', "400 Bad Request"),
            400,
            "bad_request",
            "request (18001 tokens) exceeds the available context size",
        ),
        (http(b'{"error":{"message":"cannot open /srv/x.gguf"}}', "400 Bad Request"), 400, "bad_request", "refused the request"),
        (http(b'{"error":{"message":"slot broke"}}', "500 Oops"), 502, "bad_upstream_reply", "slot broke"),
        (http(b"<html>", "500 Oops"), 502, "bad_upstream_reply", "status 500"),
        (http(b'{"error":{"message":"Loading model"}}', "503 Soon"), 503, "model_unavailable", "Loading model"),
        (http(b"nope", "404 Not Found"), 502, "bad_upstream_reply", "status 404"),
        (sse(b'data: {"error":{"code":500,"message":"no luck"}}\n\n'), 502, "bad_upstream_reply", "no luck"),
        (sse(b'error: {"code":400,"message":"bad grammar"}\n\n'), 400, "bad_request", "bad grammar"),
        (sse(), 502, "bad_upstream_reply", "before it was complete"),
        (SSE_HEAD, 502, "instance_died", "ended"),
        (b"", 502, "instance_died", "ended before it answered"),
        (b"garbage\r\n\r\n", 502, "bad_upstream_reply", "HTTP"),
    ],
)
async def test_what_fails_before_the_first_byte_has_its_status(
    edge: Edge, stream: bool, raw: bytes, status: int, kind: str, text: str
) -> None:
    edge.upstream.script = answers(raw)
    answer = await edge.infer(stream=stream)
    assert (answer.status_code, answer.json()["code"], answer.json()["kind"]) == (status, status, kind)
    assert text in answer.json()["error"]
    assert "/srv" not in answer.text
    assert ("retry-after" in answer.headers) == (status == 503)
    assert await edge.driver.ended() == ("failed" if status == 502 else "released")


@pytest.mark.parametrize(
    ("rest", "kind"),
    [
        (b"", "instance_died"),
        (b"0\r\n\r\n", "bad_upstream_reply"),
        (b"zz\r\n", "bad_upstream_reply"),
        (chunk(b'data: {"error":{"code":500,"message":"x"}}\n\n') + b"0\r\n\r\n", "bad_upstream_reply"),
        (chunk(b"data: nonsense\n\n"), "bad_upstream_reply"),
    ],
)
async def test_a_failure_after_the_first_byte_is_the_last_line_and_the_message_ends(edge: Edge, rest: bytes, kind: str) -> None:
    seen = asyncio.Event()
    edge.upstream.script = staged(SSE_HEAD + chunk(TOKEN), seen, rest)
    async with edge.client.stream("POST", "/infer", json={"model": "tiny", "prompt": "x"}) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert json.loads(await anext(lines)) == {"token": " the"}
        seen.set()
        [last] = [json.loads(line) async for line in lines]
    assert (last["done"], last["code"], last["kind"]) == (True, 502, kind)
    assert await edge.driver.ended() == "failed"


async def test_without_stream_a_late_failure_still_has_its_status(edge: Edge) -> None:
    edge.upstream.script = answers(SSE_HEAD + chunk(TOKEN))
    answer = await edge.infer(stream=False)
    assert (answer.status_code, answer.json()["kind"]) == (502, Died.kind)


async def test_models(edge: Edge) -> None:
    assert (await edge.client.get("/models")).json() == {
        "models": [
            {
                "id": "tiny.gguf",
                "name": "Tiny",
                "path": "/models/tiny.gguf",
                "quant": "Q4_1",
                "family": "llama",
                "aliases": ["small"],
                "footprint_mb": 77,
            },
            {
                "id": "torn.gguf",
                "name": "torn",
                "path": "/models/torn.gguf",
                "quant": "",
                "family": "",
                "unavailable": "the file is cut short",
            },
        ]
    }
    edge.driver.seen = snapshot("ready")
    assert (await edge.client.get("/models")).json()["models"][0]["footprint_mb"] == 120


@pytest.mark.parametrize(
    ("states", "other", "state"),
    [
        ((), {}, "idle"),
        (("failed", "stopping"), {}, "idle"),
        (("loading", "draining"), {}, "loading"),
        (("loading", "ready"), {}, "ready"),
        (("ready",), {"shutting_down": True}, "draining"),
    ],
)
async def test_the_state_of_the_daemon(edge: Edge, states: tuple[str, ...], other: dict[str, object], state: str) -> None:
    edge.driver.seen = snapshot(*states, **other)
    status = (await edge.client.get("/status")).json()
    assert status["state"] == state
    assert [one["state"] for one in status["instances"]] == list(states)
    assert status["warmups_in_progress"] == states.count("loading")
    assert status["draining_count"] == states.count("draining")


async def test_status_has_every_field(edge: Edge) -> None:
    edge.driver.seen = snapshot("ready", error="no engine", last_error="gone")
    status = (await edge.client.get("/status")).json()
    [instance] = status.pop("instances")
    assert instance.pop("last_used_unix") <= status["server_time_unix"]
    assert instance == {
        "model_id": "tiny.gguf",
        "state": "ready",
        "est_vram_mb": 120,
        "queue_len": 3,
        "inflight": 1,
        "max_queue_depth": 32,
        "pid": 40,
        "closed_for": "",
        "devices_mb": {"local/all": 120},
        "pinned": False,
        "parts": [],
        "source": None,
        "predicted_bytes": None,
        "measured_bytes": None,
        "ctx": None,
        "degraded": [],
    }
    assert status.pop("uptime_seconds") >= 0
    assert status.pop("server_time_unix") > 1_700_000_000
    assert "this machine" in status.pop("exposure")
    assert status == {
        "budget_mb": 1000,
        "used_est_mb": 120,
        "margin_mb": 10,
        "evictions_total": 2,
        "loads_total": 7,
        "state": "ready",
        "warmups_in_progress": 0,
        "draining_count": 0,
        "error": "no engine",
        "last_error": "gone",
        "queues": [
            {
                "model_id": "tiny.gguf",
                "length": 3,
                "oldest_wait_seconds": 1.5,
                "by_class": {"normal": 2, "batch": 1},
                "due_in_seconds": 8.5,
                "estimate_seconds": 12.25,
            }
        ],
        "exits": [],
        "devices": [
            {
                "id": "local/all",
                "budget_mb": 1000,
                "used_mb": 120,
                "total_mb": 0,
                "room_mb": None,
                "free_mb": None,
                "reserved_mb": 0,
                "committed_mb": 0,
                "releasing_mb": 0,
                "foreign_mb": 0,
            }
        ],
        "out_of_memory_total": 0,
        "grown_total": 0,
        "fairness_closings_total": 4,
        "preemptions_total": 5,
        "requeued_total": 6,
        "stuck_total": 8,
    }


async def test_the_status_says_where_the_memory_goes(edge: Edge) -> None:
    parts = (Part("weights", 100 << 20, Source.PROBED), Part("prompt cache", 20 << 20, on_host=True))
    seen = snapshot("ready", "loading")
    first, second = (replace(view, cost=Need(100, Source.LEARNED, parts, host_mb=20), options=SPEC.options) for view in seen.instances)
    first = replace(first, measured=Footprint({"CUDA0": 5}, 6), degraded=("llama_ctx 8192 -> 4096",))
    device = DeviceView(LOCAL, 1000, 120, 20, 850, 1200, 150, 60, 40)
    edge.driver.seen = replace(seen, instances=(first, second), devices=(device,), out_of_memory_total=3, grown_total=4)
    status = (await edge.client.get("/status")).json()
    one, other = status["instances"]
    assert one["parts"] == [
        {"name": "weights", "bytes": 100 << 20, "source": "probed", "on_host": False},
        {"name": "prompt cache", "bytes": 20 << 20, "source": "formula", "on_host": True},
    ]
    told = ("source", "predicted_bytes", "measured_bytes", "ctx", "degraded")
    assert [one[key] for key in told] == ["learned", 120 << 20, 11, 4096, ["llama_ctx 8192 -> 4096"]]
    assert [other[key] for key in told] == ["learned", 120 << 20, None, 4096, []]
    assert status["devices"] == [
        {
            "id": "local/all",
            "budget_mb": 1000,
            "used_mb": 120,
            "total_mb": 1200,
            "room_mb": 850,
            "free_mb": 730,
            "reserved_mb": 60,
            "committed_mb": 40,
            "releasing_mb": 20,
            "foreign_mb": 150,
        }
    ]
    assert (status["out_of_memory_total"], status["grown_total"]) == (3, 4)


async def test_errors_are_left_out_of_the_status_where_there_are_none(edge: Edge) -> None:
    assert not {"error", "last_error"} & (await edge.client.get("/status")).json().keys()


async def test_who_has_its_instance_is_not_due(edge: Edge) -> None:
    line = LineView(SPEC.id, 1, 0.25, {Priority.INTERACTIVE: 1}, None, 0.0)
    edge.driver.seen = snapshot("ready", "draining", lines=(line, replace(line, length=0)))
    status = (await edge.client.get("/status")).json()
    assert [one["closed_for"] for one in status["instances"]] == ["", "next1.gguf"]
    [queue] = status["queues"]
    assert (queue["due_in_seconds"], queue["estimate_seconds"], queue["by_class"]) == (None, 0.0, {"interactive": 1})


async def test_the_status_says_why_when_asked(edge: Edge) -> None:
    waits = WaitView(RequestId("mine-7"), SPEC.id, ANONYMOUS, Priority.BATCH, 2, 1.23456, 4.0, "waits for a slot")
    edge.driver.told = Explanation({SPEC.id: "runs; all 4 slots are taken"}, (waits,))
    status = (await edge.client.get("/status?explain=1")).json()
    assert status["why"] == {"tiny.gguf": "runs; all 4 slots are taken"}
    assert status["waiting"] == [
        {
            "request_id": "mine-7",
            "model_id": "tiny.gguf",
            "principal": "anonymous",
            "priority": "batch",
            "position": 2,
            "waited_seconds": 1.235,
            "estimate_seconds": 4.0,
            "why": "waits for a slot",
        }
    ]
    plain = (await edge.client.get("/status")).json()
    assert status.keys() - plain.keys() == {"why", "waiting"}


@pytest.mark.parametrize(
    ("query", "status", "explained"),
    [
        ("", 200, False),
        ("?", 200, False),
        ("?x=1", 200, False),
        ("?explain=0", 200, False),
        ("?x=%31&explain=%31", 200, True),
        ("?explain=2", 400, False),
        ("?explain=", 400, False),
        ("?explain", 400, False),
        ("?explain=yes", 400, False),
    ],
)
async def test_what_may_be_asked_of_the_status(edge: Edge, query: str, status: int, explained: bool) -> None:
    answer = await edge.client.get(f"/status{query}")
    assert answer.status_code == status
    assert ("why" in answer.json()) == explained
    assert status == 200 or "explain=1" in answer.json()["error"]
