# SPDX-License-Identifier: GPL-3.0-only
"""The clairvoyant's problem in whole numbers, and how far one stay goes; rule: nothing here chooses anything.

Each model has a size, the milliseconds of its load, a window, and its asks: times, in order, with the milliseconds that each of them runs.
A *stay* of a model holds its size from its start to its end and is ready one load after its start. It meets the next asks of the model, in
their order: each runs from max(its time, ready) and must have ended when the stay ends, and it must begin within its window. All asks are
to be met. At no moment may the sizes of all stays together exceed the room. Sought are the stays with the least sum of loads.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """The asks of one model: when each comes, and how long it runs."""

    at: tuple[int, ...]
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
    window: tuple[int, ...]
    lines: tuple[Line, ...]
    room: int | None


def line(asks: list[tuple[int, int]]) -> Line:
    """From (time, how long it runs), in any order."""
    ordered = sorted(asks)
    return Line(tuple(at for at, _ in ordered), tuple(runs for _, runs in ordered), max((runs for _, runs in ordered), default=0))
