# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import itertools

import pytest

from modeld.core.lifecycle import HOLDS_MEMORY, TRANSITIONS, Signal, State, advance, as_markdown
from modeld.errors import InvariantError


@pytest.mark.parametrize(("state", "signal"), list(itertools.product(State, Signal)))
def test_a_pair_is_in_the_table_or_an_invariant_error(state: State, signal: Signal):
    if (state, signal) in TRANSITIONS:
        assert advance(state, signal) is TRANSITIONS[state, signal]
    else:
        with pytest.raises(InvariantError, match=f"{state}.*{signal}.*the story"):
            advance(state, signal, story="the story")


def test_every_state_can_reach_gone_and_gone_is_final():
    reach = {State.GONE}
    while grown := {state for (state, _), following in TRANSITIONS.items() if following in reach} - reach:
        reach |= grown
    assert reach == set(State)
    assert not [pair for pair in TRANSITIONS if pair[0] is State.GONE]
    assert set(State) - HOLDS_MEMORY == {State.GONE}


def test_the_markdown_table_has_a_row_for_each_state_and_a_column_for_each_signal():
    lines = as_markdown().splitlines()
    assert len(lines) == 2 + len(State) - 1
    assert {line.count("|") for line in lines} == {len(Signal) + 2}
    assert "| **loading** | ready | failed |" in lines[2]
