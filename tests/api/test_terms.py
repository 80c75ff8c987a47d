# SPDX-License-Identifier: GPL-3.0-only
"""What the scheduler hears of a request: the two headers, and an estimate that refuses nobody."""

from __future__ import annotations

import math

import pytest

from api.edge import JSON, SPEC, Edge, answers, http, sse
from modeld.api.terms import ANSWER_TOKENS_ASSUMED, BYTES_PER_TOKEN, token_limit
from modeld.core.model import Priority

LAST = b'data: {"content":"a","stop":true,"tokens_predicted":1,"tokens_evaluated":4,"stop_type":"eos"}\n\n'
WHOLE = http(b'{"choices":[]}')
ROUTES = pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/v1/completions"])
CTX = SPEC.options.ctx


async def ask(edge: Edge, path: str, headers: dict[str, str] | None = None, **more: object) -> int:
    edge.upstream.script = answers(sse(LAST) if path == "/infer" else WHOLE)
    body = {"model": "tiny", "prompt": "Once", "messages": []} | more
    return (await edge.client.post(path, json=body, headers=headers)).status_code


@ROUTES
async def test_the_headers_reach_the_scheduler(edge: Edge, path: str) -> None:
    assert await ask(edge, path) == 200
    assert await ask(edge, path, {"X-Modeld-Priority": "Interactive", "x-modeld-timeout": "2.5"}) == 200
    assert await ask(edge, path, {"x-modeld-priority": "BATCH", "X-Modeld-Timeout": ".5"}) == 200
    seen = [(request.priority, request.timeout_seconds) for request in edge.driver.requests]
    assert seen == [(None, math.inf), (Priority.INTERACTIVE, 2.5), (Priority.BATCH, 0.5)]


@ROUTES
@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("X-Modeld-Priority", "urgent", '"urgent"'),
        ("X-Modeld-Priority", "", '""'),
        ("X-Modeld-Priority", "batch,normal", '"batch,normal"'),
        ("X-Modeld-Priority", 'x"y', '"x?y"'),
        ("X-Modeld-Priority", "y" * 500, '"' + "y" * 40 + '…"'),
        ("X-Modeld-Timeout", "0", '"0"'),
        ("X-Modeld-Timeout", "-1", '"-1"'),
        ("X-Modeld-Timeout", "0.0", '"0.0"'),
        ("X-Modeld-Timeout", "inf", '"inf"'),
        ("X-Modeld-Timeout", "nan", '"nan"'),
        ("X-Modeld-Timeout", "1e3", '"1e3"'),
        ("X-Modeld-Timeout", "1_0", '"1_0"'),
        ("X-Modeld-Timeout", "5s", '"5s"'),
        ("X-Modeld-Timeout", "9" * 400, '"' + "9" * 40 + '…"'),
        ("X-Modeld-Timeout", "", '""'),
    ],
)
async def test_a_wrong_header_is_a_400_that_names_it(edge: Edge, path: str, name: str, value: str, shown: str) -> None:
    answer = await edge.client.post(path, json={"model": "tiny", "prompt": "Once"}, headers={name: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    text = error if isinstance(error, str) else error["message"]
    assert text.startswith(f"{name}: {shown} is not ")
    if name == "X-Modeld-Priority":
        assert text.endswith("interactive, normal, batch")
    assert edge.driver.requests == []


@pytest.mark.parametrize(
    ("more", "asked", "answer"),
    [
        ({}, ANSWER_TOKENS_ASSUMED, CTX),
        ({"max_tokens": 7}, 7, 7),
        ({"max_completion_tokens": 8}, 8, 8),
        ({"n_predict": 9}, 9, 9),
        ({"max_tokens": 7, "max_completion_tokens": 8, "n_predict": 6}, 8, 8),
        ({"max_tokens": 7, "stream": True}, 7, 1),
        ({"stream": True}, ANSWER_TOKENS_ASSUMED, 1),
        ({"max_tokens": 0}, 0, 1),
        ({"max_tokens": 10**9}, CTX, CTX),
        ({"max_tokens": -1}, ANSWER_TOKENS_ASSUMED, CTX),
        ({"max_tokens": None, "n_predict": 5.5}, 5, 5),
        ({"max_output_tokens": 5}, 5, 5),
    ],
)
async def test_what_an_openai_body_says_of_its_size(edge: Edge, more: dict[str, object], asked: int, answer: int) -> None:
    assert await ask(edge, "/v1/chat/completions", **more) == 200
    [request] = edge.driver.requests
    assert request.prompt_tokens == -(-len(edge.upstream.asked[0][1]) // BYTES_PER_TOKEN)
    assert request.work == request.prompt_tokens + asked
    assert request.answer_tokens == answer


async def test_infer_always_asks_the_model_server_to_stream(edge: Edge) -> None:
    assert await ask(edge, "/infer", max_tokens=5, stream=False) == 200
    assert await ask(edge, "/infer", prompt="x" * 40_000) == 200
    first, second = edge.driver.requests
    assert (first.work, first.answer_tokens) == (first.prompt_tokens + 5, 1)
    assert second.prompt_tokens == CTX
    assert second.body_bytes > 40_000


@pytest.mark.parametrize("raw", [b'{"model":"tiny","max_tokens" : 5 }', b'{"model":"tiny","max_tokens":6,"max_tokens":5.0}'])
async def test_a_limit_is_read_in_any_spelling_of_json(edge: Edge, raw: bytes) -> None:
    edge.upstream.script = answers(WHOLE)
    assert (await edge.client.post("/v1/completions", content=raw, headers=JSON)).status_code == 200
    assert edge.upstream.asked[0][1] == raw
    assert edge.driver.requests[0].answer_tokens == 5


def test_the_largest_limit_counts() -> None:
    assert token_limit([None, 3.0, 12.5]) == 12
    assert token_limit([None, -1.0, -2.0]) is None
    assert token_limit([0.0, None]) == 0
