# SPDX-License-Identifier: GPL-3.0-only
"""What memory is worth at each moment, and what a partial solution must still cost; rule: a bound from below, whatever the prices.

The Lagrangian of the clairvoyant's problem (simulation.swapsearch). Suppose that memory is rented at a price that changes with time, and that
the rent of the whole room is paid back. Then the models no longer compete: each chooses its own cheapest stays, by a short dynamic program,
and the sum over the models is never above the true optimum, since a true solution pays no more rent than is paid back. Prices go up where
the models together take more than there is and down elsewhere (subgradient steps), which brings the bound close to the optimum.
The same tables answer for every point of the search: what an absent model must still pay from its first unmet ask on, what a resident one
must, less the rent of the room from that moment on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol

ROUNDS: Final = 250
SEGMENTS_MAX: Final = 600
SEGMENT_MS_MIN: Final = 250
PATIENCE: Final = 8
"""Rounds without a better bound before the steps are halved."""


class Puzzle(Protocol):
    """simulation.swapsearch.Puzzle."""

    @property
    def need(self) -> tuple[int, ...]: ...
    @property
    def load(self) -> tuple[int, ...]: ...
    @property
    def window(self) -> tuple[int, ...]: ...
    @property
    def asks(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def room(self) -> int | None: ...


@dataclass(slots=True)
class _Plan:
    """The cheapest stays of one model under the present prices: `rest[i]` from ask i on; stays are (start, end) in the order of asks."""

    rest: list[float]
    stays: list[tuple[int, int]]


class Rent:
    """Prices and what follows from them. All times in milliseconds, prices in milliseconds of load per MiB and millisecond."""

    def __init__(self, puzzle: Puzzle) -> None:
        self._puzzle = puzzle
        end = max((asks[-1] + window for asks, window in zip(puzzle.asks, puzzle.window, strict=True) if asks), default=0) + 1
        self._step = max(SEGMENT_MS_MIN, -(-end // SEGMENTS_MAX))
        self._prices = [0.0] * (end // self._step + 1)
        self._sums = [0.0] * (len(self._prices) + 1)
        self._plans: list[_Plan] = []
        self._keep: list[list[float]] = []
        self._edges: dict[int, tuple[list[tuple[float, int]], list[tuple[float, int]]]] = {}
        self._set(self._prices)

    def learn(self, known: int) -> None:
        """Find good prices. `known` is the cost of any solution: it sets the size of the steps."""
        if self._puzzle.room is None:
            return
        best, best_prices, prices = self.bound(), self._prices, list(self._prices)
        size, idle = 1.0, 0
        for _ in range(ROUNDS):
            if known - best < 1.0 or size < 1e-3:
                break
            slope = self._slope()
            norm = sum(one * one for one in slope)
            if norm == 0.0:
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

    def rest(self, at: int, residents: tuple[tuple[int, int, bool], ...], out: tuple[int, ...]) -> float:
        """What a solution must still cost from the moment `at` on. `residents` are (model, ready at, _), `out` the first unmet asks."""
        total = -self._paid_back(at)
        for model, first in enumerate(out):
            if first >= 0:
                total += self._plans[model].rest[first]
        here = self._rent(at)
        for model, ready, _ in residents:
            asks = self._puzzle.asks[model]
            leave = max(at, ready)
            need = self._puzzle.need[model]
            now = need * self._rent(leave) + self._plans[model].rest[bisect_right(asks, leave)]
            total += min(now, self._keep[model][bisect_left(asks, leave)]) - need * here
        return total

    # --- prices -------------------------------------------------------------------------------------------------------

    def _set(self, prices: list[float]) -> None:
        self._prices = prices
        self._sums = [0.0, *accumulate(price * self._step for price in prices)]
        self._edges = {}
        self._plans = [self._plan(model) for model in range(len(self._puzzle.need))]
        self._keep = []
        for model, plan in enumerate(self._plans):
            keep = [float("inf")]
            for index in range(len(self._puzzle.asks[model]) - 1, -1, -1):
                rent = self._puzzle.need[model] * self._rent(self._puzzle.asks[model][index])
                keep.append(min(keep[-1], rent + plan.rest[index + 1]))
            self._keep.append(keep[::-1])

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
        for model, plan in enumerate(self._plans):
            need = self._puzzle.need[model]
            for start, end in plan.stays:
                first, last = start // step, min(end // step, len(used) - 1)
                if first >= last:
                    used[last] += need * (end - start)
                    continue
                used[first] += need * ((first + 1) * step - start)
                used[last] += need * (end - last * step)
                for segment in range(first + 1, last):
                    used[segment] += need * step
        return [
            0.0 if price == 0.0 and asked <= room * step else asked - room * step for asked, price in zip(used, self._prices, strict=True)
        ]

    # --- one model ----------------------------------------------------------------------------------------------------

    def _plan(self, model: int) -> _Plan:
        """Backwards over its asks: the stay that meets asks i to j, then the rest from j + 1 on."""
        puzzle = self._puzzle
        asks, load, need = puzzle.asks[model], puzzle.load[model], puzzle.need[model]
        slack = puzzle.window[model] - load
        rest = [0.0] * (len(asks) + 1)
        chosen: list[tuple[int, int, int]] = [(0, 0, 0)] * len(asks)
        for index in range(len(asks) - 1, -1, -1):
            latest = asks[index] + slack
            best = float("inf")
            for last in range(index, len(asks)):
                until = asks[last]
                if until >= latest + load:
                    start, rent = latest, self._rent(until) - self._rent(latest)
                else:
                    rent, start = self._cheapest(max(0, until - load), latest, load)
                cost = load + need * rent
                if cost >= best:  # and longer ones pay more
                    break
                if cost + rest[last + 1] < best:
                    best, chosen[index] = cost + rest[last + 1], (start, max(until, start + load), last + 1)
            rest[index] = best
        stays, index = [], 0
        while index < len(asks):
            start, end, index = chosen[index]
            stays.append((start, end))
        return _Plan(rest, stays)

    def _cheapest(self, low: int, high: int, load: int) -> tuple[float, int]:
        """(rent of one MiB, start) of the cheapest stay of just one load. Rents are straight between the edges of segments, so that it
        starts or ends at an edge, or at one end of the range."""
        if load not in self._edges:
            self._edges[load] = self._along_edges(load)
        starting, ending = self._edges[load]
        step = self._step
        options = [(self._rent(low + load) - self._rent(low), low), (self._rent(high + load) - self._rent(high), high)]
        first, last = -(-low // step), high // step
        if first <= last:
            options.append(min(starting[first : last + 1]))
        first, last = -(-(low + load) // step), (high + load) // step
        if first <= last:
            options.append(min(ending[first : last + 1]))
        return min(options)

    def _along_edges(self, load: int) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
        """For each edge of a segment: (rent, start) of a load that starts there, and of one that ends there."""
        edges = [index * self._step for index in range(len(self._sums))]
        starting = [(self._rent(edge + load) - self._rent(edge), edge) for edge in edges]
        return starting, [(self._rent(edge) - self._rent(max(0, edge - load)), edge - load) for edge in edges]
