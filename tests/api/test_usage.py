# SPDX-License-Identifier: GPL-3.0-only
"""Tokens of an answer, in every dialect's words."""

from __future__ import annotations

import pytest

from modeld.api.usage import TokenUsage, read_usage


@pytest.mark.parametrize(
    ("seen", "usage"),
    [
        (b"", TokenUsage()),
        (b'{"usage":{"completion_tokens":2,"prompt_tokens":31,"prompt_tokens_details":{"cached_tokens":30}}}', TokenUsage(31, 30, 2)),
        (b'"timings":{"cache_n":30,"prompt_n":1,"predicted_n":2,"predicted_per_second":122.3}', TokenUsage(31, 30, 2, 122.3)),
        (b'"usage":{"input_tokens":31,"output_tokens":2,"input_tokens_details":{"cached_tokens":30}}', TokenUsage(31, 30, 2)),
        (
            b'"usage":{"cache_read_input_tokens":30,"input_tokens":1,"output_tokens":0}}\n"usage":{"output_tokens":2}',
            TokenUsage(31, 30, 2),
        ),
        (b'"tokens_predicted":2,"tokens_evaluated":9', TokenUsage(9, 0, 2)),
        (b'{"content":"\\"prompt_tokens\\":99"}', TokenUsage()),
        (b'"prompt_tokens": 12345678901', TokenUsage(123456789)),
    ],
)
def test_what_an_answer_says(seen: bytes, usage: TokenUsage) -> None:
    assert read_usage(seen) == usage
