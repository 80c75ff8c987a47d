# SPDX-License-Identifier: GPL-3.0-only
"""A run as a picture: who was resident, who waited, each load and eviction; rule: Pillow is imported only when something is drawn.

A row for each model. The upper half is its instances: loading, ready, closed for a due model, stopping. The lower half is how many
requests waited for it. A triangle is a load, a cross an eviction. Time runs to the right, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from modeld.core.model import ModelId
from modeld.simulation.workload import History, Stay

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

GUTTER: Final = 150
MARGIN: Final = 24
HEAD: Final = 74
FOOT: Final = 40
BAR: Final = 15
QUEUE: Final = 22
ROW: Final = BAR + QUEUE + 9
WIDTH_MIN, WIDTH_MAX = 1500, 6000
PIXELS_PER_SECOND: Final = 1.6
TEXT: Final = 13
NAME_CHARS: Final = 19

INK, GREY, PALE, WHITE = "#1b1f24", "#8a929b", "#eceff2", "#ffffff"
LOADING, READY, CLOSED, STOPPING, WAITING = "#f0a030", "#3b7dd8", "#9db8dc", "#6b4a8a", "#d8483b"
LEGEND: Final = (
    ("loading", LOADING),
    ("ready", READY),
    ("closed for a due model", CLOSED),
    ("stopping", STOPPING),
    ("requests waiting", WAITING),
)
TICKS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)


def missing() -> str:
    """What to do before anything can be drawn, "" if nothing."""
    return "" if find_spec("PIL") else "--plot needs Pillow: pip install 'modeld[plot]'"


def draw(history: History, path: Path) -> None:
    """Write the PNG. Raises OSError."""
    from PIL import Image, ImageDraw, ImageFont

    models = [model.id for model in history.workload.models if _is_used(history, model.id)]
    seconds = max([history.until, *(stay.gone for stay in history.stays), 1.0])
    inner = min(WIDTH_MAX, max(WIDTH_MIN, round(seconds * PIXELS_PER_SECOND))) - GUTTER - MARGIN
    image = Image.new("RGB", (inner + GUTTER + MARGIN, HEAD + ROW * len(models) + FOOT), WHITE)
    sheet = _Sheet(ImageDraw.Draw(image), ImageFont.load_default(TEXT), inner / seconds, seconds, HEAD + ROW * len(models))
    sheet.head(history)
    sheet.axis()
    lines = {model: queue_lengths(history, model) for model in models}
    most = max((length for line in lines.values() for _, length in line), default=1) or 1
    for row, model in enumerate(models):
        sheet.row(HEAD + row * ROW, model, [stay for stay in history.stays if stay.model == model], lines[model], most)
    image.save(path, "PNG")


def queue_lengths(history: History, model: ModelId) -> list[tuple[float, int]]:
    """(time, how many wait from then on) at each change."""
    changes: dict[float, int] = {}
    for one in history.served:
        if one.ask.model == model:
            ends = one.ended if one.granted is None else one.granted
            if ends > one.ask.at:
                changes[one.ask.at] = changes.get(one.ask.at, 0) + 1
                changes[ends] = changes.get(ends, 0) - 1
    length, found = 0, []
    for at in sorted(changes):
        length += changes[at]
        found.append((at, length))
    return found


def _is_used(history: History, model: ModelId) -> bool:
    return any(stay.model == model for stay in history.stays) or any(one.ask.model == model for one in history.served)


@dataclass(slots=True)
class _Sheet:
    """Where things are drawn. `floor` is the y of the axis of time."""

    draw: ImageDraw
    font: FreeTypeFont | ImageFont
    scale: float
    seconds: float
    floor: int

    def head(self, history: History) -> None:
        limits = history.workload.limits
        title = (
            f"{history.workload.name}: {history.policy} ({limits.eviction}), {history.loads} loads, {history.swap_seconds:.1f} s of loading"
        )
        self.text(GUTTER, 12, f"{title}; fairness_wait {limits.fairness_wait_seconds:g} s")
        left = float(GUTTER)
        for name, colour in LEGEND:
            self.box(left, 40, left + 22, 40 + BAR, colour)
            self.text(left + 28, 40, name)
            left += 52 + self.draw.textlength(name, font=self.font)
        self.triangle(left + 5, 40)
        self.text(left + 16, 40, "load")
        self.cross(left + 70, 48)
        self.text(left + 82, 40, "eviction")

    def axis(self) -> None:
        step = next((tick for tick in TICKS if tick * self.scale >= 70), TICKS[-1])
        for at in range(0, int(self.seconds) + 1, step):
            self.draw.line([(self.x(at), HEAD - 4), (self.x(at), self.floor + 4)], fill=PALE)
            self.text(self.x(at), self.floor + 8, f"{at} s", centre=True)

    def row(self, top: int, model: ModelId, stays: list[Stay], line: list[tuple[float, int]], most: int) -> None:
        name = model if len(model) <= NAME_CHARS else model[: NAME_CHARS - 1] + "…"
        self.text(MARGIN, top, name)
        bottom = top + BAR + QUEUE + 2
        self.draw.line([(GUTTER, bottom), (self.x(self.seconds), bottom)], fill=PALE)
        for (at, length), (until, _) in pairwise(line):
            if length > 0:
                self.box(self.x(at), bottom - max(2.0, QUEUE * length / most), self.x(until), bottom, WAITING)
        for stay in stays:
            self.stay(top, stay)
        if longest := max((length for _, length in line), default=0):
            self.text(MARGIN, top + BAR + 2, f"up to {longest} wait", colour=GREY)

    def stay(self, top: int, stay: Stay) -> None:
        ready = stay.stopping if stay.ready is None else stay.ready
        closed = stay.stopping if stay.closed is None else max(ready, stay.closed)
        for begin, end, colour in (
            (ready, closed, READY),
            (closed, stay.stopping, CLOSED),
            (stay.stopping, stay.gone, STOPPING),
            (stay.started, ready, LOADING),
        ):
            if end > begin:
                self.box(self.x(begin), top, self.x(end), top + BAR, colour)
        self.triangle(self.x(stay.started), top)
        if stay.why.startswith("evicted"):
            self.cross(self.x(stay.stopping), top + BAR / 2)

    # --- strokes ------------------------------------------------------------------------------------------------------

    def x(self, at: float) -> float:
        return GUTTER + at * self.scale

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """At least one pixel wide, so that nothing is lost."""
        self.draw.rectangle([(left, top), (max(left, right - 1), bottom)], fill=colour)

    def triangle(self, x: float, y: float) -> None:
        self.draw.polygon([(x - 4, y - 5), (x + 4, y - 5), (x, y + 3)], fill=INK)

    def cross(self, x: float, y: float) -> None:
        for rise in (-4, 4):
            self.draw.line([(x - 4, y - rise), (x + 4, y + rise)], fill=INK, width=2)

    def text(self, x: float, y: float, words: str, *, colour: str = INK, centre: bool = False) -> None:
        shift = self.draw.textlength(words, font=self.font) / 2 if centre else 0.0
        self.draw.text((x - shift, y), words, fill=colour, font=self.font)
