# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

from modeld.core.model import ModelId
from modeld.core.pace import BACKOFF_MAX_SECONDS, FIRST_LOAD_SECONDS, FIRST_REQUEST_SECONDS, JITTER, Pace, backoff_seconds

A = ModelId("a")


def test_backoff_doubles_within_its_jitter_and_is_bounded():
    for attempt in range(1, 40):
        base = min(BACKOFF_MAX_SECONDS, 2.0 ** (attempt - 1))
        assert base * (1 - JITTER) <= backoff_seconds(A, attempt) <= base * (1 + JITTER)
    assert backoff_seconds(A, 3) == backoff_seconds(A, 3)
    assert len({backoff_seconds(ModelId(name), 3) for name in "abcdefgh"}) > 4


def test_expected_wait_learns():
    pace = Pace()
    assert pace.expected_wait(A, ahead=0, slots=1, resident=False) == FIRST_LOAD_SECONDS + FIRST_REQUEST_SECONDS
    pace.loaded(A, 2.0)
    pace.served(A, 1.0)
    assert pace.expected_wait(A, ahead=3, slots=2, resident=False) == 2.0 + 4 / 2 * 1.0
    assert pace.expected_wait(A, ahead=3, slots=2, resident=True) == 2.0
    pace.served(A, 11.0)
    assert 1.0 < pace.expected_wait(A, ahead=0, slots=1, resident=True) < 11.0
