# SPDX-License-Identifier: GPL-3.0-only
"""What the scheduler is told of a request besides its model: two headers, and its size in tokens; rule: an estimate refuses nobody.

X-Modeld-Priority   its class, which may be less urgent than the model's own, never more (core sees to that)
X-Modeld-Timeout    seconds it may wait for its slot; what cannot keep it is refused at once

Tokens to read are estimated from the bytes of the body: only the model server can count them. Tokens to generate are those the client asked
for; where it did not say, they are an assumption for the share of work, and the whole context for what is the most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

from modeld.api.route import Call, Parameter, Terms
from modeld.catalog.launch import CTX_AUTO_MAX
from modeld.core.model import ModelSpec, Priority
from modeld.errors import BadRequest

BYTES_PER_TOKEN: Final = 4
"""Measured with the starter model on this project's own pages and sources: 3.7 to 4.7 for prose and Python, 2.8 for tables and commands.
OpenAI's rule of thumb for English says the same. Other scripts than Latin differ more."""
ANSWER_TOKENS_ASSUMED: Final = 256
"""What an answer counts for in a principal's share when the client set no limit: a middling chat answer."""

_PRIORITY: Final = b"x-modeld-priority"
TIMEOUT_HEADER: Final = "X-Modeld-Timeout"
"""Every route that waits for a model reads it."""
_TIMEOUT: Final = TIMEOUT_HEADER.lower().encode()
_SECONDS: Final = re.compile(r"\d{1,9}(?:\.\d{1,20})?|\.\d{1,20}", re.ASCII)
_SHOWN_MAX: Final = 40

PARAMETERS: Final = (
    Parameter(
        "X-Modeld-Priority",
        "header",
        "Class of the request; it may be less urgent than the model's own, never more.",
        {"type": "string", "enum": [one.value for one in Priority]},
    ),
    Parameter(
        TIMEOUT_HEADER,
        "header",
        "Seconds the request may wait for its slot; 429 at once when that cannot be kept.",
        {"type": "number", "minimum": 0.001, "maximum": 999_999_999},
    ),
)


def terms_of(call: Call, spec: ModelSpec, *, asked: int | None, streams: bool) -> Terms:
    """The terms of a request for `spec`. Raises BadRequest naming a header that is wrong.

    asked    most tokens the client wants, None = it did not say
    streams  whether the model server sends each token as it comes
    """
    prompt_tokens = -(-len(call.body) // BYTES_PER_TOKEN)
    most = CTX_AUTO_MAX
    if not spec.external:  # more than its context no request can read or generate; an image is many bytes and few tokens
        most = spec.options.ctx
        prompt_tokens = min(prompt_tokens, most)
        asked = None if asked is None else min(asked, most)
    return Terms(
        priority=_priority(call.headers),
        timeout_seconds=_timeout(call.headers),
        work=float(prompt_tokens + (ANSWER_TOKENS_ASSUMED if asked is None else asked)),
        prompt_tokens=prompt_tokens,
        answer_tokens=1 if streams else max(1, most if asked is None else asked),
    )


def token_limit(given: Iterable[float | None]) -> int | None:
    """The largest of the limits that were given, None when none was: below 0 is no limit."""
    return max((int(one) for one in given if one is not None and one >= 0), default=None)


def _priority(headers: Mapping[bytes, bytes]) -> Priority | None:
    given = headers.get(_PRIORITY)
    if given is None:
        return None
    try:
        return Priority(given.decode("latin-1").strip().lower())
    except ValueError:
        classes = ", ".join(Priority)
        raise BadRequest(f"X-Modeld-Priority: {_shown(given)} is not a class; there are {classes}") from None


def _timeout(headers: Mapping[bytes, bytes]) -> float:
    given = headers.get(_TIMEOUT)
    if given is None:
        return math.inf
    text = given.decode("latin-1").strip()
    if not _SECONDS.fullmatch(text) or (seconds := float(text)) <= 0:
        raise BadRequest(f"X-Modeld-Timeout: {_shown(given)} is not a number of seconds above 0, such as 30 or 0.5")
    return seconds


def _shown(given: bytes) -> str:
    text = given.decode("latin-1")
    plain = "".join(char if char.isprintable() and char not in '"\\' else "?" for char in text[:_SHOWN_MAX])
    return f'"{plain}{"…" if len(text) > _SHOWN_MAX else ""}"'
