# SPDX-License-Identifier: GPL-3.0-only
"""What is a good body, and what the 400 for a bad one says."""

from __future__ import annotations

import msgspec
import pytest

from modeld.api.schemas import EngineBody, InferBody, decode, fault, openai_fault, retry_after
from modeld.errors import (
    BadRequest,
    BodyTooLarge,
    Died,
    Draining,
    Forbidden,
    InvariantError,
    ModeldError,
    NoModelNamed,
    QueueFull,
    UnknownModel,
)

INFER = msgspec.json.Decoder(InferBody)
ENGINE = msgspec.json.Decoder(EngineBody)


@pytest.mark.parametrize(
    ("member", "names"),
    [
        (b'"max_tokens":0', "max_tokens"),
        (b'"max_tokens":-1', "max_tokens"),
        (b'"max_tokens":true', "max_tokens"),
        (b'"max_tokens":1.5', "max_tokens"),
        (b'"max_tokens":"5"', "max_tokens"),
        (b'"max_tokens":99999999999999999999999', "max_tokens"),
        (b'"temperature":-0.1', "temperature"),
        (b'"temperature":true', "temperature"),
        (b'"temperature":1e999', "temperature"),
        (b'"temperature":NaN', "JSON"),
        (b'"top_p":1.01', "top_p"),
        (b'"top_p":-1', "top_p"),
        (b'"top_k":-1', "top_k"),
        (b'"top_k":0.5', "top_k"),
        (b'"stop":""', "stop"),
        (b'"stop":[""]', "stop[0]"),
        (b'"stop":["a",1]', "stop[1]"),
        (b'"stop":5', "stop"),
        (b'"stop":["a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a"]', "stop"),
        (b'"seed":-2', "seed"),
        (b'"seed":4294967296', "seed"),
        (b'"seed":"x"', "seed"),
        (b'"repeat_penalty":0', "repeat_penalty"),
        (b'"ignore_eos":1', "ignore_eos"),
        (b'"stream":"yes"', "stream"),
        (b'"stream":1', "stream"),
        (b'"model":5', "model"),
        (b'"model":["tiny"]', "model"),
        (b'"prompt":""', "prompt"),
        (b'"prompt":5', "prompt"),
        (b'"prompt":["a"]', "prompt"),
        (b'"prompt":null', "prompt"),
        (b'"prompt":"\\ud800"', "JSON"),
        (b'"prompt":"\\udc00x"', "JSON"),
        (b'"prompt":"\xff"', "UTF-8"),
        (b'"prompt":"\x01"', "JSON"),
        (b'"x":' + b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'"x":', "JSON"),
    ],
)
def test_a_bad_infer_body_is_told_by_its_field(member: bytes, names: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(INFER, b'{"prompt":"a",' + member + b"}")
    assert names in caught.value.message
    assert "null" not in caught.value.message or "null" in member.decode("latin-1")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"5", b'"x"', b'{"prompt":"a"}x', b"\xef\xbb\xbf{}", b"{'prompt':'a'}"])
def test_what_is_no_object(body: bytes) -> None:
    for decoder in (INFER, ENGINE):
        with pytest.raises(BadRequest):
            decode(decoder, body)


def test_the_prompt_is_needed() -> None:
    with pytest.raises(BadRequest, match="prompt"):
        decode(INFER, b'{"model":"tiny"}')


def test_good_bodies() -> None:
    body = decode(
        INFER, b'{"prompt":"a\\u0000\\ud83d\\ude00","max_tokens":1,"temperature":0,"top_k":0,"top_p":1,"seed":-1,"stop":["x"],"x":{}}'
    )
    assert (body.prompt, body.max_tokens, body.temperature, body.stop) == ("a\0\U0001f600", 1, 0, ["x"])
    assert decode(INFER, b'{"prompt":"a","stream":null,"model":null,"stop":"x"}').stop == "x"
    assert decode(ENGINE, b'{"messages":[],"model":"tiny","stream":true,"max_tokens":-1}').model == "tiny"


@pytest.mark.parametrize(
    "member",
    [
        b'"model":5',
        b'"stream":1',
        b'"n_discard":-1',
        b'"n_discard":-1,"n_discard":1',
        b'"max_tokens":-3',
        b'"max_tokens":"5"',
        b'"n_predict":2147483648',
        b'"n":0',
        b'"n":129',
        b'"n_probs":-1',
        b'"top_n":-1',
        b'"top_p":1.5',
        b'"id_slot":-2',
        b'"temperature":-0.5',
        b'"mirostat":3',
        b'"dimensions":0',
    ],
)
def test_bad_bodies_for_the_engine(member: bytes) -> None:
    with pytest.raises(BadRequest, match=member.split(b'"')[1].decode()):
        decode(ENGINE, b"{" + member + b"}")


def test_what_nobody_knows_and_what_is_null_passes() -> None:
    body = decode(ENGINE, b'{"n_discard":null,"n":null,"top_k":-1,"max_tokens":-1,"logprobs":true,"x":{"n_discard":-1},"seed":-5}')
    assert (body.n_discard, body.top_k, body.max_tokens) == (None, -1, -1)


@pytest.mark.parametrize(
    ("error", "kind_of_error", "param", "source"),
    [
        (BadRequest("x"), "invalid_request_error", None, "modeld"),
        (BodyTooLarge("x"), "invalid_request_error", None, "modeld"),
        (Forbidden("x"), "permission_error", None, "modeld"),
        (UnknownModel("x"), "invalid_request_error", "model", "modeld"),
        (NoModelNamed("x"), "invalid_request_error", "model", "modeld"),
        (QueueFull("x"), "rate_limit_error", None, "modeld"),
        (Draining("x"), "server_error", None, "modeld"),
        (Died("x"), "server_error", None, "model"),
    ],
)
def test_the_shape_of_openai(error: ModeldError, kind_of_error: str, param: str | None, source: str) -> None:
    seen = openai_fault(error).error
    assert (seen.message, seen.type, seen.param, seen.code, seen.source) == ("x", kind_of_error, param, error.kind, source)


def test_our_own_faults_keep_their_story() -> None:
    assert "story" not in fault(InvariantError("the story")).error
    assert "story" not in openai_fault(InvariantError("the story")).error.message


def test_when_to_come_back() -> None:
    assert retry_after(QueueFull("x", retry_after_seconds=9)) == 9
    assert retry_after(QueueFull("x", retry_after_seconds=0)) == 1
    assert retry_after(Draining("x")) == 1
    assert retry_after(BadRequest("x")) is None
