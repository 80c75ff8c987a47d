# SPDX-License-Identifier: GPL-3.0-only
"""What memory is worth at each moment, and what a partial solution must still cost; rule: a bound from below, whatever the prices.

The Lagrangian of the clairvoyant's problem (simulation.puzzle). Suppose that memory is rented at a price that changes with time, and that
the rent of the whole room is paid back. Then the models no longer compete: each chooses its own cheapest stays, by a short dynamic
program. The sum over the models is never above the true optimum, since a true solution pays no more rent than is paid back. Prices go up
where the models together take more than there is, and down elsewhere (subgradient steps), which brings the bound close to the optimum.
The same tables answer for every point of the search: what an absent model must still pay from its first unmet ask on, what a resident one
must, less the rent of the room from that moment on.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, TypeAlias

from modeld.simulation.puzzle import Puzzle

ROUNDS: Final = 120
SEGMENTS_MAX: Final = 600
SEGMENT_MS_MIN: Final = 250
PATIENCE: Final = 8
"""Rounds without a better bound before the steps are halved."""
INFINITE: Final = float("inf")

Resident: TypeAlias = tuple[int, int, int, int]
"""(model, ready at, first ask that it may meet, when it must end as a visit or 0)"""


@dataclass(slots=True)
class _Plan:
    """The cheapest stays of one model under the present prices: `rest[i]` from ask i on; stays are (start, end) in the order of asks.

    `keep[i]` is the least over all asks j from i on of: rent until j has ended at the earliest, and the rest after j.
    """

    rest: list[float]
    stays: list[tuple[int, int]]
    keep: list[float]


class Rent:
    """Prices and what follows from them. All times in milliseconds, prices in milliseconds of load per MiB and millisecond."""

    def __init__(self, puzzle: Puzzle) -> None:
        self._puzzle = puzzle
        ends = [line.due[-1] + line.longest for line in puzzle.lines if line.at]
        end = max(ends, default=0) + 1
        self._step = max(SEGMENT_MS_MIN, -(-end // SEGMENTS_MAX))
        self._prices = [0.0] * (end // self._step + 1)
        self._sums: list[float] = []
        self._plans: list[_Plan] = []
        self._edges: dict[int, tuple[list[tuple[float, int]], list[tuple[float, int]]]] = {}
        self._set(self._prices)

    def learn(self, known: int) -> None:
        """Find good prices. `known` is the cost of any solution: it sets the size of the steps."""
        if self._puzzle.room is None:
            return
        best, best_prices = self.bound(), self._prices
        size, idle = 1.0, 0
        for _ in range(ROUNDS):
            slope = self._slope()
            norm = sum(one * one for one in slope)
            if known - best < 1.0 or size < 1e-3 or norm == 0.0:
                break
            step = size * (1.02 * known - self.bound()) / norm
            prices = [max(0.0, price + step * one) for price, one in zip(self._prices, slope, strict=True)]
            self._set(prices)
            if (bound := self.bound()) > best:
                best, best_prices, idle = bound, prices, 0
            elif (idle := idle + 1) >= PATIENCE:
                size, idle = size / 2, 0
                self._set(best_prices)
        self._set(best_prices)

    def bound(self) -> float:
        """No solution costs less."""
        return sum(plan.rest[0] for plan in self._plans) - self._paid_back(0)

    def rest(self, at: int, residents: tuple[Resident, ...], out: tuple[int, ...]) -> float:
        """What a solution must still cost from the moment `at` on. `out` holds the first unmet asks, below 0 for residents."""
        total = -self._paid_back(at)
        for model, first in enumerate(out):
            if first >= 0:
                total += self._plans[model].rest[first]
        here = self._rent(at)
        for model, ready, first, _ in residents:
            total += self._stays_on(model, at, ready, first) - self._puzzle.need[model] * here
        return total

    def _stays_on(self, model: int, at: int, ready: int, first: int) -> float:
        """The rent from the beginning of time until the resident ends, and the rest of its model after that, at least."""
        line, plan, need = self._puzzle.lines[model], self._plans[model], self._puzzle.need[model]
        if ready + line.longest <= at:
            unmet = line.unmet(first, ready, at)
            return min(need * self._rent(at) + plan.rest[unmet], plan.keep[unmet])
        waiting = max(first, bisect_right(line.at, ready))
        best, longest = plan.keep[waiting], 0
        for index in range(first, waiting):
            longest = max(longest, line.runs[index])
            best = min(best, need * self._rent(max(at, ready + longest)) + plan.rest[index + 1])
        return best

    # --- prices -------------------------------------------------------------------------------------------------------

    def _set(self, prices: list[float]) -> None:
        self._prices = prices
        self._sums = [0.0, *accumulate(price * self._step for price in prices)]
        self._edges = {}
        self._plans = [self._plan(model) for model in range(len(self._puzzle.need))]

    def _rent(self, at: int) -> float:
        """Of one MiB from the beginning until `at`."""
        segment = at // self._step
        if segment >= len(self._prices):
            return self._sums[-1]
        return self._sums[segment] + (at - segment * self._step) * self._prices[segment]

    def _paid_back(self, at: int) -> float:
        return 0.0 if self._puzzle.room is None else self._puzzle.room * (self._sums[-1] - self._rent(at))

    def _slope(self) -> list[float]:
        """MiB milliseconds asked for above what there is, by segment; 0 where the price is 0 and there is enough."""
        step, room = self._step, self._puzzle.room or 0
        used = [0.0] * len(self._prices)
        for need, plan in zip(self._puzzle.need, self._plans, strict=True):
            for start, end in plan.stays:
                first, last = start // step, min(end // step, len(used) - 1)
                if first >= last:
                    used[last] += need * (end - start)
                    continue
                used[first] += need * ((first + 1) * step - start)
                used[last] += need * (end - last * step)
                for segment in range(first + 1, last):
                    used[segment] += need * step
        enough = room * step
        return [0.0 if price == 0.0 and asked <= enough else asked - enough for asked, price in zip(used, self._prices, strict=True)]

    # --- one model ----------------------------------------------------------------------------------------------------

    def _plan(self, model: int) -> _Plan:
        """Backwards over its asks: the stay that meets asks i to j, then the rest from j + 1 on.

        A stay that starts at s and meets i to j ends at max(s + load + the longest of them, the latest of their times plus runs).
        """
        puzzle = self._puzzle
        line, load, need = puzzle.lines[model], puzzle.load[model], puzzle.need[model]
        count = len(line.at)
        rest = [0.0] * (count + 1)
        chosen: list[tuple[int, int, int]] = [(0, 0, 0)] * count
        for index in range(count - 1, -1, -1):
            latest = line.due[index] - load
            best, longest, until = INFINITE, 0, 0
            for last in range(index, count):
                longest, until = max(longest, line.runs[last]), max(until, line.at[last] + line.runs[last])
                length = load + longest
                if until >= latest + length:
                    start, rent = latest, self._rent(until) - self._rent(latest)
                else:
                    rent, start = self._cheapest(max(0, until - length), latest, length)
                cost = load + need * rent
                if cost >= best:  # and longer ones pay more
                    break
                if cost + rest[last + 1] < best:
                    best, chosen[index] = cost + rest[last + 1], (start, max(until, start + length), last + 1)
            rest[index] = best
        keep = [INFINITE]
        for index in range(count - 1, -1, -1):
            keep.append(min(keep[-1], need * self._rent(line.at[index] + line.runs[index]) + rest[index + 1]))
        stays, index = [], 0
        while index < count:
            start, end, index = chosen[index]
            stays.append((start, end))
        return _Plan(rest, stays, keep[::-1])

    def _cheapest(self, low: int, high: int, length: int) -> tuple[float, int]:
        """(rent of one MiB, start) of the cheapest stay of that length.

        Rents are straight between the edges of segments: it starts or ends at an edge, or at one end of the range.
        """
        if length not in self._edges:
            self._edges[length] = self._along_edges(length)
        starting, ending = self._edges[length]
        step = self._step
        options = [(self._rent(low + length) - self._rent(low), low), (self._rent(high + length) - self._rent(high), high)]
        first, last = -(-low // step), high // step
        if first <= last:
            options += starting[first : last + 1]
        first, last = -(-(low + length) // step), (high + length) // step
        if first <= last:
            options += ending[first : last + 1]
        return min(options)

    def _along_edges(self, length: int) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
        """For each edge of a segment: (rent, start) of a stay that starts there, and of one that ends there."""
        edges = [index * self._step for index in range(len(self._sums))]
        starting = [(self._rent(edge + length) - self._rent(edge), edge) for edge in edges]
        return starting, [(self._rent(edge) - self._rent(max(0, edge - length)), edge - length) for edge in edges]
