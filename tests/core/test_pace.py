# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import math

import pytest

from modeld.core.model import ModelId
from modeld.core.pace import FIRST_LOAD_SECONDS, FIRST_REQUEST_SECONDS, FIRST_STOP_SECONDS, REUSE_SECONDS, WEIGHT, Pace

A, B = ModelId("a"), ModelId("b")


def test_what_was_never_seen_is_guessed():
    pace = Pace()
    assert (pace.load_seconds(A, 100), pace.request_seconds(A), pace.stop_seconds()) == (
        FIRST_LOAD_SECONDS,
        FIRST_REQUEST_SECONDS,
        FIRST_STOP_SECONDS,
    )
    assert (pace.knows_load(A), pace.knows_request(A), pace.gap_seconds(A), pace.asked_at(A)) == (False, False, None, -math.inf)


def test_the_newest_sample_counts_most_and_none_for_all():
    pace = Pace()
    pace.loaded(A, 10, 100)
    pace.served(A, 1)
    pace.stopped(2)
    assert (pace.load_seconds(A, 100), pace.request_seconds(A), pace.stop_seconds()) == (10, 1, 2)
    pace.loaded(A, 20, 100)
    pace.served(A, 11)
    pace.stopped(0)
    assert pace.load_seconds(A, 100) == pytest.approx(10 + WEIGHT * 10)
    assert pace.request_seconds(A) == pytest.approx(1 + WEIGHT * 10)
    assert pace.stop_seconds() == pytest.approx(2 - WEIGHT * 2)


def test_a_model_never_loaded_is_guessed_from_its_size_and_the_loads_of_others():
    pace = Pace()
    pace.loaded(A, 10, 1000)
    assert pace.load_seconds(B, 300) == pytest.approx(3)
    assert pace.load_seconds(B, 0) == 0.1
    pace.loaded(ModelId("external"), 5, 0)
    assert pace.load_seconds(B, 300) == pytest.approx(3)


def test_the_gap_is_a_mean_of_logarithms_so_that_one_night_does_not_hide_a_rhythm():
    pace = Pace()
    for now in range(0, 100, 2):
        pace.asked(A, now)
    assert pace.gap_seconds(A) == pytest.approx(2)
    pace.asked(A, 36_000)
    assert pace.gap_seconds(A) == pytest.approx(2 * (35_902 / 2) ** WEIGHT)
    pace.asked(A, 36_000)  # two at once: a gap of nothing has no logarithm
    assert 0 < (pace.gap_seconds(A) or 0) < 2 * (35_902 / 2) ** WEIGHT
    assert pace.asked_at(A) == 36_000


def test_the_chance_of_reuse_falls_with_the_pause_and_with_silence():
    pace = Pace()
    assert pace.chance_of_reuse(A, 0) == 0  # never asked for
    pace.asked(A, 0)
    assert pace.chance_of_reuse(A, 0) == 1
    assert pace.chance_of_reuse(A, REUSE_SECONDS) == pytest.approx(1 - math.exp(-1))
    pace.asked(A, REUSE_SECONDS)
    assert pace.chance_of_reuse(A, REUSE_SECONDS) == pytest.approx(1 - math.exp(-1))  # its rhythm
    assert pace.chance_of_reuse(A, 3 * REUSE_SECONDS) == pytest.approx(1 - math.exp(-1 / 2))  # overdue
