# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.core.fairness import OVERDUE_GAPS, TOKEN_SECONDS, Rest, Running, protected_until, stuck_at
from modeld.core.model import Limits

# --- protection -------------------------------------------------------------------------------------------------------


def rest(*, ready: float = 0, idle: float = 0, asked: float = 0, gap: float | None = None, load: float = 3) -> Rest:
    return Rest(ready, idle, asked, gap, load)


@pytest.mark.parametrize(
    ("one", "now", "residency", "expected"),
    [
        # 1 a rhythm is known
        (rest(ready=-100, idle=10, asked=9, gap=2), 10, 5, 9 + OVERDUE_GAPS * 2),  # soon expected: until it is overdue by far
        (rest(ready=-100, idle=10, asked=9, gap=60), 10, 5, 10),  # expected much later than a reload would take: may go
        (rest(ready=-100, idle=10, asked=9, gap=4, load=4), 10, 5, 15),  # at most min_residency after its last request
        (rest(ready=9, idle=10, asked=9, gap=4, load=4), 10, 5, 15),
        (rest(ready=-100, idle=10, asked=9, gap=2), 40, 5, 15),  # that time has passed: it may go
        # 2 no rhythm is known
        (rest(ready=10, idle=11), 11, 5, 14),  # fresh: as long as its load took
        (rest(ready=10, idle=11, load=60), 11, 5, 16),
        (rest(ready=10, idle=10, load=60), 15, 5, 15),  # not fresh any more
        # without residency nothing is kept
        (rest(ready=10, idle=10, asked=10, gap=1), 10, 0, 10),
        (rest(ready=10, idle=10), 10, 0, 10),
    ],
)
def test_until_when_an_idle_instance_is_kept(one: Rest, now: float, residency: float, expected: float):
    assert protected_until(one, now, residency) == expected


TIMES = st.floats(0, 1000)


@given(TIMES, TIMES, TIMES, st.one_of(st.none(), st.floats(0.001, 1000)), TIMES, TIMES, st.floats(0, 60))
def test_nothing_is_kept_longer_than_min_residency_after_its_last_use(
    ready: float, served: float, later: float, gap: float | None, load: float, asked: float, residency: float
):
    idle = ready + served
    now = idle + later
    until = protected_until(Rest(ready, idle, min(asked, idle), gap, load), now, residency)
    assert until <= max(now, idle + residency)
    if until > now:  # and the alarm at that time finds it unprotected
        assert protected_until(Rest(ready, idle, min(asked, idle), gap, load), until, residency) <= until


# --- stuck ------------------------------------------------------------------------------------------------------------

LIMITS = Limits(first_token_seconds=120, prompt_token_seconds=0.25, inter_token_seconds=60)


def running(*, began: bool = False, moved: float = 0, prompt: int = 0, answer: int = 1) -> Running:
    return Running(began, moved, prompt, answer)


@pytest.mark.parametrize(
    ("requests", "quiet_since", "expected"),
    [
        ([running()], 10, 130),
        ([running(prompt=400)], 10, 130 + 100),
        ([running(prompt=400), running(prompt=400)], 10, 130 + 200),  # they share one batch
        ([running(answer=1001)], 10, 130 + 1000 * TOKEN_SECONDS),  # nothing can be seen before the whole answer is there
        ([running(began=True, moved=50)], 10, 110),
        ([running(began=True, moved=50, prompt=4000)], 10, 110),  # its prompt is read
        ([running(began=True, moved=50), running(began=True, moved=70)], 10, 130),  # one moves: the instance moves
        ([running(began=True, moved=50), running(prompt=40)], 10, 50 + 130),  # one may still read
        ([running(moved=99)], 10, 130),  # its grant is no movement
        ([running(began=True, moved=5)], 10, 70),
    ],
)
def test_when_an_instance_counts_as_stuck(requests: list[Running], quiet_since: float, expected: float):
    assert stuck_at(requests, quiet_since, LIMITS) == expected


def test_a_limit_of_nought_switches_it_off_for_as_long_as_it_would_count():
    no_first, no_inter = replace(LIMITS, first_token_seconds=0), replace(LIMITS, inter_token_seconds=0)
    assert stuck_at([running()], 0, no_first) == math.inf
    assert stuck_at([running(began=True)], 0, no_first) == 60
    assert stuck_at([running(), running(began=True)], 0, no_inter) == math.inf
