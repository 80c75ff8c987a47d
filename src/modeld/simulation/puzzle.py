# SPDX-License-Identifier: GPL-3.0-only
"""The clairvoyant's problem in whole numbers, and how far one stay goes; rule: nothing here chooses anything.

Each model has a size, the milliseconds of its load, and its asks: times, in order, with the latest time at which each may begin and the
milliseconds that it runs. A *stay* of a model holds its size from its start to its end and is ready one load after its start. It meets the
next asks of the model, in their order: each runs from max(its time, ready) and must have ended when the stay ends. All asks are to be met.
At no moment may the sizes of all stays together exceed the room. Sought are the stays with the least sum of loads.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Line:
    """The asks of one model: when each comes, by when it and all later ones must have begun, and how long it runs."""

    at: tuple[int, ...]
    due: tuple[int, ...]
    runs: tuple[int, ...]
    longest: int

    def unmet(self, first: int, ready: int, end: int) -> int:
        """The first ask from `first` on that has not ended at `end`, on a stay that was ready at `ready`."""
        at, runs = self.at, self.runs
        index = first
        if ready + self.longest <= end:  # all that came before this had ended, too
            index = max(first, bisect_left(at, end - self.longest))
        while index < len(at) and max(at[index], ready) + runs[index] <= end:
            index += 1
        return index


@dataclass(frozen=True, slots=True)
class Puzzle:
    """`need` in MiB, `room` in MiB (None = unlimited), all else milliseconds. One entry a model."""

    need: tuple[int, ...]
    load: tuple[int, ...]
    lines: tuple[Line, ...]
    room: int | None


def line(asks: list[tuple[int, int, int]]) -> Line:
    """From (time, the latest time to begin, how long it runs), in any order."""
    ordered = sorted(asks)
    due = list(accumulate(reversed([latest for _, latest, _ in ordered]), min))
    runs = tuple(one for _, _, one in ordered)
    return Line(tuple(at for at, _, _ in ordered), tuple(reversed(due)), runs, max(runs, default=0))
