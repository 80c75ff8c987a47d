# SPDX-License-Identifier: GPL-3.0-only
"""What Ollama's clients send, in llama.cpp's words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from modeld.api import ollama_in
from modeld.core.model import ModelId
from modeld.errors import BadRequest

HI = [{"role": "user", "content": "Hi"}]
STREAMED = {"model": "m", "stream": True, "cache_prompt": True}
CHAT = STREAMED | {"stream_options": {"include_usage": True}}


def chat(**body: Any) -> tuple[str, dict[str, Any]]:
    """Path and body for the model server."""
    path, raw = ollama_in.chat(json.dumps({"messages": HI} | body).encode()).body(ModelId("m"))
    return path, json.loads(raw)


def generate(*, has_template: bool = True, **body: Any) -> tuple[str, dict[str, Any]]:
    path, raw = ollama_in.generate(json.dumps({"prompt": "Hi"} | body).encode()).body(ModelId("m"), has_template=has_template)
    seen = json.loads(raw)
    seen.pop("response_fields", None)
    return path, seen


def test_a_chat_streams_and_is_counted() -> None:
    assert chat() == ("/v1/chat/completions", CHAT | {"messages": HI})
    asked = ollama_in.chat(b'{"model":"x","messages":[{"role":"user"}]}')
    assert (asked.model, asked.streams, asked.tokens, asked.keep_seconds) == ("x", True, None, None)
    assert ollama_in.chat(b'{"messages":[{"role":"user"}],"stream":false}').streams is False


def test_a_prompt_is_a_message_of_the_user() -> None:
    assert generate() == ("/v1/chat/completions", CHAT | {"messages": HI})
    assert generate(system="Be brief", template="{{ x }}", context=[1, 2])[1]["messages"] == [
        {"role": "system", "content": "Be brief"},
        HI[0],
    ]


def test_a_raw_prompt_goes_as_it_is() -> None:
    assert generate(raw=True, system="not used") == ("/completion", STREAMED | {"prompt": "Hi"})
    with pytest.raises(BadRequest, match="raw"):
        generate(raw=True, images=["aGk="])


def test_a_model_without_template_gets_the_bare_prompt() -> None:
    assert generate(has_template=False) == ("/completion", STREAMED | {"prompt": "Hi"})
    assert generate(has_template=False, system="Be brief")[1]["prompt"] == "Be brief\n\nHi"
    assert generate(has_template=False, images=["aGk="])[0] == "/v1/chat/completions"


def test_a_suffix_is_filled_up_to() -> None:
    assert generate(suffix=" end", raw=True) == (
        "/infill",
        STREAMED | {"prompt": "", "input_prefix": "Hi", "input_suffix": " end"},
    )


@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": None, "system": "x"}])
def test_no_prompt_is_a_wish_to_load(body: dict[str, Any]) -> None:
    assert ollama_in.generate(json.dumps(body).encode()).members is None


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": None}])
def test_no_messages_are_a_wish_to_load(body: dict[str, Any]) -> None:
    assert ollama_in.chat(json.dumps(body).encode()).members is None


# --- options ----------------------------------------------------------------------------------------------------------

ALL = {
    "num_predict": 7, "num_keep": 3, "seed": 1, "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.7,
    "repeat_last_n": 64, "repeat_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.25, "mirostat": 1, "mirostat_tau": 5,
    "mirostat_eta": 0.1, "stop": ["\n", "x"],
}  # fmt: skip
RENAMED = {"num_predict": "n_predict", "num_keep": "n_keep"}


@pytest.mark.parametrize("made", [chat, generate])
def test_options_have_llama_cpps_names(made: Any) -> None:
    seen = made(options=ALL)[1]
    assert {name: seen[name] for name in seen if name not in {*CHAT, "messages"}} == {
        RENAMED.get(name, name): value for name, value in ALL.items()
    }
    assert generate(raw=True, options=ALL)[1]["n_predict"] == 7


def test_load_time_and_unknown_options_pass_over() -> None:
    given = {
        "num_ctx": 8, "num_gpu": 1, "num_batch": 4, "num_thread": 1, "main_gpu": 0, "use_mmap": False, "use_mlock": True, "numa": True,
        "low_vram": True, "f16_kv": False, "penalize_newline": True, "tfs_z": 1, "what_is_this": {"a": 1}, "top_k": None,
    }  # fmt: skip
    assert chat(options=given) == chat(options=None) == chat()


@pytest.mark.parametrize("limit", [0, -1, -2])
def test_no_limit_is_no_limit(limit: int) -> None:
    assert "n_predict" not in chat(options={"num_predict": limit})[1]
    assert ollama_in.chat(json.dumps({"messages": HI, "options": {"num_predict": limit}}).encode()).tokens is None


def test_a_limit_is_told_to_the_scheduler() -> None:
    assert ollama_in.chat(json.dumps({"messages": HI, "options": {"num_predict": 12}}).encode()).tokens == 12


def test_whole_numbers_may_come_as_floats() -> None:
    assert chat(options={"top_k": 40.0})[1]["top_k"] == 40
    assert chat(options={"top_k": -1})[1]["top_k"] == 0


def test_a_single_stop_word_is_a_list_of_one() -> None:
    assert chat(options={"stop": "x"})[1]["stop"] == ["x"]
    assert "stop" not in chat(options={"stop": []})[1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1), ("temperature", "0.5"), ("temperature", True), ("top_p", 1.01), ("min_p", -1), ("top_k", 1.5), ("top_k", -2),
        ("seed", 2**32), ("num_predict", -3), ("num_predict", 2**31), ("num_keep", -2), ("repeat_last_n", -2), ("mirostat", 3),
        ("repeat_penalty", -1), ("frequency_penalty", 1e7), ("stop", [""]), ("stop", 5), ("stop", ["x"] * 17), ("stop", ["x" * 1025]),
        ("top_k", [1]), ("top_k", {}),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_named(option: str, value: Any) -> None:
    for made in (chat, generate):
        with pytest.raises(BadRequest, match=rf"options\.{option}"):
            made(options={option: value})


@pytest.mark.parametrize("value", ["1e999", "-1e999"])
def test_infinity_is_no_number(value: str) -> None:
    with pytest.raises(BadRequest):
        ollama_in.chat(b'{"messages":[{"role":"user"}],"options":{"top_k":' + value.encode() + b"}}")


# --- the rest of the body ---------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(("given", "schema"), [("json", {"type": "object"}), (SCHEMA, SCHEMA), ({}, {"type": "object"})])
def test_a_format_is_a_schema(given: Any, schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert chat(format=given)[1]["response_format"] == generate(format=given)[1]["response_format"] == wanted
    assert generate(format=given, raw=True)[1]["json_schema"] == schema


def test_no_format() -> None:
    assert chat(format="") == chat(format=None) == chat()
    with pytest.raises(BadRequest, match="format"):
        chat(format="xml")


@pytest.mark.parametrize(
    ("think", "wanted"),
    [
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("high", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_thinking_is_the_templates_business(think: Any, wanted: dict[str, Any]) -> None:
    assert chat(think=think)[1]["chat_template_kwargs"] == generate(think=think)[1]["chat_template_kwargs"] == wanted
    assert "chat_template_kwargs" not in chat()[1]


def test_a_level_of_thinking_is_a_word() -> None:
    for wrong in ("", "x" * 100):
        with pytest.raises(BadRequest, match="think"):
            chat(think=wrong)


def test_logprobs() -> None:
    seen = chat(logprobs=True, top_logprobs=3)[1]
    assert (seen["logprobs"], seen["top_logprobs"]) == (True, 3)
    assert chat(logprobs=True)[1]["top_logprobs"] == 1  # 0 would be none at all to llama.cpp
    assert generate(raw=True, logprobs=True, top_logprobs=2)[1]["n_probs"] == 2
    assert "logprobs" not in chat(logprobs=False)[1]
    with pytest.raises(BadRequest, match="top_logprobs"):
        chat(logprobs=True, top_logprobs=21)


@pytest.mark.parametrize(
    ("image", "url"),
    [
        ("/9j/4AA=", "data:image/jpeg;base64,/9j/4AA="),
        ("iVBORw0=", "data:image/png;base64,iVBORw0="),
        ("R0lGODlh", "data:image/gif;base64,R0lGODlh"),
        ("UklGRg==", "data:image/webp;base64,UklGRg=="),
        ("AAAA", "data:image/png;base64,AAAA"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
    ],
)
def test_pictures(image: str, url: str) -> None:
    wanted = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": url}}]
    assert chat(messages=[HI[0] | {"images": [image]}])[1]["messages"][0]["content"] == wanted
    assert generate(images=[image])[1]["messages"][0]["content"] == wanted


@pytest.mark.parametrize("image", ["", "http://localhost/secret.png", "https://example.com/a.png"])
def test_a_picture_is_never_fetched(image: str) -> None:
    with pytest.raises(BadRequest, match="base64"):
        chat(messages=[HI[0] | {"images": [image]}])


def test_tools_pass() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert chat(tools=tools)[1]["tools"] == tools
    assert "tools" not in chat(tools=[])[1]


def called(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}} | more


def test_results_find_their_calls() -> None:
    given = [
        {"role": "assistant", "thinking": "hm", "tool_calls": [called("f", {"a": 1}), called("g", {}), called("f", {"a": 2}, id="mine")]},
        {"role": "tool", "tool_name": "g", "content": "G"},
        {"role": "tool", "tool_name": "f", "content": "F1"},
        {"role": "tool", "tool_call_id": "mine", "content": "F2"},
        {"role": "tool", "content": "of nothing"},
    ]
    first, *results = chat(messages=given)[1]["messages"]
    assert first == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            {"id": "mine", "type": "function", "function": {"name": "f", "arguments": '{"a": 2}'}},
        ],
    }
    assert results == [
        {"role": "tool", "content": "G", "tool_call_id": "call_2", "name": "g"},
        {"role": "tool", "content": "F1", "tool_call_id": "call_1", "name": "f"},
        {"role": "tool", "content": "F2", "tool_call_id": "mine", "name": "f"},
        {"role": "tool", "content": "of nothing"},
    ]


def test_arguments_are_an_object() -> None:
    def arguments(given: Any) -> str:
        return chat(messages=[{"role": "assistant", "tool_calls": [called("f", given)]}])[1]["messages"][0]["tool_calls"][0]["function"][
            "arguments"
        ]

    assert json.loads(arguments({"ä": ["\n"]})) == {"ä": ["\n"]}
    assert arguments('{"a": 1}') == '{"a": 1}'
    for wrong in ([1], 5, "words", None):
        with pytest.raises(BadRequest, match=r"messages\[0\]\.tool_calls"):
            arguments(wrong)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None), ("", None), (0, 0), ("0", 0), ("0s", 0), (300, 300), (1.5, 1.5), ("90", 90), ("5m", 300), ("1h30m", 5400),
        ("1.5h", 5400), ("250ms", 0.25), ("-1", math.inf), (-1, math.inf), ("-5m", math.inf), ("+5m", 300), ("-0s", 0),
    ],
)  # fmt: skip
def test_keep_alive(given: Any, seconds: float | None) -> None:
    assert ollama_in.keep_seconds(given) == seconds
    assert ollama_in.chat(json.dumps({"messages": HI, "keep_alive": given}).encode()).keep_seconds == seconds


@pytest.mark.parametrize("given", ["five minutes", "5 m", "5x", "m", "--1", "1" * 70, "5m3", "٣m"])
def test_keep_alive_that_is_no_duration(given: str) -> None:
    with pytest.raises(BadRequest, match="keep_alive"):
        ollama_in.keep_seconds(given)


def test_texts_to_embed() -> None:
    asked = ollama_in.embed(b'{"model":"e","input":["a","b"],"truncate":true,"dimensions":3,"keep_alive":5}')
    path, raw = asked.body(ModelId("m"))
    assert (path, json.loads(raw)) == ("/v1/embeddings", {"model": "m", "input": ["a", "b"], "encoding_format": "float"})
    assert (asked.dimensions, asked.keep_seconds, asked.tokens) == (3, 5, 0)
    assert json.loads(ollama_in.embeddings(b'{"prompt":"a"}').body(ModelId("m"))[1])["input"] == "a"


def test_nothing_to_embed() -> None:
    for raw in (b"{}", b'{"input":""}', b'{"input":[]}'):
        assert ollama_in.embed(raw).members is None
    assert ollama_in.embeddings(b'{"prompt":""}').members is None


@pytest.mark.parametrize("raw", [b'{"input":5}', b'{"input":[1]}', b'{"input":"a","dimensions":0}', b"[]", b"{"])
def test_what_cannot_be_embedded(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        ollama_in.embed(raw)


def test_show_takes_both_names() -> None:
    assert ollama_in.show(b'{"model":"a","name":"b"}') == "a"
    assert ollama_in.show(b'{"name":"b","verbose":true}') == "b"
