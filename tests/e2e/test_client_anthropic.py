# SPDX-License-Identifier: GPL-3.0-only
"""The `anthropic` package against the real daemon, set up as its users do: the bare address as base URL, and any key."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from e2e.daemon import PATIENCE_SECONDS, Daemon
from e2e.toolmodel import WEATHER, is_weather

ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
STEADY: dict[str, Any] = {"extra_body": {"temperature": 0}}
"""The package knows no `temperature` any more; llama.cpp does."""
TOOLS: list[Any] = [{"name": "get_weather", "description": "Tells it.", "input_schema": WEATHER}]


@pytest.fixture
def client(served: Daemon) -> Iterator[Anthropic]:
    with Anthropic(base_url=f"http://127.0.0.1:{served.port}", api_key="any", max_retries=0, timeout=PATIENCE_SECONDS) as one:
        yield one


def source(error: anthropic.APIError) -> Any:
    """Who failed, by the body of an error."""
    assert isinstance(error.body, dict)
    assert error.body["type"] == "error"
    return error.body["error"]["source"]


# --- messages ---------------------------------------------------------------------------------------------------------


def test_an_answer_and_its_stream_say_the_same(client: Anthropic):
    whole = client.messages.create(model="a", messages=ASK, max_tokens=12, **STEADY, system="You are brief.")
    assert (whole.type, whole.role, whole.model, whole.stop_reason) == ("message", "assistant", "a.gguf", "max_tokens")
    [block] = whole.content
    assert block.type == "text"
    assert block.text
    with client.messages.stream(model="a", messages=ASK, max_tokens=12, **STEADY, system="You are brief.") as stream:
        pieces = list(stream.text_stream)
        last = stream.get_final_message()
    assert len(pieces) > 5
    assert "".join(pieces) == block.text
    assert last.stop_reason == "max_tokens"
    assert last.usage.output_tokens == whole.usage.output_tokens == 12


def test_the_events_come_in_their_order(client: Anthropic):
    events = [one.type for one in client.messages.create(model="a", messages=ASK, max_tokens=6, **STEADY, stream=True)]
    assert events[:2] == ["message_start", "content_block_start"]
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(events[2:-3]) == {"content_block_delta"}


def test_tokens_are_counted_without_an_answer(client: Anthropic):
    counted = client.messages.count_tokens(model="a", messages=ASK)
    used = client.messages.create(model="a", messages=ASK, max_tokens=1).usage
    read = used.input_tokens + (used.cache_read_input_tokens or 0)
    assert counted.input_tokens == read
    longer = client.messages.count_tokens(model="a", messages=[{"role": "user", "content": "word " * 50}])
    assert longer.input_tokens > counted.input_tokens + 20


def test_a_stop_sequence_ends_the_answer(client: Anthropic):
    def ask(**more: Any) -> Any:
        return client.messages.create(model="a", messages=ASK, max_tokens=24, **STEADY, **more)

    free = ask().content[0].text
    word = free.split()[3]
    cut = ask(stop_sequences=[word])
    assert cut.stop_sequence == word  # the stop_reason is llama.cpp's and depends on its build
    assert cut.content[0].text == free.partition(word)[0]


# --- tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}], ids=["any", "named"])
def test_a_tool_call(client: Anthropic, choice: Any):
    made = client.messages.create(model="tools", messages=ASK, tools=TOOLS, tool_choice=choice, max_tokens=60, **STEADY)
    assert made.stop_reason == "tool_use"
    [call] = [block for block in made.content if block.type == "tool_use"]
    assert call.id
    assert call.name == "get_weather"
    assert is_weather(call.input)


def test_a_tool_call_in_pieces(client: Anthropic):
    with client.messages.stream(model="tools", messages=ASK, tools=TOOLS, tool_choice={"type": "any"}, max_tokens=60, **STEADY) as stream:
        pieces = [one.partial_json for one in stream if one.type == "input_json"]
        [call] = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert len(pieces) > 1
    assert is_weather(call.input)


def test_the_result_of_a_tool_goes_back_to_the_model(client: Anthropic):
    talk: list[Any] = [
        *ASK,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Paris", "unit": "c"}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "24 degrees"}]},
    ]
    shorter = client.messages.count_tokens(model="tools", messages=ASK, tools=TOOLS)
    longer = client.messages.count_tokens(model="tools", messages=talk, tools=TOOLS)
    assert longer.input_tokens > shorter.input_tokens + 10
    assert client.messages.create(model="tools", messages=talk, max_tokens=8, **STEADY).content[0].type == "text"


# --- leaving, failing -------------------------------------------------------------------------------------------------


def test_leaving_in_mid_stream_frees_the_slot(client: Anthropic, served: Daemon):
    with client.messages.stream(model="a", messages=ASK, max_tokens=4000, extra_body={"ignore_eos": True}) as stream:
        for _ in range(4):
            next(stream)
        one = served.instance("a.gguf")
        assert one is not None
        assert one["inflight"] == 1
    served.wait_idle()


def test_giving_up_while_waiting_for_the_whole_answer_frees_the_slot(client: Anthropic, served: Daemon):
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(timeout=0.5).messages.create(model="a", messages=ASK, max_tokens=4000, extra_body={"ignore_eos": True})
    served.wait_idle()


def test_a_wrong_name_gives_near_ones(client: Anthropic):
    with pytest.raises(anthropic.NotFoundError, match=r"did you mean") as caught:
        client.messages.create(model="toools", messages=ASK, max_tokens=1)
    assert "tools.gguf" in str(caught.value)
    assert source(caught.value) == "modeld"
    assert caught.value.type == "not_found_error"
    assert caught.value.request_id
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="toools", messages=ASK)


def test_a_wrong_type_is_a_bad_request_and_says_who_found_it(client: Anthropic):
    wrong: Any = "many"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens") as caught:
        client.messages.create(model="a", messages=ASK, max_tokens=wrong)
    assert source(caught.value) in ("modeld", "model")


def test_a_text_longer_than_the_context_is_a_bad_request(client: Anthropic):
    with pytest.raises(anthropic.BadRequestError, match="context") as caught:
        client.messages.create(model="a", messages=[{"role": "user", "content": "word " * 9000}], max_tokens=1)
    assert source(caught.value) == "model"


def test_a_body_over_the_cap_is_refused(client: Anthropic):
    with pytest.raises(anthropic.RequestTooLargeError) as caught:
        client.messages.create(model="a", messages=[{"role": "user", "content": "x" * 700_000}], max_tokens=1)
    assert source(caught.value) == "modeld"


def test_a_failure_in_mid_stream_is_an_error_and_not_a_short_answer(client: Anthropic, served: Daemon):
    stream = client.messages.create(model="tools", messages=ASK, max_tokens=4000, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    one = served.instance("tools.gguf")
    assert one is not None
    os.kill(one["pid"], signal.SIGKILL)
    with pytest.raises(anthropic.APIError) as caught:
        for _ in stream:
            pass
    assert source(caught.value) == "model"
    served.wait_idle()
