# SPDX-License-Identifier: GPL-3.0-only
"""The `openai` package against the real daemon, set up as its users do: a base URL that ends in /v1, and any key."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from e2e.daemon import PATIENCE_SECONDS, Daemon
from e2e.toolmodel import WEATHER, is_weather
from tinymodels import WIDTH

ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": WEATHER}}
]
STEADY: dict[str, Any] = {"temperature": 0, "seed": 1}


@pytest.fixture
def client(served: Daemon) -> Iterator[OpenAI]:
    base = f"http://127.0.0.1:{served.port}/v1"
    with OpenAI(base_url=base, api_key="any", max_retries=0, timeout=PATIENCE_SECONDS) as one:
        yield one


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_are_listed_and_each_can_be_looked_up(client: OpenAI):
    listed = {one.id for one in client.models.list()}
    assert {"a.gguf", "tools.gguf"} <= listed
    for name in ("a.gguf", "a"):
        found = client.models.retrieve(name)
        assert (found.id, found.object) == ("a.gguf", "model")


def test_a_model_that_is_not_there_is_not_found(client: OpenAI):
    with pytest.raises(openai.NotFoundError, match=r"did you mean \"tools\.gguf\"") as caught:
        client.models.retrieve("tool")
    assert caught.value.code == "unknown_model"


# --- chat -------------------------------------------------------------------------------------------------------------


def test_an_answer_and_its_stream_say_the_same(client: OpenAI):
    whole = client.chat.completions.create(model="a", messages=ASK, max_tokens=12, **STEADY)
    assert whole.model == "a.gguf"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "length"
    chunks = list(client.chat.completions.create(model="a", messages=ASK, max_tokens=12, stream=True, **STEADY))
    assert len(chunks) > 5
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_same_seed_gives_the_same_answer_and_another_one_does_not(client: OpenAI):
    def answer(seed: int) -> str | None:
        made = client.chat.completions.create(model="a", messages=ASK, max_tokens=16, temperature=2.0, seed=seed)
        return made.choices[0].message.content

    assert answer(7) == answer(7)
    assert len({answer(seed) for seed in (7, 8, 9)}) > 1


def test_usage_counts_tokens_and_a_stream_tells_it_when_asked(client: OpenAI):
    whole = client.chat.completions.create(model="a", messages=ASK, max_tokens=6, **STEADY).usage
    assert whole is not None
    assert whole.completion_tokens == 6
    assert whole.prompt_tokens > 10
    assert whole.total_tokens == whole.prompt_tokens + 6
    *chunks, last = client.chat.completions.create(
        model="a", messages=ASK, max_tokens=6, stream=True, stream_options={"include_usage": True}, **STEADY
    )
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (whole.prompt_tokens, 6)
    assert all(one.usage is None for one in chunks)


def test_a_stop_word_ends_the_answer(client: OpenAI):
    free = client.chat.completions.create(model="a", messages=ASK, max_tokens=24, **STEADY).choices[0].message.content or ""
    word = free.split()[3]
    cut = client.chat.completions.create(model="a", messages=ASK, max_tokens=24, stop=[word], **STEADY).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == free.partition(word)[0]


def test_log_probabilities_of_the_chosen_and_the_next_best(client: OpenAI):
    choice = client.chat.completions.create(model="a", messages=ASK, max_tokens=3, logprobs=True, top_logprobs=2, **STEADY).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(one.token for one in choice.logprobs.content) == choice.message.content
    for one in choice.logprobs.content:
        best, second = one.top_logprobs
        assert best.token == one.token  # temperature 0
        assert second.logprob <= best.logprob == one.logprob <= 0


def test_several_answers_to_one_question(client: OpenAI):
    choices = client.chat.completions.create(model="a", messages=ASK, max_tokens=12, n=2, temperature=2.0, seed=3).choices
    assert [one.index for one in choices] == [0, 1]
    assert all(one.message.content for one in choices)


def test_a_json_schema_holds(client: OpenAI):
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": WEATHER}}
    for streams in (False, True):
        made: Any = client.chat.completions.create(model="a", messages=ASK, max_tokens=60, response_format=wanted, stream=streams, **STEADY)
        text = "".join(one.choices[0].delta.content or "" for one in made) if streams else made.choices[0].message.content
        assert is_weather(json.loads(text))


def test_any_json_object(client: OpenAI):
    made = client.chat.completions.create(
        model="a", messages=ASK, max_tokens=200, response_format={"type": "json_object"}, extra_body={"top_k": 1}, **STEADY
    )
    assert isinstance(json.loads(made.choices[0].message.content or ""), dict)


def test_many_streams_at_once_each_get_their_own_answer(served: Daemon):
    async def ask(client: AsyncOpenAI, number: int) -> tuple[str, str]:
        text = []
        body: Any = [{"role": "user", "content": f"Tell a story about {number} mice."}]
        stream: Any = await client.chat.completions.create(model="a", messages=body, max_tokens=16, stream=True, **STEADY)
        async for chunk in stream:
            text.append(chunk.choices[0].delta.content or "")
            ident = chunk.id
        return ident, "".join(text)

    async def everybody() -> list[tuple[str, str]]:
        base = f"http://127.0.0.1:{served.port}/v1"
        async with AsyncOpenAI(base_url=base, api_key="any", max_retries=0, timeout=PATIENCE_SECONDS) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(6)))

    answers = asyncio.run(everybody())
    assert len({ident for ident, _ in answers}) == 6
    assert all(text for _, text in answers)


# --- tools ------------------------------------------------------------------------------------------------------------


def test_a_tool_call(client: OpenAI):
    made = client.chat.completions.create(model="tools", messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=60, **STEADY)
    assert made.choices[0].finish_reason == "tool_calls"
    [call] = made.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.id
    assert call.function.name == "get_weather"
    assert is_weather(json.loads(call.function.arguments))


def test_a_tool_call_in_pieces(client: OpenAI):
    chunks = client.chat.completions.create(
        model="tools", messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=60, stream=True, **STEADY
    )
    choices = [one.choices[0] for one in chunks if one.choices]
    pieces = [piece for one in choices for piece in one.delta.tool_calls or []]
    assert len(pieces) > 1
    assert [piece.function.name for piece in pieces if piece.function and piece.function.name] == ["get_weather"]
    assert {piece.index for piece in pieces} == {0}
    assert is_weather(json.loads("".join(piece.function.arguments or "" for piece in pieces if piece.function)))
    assert choices[-1].finish_reason == "tool_calls"


def test_the_result_of_a_tool_goes_back_to_the_model(client: OpenAI):
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "c"}'}}
    talk: list[Any] = [*ASK, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "24 degrees"}]
    made = client.chat.completions.create(model="tools", messages=talk, tools=TOOLS, tool_choice="none", max_tokens=8, **STEADY)
    assert made.choices[0].message.content
    assert not made.choices[0].message.tool_calls
    shorter = client.chat.completions.create(model="tools", messages=ASK, tools=TOOLS, tool_choice="none", max_tokens=8, **STEADY)
    assert made.usage is not None
    assert shorter.usage is not None
    assert made.usage.prompt_tokens > shorter.usage.prompt_tokens + 10


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_text_is_continued(client: OpenAI):
    whole = client.completions.create(model="a", prompt="Once upon a time", max_tokens=8, **STEADY)
    chunks = client.completions.create(model="a", prompt="Once upon a time", max_tokens=8, stream=True, **STEADY)
    assert whole.choices[0].text
    assert "".join(one.choices[0].text for one in chunks) == whole.choices[0].text


def test_several_texts_are_continued_together(client: OpenAI):
    made = client.completions.create(model="a", prompt=["Once upon a time", "The capital of France"], max_tokens=4, **STEADY)
    assert [one.index for one in made.choices] == [0, 1]


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_embeddings_as_numbers_and_as_base64(client: OpenAI):
    made = client.embeddings.create(model="embedder", input=["a", "b c"])  # the package asks for base64 and unpacks it
    assert [one.index for one in made.data] == [0, 1]
    first, second = (one.embedding for one in made.data)
    assert len(first) == len(second) == WIDTH
    assert math.hypot(*first) == pytest.approx(1, abs=1e-3)
    assert first != pytest.approx(second, abs=1e-3)
    assert made.usage.prompt_tokens > 0
    alone = client.embeddings.create(model="embedder", input="a", encoding_format="float").data[0].embedding
    assert alone == pytest.approx(first, abs=1e-5)


def test_a_model_that_writes_does_not_embed_and_the_other_way_round(client: OpenAI):
    with pytest.raises(openai.BadRequestError, match="embed"):
        client.embeddings.create(model="a", input="a")
    with pytest.raises(openai.BadRequestError, match="embed"):
        client.completions.create(model="embedder", prompt="a", max_tokens=1)


# --- responses --------------------------------------------------------------------------------------------------------


def test_a_response_and_its_stream_say_the_same(client: OpenAI):
    whole = client.responses.create(model="a", input="What is the weather in Paris?", max_output_tokens=12, temperature=0)
    assert whole.output_text
    assert whole.usage is not None
    assert whole.usage.output_tokens == 12
    events = list(
        client.responses.create(model="a", input="What is the weather in Paris?", max_output_tokens=12, temperature=0, stream=True)
    )
    assert events[0].type == "response.created"
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == whole.output_text
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == whole.output_text


def test_a_response_that_calls_a_tool(client: OpenAI):
    tool: Any = {"type": "function", "name": "get_weather", "description": "Tells it.", "parameters": WEATHER, "strict": True}
    made = client.responses.create(
        model="tools", input="Weather in Paris?", tools=[tool], tool_choice="required", max_output_tokens=60, temperature=0
    )
    [call] = [item for item in made.output if item.type == "function_call"]
    assert call.name == "get_weather"
    assert is_weather(json.loads(call.arguments))


def test_leaving_a_response_in_mid_stream_frees_the_slot(client: OpenAI, served: Daemon):
    stream = client.responses.create(model="a", input="Count.", max_output_tokens=4000, stream=True, extra_body={"ignore_eos": True})
    for _ in range(6):
        next(stream)
    one = served.instance("a.gguf")
    assert one is not None
    assert one["inflight"] == 1
    stream.close()
    served.wait_idle()


def test_the_errors_of_a_response(client: OpenAI):
    with pytest.raises(openai.NotFoundError, match=r"did you mean \"tools\.gguf\""):
        client.responses.create(model="toools", input="x")
    wrong: Any = "hot"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.responses.create(model="a", input="x", temperature=wrong)


# --- leaving, failing -------------------------------------------------------------------------------------------------


def test_leaving_in_mid_stream_frees_the_slot(client: OpenAI, served: Daemon):
    stream = client.chat.completions.create(model="a", messages=ASK, max_tokens=4000, stream=True, extra_body={"ignore_eos": True})
    for _ in range(3):
        next(stream)
    one = served.instance("a.gguf")
    assert one is not None
    assert one["inflight"] == 1
    stream.close()
    served.wait_idle()
    assert client.completions.create(model="a", prompt="Still", max_tokens=1).choices[0].text


def test_giving_up_while_waiting_for_the_whole_answer_frees_the_slot(client: OpenAI, served: Daemon):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(model="a", messages=ASK, max_tokens=4000, extra_body={"ignore_eos": True})
    served.wait_idle()


def test_a_wrong_name_gives_near_ones(client: OpenAI):
    for create in (client.chat.completions.create, client.completions.create):
        what = {"messages": ASK} if create == client.chat.completions.create else {"prompt": "x"}
        with pytest.raises(openai.NotFoundError, match=r"did you mean \"tools\.gguf\"") as caught:
            create(model="toools", max_tokens=1, **what)
        assert (caught.value.code, caught.value.param, caught.value.type) == ("unknown_model", "model", "invalid_request_error")
        assert caught.value.request_id


def test_a_wrong_type_is_a_bad_request_and_says_who_found_it(client: OpenAI):
    wrong: Any = "many"
    with pytest.raises(openai.BadRequestError, match="max_tokens") as caught:
        client.chat.completions.create(model="a", messages=ASK, max_tokens=wrong)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["source"] in ("modeld", "model")


def test_messages_that_are_none_are_a_bad_request(client: OpenAI):
    wrong: Any = "Hello"
    with pytest.raises(openai.BadRequestError, match="messages") as caught:
        client.chat.completions.create(model="a", messages=wrong, max_tokens=1)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["source"] == "model"


def test_a_text_longer_than_the_context_is_a_bad_request(client: OpenAI):
    with pytest.raises(openai.BadRequestError, match="context") as caught:
        client.completions.create(model="a", prompt="word " * 9000, max_tokens=1)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["source"] == "model"


def test_a_body_over_the_cap_is_refused(client: OpenAI):
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="a", prompt="x" * 700_000, max_tokens=1)
    assert caught.value.status_code == 413
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["source"] == "modeld"


def test_a_failure_of_a_response_in_mid_stream_is_an_error(client: OpenAI, served: Daemon):
    stream = client.responses.create(model="tools", input="Count.", max_output_tokens=4000, stream=True, extra_body={"ignore_eos": True})
    next(stream)
    one = served.instance("tools.gguf")
    assert one is not None
    os.kill(one["pid"], signal.SIGKILL)
    with pytest.raises(openai.APIError, match=r"died|ended|signal"):
        for _ in stream:
            pass
    served.wait_idle()


def test_a_failure_in_mid_stream_is_an_error_and_not_a_short_answer(client: OpenAI, served: Daemon):
    stream = client.chat.completions.create(model="tools", messages=ASK, max_tokens=4000, stream=True, extra_body={"ignore_eos": True})
    next(stream)
    one = served.instance("tools.gguf")
    assert one is not None
    os.kill(one["pid"], signal.SIGKILL)
    with pytest.raises(openai.APIError) as caught:
        for _ in stream:
            pass
    assert caught.value.code == "instance_died"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["source"] == "model"
    served.wait_idle()
