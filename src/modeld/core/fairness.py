# SPDX-License-Identifier: GPL-3.0-only
"""When an idle model is kept for its own next request, and when a busy one counts as stuck; rule: plain functions of times and settings.

How long an idle instance is kept from a model that is not due yet (`protected_until`); nothing protects it from a due one:
1  It was asked at a rhythm (`gap`): as long as its next request is expected sooner than a reload would take, and until that request is
   overdue (OVERDUE_GAPS usual pauses since the last one).
2  No rhythm is known: when it was loaded less than min_residency ago, until it has been idle for as long as its load took.
3  Never longer than min_residency after it became ready, nor, later, than min_residency after its last request ended.
Waiting for as long as the thing costs that one would have to buy again is never more than twice as dear as the best choice in
hindsight (Karlin, Manasse, McGeoch and Owicki, 1994); 1 uses what is known of the next request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from modeld.core.model import Limits

OVERDUE_GAPS: Final = 3.0
TOKEN_SECONDS: Final = 1.0
"""The slowest generation that is taken for alive where nothing can be seen before the whole answer is there, seconds per token."""


@dataclass(frozen=True, slots=True)
class Rest:
    """An idle instance. Times in monotonic seconds; `gap_seconds` is None when no rhythm is known."""

    ready_at: float
    idle_since: float
    asked_at: float
    gap_seconds: float | None
    load_seconds: float


def protected_until(rest: Rest, now: float, min_residency_seconds: float) -> float:
    """Until when it is kept although nothing runs on it; a time that has passed: it may go."""
    fresh_until = rest.ready_at + min_residency_seconds
    if rest.gap_seconds is not None:  # 1
        expected = rest.asked_at + rest.gap_seconds
        if expected - now >= rest.load_seconds:
            return now
        wanted = rest.asked_at + OVERDUE_GAPS * rest.gap_seconds
    elif now < fresh_until:  # 2
        wanted = rest.idle_since + rest.load_seconds
    else:
        return now
    return min(wanted, max(fresh_until, rest.idle_since + min_residency_seconds))  # 3


@dataclass(frozen=True, slots=True)
class Running:
    """A request that runs, for the question whether its instance moves. `moved` is when its last byte came, or its grant."""

    began: bool
    moved: float
    prompt_tokens: int
    answer_tokens: int


def stuck_at(running: Iterable[Running], quiet_since: float, limits: Limits) -> float:
    """When the instance counts as stuck unless something moves before. +inf = never.

    quiet_since   the last movement of any of its requests, also of those that ended; or when the first of them was granted

    Silence is allowed for the longest that any of its requests may be silent: inter_token after a first byte; before it first_token,
    the prompts of all that have not begun (they share one batch), and the whole answer where it comes in one piece.
    """
    requests = list(running)
    unread = sum(request.prompt_tokens for request in requests if not request.began)
    allowed = 0.0
    for request in requests:
        if request.began:
            limit = limits.inter_token_seconds
            longest = limit
        else:
            limit = limits.first_token_seconds
            longest = limit + unread * limits.prompt_token_seconds + max(0, request.answer_tokens - 1) * TOKEN_SECONDS
        if limit <= 0:
            return float("inf")
        allowed = max(allowed, longest)
    return max(quiet_since, *(request.moved for request in requests if request.began), quiet_since) + allowed
