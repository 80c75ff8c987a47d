# SPDX-License-Identifier: GPL-3.0-only
"""The clairvoyant's search against one that tries everything, on instances small enough for that."""

from __future__ import annotations

import random
from itertools import product

import pytest

from modeld.simulation.puzzle import Puzzle, line
from modeld.simulation.swapsearch import solve

# One model in a state: () = absent, (ready, busy until, met) = resident; and beside it the number of asks that were begun.
State = tuple[tuple[tuple[int, ...], int], ...]


def brute(puzzle: Puzzle) -> int | None:
    """Every second, begin any asks in their order, end any residents that are not busy, start any absent ones: the least cost of all.

    It knows nothing of when a start makes sense, and begins no ask before it must.
    """
    models = range(len(puzzle.need))
    end = max(line.due[-1] for line in puzzle.lines if line.at) + 1
    states: dict[State, int] = {tuple(((), 0) for _ in models): 0}
    for now in range(end + 1):
        after: dict[State, int] = {}
        for state, cost in states.items():
            for choice in product(*(options(puzzle, model, state[model], now) for model in models)):
                if sum(puzzle.need[model] for model in models if choice[model][0]) > (puzzle.room or 10**9):
                    continue
                fresh = [model for model in models if choice[model][0] and choice[model][0][0] == now + puzzle.load[model]]
                price = cost + sum(puzzle.load[model] for model in fresh)
                if price < after.get(choice, 10**9):
                    after[choice] = price
        states = after
    done = tuple(len(line.at) for line in puzzle.lines)
    return min((cost for state, cost in states.items() if tuple(begun for _, begun in state) == done), default=None)


def options(puzzle: Puzzle, model: int, here: tuple[tuple[int, ...], int], now: int) -> list[tuple[tuple[int, ...], int]]:
    """What may become of one model at this second; nothing if an ask can no longer begin in its window."""
    line, (resident, begun) = puzzle.lines[model], here
    arrived = sum(at <= now for at in line.at)
    found: set[tuple[tuple[int, ...], int]] = set()
    if resident and resident[0] <= now:
        for until in range(begun, arrived + 1):
            busy = max([resident[1], *(now + runs for runs in line.runs[begun:until])])
            found.add(((min(resident[0], now), max(busy, now)), until))
            if busy <= now:
                found.add(((), until))
    elif resident:
        found.add((resident, begun))
    else:
        found.add(((), begun))
    for _, met in [one for one in found if not one[0]]:
        found.add(((now + puzzle.load[model], now), met))
    return [one for one in found if one[1] == len(line.at) or line.due[one[1]] > now]


def puzzle(seed: int) -> Puzzle:
    dice = random.Random(seed)
    models = dice.choice((2, 2, 3, 3))
    load = tuple(dice.randint(1, 3) for _ in range(models))
    asks: list[list[tuple[int, int, int]]] = [[] for _ in range(models)]
    slack = tuple(dice.randint(0, 5) for _ in range(models))
    for _ in range(dice.randint(models, 6)):
        model, at = dice.randrange(models), dice.randint(0, 9)
        asks[model].append((at, at + load[model] + slack[model] + dice.choice((0, 0, 0, 3)), dice.randint(0, 3)))
    need = tuple(dice.choice((1, 1, 2)) for _ in range(models))
    return Puzzle(need, load, tuple(line(one) for one in asks), dice.randint(max(need), max(need) + 1))


@pytest.mark.parametrize("start", range(0, 200, 25))
def test_it_finds_what_trying_everything_finds(start: int):
    for seed in range(start, start + 25):
        one = puzzle(seed)
        answer = solve(one, chain_max=6)
        expected = brute(one)
        assert (None if answer is None else answer.cost) == expected, (seed, one)
        assert answer is None or answer.exact
