# SPDX-License-Identifier: GPL-3.0-only
"""How each dialect words an error, as a whole answer and as the last record of a stream; rule: wording only, the status is the error's own.

Every shape says with `source` who failed: "modeld" or "model" (the model server).
"""

from __future__ import annotations

from typing import Any, Final, assert_never

from modeld.api.route import Dialect
from modeld.api.schemas import (
    AnthropicFault,
    AnthropicFaultBody,
    LlamaFault,
    LlamaFaultBody,
    encode,
    fault,
    openai_fault,
    openai_type,
    shown,
)
from modeld.errors import ModeldError

__all__ = ["Dialect", "dialect_of", "error_body", "error_event"]

_PREFIXES: Final = (
    ("/v1/messages/", Dialect.ANTHROPIC),
    ("/v1/responses/", Dialect.RESPONSES),
    ("/v1/", Dialect.OPENAI),
    ("/api/", Dialect.OLLAMA),
    ("/upstream/", Dialect.LLAMA),
)
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Error types by status, from Anthropic's API reference; other 4xx are invalid requests, other 5xx api_error."""


def dialect_of(path: str) -> Dialect:
    """The dialect of a path that is no route, by how it begins."""
    return next((dialect for prefix, dialect in _PREFIXES if f"{path}/".startswith(prefix)), Dialect.NATIVE)


def error_body(dialect: Dialect, error: ModeldError) -> bytes:
    """The JSON of an error answer."""
    return encode(_shape(dialect, error))


def error_event(dialect: Dialect, error: ModeldError) -> bytes:
    """The same as the last server-sent event of an answer that has begun, with the blank line that ends it."""
    shape = _shape(dialect, error)
    match dialect:
        case Dialect.ANTHROPIC:
            return b"event: error\ndata: " + encode(shape) + b"\n\n"
        case Dialect.RESPONSES:
            # The flat members are the event's documented form; clients of the SDK raise for the nested one.
            told = {"type": "error", "code": error.kind, "message": shown(error), "param": None, "sequence_number": 0}
            return b"event: error\ndata: " + encode(told | {"error": openai_fault(error).error}) + b"\n\n"
        case Dialect.NATIVE | Dialect.OPENAI | Dialect.LLAMA | Dialect.OLLAMA:
            return b"data: " + encode(shape) + b"\n\n"
        case _:
            assert_never(dialect)


def _shape(dialect: Dialect, error: ModeldError) -> Any:
    match dialect:
        case Dialect.NATIVE | Dialect.OLLAMA:
            return fault(error)
        case Dialect.OPENAI | Dialect.RESPONSES:
            return openai_fault(error)
        case Dialect.LLAMA:
            return LlamaFault(LlamaFaultBody(error.http_status, shown(error), openai_type(error), error.kind, error.source))
        case Dialect.ANTHROPIC:
            usual = "invalid_request_error" if error.http_status < 500 else "api_error"
            kind = _ANTHROPIC_TYPES.get(error.http_status, usual)
            return AnthropicFault(AnthropicFaultBody(kind, shown(error), error.kind, error.source))
        case _:
            assert_never(dialect)
