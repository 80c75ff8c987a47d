# SPDX-License-Identifier: GPL-3.0-only
"""The clairvoyant's search against one that tries everything, on instances small enough for that."""

from __future__ import annotations

import random
from itertools import chain, combinations

import pytest

from modeld.simulation.swapsearch import Puzzle, solve

State = tuple[tuple[tuple[int, int], ...], tuple[int, ...]]


def brute(puzzle: Puzzle) -> int | None:
    """Every second, end any residents and start any absent ones: the least cost of all. It knows nothing of when a start makes sense."""
    models = range(len(puzzle.need))
    end = max(asks[-1] for asks in puzzle.asks if asks) + max(puzzle.window) + 1
    states: dict[State, int] = {((), tuple(0 for _ in models)): 0}
    for now in range(end + 1):
        after: dict[State, int] = {}
        for (residents, met), cost in states.items():
            met_now = tuple(_met(puzzle, model, met[model], residents, now) for model in models)
            if any(
                first < len(asks) and asks[first] + window < now + (asks[first] + window == now)
                for first, asks, window in zip(met_now, puzzle.asks, puzzle.window, strict=True)
            ):
                continue
            for keep in subsets([one for one in residents]):
                gone = set(residents) - set(keep)
                if any(ready > now for _, ready in gone):
                    continue
                here = {model for model, _ in keep}
                for fresh in subsets([model for model in models if model not in here]):
                    if sum(puzzle.need[model] for model in (*here, *fresh)) > (puzzle.room or 10**9):
                        continue
                    stays = [(model, max(ready, now)) for model, ready in keep] + [(model, now + puzzle.load[model]) for model in fresh]
                    state = tuple(sorted(stays)), met_now
                    price = cost + sum(puzzle.load[model] for model in fresh)
                    if price < after.get(state, 10**9):
                        after[state] = price
        states = after
    return min(
        (cost for (_, met), cost in states.items() if all(first >= len(a) for first, a in zip(met, puzzle.asks, strict=True))), default=None
    )


def _met(puzzle: Puzzle, model: int, first: int, residents: tuple[tuple[int, int], ...], now: int) -> int:
    if any(one == model and ready <= now for one, ready in residents):
        while first < len(puzzle.asks[model]) and puzzle.asks[model][first] <= now:
            first += 1
    return first


def subsets(items: list) -> list:
    return list(chain.from_iterable(combinations(items, size) for size in range(len(items) + 1)))


def puzzle(seed: int) -> Puzzle:
    dice = random.Random(seed)
    models = dice.choice((2, 3, 3, 4))
    load = tuple(dice.randint(1, 3) for _ in range(models))
    asks: list[list[int]] = [[] for _ in range(models)]
    for _ in range(dice.randint(models, 8)):
        asks[dice.randrange(models)].append(dice.randint(0, 12))
    window = tuple(one + dice.randint(0, 5) for one in load)
    need = tuple(dice.choice((1, 1, 2)) for _ in range(models))
    return Puzzle(need, load, window, tuple(tuple(sorted(a)) for a in asks), dice.randint(max(need), max(need) + 1))


@pytest.mark.parametrize("start", range(0, 4000, 50))
def test_it_finds_what_trying_everything_finds(start: int):
    for seed in range(start, start + 50):
        one = puzzle(seed)
        answer = solve(one, chain_max=6)
        expected = brute(one)
        assert (None if answer is None else answer.cost) == expected, (seed, one)
        assert answer is None or answer.exact
