# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.core.eviction import Candidate, choose, in_order, worth
from modeld.core.model import HOST, LOCAL, DeviceId, InstanceId

GPU1 = DeviceId("local/gpu1")


def candidate(name: str, mb: int | dict[DeviceId, int], keep: float = 0, **flags: bool) -> Candidate:
    frees = {LOCAL: mb} if isinstance(mb, int) else mb
    return Candidate(InstanceId(name), frees, keep, not flags, **{"busy": False, **flags})


@pytest.mark.parametrize(
    ("candidates", "short", "expected"),
    [
        ([], 1, None),
        ([candidate("a", 10)], 11, None),
        ([candidate("a", 10)], 10, ["a"]),
        ([candidate("young", 10, 2), candidate("old", 10, 1)], 5, ["old"]),
        ([candidate("busy", 10, 1, busy=True), candidate("idle", 10, 9)], 5, ["idle"]),
        ([candidate("busy", 10, 1, busy=True), candidate("closed", 10, 9, busy=True, closed=True)], 5, ["closed"]),
        ([candidate("loads", 10, 1, later=True), candidate("busy", 10, 9, busy=True)], 5, ["busy"]),
        ([candidate("small", 1, 1), candidate("big", 10, 2)], 10, ["big"]),
        ([candidate("a", 5, 1), candidate("b", 5, 2), candidate("c", 5, 3)], 10, ["a", "b"]),
        ([candidate("nothing", 0, 1), candidate("a", 5, 2)], 5, ["a"]),
        ([candidate("idle", 5, 9), candidate("busy", 10, 1, busy=True)], 10, ["busy"]),
        ([candidate("b", 5, 1), candidate("a", 5, 1)], 5, ["a"]),
    ],
)
def test_who_gives_way(candidates: list[Candidate], short: int, expected: list[str] | None):
    victims = choose(in_order(candidates), {LOCAL: short})
    assert (None if victims is None else [victim.id for victim in victims]) == expected


@pytest.mark.parametrize(
    ("candidates", "short", "expected"),
    [
        ([candidate("other", {GPU1: 99}, 1), candidate("a", {LOCAL: 10}, 2)], {LOCAL: 10}, ["a"]),
        ([candidate("a", {LOCAL: 10}, 1), candidate("b", {GPU1: 10}, 2)], {LOCAL: 10, GPU1: 10}, ["a", "b"]),
        ([candidate("a", {LOCAL: 10}, 1), candidate("both", {LOCAL: 10, GPU1: 10}, 2)], {LOCAL: 10, GPU1: 10}, ["both"]),
        ([candidate("a", {LOCAL: 10}, 1), candidate("h", {LOCAL: 1, HOST: 50}, 2)], {HOST: 50}, ["h"]),
        ([candidate("a", {LOCAL: 10}, 1)], {LOCAL: 10, GPU1: 1}, None),
        # once LOCAL is covered, who frees more of it helps nobody
        (
            [candidate("a", {LOCAL: 10}, 1), candidate("b", {LOCAL: 10}, 2), candidate("c", {GPU1: 5}, 3)],
            {LOCAL: 10, GPU1: 5},
            ["a", "c"],
        ),
    ],
)
def test_who_gives_way_on_several_devices(candidates: list[Candidate], short: dict[DeviceId, int], expected: list[str] | None):
    victims = choose(in_order(candidates), short)
    assert (None if victims is None else [victim.id for victim in victims]) == expected


def test_the_second_pass_spares_the_most_valuable_first():
    """Either of the first two is unnecessary once the big one goes: the one last in the order is spared."""
    pool = [candidate("a", 5, 1), candidate("b", 5, 2), candidate("big", 16, 3)]
    assert [v.id for v in choose(in_order(pool), {LOCAL: 20}) or []] == ["a", "big"]


VECTORS = st.fixed_dictionaries({LOCAL: st.integers(0, 50), GPU1: st.integers(0, 50)})
CANDIDATES = st.lists(st.tuples(VECTORS, st.integers(0, 9), st.booleans(), st.booleans()), max_size=8)
SHORT = st.dictionaries(st.sampled_from([LOCAL, GPU1]), st.integers(1, 120), min_size=1)


@given(CANDIDATES, SHORT)
def test_victims_suffice_and_none_is_superfluous(rows: list[tuple[dict[DeviceId, int], int, bool, bool]], short: dict[DeviceId, int]):
    pool = [Candidate(InstanceId(str(n)), mb, keep, False, busy, False, later) for n, (mb, keep, busy, later) in enumerate(rows)]
    victims = choose(in_order(pool), short)

    def covers(some: list[Candidate]) -> bool:
        return all(sum(one.frees_mb[device] for one in some) >= amount for device, amount in short.items())

    if victims is None:
        assert not covers(pool)
        return
    assert covers(list(victims))
    assert not any(covers([one for one in victims if one is not spared]) for spared in victims)
    if covers([one for one in pool if not one.later]):
        assert not any(victim.later for victim in victims)


def test_worth_is_the_loading_that_is_saved_per_mib():
    assert worth(10, 0.5, 100) == 0.05
    assert worth(10, 0.5, 0) == 5.0
    assert worth(20, 0.5, 100) > worth(10, 0.5, 100) > worth(10, 0.1, 100) > worth(10, 0.1, 1000)
