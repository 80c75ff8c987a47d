# SPDX-License-Identifier: GPL-3.0-only
"""What others hold counts once it lasts: not for a spike, at once when it is the first look, back again when it is gone for good."""

from __future__ import annotations

from modeld.core.foreign import SAMPLES_MAX, SETTLE_SECONDS, STEP_MB, Foreign
from modeld.core.model import LOCAL


def watched(*looks: tuple[float, int]) -> tuple[Foreign, list[bool]]:
    foreign = Foreign()
    return foreign, [foreign.observe(LOCAL, mb, now) for now, mb in looks]


def test_nothing_was_seen() -> None:
    assert Foreign().settled_mb(LOCAL) == 0
    assert not Foreign().believe(LOCAL)


def test_the_first_look_counts_at_once() -> None:
    foreign, moved = watched((0, 500))
    assert (foreign.settled_mb(LOCAL), moved) == (500, [True])
    assert watched((0, 0))[1] == [False]


def test_a_rise_counts_after_it_has_lasted() -> None:
    foreign, moved = watched((0, 0), (1, 400), (5, 500), (10.9, 450), (11, 450))
    assert moved == [False, False, False, False, True]
    assert foreign.settled_mb(LOCAL) == 400  # that much was there all the time


def test_a_spike_counts_for_nothing() -> None:
    foreign, moved = watched((0, 0), (8, 900), (12, 0), (16, 900), (20, 0), (24, 900), (28, 0))
    assert not any(moved)
    assert foreign.settled_mb(LOCAL) == 0


def test_a_dip_frees_nothing_but_what_is_gone_for_good_does() -> None:
    foreign, moved = watched((0, 500), (8, 0), (12, 500), (14, 100), (20, 200), (24, 150))
    assert moved[1:] == [False, False, False, False, True]
    assert foreign.settled_mb(LOCAL) == 200  # never below what was seen meanwhile


def test_less_than_a_step_is_not_worth_a_plan() -> None:
    foreign, moved = watched(*[(second, STEP_MB - 1) for second in range(1, 40)])
    assert moved[1:] == [False] * 38
    small, moved = watched((0, 0), *[(second, STEP_MB - 1) for second in range(1, 40)])
    assert not any(moved)
    assert small.settled_mb(LOCAL) == 0
    assert foreign.settled_mb(LOCAL) == STEP_MB - 1


def test_a_slow_rise_adds_up() -> None:
    foreign, _ = watched(*[(float(second), second * 10) for second in range(60)])
    assert 59 * 10 - (SETTLE_SECONDS + 1) * 10 - STEP_MB <= foreign.settled_mb(LOCAL) <= 59 * 10 - SETTLE_SECONDS * 10


def test_after_a_load_ran_out_of_memory_the_last_look_counts() -> None:
    foreign, _ = watched((0, 0), (1, 300))
    assert foreign.settled_mb(LOCAL) == 0
    assert foreign.believe(LOCAL)
    assert foreign.settled_mb(LOCAL) == 300
    assert not foreign.believe(LOCAL)


def test_a_lower_last_look_is_not_believed() -> None:
    foreign, _ = watched((0, 300), (1, 0))
    assert not foreign.believe(LOCAL)
    assert foreign.settled_mb(LOCAL) == 300


def test_what_is_kept_of_the_past_has_a_limit() -> None:
    foreign, _ = watched(*[(n / 1000, n) for n in range(3 * SAMPLES_MAX)])
    assert len(foreign._seen[LOCAL]) == SAMPLES_MAX
