# SPDX-License-Identifier: GPL-3.0-only
"""The search behind the clairvoyant; rule: it says whether its answer is proved.

Moving the start of a stay later, or its end later where nobody needs the memory, never breaks a solution (simulation.puzzle). So there is
a best solution in which every stay ends only at the start of another one that needs its memory, and starts
  F  at the last moment for its first ask (*forced*), or
  V  so late that what waited for it has just ended when it must end (a *visit*): a chain of visits, each taking the memory of the one
     before, ends in a forced start.
The search takes starts in order of time: at each point the next forced start, or a visit of a chain, with every smallest set of victims.
Points with the same residents are compared: one that cost no more and left no ask unmet that the other met makes the other one needless.
A point whose cost and what must follow (simulation.rent) reach the best known answer is dropped.

The answer is proved when nothing had to be dropped for want of space (`points_max`), among the solutions whose chains have at most
`chain_max` visits. Otherwise it is the best found, and `at_least` is a bound from below that follows from what was dropped.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from modeld.simulation.puzzle import Puzzle
from modeld.simulation.rent import Rent, Resident

CHAIN_MAX: Final = 2
WIDTH_FIRST: Final = 100
POINTS_MAX: Final = 400
"""Points alive at one moment. More take memory and time; fewer make the answer a heuristic one sooner."""
POINTS_ALL: Final = 13_000
"""Points looked at in one pass; then it gives up."""
SUBSETS_MAX: Final = 400
"""Victim sets looked at for one start; cut off beyond, which is then no proof."""
IN: Final = -1
ROUNDING: Final = 0.01
"""Of the bounds, in milliseconds: they are sums of floats."""


@dataclass(frozen=True, slots=True)
class Start:
    """One load: at which time, of which model, and who had to end for it."""

    at: int
    model: int
    victims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """`cost` in milliseconds; `starts` in order of time. `exact` = proved; otherwise the optimum is not below `at_least`."""

    cost: int
    at_least: int
    exact: bool
    starts: tuple[Start, ...]
    points: int


@dataclass(frozen=True, slots=True)
class Point:
    """A partial solution up to its last start, `at`. `out[m]`: the first ask of `m` that no stay meets; IN while `m` is resident."""

    at: int
    residents: tuple[Resident, ...]
    out: tuple[int, ...]
    cost: int
    at_least: float
    start: Start | None = None
    before: Point | None = None

    def starts(self) -> tuple[Start, ...]:
        found, point = [], self
        while point.start is not None and point.before is not None:
            found.append(point.start)
            point = point.before
        return tuple(reversed(found))


def solve(puzzle: Puzzle, *, known: int | None = None, points_max: int = POINTS_MAX, chain_max: int = CHAIN_MAX) -> Answer | None:
    """The cheapest stays, or None when no solution was found.

    `known` is the cost of a solution that somebody has: if none is cheaper, the answer has that cost and no starts. Searches without
    visits, and with few points, come first: what they find makes the later ones short.
    """
    rent = Rent(puzzle)
    best = None if known is None else Answer(known, 0, False, (), 0)
    learned = False
    for chains in range(chain_max + 1):
        for width in sorted({min(WIDTH_FIRST, points_max), points_max}):
            found = _Search(puzzle, width, chains, rent, best).run()
            best = found or best
            if best is None:
                continue
            if found is not None and found.exact:
                break
            if not learned:
                rent.learn(best.cost)
                learned = True
        if best is not None and not best.exact:
            break  # longer chains make more points, and these were too many
        if best is not None and chains < chain_max:  # so far it is proved among fewer visits only
            best = _proved(replace(best, at_least=0, exact=False), puzzle, rent)
            if best.exact:
                break
    return None if best is None else _proved(best, puzzle, rent)


def _proved(best: Answer, puzzle: Puzzle, rent: Rent) -> Answer:
    """With the bound that holds for chains of any length."""
    at_least = max(best.at_least, _whole(puzzle, rent.bound()))
    return replace(best, at_least=at_least, exact=best.exact or at_least >= best.cost)


def _whole(puzzle: Puzzle, bound: float) -> int:
    """The smallest cost that is not below the bound: all costs are multiples of the grain."""
    return math.ceil((bound - ROUNDING) / _grain(puzzle)) * _grain(puzzle)


def _grain(puzzle: Puzzle) -> int:
    return max(1, math.gcd(*puzzle.load))


@dataclass(slots=True)
class _Search:
    """One pass over the points in order of the time of their last start. `known` is an answer that is to be improved."""

    puzzle: Puzzle
    width: int
    chain_max: int
    rent: Rent
    known: Answer | None
    ceiling: float = math.inf
    points: int = 0
    dropped: float = math.inf
    longest: int = 0
    _serial: int = 0
    _heap: list[tuple[int, int, Point]] = field(default_factory=list)
    _seen: dict[tuple[tuple[int, int], ...], list[Point]] = field(default_factory=dict)

    def run(self) -> Answer | None:
        """The best answer there is now; None if there is none."""
        puzzle, best = self.puzzle, None
        self.longest = max((load + line.longest for load, line in zip(puzzle.load, puzzle.lines, strict=True)), default=0)
        self._limit(None if self.known is None else self.known.cost)
        self._push(self._point(0, (), tuple(0 for _ in puzzle.need), 0, None, None))
        while self._heap:
            _, _, point = heapq.heappop(self._heap)
            if point.at_least > self.ceiling or self._is_needless(point):
                continue
            self.points += 1
            if not self._due(point):
                best = point
                self._limit(point.cost)
                continue
            for child in self._children(point):
                self._push(child)
            if self.points > POINTS_ALL:
                self.dropped = min([self.dropped, *(point.at_least for _, _, point in self._heap)])
                break
            if len(self._heap) > 2 * self.width:
                self._thin()
        return self._answer(best)

    def _limit(self, cost: int | None) -> None:
        """Only better answers are of use from now on: by a grain at least, since all costs are sums of loads."""
        if cost is not None:
            self.ceiling = cost - _grain(self.puzzle) + ROUNDING

    def _answer(self, best: Point | None) -> Answer | None:
        if best is None and self.known is None:
            return None
        cost = self.known.cost if best is None and self.known is not None else best.cost if best is not None else 0
        starts = self.known.starts if best is None and self.known is not None else best.starts() if best is not None else ()
        at_least = cost if self.dropped > cost - _grain(self.puzzle) + ROUNDING else _whole(self.puzzle, self.dropped)
        at_least = max(at_least, 0 if self.known is None else self.known.at_least)
        return Answer(cost, at_least, at_least >= cost, starts, self.points)

    # --- points -------------------------------------------------------------------------------------------------------

    def _due(self, point: Point) -> dict[int, int]:
        """Absent model -> the last moment to start it for its first unmet ask. Empty: nothing is left to do."""
        puzzle = self.puzzle
        return {
            model: puzzle.lines[model].due[first] - puzzle.load[model]
            for model, first in enumerate(point.out)
            if first != IN and first < len(puzzle.lines[model].at)
        }

    def _point(
        self, at: int, residents: tuple[Resident, ...], out: tuple[int, ...], cost: int, start: Start | None, before: Point | None
    ) -> Point:
        return Point(at, residents, out, cost, cost + self.rent.rest(at, residents, out), start, before)

    def _push(self, point: Point) -> None:
        if point.at_least <= self.ceiling and not self._is_doomed(point):
            self._serial += 1
            heapq.heappush(self._heap, (point.at, self._serial, point))

    def _is_doomed(self, point: Point) -> bool:
        """Somebody absent can no longer be started in time: too much is held until then by those who have met nothing yet, or will be by
        the next forced start, before which there is no time left for a visit."""
        puzzle = self.puzzle
        due = self._due(point)
        if puzzle.room is None or not due:
            return False
        held = [(puzzle.need[one[0]], end) for one in point.residents if (end := self._first_end(one, point.at)) > point.at]
        start, forced = min((at, model) for model, at in due.items())
        line = puzzle.lines[forced]
        first = point.out[forced]
        earliest = max(point.at + puzzle.load[forced], line.at[first]) + line.runs[first]  # if it were visited at once
        for model, latest in due.items():
            free = puzzle.room - puzzle.need[model]
            if sum(need for need, end in held if end > latest) > free:
                return True
            if model != forced and latest < earliest and puzzle.need[forced] > free:
                index = point.out[model]
                if max(point.at + puzzle.load[model], puzzle.lines[model].at[index]) + puzzle.lines[model].runs[index] > start:
                    return True
        return False

    def _first_end(self, one: Resident, now: int) -> int:
        """When a resident may end at the earliest: its first ask has ended then."""
        model, ready, first, end = one
        line = self.puzzle.lines[model]
        if end:
            return end
        if first >= len(line.at) or line.unmet(first, ready, now) > first:
            return now
        return max(line.at[first], ready) + line.runs[first]

    def _is_needless(self, point: Point) -> bool:
        """An earlier point cost no more, has the same residents, at least as far on, and left no ask unmet that is met here."""
        rivals = self._seen.setdefault(tuple((model, end) for model, _, _, end in point.residents), [])
        for rival in rivals:
            if (
                rival.cost <= point.cost
                and all(theirs >= ours for theirs, ours in zip(rival.out, point.out, strict=True))
                and all(self._is_as_far(theirs, ours, point.at) for theirs, ours in zip(rival.residents, point.residents, strict=True))
            ):
                return True
        rivals.append(point)
        return False

    def _is_as_far(self, theirs: Resident, ours: Resident, now: int) -> bool:
        """What waited for it has ended in both, or it was ready no later for no more."""
        model, ready, first, _ = theirs
        if ready + self.puzzle.lines[model].longest <= now and ours[1] + self.puzzle.lines[model].longest <= now:
            return True
        return ready <= ours[1] and first >= ours[2]

    def _thin(self) -> None:
        """Keep the most promising points. What is dropped bounds the answer from below."""
        ranked = sorted(self._heap, key=lambda entry: (entry[2].at_least, -entry[0]))
        for _, _, point in ranked[self.width :]:
            self.dropped = min(self.dropped, point.at_least)
        self._heap = ranked[: self.width]
        heapq.heapify(self._heap)

    # --- moves --------------------------------------------------------------------------------------------------------

    def _children(self, point: Point) -> Iterator[Point]:
        due = self._due(point)
        at, model = min((at, model) for model, at in due.items())
        if at < point.at:
            return
        yield from self._start(point, at, model, 0)
        for start, visited, end in sorted(self._visits(point, due, at)):
            yield from self._start(point, start, visited, end)

    def _visits(self, point: Point, due: dict[int, int], before: int) -> set[tuple[int, int, int]]:
        """(start, model, end) of the first visit of each chain that begins before the next forced start.

        A chain ends in the forced start for the first unmet ask of an absent model, or for a later ask of any model, if the chain begins
        before that ask would have ended: then the model may be present first and end within the chain.
        """
        puzzle = self.puzzle
        found: set[tuple[int, int, int]] = set()
        reach = self.chain_max * self.longest
        ready = {model: when for model, when, _, _ in point.residents}
        for target, line in enumerate(puzzle.lines):
            if target in due:
                self._chain(point, due, (due[target], before, before), (target,), found)
            first = point.out[target] + 1 if target in due else line.unmet(0, ready.get(target, 0), point.at)
            for index in range(first, len(line.at)):
                start = line.due[index] - puzzle.load[target]
                if start - reach >= before:
                    break
                latest = max(line.at[index], ready.get(target, 0)) + line.runs[index]
                latest = before if target in due else latest
                if start - latest < reach:
                    self._chain(point, due, (start, before, latest), (target,), found)
        return found

    def _chain(
        self,
        point: Point,
        due: dict[int, int],
        span: tuple[int, int, int],
        used: tuple[int, ...],
        found: set[tuple[int, int, int]],
    ) -> None:
        """One visit more at the front of a chain. `span`: where it ends, before when and before when at the latest it begins."""
        end, before, latest = span
        left = self.chain_max + 1 - len(used)
        if left <= 0 or end - left * self.longest >= min(before, latest):
            return
        for model, load in enumerate(self.puzzle.load):
            if model == used[-1] or (model not in due and left == 1):
                continue
            for runs in self._lengths(model, point, end, again=model not in due or left > 2):
                at = end - runs - load
                if at < point.at:
                    continue
                if model in due and at < before and at < latest:
                    found.add((at, model, end))
                self._chain(point, due, (at, before, latest), (*used, model), found)

    def _lengths(self, model: int, point: Point, end: int, *, again: bool) -> list[int]:
        """How long what waited for a visit may have run when it ends: the longest of the first ask, of the first two, and so on.

        again   it is present now, or may have been visited before in the chain: any ask that comes before `end` may be its first then
        """
        line = self.puzzle.lines[model]
        first = point.out[model]
        if again:
            start = bisect_right(line.at, point.at - line.longest) if first == IN else first
            stop = bisect_right(line.at, end)
            return sorted({line.runs[index] for index in range(start, stop) if line.at[index] + line.runs[index] <= end})
        found: list[int] = []
        for index in range(first, len(line.at)):
            if line.at[index] + line.runs[index] > end:
                break
            if not found or line.runs[index] > found[-1]:
                found.append(line.runs[index])
        return found

    def _start(self, point: Point, at: int, model: int, end: int) -> Iterator[Point]:
        """The points after the load of `model` began `at`, one for each smallest set of victims; none if a visit should have ended before.

        `end` is when it must end as a visit, or 0.
        """
        if any(last and last < at for _, _, _, last in point.residents):
            return
        puzzle, out = self.puzzle, list(point.out)
        stays: list[Resident] = []
        for one in point.residents:
            line = puzzle.lines[one[0]]
            if not one[3] and one[1] <= at and line.unmet(one[2], one[1], at) == len(line.at):
                out[one[0]] = len(line.at)  # nobody asks for it any more
            else:
                stays.append(one)
        short = 0 if puzzle.room is None else puzzle.need[model] + sum(puzzle.need[one[0]] for one in stays) - puzzle.room
        for victims in self._victims(point, stays, at, short):
            left = [one for one in stays if one not in victims]
            after = list(out)
            for gone, ready, first, _ in victims:
                after[gone] = puzzle.lines[gone].unmet(first, ready, at)
            first, after[model] = after[model], IN
            residents = tuple(sorted((*left, (model, at + puzzle.load[model], first, end))))
            start = Start(at, model, tuple(one[0] for one in victims))
            yield self._point(at, residents, tuple(after), point.cost + puzzle.load[model], start, point)

    def _victims(self, point: Point, stays: list[Resident], at: int, short: int) -> list[tuple[Resident, ...]]:
        """Every set of residents that met something, is large enough and has nobody to spare. Visits that end now come first."""
        if short <= 0:
            return [()]
        need, lines = self.puzzle.need, self.puzzle.lines
        ending = tuple(one for one in stays if one[3] == at)
        short -= sum(need[one[0]] for one in ending)
        if short <= 0:
            return [ending]
        free = [one for one in stays if not one[3] and one[1] <= at and lines[one[0]].unmet(one[2], one[1], at) > one[2]]
        free.sort(key=lambda one: -need[one[0]])
        found: list[tuple[Resident, ...]] = []

        def choose(index: int, missing: int, left: int, chosen: tuple[Resident, ...]) -> None:
            if missing <= 0:
                if missing + need[chosen[-1][0]] > 0:  # the smallest one is not to spare, so nobody is
                    found.append((*ending, *chosen))
            elif left >= missing and len(found) < SUBSETS_MAX:
                size = need[free[index][0]]
                choose(index + 1, missing - size, left - size, (*chosen, free[index]))
                choose(index + 1, missing, left - size, chosen)

        choose(0, short, sum(need[one[0]] for one in free), ())
        if len(found) >= SUBSETS_MAX:
            self.dropped = min(self.dropped, point.at_least)
        return found
