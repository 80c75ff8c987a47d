# SPDX-License-Identifier: GPL-3.0-only
"""The translator to Ollama's records: the same output however the input is cut, one last line whatever comes, calls of tools whole."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.api.ollama_out import Frame, SseToOllama, loaded_record, nanoseconds, rfc3339
from modeld.errors import BadUpstreamReply, Unloaded

WHEN = "2026-01-02T03:04:05.500000Z"
UNIX = 1767323045.5


def frame(*, chat: bool = True) -> Frame:
    return Frame("tiny", chat, lambda: UNIX, lambda: (2.5, 1.25))


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def delta(finish: str | None = None, logprobs: Any = None, **what: Any) -> bytes:
    choice = {"index": 0, "finish_reason": finish, "delta": what} | ({"logprobs": {"content": logprobs}} if logprobs else {})
    return data({"choices": [choice], "object": "chat.completion.chunk"})


def tool(index: int, *, key: str | None = None, name: str | None = None, arguments: str | None = None) -> bytes:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return delta(tool_calls=[{"index": index, "function": function} | ({"id": key, "type": "function"} if key else {})])


TIMINGS = {"cache_n": 1, "prompt_n": 4, "prompt_ms": 12.5, "predicted_n": 2, "predicted_ms": 40.25, "predicted_per_second": 49.7}
USAGE = data({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}, "timings": TIMINGS})
DONE = b"data: [DONE]\n\n"
FIRST = delta(role="assistant", content=None)
END = delta("stop") + USAGE + DONE
COUNTS = {
    "total_duration": 2_500_000_000,
    "load_duration": 1_250_000_000,
    "prompt_eval_count": 5,
    "prompt_eval_duration": 12_500_000,
    "eval_count": 2,
    "eval_duration": 40_250_000,
}
HEAD = {"model": "tiny", "created_at": WHEN}

CHATS = {
    "plain": FIRST + delta(content="a") + delta(content="ä€\U0001f600") + END,
    "thoughts": FIRST + delta(reasoning_content="hm") + delta(reasoning_content="", content="x") + END,
    "crlf": (FIRST + delta(content="a") + END).replace(b"\n", b"\r\n"),
    "comments": b": hi\n\n" + FIRST + delta(content="a") + b":\n\n" + END,
    "after the end": FIRST + END + delta(content="b") + DONE,
    "tools": FIRST
    + tool(0, key="c1", name="f", arguments="")
    + tool(0, arguments='{"a"')
    + tool(1, key="c2", name="g", arguments="{}")
    + tool(0, arguments=":[1]}")
    + delta("tool_calls")
    + USAGE
    + DONE,
    "error event": FIRST + delta(content="a") + data({"error": {"code": 500, "message": "x", "type": "server_error"}}) + END,
    "error line": FIRST + b'error: {"code":400,"message":"too long"}\n\n',
    "cut": FIRST + delta(content="a") + b'data: {"choices',
    "done too early": FIRST + delta(content="a") + DONE,
    "nonsense": FIRST + b"data: {\n\n",
    "nothing": b"",
}


def piece(content: str, *, stop: bool = False, **more: Any) -> bytes:
    return data({"content": content, "stop": stop, "tokens_evaluated": 5, "tokens_predicted": 2} | more)


COMPLETIONS = {
    "plain": piece("a") + piece("b") + piece("", stop=True, stop_type="eos", timings=TIMINGS),
    "limit": piece("a") + piece("b", stop=True, stop_type="limit", timings=TIMINGS),
    "cut": piece("a"),
}


def run(chunks: list[bytes], *, chat: bool = True, **options: Any) -> tuple[bytes, SseToOllama]:
    translator = SseToOllama(frame(chat=chat), **options)
    return b"".join(map(translator.feed, chunks)) + translator.end(), translator


def lines(raw: bytes, **options: Any) -> list[dict[str, Any]]:
    out = run([raw], **options)[0]
    assert out.endswith(b"\n")
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("raw", [*CHATS.values(), *COMPLETIONS.values()], ids=[*CHATS, *(f"completion {name}" for name in COMPLETIONS)])
def test_every_single_cut_gives_the_same(raw: bytes, stream: bool) -> None:
    whole, _ = run([raw], stream=stream)
    assert whole.count(b"\n") == whole.count(b'"created_at"') + whole.count(b'"error"')
    for at in range(len(raw) + 1):
        assert run([raw[:at], raw[at:]], stream=stream)[0] == whole
    assert run([raw[n : n + 1] for n in range(len(raw))], stream=stream)[0] == whole


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), max_size=6), st.booleans(), st.data())
def test_any_text_in_any_pieces(texts: list[tuple[str, str]], chat: bool, draw: st.DataObject) -> None:
    raw = FIRST + b"".join(delta(content=text, reasoning_content=thought) for text, thought in texts) + END
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    chunks = [raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]
    seen = [json.loads(line) for line in run(chunks, chat=chat)[0].split(b"\n")[:-1]]
    said = [one["message"] if chat else one for one in seen]
    words = "content" if chat else "response"
    assert [(one[words], one.get("thinking", "")) for one in said[:-1]] == [pair for pair in texts if any(pair)]
    assert seen[-1]["done"] is True
    whole = json.loads(run(chunks, chat=chat, stream=False)[0])
    told = whole["message"] if chat else whole
    assert (told[words], told.get("thinking", "")) == ("".join(t for t, _ in texts), "".join(t for _, t in texts))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_never_raises_and_ends_once(chunks: list[bytes]) -> None:
    out, translator = run([*chunks, b"\n\n"])
    assert translator.done
    assert isinstance(translator.error, BadUpstreamReply)
    assert out.count(b'"error"') == 1


def test_a_chat_in_records() -> None:
    assert lines(CHATS["plain"]) == [
        HEAD | {"done": False, "message": {"role": "assistant", "content": "a"}},
        HEAD | {"done": False, "message": {"role": "assistant", "content": "ä€\U0001f600"}},
        HEAD | {"done": True, "done_reason": "stop", "message": {"role": "assistant", "content": ""}} | COUNTS,
    ]


def test_a_prompt_in_records() -> None:
    for raw in (CHATS["plain"], COMPLETIONS["plain"]):
        first, *_, last = lines(raw, chat=False)
        assert first == HEAD | {"done": False, "response": "a"}
        assert last == HEAD | {"done": True, "done_reason": "stop", "response": ""} | COUNTS


def test_one_record_where_nobody_wants_a_stream() -> None:
    message = {"role": "assistant", "content": "aä€\U0001f600"}
    assert lines(CHATS["plain"], stream=False) == [HEAD | {"done": True, "done_reason": "stop", "message": message} | COUNTS]
    whole = {"done": True, "done_reason": "length", "response": "ab"}
    assert lines(COMPLETIONS["limit"], stream=False, chat=False) == [HEAD | whole | COUNTS]


def test_thoughts_are_apart() -> None:
    first, second, _ = lines(CHATS["thoughts"])
    assert first["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert second["message"] == {"role": "assistant", "content": "x"}
    assert lines(CHATS["thoughts"], chat=False, stream=False)[0]["thinking"] == "hm"


@pytest.mark.parametrize(("finish", "reason"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop")])
def test_reasons(finish: str, reason: str) -> None:
    assert lines(FIRST + delta(finish) + DONE)[-1]["done_reason"] == reason


def test_calls_of_tools_are_whole_and_in_order() -> None:
    calls = [
        {"id": "c1", "function": {"name": "f", "arguments": {"a": [1]}, "index": 0}},
        {"id": "c2", "function": {"name": "g", "arguments": {}, "index": 1}},
    ]
    first, last = lines(CHATS["tools"])
    assert first["message"] == {"role": "assistant", "content": "", "tool_calls": calls}
    assert (first["done"], last["done"], last["done_reason"]) == (False, True, "stop")
    assert "tool_calls" not in last["message"]
    (whole,) = lines(CHATS["tools"], stream=False)
    assert whole["message"]["tool_calls"] == calls


def test_a_call_that_the_token_limit_cut_is_left_out() -> None:
    raw = FIRST + tool(0, key="c1", name="f", arguments="{}") + tool(1, key="c2", name="g", arguments='{"a": "b')
    (whole,) = lines(raw + delta("length") + DONE, stream=False)
    assert [one["function"]["name"] for one in whole["message"]["tool_calls"]] == ["f"]
    assert whole["done_reason"] == "length"


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", '"x"'])
def test_arguments_that_are_no_object_are_an_error(arguments: str) -> None:
    last = lines(FIRST + tool(0, key="c", name="f", arguments=arguments) + delta("tool_calls") + DONE)[-1]
    assert "arguments" in last["error"]


def test_too_many_calls_are_an_error() -> None:
    raw = FIRST + b"".join(tool(n, key=f"c{n}", name="f", arguments="{}") for n in range(200)) + delta("tool_calls") + DONE
    assert "too many tool calls" in lines(raw)[-1]["error"]


LIKELY = {"id": 7, "token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [{"id": 7, "token": "a", "bytes": [97], "logprob": -0.5}]}


@pytest.mark.parametrize(
    "raw", [FIRST + delta(content="a", logprobs=[LIKELY]) + END, piece("a", completion_probabilities=[LIKELY]) + COMPLETIONS["plain"]]
)
def test_logprobs(raw: bytes) -> None:
    wanted = {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [{"token": "a", "bytes": [97], "logprob": -0.5}]}
    assert lines(raw)[0]["logprobs"] == [wanted]
    assert lines(raw, stream=False)[0]["logprobs"] == [wanted]


@pytest.mark.parametrize(
    ("story", "code", "kind", "text"),
    [
        ("error event", 502, "bad_upstream_reply", "x"),
        ("error line", 400, "bad_request", "too long"),
        ("cut", 502, "bad_upstream_reply", "before it was complete"),
        ("done too early", 502, "bad_upstream_reply", "before it was complete"),
        ("nonsense", 502, "bad_upstream_reply", "not understood"),
    ],
)
def test_failures_are_a_last_line_that_says_why(story: str, code: int, kind: str, text: str) -> None:
    last = lines(CHATS[story])[-1]
    assert (last["code"], last["kind"]) == (code, kind)
    assert text in last["error"]
    assert "source" in last


def test_an_event_that_never_ends_is_an_error() -> None:
    translator = SseToOllama(frame(), event_bytes_max=1000)
    out = b"".join(translator.feed(b"data: x\n" * 10) for _ in range(100))
    assert out.count(b"\n") == 1
    assert isinstance(translator.error, BadUpstreamReply)


def test_fail_makes_one_last_line() -> None:
    translator = SseToOllama(frame())
    translator.feed(FIRST + delta(content="a"))
    assert json.loads(translator.fail(Unloaded("it was unloaded")))["kind"] == "unloaded"
    assert translator.fail(Unloaded("again")) == translator.feed(END) == translator.end() == b""


def test_nothing_is_generated_where_a_model_is_only_loaded() -> None:
    loaded = json.loads(loaded_record(frame(), "load"))
    assert loaded == HEAD | {
        "done": True, "done_reason": "load", "message": {"role": "assistant", "content": ""},
        "total_duration": 2_500_000_000, "load_duration": 1_250_000_000,
    }  # fmt: skip
    assert json.loads(loaded_record(frame(chat=False), "unload")) == HEAD | {"done": True, "done_reason": "unload", "response": ""}


def test_times() -> None:
    assert rfc3339(UNIX) == WHEN
    assert (nanoseconds(1.5), nanoseconds(-1)) == (1_500_000_000, 0)
