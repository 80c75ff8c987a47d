# SPDX-License-Identifier: GPL-3.0-only
"""Every route of /openapi.json is tried with what the document allows and forbids: answers are as it says, bad input gives 4xx.

Half of the requests are as generated. The other half names a model that is there, and its text is sound, so that the engine answers too.
Tokens are few in all of them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from e2e.daemon import PATIENCE_SECONDS, Daemon

EXAMPLES = {GenerationMode.POSITIVE: 8, GenerationMode.NEGATIVE: 4}
"""Of what is sound more: half of it is as generated."""
MODEL = "a"
LIMITS = {"max_tokens": 2, "n_predict": 2, "max_output_tokens": 2, "max_completion_tokens": 2}
ENDLESS = {"operations": [{"include-path": "/events", "max-stream-events": 1}]}
"""The feed greets and then waits for what happens: with its first event all is seen."""
CHECKS = [checks.content_type_conformance, checks.response_schema_conformance, checks.negative_data_rejection]

TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
RANKED: dict[str, Any] = {"query": "Hi", "documents": ["Hello", "Bye"]}
SOUND: dict[str, dict[str, Any]] = {
    "/infer": {"prompt": "Hi"},
    "/v1/chat/completions": TALK,
    "/v1/chat/completions/input_tokens": TALK,
    "/chat/completions": TALK,
    "/apply-template": TALK,
    "/v1/messages": TALK,
    "/v1/messages/count_tokens": TALK,
    "/v1/completions": {"prompt": "Hi"},
    "/completion": {"prompt": "Hi"},
    "/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/responses/input_tokens": {"input": "Hi"},
    "/v1/embeddings": {"input": "Hi"},
    "/embeddings": {"input": "Hi"},
    "/embedding": {"content": "Hi"},
    "/v1/rerank": RANKED,
    "/v1/reranking": RANKED,
    "/rerank": RANKED,
    "/reranking": RANKED,
    "/tokenize": {"content": "Hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/infill": {"input_prefix": "def f(", "input_suffix": "return 1"},
}
"""What a route needs besides the model's name."""
UNABLE = {"/infill"}
"""What the starter cannot do: 501, said by its server."""
UNFIT = {"/v1/embeddings", "/embeddings", "/embedding", "/v1/rerank", "/v1/reranking", "/rerank", "/reranking"}
"""What it was not made for: 400, said before it is loaded."""
BROKEN: tuple[Any, ...] = (
    None, 1, -1.5, True, "", "\x00", [], {}, [1], [None], [[]], [{}], {"role": "user"}, [{"role": 1}], [{"role": "user", "content": 1}],
    [{"role": "user", "content": [{"type": "image_url"}]}], [{"role": "user", "content": [{}]}], [{"role": "assistant", "tool_calls": 1}],
)  # fmt: skip
"""Instead of a route's text."""


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as one:
        yield one


@pytest.fixture(scope="module")
def operations(served: Daemon) -> list[APIOperation]:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{served.port}/openapi.json", config=SchemathesisConfig.from_dict(ENDLESS))
    return [found.ok() for found in schema.get_all_operations()]


def make_sound(case: Case) -> None:
    """Name the model and give the route its text, and time."""
    case.headers.pop("X-Modeld-Timeout", None)
    for name in ("model", "id"):
        if name in case.path_parameters:
            case.path_parameters[name] = MODEL
    if "rest" in case.path_parameters:
        case.path_parameters["rest"] = "health" if case.method == "GET" else "tokenize"
    if case.path == "/props":
        case.query["model"] = MODEL
    if isinstance(case.body, dict) and case.path in SOUND:
        case.body.update({"model": MODEL, **SOUND[case.path]})


def bound(case: Case) -> None:
    """Whatever else it says, it must not generate for long."""
    if isinstance(case.body, dict) and case.method == "POST":
        told = {name: value for name, value in LIMITS.items() if name in case.body or name == "max_tokens"}
        case.body.update({"max_tokens": 2} if case.path == "/infer" else told | LIMITS)


def is_declared(status: int, declared: dict[str, Any]) -> bool:
    """No 5xx but those of the document. Nothing is out of order here: a model server never fails (502) and nobody waits (504)."""
    return status < 500 or (str(status) in declared and status in (501, 503))


def try_out(operation: APIOperation, mode: GenerationMode, session: requests.Session) -> tuple[list[int], list[str]]:
    """The statuses that came, and what was wrong with answers."""
    came: list[int] = []
    wrong: list[str] = []
    numbers = itertools.count()

    @seed(20)
    @settings(max_examples=EXAMPLES[mode], deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Case) -> None:
        bound(case)
        if mode is GenerationMode.POSITIVE and next(numbers) % 2:
            make_sound(case)
        response = case.call(session=session, timeout=PATIENCE_SECONDS)
        came.append(response.status_code)
        shown = f"{case.path_parameters} {case.query} {case.body!r} -> {response.status_code} {response.text[:300]}"
        if not is_declared(response.status_code, operation.definition.raw["responses"]):
            wrong.append(f"5xx: {shown}")
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as failures:
            wrong.extend(f"{type(one).__name__} {str(one)[:300]}: {shown}" for one in failures.exceptions)

    try:
        run()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there are routes that nothing can be wrong with
    return came, wrong


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_as_the_document_says(operations: list[APIOperation], session: requests.Session, mode: GenerationMode):
    came: dict[str, list[int]] = {}
    wrong: dict[str, list[str]] = {}
    for operation in operations:
        came[operation.label], found = try_out(operation, mode, session)
        if found:
            wrong[operation.label] = found
    assert wrong == {}, "\n\n".join(f"{label}\n  " + "\n  ".join(found[:5]) for label, found in wrong.items())
    if mode is GenerationMode.POSITIVE:
        assert [label for label, statuses in came.items() if not statuses] == []
        tried = {f"POST {path}": 501 if path in UNABLE else 400 if path in UNFIT else 200 for path in SOUND}
        assert {label: status for label, status in tried.items() if status not in came[label]} == {}


@pytest.mark.parametrize("path", SOUND)
def test_a_broken_text_is_a_bad_request(served: Daemon, session: requests.Session, path: str):
    came = defaultdict(list)
    for name, value in itertools.product(SOUND[path], BROKEN):
        body = {"model": MODEL, **({"max_tokens": 1} if path == "/infer" else LIMITS), **SOUND[path], name: value}
        answer = session.post(f"http://127.0.0.1:{served.port}{path}", json=body, timeout=PATIENCE_SECONDS)
        came[answer.status_code].append((name, value, answer.text[:200]))
    assert [one for status, some in came.items() if status >= 500 and status != 501 for one in some] == []
    assert 400 in came or path in UNABLE
