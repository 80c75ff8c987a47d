# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.core.eviction import Candidate, choose
from modeld.core.model import InstanceId


def candidate(name: str, mb: int, used: float, *, busy: bool = False, draining: bool = False) -> Candidate:
    return Candidate(InstanceId(name), mb, used, busy, draining)


@pytest.mark.parametrize(
    ("candidates", "short", "expected"),
    [
        ([], 1, None),
        ([candidate("a", 10, 1)], 11, None),
        ([candidate("a", 10, 1)], 10, ["a"]),
        ([candidate("young", 10, 2), candidate("old", 10, 1)], 5, ["old"]),
        ([candidate("busy", 10, 1, busy=True), candidate("idle", 10, 9)], 5, ["idle"]),
        ([candidate("busy", 10, 1, busy=True), candidate("draining", 10, 9, busy=True, draining=True)], 5, ["draining"]),
        ([candidate("small", 1, 1), candidate("big", 10, 2)], 10, ["big"]),
        ([candidate("a", 5, 1), candidate("b", 5, 2), candidate("c", 5, 3)], 10, ["a", "b"]),
        ([candidate("nothing", 0, 1), candidate("a", 5, 2)], 5, ["a"]),
        ([candidate("idle", 5, 9), candidate("busy", 10, 1, busy=True)], 10, ["busy"]),
    ],
)
def test_who_gives_way(candidates: list[Candidate], short: int, expected: list[str] | None):
    victims = choose(candidates, short)
    assert (None if victims is None else [victim.id for victim in victims]) == expected


CANDIDATES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.booleans()), max_size=8)


@given(CANDIDATES, st.integers(1, 120))
def test_victims_suffice_and_none_is_superfluous(rows: list[tuple[int, int, bool]], short: int):
    candidates = [candidate(str(n), mb, used, busy=busy) for n, (mb, used, busy) in enumerate(rows)]
    victims = choose(candidates, short)
    total = sum(one.frees_mb for one in candidates)
    if victims is None:
        assert total < short
        return
    freed = sum(victim.frees_mb for victim in victims)
    assert freed >= short
    assert all(freed - victim.frees_mb < short for victim in victims)
    if sum(one.frees_mb for one in candidates if not one.busy) >= short:
        assert not any(victim.busy for victim in victims)
