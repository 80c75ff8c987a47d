# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.core.breaker import (
    BACKOFF_MAX_SECONDS,
    DEATHS_FREE,
    DEATHS_MAX,
    JITTER,
    OPEN_FIRST_SECONDS,
    OPEN_MAX_SECONDS,
    STARTS_MAX,
    WINDOW_SECONDS,
    Breaker,
    backoff_seconds,
)
from modeld.core.model import ModelId
from modeld.errors import Died, LoadFailed

A, B = ModelId("a"), ModelId("b")
ERROR = Died("it died")


def about(seconds: float) -> object:
    """Within the jitter."""
    return pytest.approx(seconds, rel=JITTER)


def pause(breaker: Breaker, now: float) -> float:
    return max(0.0, breaker.blocked_until(A) - now)


def test_backoff_doubles_within_its_jitter_and_is_bounded():
    for attempt in range(1, 40):
        assert backoff_seconds(A, attempt) == about(min(BACKOFF_MAX_SECONDS, 2.0 ** (attempt - 1)))
    assert backoff_seconds(A, 3) == backoff_seconds(A, 3)
    assert len({backoff_seconds(ModelId(name), 3) for name in "abcdefgh"}) > 4


def test_failed_loads_back_off_and_a_success_starts_the_count_anew():
    breaker = Breaker()
    for attempt, now in ((1, 0), (2, 10), (3, 20)):
        breaker.load_failed(A, "v1", LoadFailed("no"), now)
        assert pause(breaker, now) == about(2.0 ** (attempt - 1))
    breaker.ready(A)
    breaker.load_failed(A, "v1", LoadFailed("no"), 30)
    assert pause(breaker, 30) == about(1)
    assert (breaker.blocked_until(B), breaker.failure(B), breaker.is_open(B), breaker.models()) == (-math.inf, None, False, [A])


def test_deaths_after_ready_are_free_at_first_then_back_off_then_open_the_circuit():
    breaker = Breaker()
    pauses = []
    for n in range(DEATHS_MAX):
        breaker.died(A, "v1", ERROR, n * 10)
        pauses.append(pause(breaker, n * 10))
        assert breaker.is_open(A) == (n == DEATHS_MAX - 1)
    assert pauses == [0, 0, about(1), about(2), about(OPEN_FIRST_SECONDS)]
    assert len(pauses) == DEATHS_MAX > DEATHS_FREE


def test_deaths_that_lie_further_apart_than_the_window_open_nothing():
    breaker = Breaker()
    for n in range(20):
        breaker.died(A, "v1", ERROR, n * WINDOW_SECONDS)
    assert pause(breaker, 19 * WINDOW_SECONDS) == 0


def opened() -> tuple[Breaker, float]:
    breaker = Breaker()
    for _ in range(DEATHS_MAX):
        breaker.died(A, "v1", ERROR, 0)
    return breaker, breaker.blocked_until(A)


def test_each_probe_that_fails_doubles_the_time_up_to_ten_minutes():
    breaker, now = opened()
    for opening in range(2, 9):
        breaker.ready(A)  # it loaded, and died before it answered
        breaker.died(A, "v1", ERROR, now)
        assert pause(breaker, now) == about(min(OPEN_MAX_SECONDS, OPEN_FIRST_SECONDS * 2 ** (opening - 1)))
        now = breaker.blocked_until(A)
    breaker.load_failed(A, "v1", ERROR, now)  # a probe may also fail to load
    assert pause(breaker, now) == about(OPEN_MAX_SECONDS)


def test_an_answer_closes_the_circuit_and_the_record_goes_when_its_deaths_are_old():
    breaker, now = opened()
    breaker.answered(A, now)
    assert not breaker.is_open(A)
    assert breaker.failure(A) is not None
    breaker.died(A, "v1", ERROR, now)  # too many in the window still: from the first pause again
    assert pause(breaker, now) == about(OPEN_FIRST_SECONDS)
    breaker.answered(A, now + WINDOW_SECONDS + 1)
    assert breaker.failure(A) is None
    breaker.answered(A, now)  # nothing on record: nothing to do
    breaker.ready(A)


def test_a_replaced_file_starts_with_a_clean_record():
    breaker, now = opened()
    breaker.died(A, "v2", ERROR, now)
    assert (pause(breaker, now), breaker.is_open(A)) == (0, False)
    breaker.forget(A)
    assert breaker.models() == []


STEP = st.tuples(st.sampled_from(["load fails", "dies", "answers, then dies"]), st.floats(0, 5), st.floats(0, 30))


@given(st.lists(STEP, min_size=30, max_size=60))
def test_within_the_window_nothing_is_started_more_often_than_starts_max(steps: list[tuple[str, float, float]]):
    """A request stands at the door all the time: each start happens as soon as it is allowed, or a little later."""
    breaker, now = Breaker(), 0.0
    starts: list[float] = []
    for ending, lives, late in steps:
        now = max(now, breaker.blocked_until(A)) + (late if len(starts) % 7 == 0 else 0)
        starts.append(now)
        now += lives
        if ending == "load fails":
            breaker.load_failed(A, "v1", ERROR, now)
            continue
        breaker.ready(A)
        if ending == "answers, then dies":
            breaker.answered(A, now)
        breaker.died(A, "v1", ERROR, now)
    for first in starts:
        assert sum(first <= start < first + WINDOW_SECONDS for start in starts) <= STARTS_MAX
