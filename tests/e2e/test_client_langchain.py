# SPDX-License-Identifier: GPL-3.0-only
"""The package langchain-openai against the real daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from e2e.daemon import Daemon, link_models, running
from tinymodels import make_embedder

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, starter: Path, tool_model: Path) -> Iterator[Daemon]:
    """The models a, tools and embedder."""
    home = tmp_path_factory.mktemp("home")
    models = link_models(home / "models", starter, "a.gguf")
    link_models(models, tool_model, "tools.gguf")
    make_embedder(models / "embedder.gguf")
    with running(home, models, "--llama-threads", "1") as one:
        yield one


def chat(daemon: Daemon, model: str = "a", **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=f"http://127.0.0.1:{daemon.port}/v1",
        api_key="none",  # type: ignore[arg-type]
        temperature=0,
        max_retries=0,
        **({"max_tokens": 8} | more),
    )


def test_an_answer_with_its_usage(served: Daemon) -> None:
    answer = chat(served).invoke("Say hello.")
    assert isinstance(answer.content, str)
    assert answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["model_name"] == "a.gguf"


def test_a_stream_is_the_answer_in_pieces(served: Daemon) -> None:
    pieces = [str(piece.content) for piece in chat(served).stream("Say hello.")]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == chat(served).invoke("Say hello.").content


async def test_several_at_once(served: Daemon) -> None:
    answers = await chat(served).abatch(["Say hello.", "Say hello."])
    assert answers[0].content == answers[1].content != ""


def test_a_tool_is_called(served: Daemon) -> None:
    bound = chat(served, "tools", max_tokens=64).bind_tools([WEATHER], tool_choice="required")
    [call] = bound.invoke("Weather in Rome?").tool_calls  # type: ignore[union-attr]
    assert call["name"] == "weather"
    assert call["args"]["city"] in ("Paris", "Rome")


def test_an_answer_that_keeps_a_schema(served: Daemon) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    told = json.loads(str(chat(served, max_tokens=24).bind(response_format=wanted).invoke("Is water wet?").content))
    assert list(told) == ["yes"]
    assert isinstance(told["yes"], bool)


def test_texts_become_vectors(served: Daemon) -> None:
    embeddings = OpenAIEmbeddings(
        model="embedder",
        base_url=f"http://127.0.0.1:{served.port}/v1",
        api_key="none",  # type: ignore[arg-type]
        check_embedding_ctx_length=False,  # else it counts tokens with OpenAI's own vocabulary, which it would download
    )
    one, two = embeddings.embed_documents(["a", "b c"])
    assert len(one) == len(two) > 0
    assert one == pytest.approx(embeddings.embed_query("a"), abs=1e-5)


def test_a_wrong_name_is_told(served: Daemon) -> None:
    with pytest.raises(openai.NotFoundError, match="tools"):
        chat(served, "toolz").invoke("Hi")
