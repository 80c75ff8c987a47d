# SPDX-License-Identifier: GPL-3.0-only
"""What an answer cost, read off its first and last bytes; rule: looked at once, at the end, and never parsed as JSON.

A quote inside a JSON string is written `\\"`, so that generated text cannot look like these members. OpenAI counts cached tokens among
the prompt's, Anthropic beside them; llama.cpp's own `timings` has both apart.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_COUNTS: Final = re.compile(
    rb'(?<!\\)"(prompt_tokens|input_tokens|completion_tokens|output_tokens|cached_tokens|cache_read_input_tokens|'
    rb'cache_n|prompt_n|predicted_n|predicted_per_second|tokens_predicted|tokens_evaluated)" ?: ?(\d{1,9}(?:\.\d{1,9})?)'
)


class TokenUsage(NamedTuple):
    """Tokens of one request; 0 where the answer does not say. `prompt` counts all of the prompt, `cached` what of it had not to be read."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    tokens_per_second: float = 0.0


NO_USAGE: Final = TokenUsage()


def read_usage(seen: bytes) -> TokenUsage:
    """From the ends of an answer: its first bytes, then its last. Of a count that is given twice the later one holds."""
    given = {name: float(number) for name, number in _COUNTS.findall(seen)}

    def first(*names: bytes) -> int:
        return next((int(given[name]) for name in names if name in given), 0)

    beside = first(b"cache_read_input_tokens", b"cache_n")
    read = first(b"input_tokens") + first(b"cache_read_input_tokens") if b"cache_read_input_tokens" in given else first(b"input_tokens")
    prompt = first(b"prompt_tokens") or read or first(b"prompt_n") + first(b"cache_n") or first(b"tokens_evaluated")
    return TokenUsage(
        prompt,
        first(b"cached_tokens") or beside,
        first(b"completion_tokens", b"output_tokens", b"predicted_n", b"tokens_predicted"),
        given.get(b"predicted_per_second", 0.0),
    )
