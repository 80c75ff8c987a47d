# SPDX-License-Identifier: GPL-3.0-only
"""What was measured against what was promised; rule: a figure that is missing has not met its bar.

A row has a figure for each column that can have one, and perhaps a bar: the figure that is judged, often a ratio within a round, is held
against it. Ratios and differences are made within a round, and their median over the rounds is what is told: the machine is never twice
the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise. `of` says what is judged; `stretch` is what would be better still."""

    limit: float
    of: str
    at_most: bool = True
    stretch: float | None = None

    def met(self, judged: float | None) -> bool:
        if judged is None or math.isnan(judged):
            return False
        return judged <= self.limit if self.at_most else judged >= self.limit

    def words(self) -> str:
        stretch = "" if self.stretch is None else f" (stretch {self.stretch:g})"
        return f"{'<=' if self.at_most else '>='} {self.limit:g}{stretch}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `rounds` holds the judged figure of each round, `values` the median of each column."""

    name: str
    values: Mapping[str, float | None]
    digits: int = 2
    bar: Bar | None = None
    rounds: Sequence[float] = field(default_factory=tuple)

    @property
    def judged(self) -> float | None:
        return median(self.rounds)

    @property
    def met(self) -> bool | None:
        """None when there is nothing to meet."""
        return None if self.bar is None else self.bar.met(self.judged)


def median(values: Iterable[float | None]) -> float | None:
    """Of what is there; None when nothing is."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def ratios(rounds: Sequence[Mapping[str, float]], over: str, under: str) -> tuple[float, ...]:
    """One column over another, round by round; rounds that lack one of them, or divide by nothing, are left out."""
    return tuple(one[over] / one[under] for one in rounds if over in one and one.get(under))


def differences(rounds: Sequence[Mapping[str, float]], column: str, base: str) -> tuple[float, ...]:
    """One column less another, round by round."""
    return tuple(one[column] - one[base] for one in rounds if column in one and base in one)


def medians(rounds: Sequence[Mapping[str, float]], columns: Iterable[str]) -> dict[str, float | None]:
    """The median of each column."""
    return {column: median(one.get(column) for one in rounds) for column in columns}


def verdict(row: Row) -> str:
    """What stands in the last cell."""
    if row.bar is None:
        return ""
    if row.judged is None:
        return f"not measured, {row.bar.of} {row.bar.words()}: MISSED"
    spread = f" ({min(row.rounds):.2f} to {max(row.rounds):.2f})" if len(row.rounds) > 1 else ""
    return f"{row.judged:.2f}{spread} {row.bar.of}, {row.bar.words()}: {'met' if row.met else 'MISSED'}"


def render(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The table, a Markdown one, so that it can be put into a page as it is."""
    cells = [["", *columns, "bar"]]
    cells += [[row.name, *(_figure(row.values.get(column), row.digits) for column in columns), verdict(row)] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(cells[0]))]
    lines = [_line(line, widths) for line in cells]
    rule = [("-" * width if index in (0, len(widths) - 1) else "-" * (width - 1) + ":") for index, width in enumerate(widths)]
    return "\n".join([lines[0], _line(rule, widths), *lines[1:]])


def as_data(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows for the JSON file."""
    return [
        {
            "row": row.name,
            "values": dict(row.values),
            "rounds": list(row.rounds),
            "judged": row.judged,
            "of": None if row.bar is None else row.bar.of,
            "bar": None if row.bar is None else row.bar.words(),
            "met": row.met,
        }
        for row in rows
    ]


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    last = len(cells) - 1
    padded = (
        cell.ljust(width) if index in (0, last) else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join(padded)} |"
