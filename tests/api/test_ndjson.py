# SPDX-License-Identifier: GPL-3.0-only
"""The translator: the same output however the input is cut, one last line whatever comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.api.ndjson import SseToNdjson, is_showable, upstream_message
from modeld.errors import BadUpstreamReply, Unloaded


def event(content: str, **more: object) -> bytes:
    return b"data: " + json.dumps({"content": content, "stop": False} | more, ensure_ascii=False).encode() + b"\n\n"


LAST = event("", stop=True, stop_type="eos", tokens_predicted=2, tokens_evaluated=3)


def run(chunks: list[bytes], **options: Any) -> tuple[bytes, SseToNdjson]:
    translator = SseToNdjson(**options)
    return b"".join(map(translator.feed, chunks)) + translator.end(), translator


def lines(raw: bytes, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run([raw], **options)[0].splitlines()]


STORIES = {
    "plain": event("a") + event("\u00e4\u20ac\U0001f600") + LAST,
    "crlf": (event("a") + LAST).replace(b"\n", b"\r\n"),
    "bom": b"\xef\xbb\xbf" + event("a") + LAST,
    "comments and other fields": b": hi\n\nevent: x\nid: 1\nretry\n" + event("a") + b":\n\n" + LAST,
    "several data lines": b'data: {"content":"a",\ndata:"stop":false}\n\n' + LAST,
    "after the end": event("a") + LAST + event("b") + b"data: [DONE]\n\n",
    "error event": event("a") + b'data: {"error":{"code":500,"message":"x","type":"server_error"}}\n\n' + LAST,
    "error field": event("a") + b'error: {"code":400,"message":"too long"}\n\n',
    "error text": b'data: {"error":"just words"}\n\n',
    "cut": event("a") + b'data: {"content":"b"',
    "done without a last event": event("a") + b"data: [DONE]\n\n",
    "nonsense": b"data: {\n\n",
    "not UTF-8": b'data: {"content":"\xff"}\n\n',
    "nothing": b"",
}


@pytest.mark.parametrize("name", STORIES)
def test_every_single_cut_gives_the_same(name: str) -> None:
    raw = STORIES[name]
    whole, _ = run([raw])
    assert whole.count(b'"done":true') == 1
    assert whole.endswith(b"}\n")
    for at in range(len(raw) + 1):
        assert run([raw[:at], raw[at:]])[0] == whole
    assert run([raw[n : n + 1] for n in range(len(raw))])[0] == whole


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(), max_size=6), st.data())
def test_any_text_in_any_pieces(texts: list[str], data: st.DataObject) -> None:
    raw = b"".join(event(text) for text in texts) + LAST
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    seen = [json.loads(line) for line in run(chunks)[0].split(b"\n")[:-1]]
    assert [one["token"] for one in seen[:-1]] == [text for text in texts if text]
    assert seen[-1] == {
        "done": True,
        "content": "".join(texts),
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_never_raises_and_ends_once(chunks: list[bytes]) -> None:
    out, translator = run([*chunks, b"\n\n"])
    assert out.count(b'"done":true') == 1
    assert translator.done


@pytest.mark.parametrize(("stop_type", "reason"), [("limit", "length"), ("eos", "stop"), ("word", "stop"), ("none", "stop")])
def test_finish_reasons(stop_type: str, reason: str) -> None:
    assert lines(event("", stop=True, stop_type=stop_type))[-1]["finish_reason"] == reason


def test_a_last_event_may_bring_text() -> None:
    assert [one.get("token") for one in lines(event("x", stop=True))] == ["x", None]


def test_only_the_last_line_where_nobody_wants_a_stream() -> None:
    assert [one["content"] for one in lines(event("a") + event("b") + LAST, stream=False)] == ["ab"]


@pytest.mark.parametrize(
    ("story", "code", "kind", "text"),
    [
        ("error event", 502, "bad_upstream_reply", "x"),
        ("error field", 400, "bad_request", "too long"),
        ("error text", 502, "bad_upstream_reply", "just words"),
        ("cut", 502, "bad_upstream_reply", "before it was complete"),
        ("done without a last event", 502, "bad_upstream_reply", "before it was complete"),
        ("nonsense", 502, "bad_upstream_reply", "not understood"),
        ("not UTF-8", 502, "bad_upstream_reply", "not understood"),
    ],
)
def test_failures_say_why(story: str, code: int, kind: str, text: str) -> None:
    last = lines(STORIES[story])[-1]
    assert (last["done"], last["code"], last["kind"]) == (True, code, kind)
    assert text in last["error"]


@pytest.mark.parametrize("piece", [b"x" * 100, b"data: x\n" * 10])
def test_an_event_that_never_ends_is_an_error(piece: bytes) -> None:
    translator = SseToNdjson(event_bytes_max=1000)
    out = b"".join(translator.feed(piece) for _ in range(100))
    assert out.count(b"\n") == 1
    assert isinstance(translator.error, BadUpstreamReply)


def test_large_events_below_the_cap_pass() -> None:
    assert len(lines(event("y" * 900), event_bytes_max=1000)[0]["token"]) == 900


def test_fail_makes_one_last_line() -> None:
    translator = SseToNdjson()
    assert json.loads(translator.fail(Unloaded("it was unloaded"))) == {
        "done": True,
        "error": "it was unloaded",
        "code": 503,
        "kind": "unloaded",
        "source": "modeld",
    }
    assert translator.fail(Unloaded("again")) == b""
    assert translator.feed(LAST) == b""


@pytest.mark.parametrize(
    "text",
    [
        "prompt is too long (9 > 8)",
        "10 tokens/s",
        "and/or",
        "use /v1/completions",
        "a / b",
        "see https://a.b/x",
    ],
)
def test_texts_that_may_be_shown(text: str) -> None:
    assert is_showable(text)


@pytest.mark.parametrize(
    "text",
    [
        "cannot open /srv/models/x",
        "at '/tmp'",
        "~/x",
        "file=/etc/x",
        "C:\\x",
        "tiny.gguf missing",
        "a\nb",
        "Traceback (most",
        "x" * 3000,
        "/x",
    ],
)
def test_texts_that_may_not(text: str) -> None:
    assert not is_showable(text)


def test_the_message_of_an_error_body() -> None:
    assert upstream_message(b'{"error":{"code":400,"message":"bad"}}') == "bad"
    assert upstream_message(b'{"error":"bad"}') == "bad"
    for raw in (b"", b"<html>", b"{}", b'{"error":{"message":"/srv/x"}}', b"[" * 100_000, b'{"error":{"message":"\xff"}}'):
        assert upstream_message(raw) == ""
