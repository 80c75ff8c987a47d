# SPDX-License-Identifier: GPL-3.0-only
"""Errors: each in its dialect's shape, and each says who failed."""

from __future__ import annotations

import json

import pytest

from modeld.api.dialects import Dialect, dialect_of, error_body, error_event
from modeld.errors import Died, InvariantError, NotSupported, QueueFull, RefusedByModel, UnknownModel


@pytest.mark.parametrize(
    ("dialect", "shape"),
    [
        (Dialect.NATIVE, {"error": "x", "code": 404, "kind": "unknown_model", "source": "modeld"}),
        (Dialect.OLLAMA, {"error": "x", "code": 404, "kind": "unknown_model", "source": "modeld"}),
        (
            Dialect.LLAMA,
            {"error": {"code": 404, "message": "x", "type": "invalid_request_error", "kind": "unknown_model", "source": "modeld"}},
        ),
        (
            Dialect.OPENAI,
            {"error": {"message": "x", "type": "invalid_request_error", "param": "model", "code": "unknown_model", "source": "modeld"}},
        ),
        (
            Dialect.ANTHROPIC,
            {"type": "error", "error": {"type": "not_found_error", "message": "x", "code": "unknown_model", "source": "modeld"}},
        ),
    ],
)
def test_the_shape(dialect: Dialect, shape: object) -> None:
    assert json.loads(error_body(dialect, UnknownModel("x"))) == shape


@pytest.mark.parametrize("dialect", list(Dialect))
def test_every_shape_says_who_failed_and_keeps_our_story(dialect: Dialect) -> None:
    assert b'"source":"model"' in error_body(dialect, Died("x"))
    assert b'"source":"model"' in error_body(dialect, RefusedByModel("x"))
    assert b'"source":"model"' in error_body(dialect, NotSupported("x", source="model"))
    assert b'"source":"modeld"' in error_body(dialect, NotSupported("x"))
    assert b"story" not in error_body(dialect, InvariantError("the story"))
    assert b"story" not in error_event(dialect, InvariantError("the story"))


@pytest.mark.parametrize("dialect", list(Dialect))
def test_an_event_is_whole(dialect: Dialect) -> None:
    event = error_event(dialect, QueueFull("x"))
    assert event.endswith(b"\n\n")
    data = event.rpartition(b"data: ")[2]
    assert json.loads(data)["error"]
    named = dialect in (Dialect.ANTHROPIC, Dialect.RESPONSES)
    assert event.startswith(b"event: error\ndata: " if named else b"data: ")


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", Dialect.ANTHROPIC),
        ("/v1/messages/x", Dialect.ANTHROPIC),
        ("/v1/messagesx", Dialect.OPENAI),
        ("/v1", Dialect.OPENAI),
        ("/v1/responses", Dialect.RESPONSES),
        ("/api/x", Dialect.OLLAMA),
        ("/apix", Dialect.NATIVE),
        ("/", Dialect.NATIVE),
    ],
)
def test_the_dialect_of_a_path_that_is_no_route(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect
