# SPDX-License-Identifier: GPL-3.0-only
"""The bound from below: never above what is possible, and better once prices are learned."""

from __future__ import annotations

from modeld.simulation.puzzle import Puzzle, line
from modeld.simulation.rent import Rent
from modeld.simulation.swapsearch import solve
from simulation.test_swapsearch import puzzle


def in_milliseconds(one: Puzzle) -> Puzzle:
    """The same with seconds for units: prices change with the quarter of a second."""
    lines = [
        line([(at * 1000, due * 1000, runs * 1000) for at, due, runs in zip(told.at, told.due, told.runs, strict=True)])
        for told in one.lines
    ]
    return Puzzle(one.need, tuple(load * 1000 for load in one.load), tuple(lines), one.room)


def test_no_bound_is_above_the_optimum_with_or_without_prices():
    tighter = 0
    for seed in range(60):
        one = in_milliseconds(puzzle(seed))
        answer = solve(one, chain_max=6)
        if answer is None:
            continue
        rent = Rent(one)
        free = rent.bound()
        rent.learn(answer.cost)
        assert free - 1e-6 <= rent.bound() <= answer.cost + 1e-6, seed
        assert answer.cost >= free
        tighter += rent.bound() > free + 1e-6
    assert tighter >= 2


def test_it_sees_that_two_models_cannot_be_there_at_once():
    """Two models asked by turns far apart, room for one: four loads, of which the bound without prices knows two."""
    asks = [(at * 60_000, at * 60_000 + 10_000, 1000) for at in range(4)]
    one = Puzzle((100, 100), (5000, 5000), (line(asks[::2]), line(asks[1::2])), 100)
    rent = Rent(one)
    assert rent.bound() == 10_000
    rent.learn(20_000)
    answer = solve(one)
    assert answer is not None and answer.exact
    assert answer.cost == 20_000
    assert rent.bound() > 14_000
