# SPDX-License-Identifier: GPL-3.0-only
"""The table as a picture: a group of bars for each row; rule: Pillow is imported only when something is drawn.

Within a row the longest bar is the largest figure; rows have no common scale. What is judged stands at the right, green when it met its
bar, red when not.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from table import Row, verdict

MARGIN: Final = 24
NAMES: Final = 330
BARS: Final = 420
FIGURES: Final = 90
WORDS: Final = 470
LINE: Final = 19
GAP: Final = 14
HEAD: Final = 92
TEXT: Final = 13
INK, GREY, WHITE, GOOD, BAD = "#1b1f24", "#8a929b", "#ffffff", "#1a7f37", "#c62f2f"
COLOURS: Final = ("#b8c0c8", "#f0a030", "#3b7dd8", "#6b4a8a", "#3f9d8f", "#d0679d")


def missing() -> str:
    """What to do before anything can be drawn, "" if nothing."""
    return "" if find_spec("PIL") else "the picture needs Pillow: pip install 'modeld[plot]'"


def draw(rows: Sequence[Row], columns: Sequence[str], machine: Mapping[str, str], path: Path) -> None:
    """Write the PNG. Raises OSError."""
    from PIL import Image, ImageDraw, ImageFont

    heights = [max(2, sum(row.values.get(column) is not None for column in columns)) * LINE + GAP for row in rows]
    image = Image.new("RGB", (2 * MARGIN + NAMES + BARS + FIGURES + WORDS, HEAD + sum(heights) + MARGIN), WHITE)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    colours = {column: COLOURS[index % len(COLOURS)] for index, column in enumerate(columns)}
    pen.text((MARGIN, 14), "modeld: make bench", fill=INK, font=ImageFont.load_default(18))
    pen.text((MARGIN, 40), "; ".join(f"{name}: {value}" for name, value in machine.items() if name != "packages"), fill=GREY, font=font)
    left = float(MARGIN)
    for column in columns:
        pen.rectangle([(left, 66), (left + 12, 78)], fill=colours[column])
        pen.text((left + 18, 64), column, fill=INK, font=font)
        left += 36 + pen.textlength(column, font=font)
    top = HEAD
    for row, height in zip(rows, heights, strict=True):
        pen.text((MARGIN, top), "\n".join(textwrap.wrap(row.name, 48)), fill=INK, font=font)
        longest = max((abs(value) for value in row.values.values() if value is not None), default=0.0) or 1.0
        y = top
        for column in columns:
            value = row.values.get(column)
            if value is not None:
                start = MARGIN + NAMES
                end = start + max(1.0, BARS * max(value, 0.0) / longest)
                pen.rectangle([(start, y + 2), (end, y + LINE - 3)], fill=colours[column])
                pen.text((end + 6, y + 1), f"{value:,.{row.digits}f}", fill=INK, font=font)
                y += LINE
        words = "\n".join(textwrap.wrap(verdict(row), 66))
        pen.text((MARGIN + NAMES + BARS + FIGURES, top), words, fill=GOOD if row.met else BAD, font=font)
        top += height
    image.save(path, "PNG")
