# SPDX-License-Identifier: GPL-3.0-only
"""The `langchain-openai` package against the real daemon: ChatOpenAI and OpenAIEmbeddings with a base URL, as its users set them up."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from e2e.daemon import PATIENCE_SECONDS, Daemon
from e2e.toolmodel import WEATHER, is_weather

ASK = "What is the weather in Paris?"
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "get_weather", "description": "Tells it.", "parameters": WEATHER}}


def chat(served: Daemon, model: str = "a", tokens: int = 12) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=f"http://127.0.0.1:{served.port}/v1",
        api_key=SecretStr("any"),
        temperature=0,
        seed=1,
        max_completion_tokens=tokens,
        max_retries=0,
        timeout=PATIENCE_SECONDS,
    )


def test_an_answer_with_its_usage_and_the_reason_of_its_end(served: Daemon):
    made = chat(served).invoke([SystemMessage("You are brief."), HumanMessage(ASK)])
    assert made.text
    assert made.usage_metadata is not None
    assert made.usage_metadata["output_tokens"] == 12
    assert made.response_metadata["finish_reason"] == "length"
    assert made.response_metadata["model_name"] == "a.gguf"


def test_a_stream_says_the_same_and_counts_at_its_end(served: Daemon):
    model = chat(served)
    pieces = list(model.stream(ASK, stream_usage=True))
    assert len(pieces) > 5
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert isinstance(whole, AIMessageChunk)
    assert whole.text == model.invoke(ASK).text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 12


def test_several_questions_at_once(served: Daemon):
    async def ask() -> list[str]:
        return [one.text for one in await chat(served).abatch([f"Tell me of {word}." for word in ("cats", "dogs", "mice")])]

    answers = asyncio.run(ask())
    assert len(set(answers)) == 3


def test_a_tool_is_called_and_its_result_goes_back(served: Daemon):
    model = chat(served, "tools", 60)
    made = model.bind_tools([TOOL], tool_choice="any").invoke(ASK)
    [call] = made.tool_calls
    assert call["name"] == "get_weather"
    assert is_weather(call["args"])
    talk = [HumanMessage(ASK), made, ToolMessage("24 degrees", tool_call_id=call["id"])]
    assert model.bind_tools([TOOL], tool_choice="none").invoke(talk).text


def test_a_tool_call_in_pieces(served: Daemon):
    pieces = list(chat(served, "tools", 60).bind_tools([TOOL], tool_choice="any").stream(ASK))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert isinstance(whole, AIMessageChunk)
    [call] = whole.tool_calls
    assert is_weather(call["args"])


def test_structured_output(served: Daemon):
    wanted = {"title": "weather", "description": "The weather.", **WEATHER}
    assert is_weather(chat(served, tokens=60).with_structured_output(wanted, method="json_schema").invoke(ASK))


def test_a_wrong_name_gives_near_ones(served: Daemon):
    with pytest.raises(openai.NotFoundError, match=r"did you mean \"tools\.gguf\""):
        chat(served, "toools").invoke(ASK)
