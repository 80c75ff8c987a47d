# SPDX-License-Identifier: GPL-3.0-only
"""The picture of a run: it is a PNG, and what happened can be found in it at its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from modeld.core.model import ModelId
from modeld.simulation import plot
from modeld.simulation.plot import BAR, CLOSED, GUTTER, HEAD, LOADING, QUEUE, READY, ROW, STOPPING, WAITING, draw, queue_lengths
from modeld.simulation.workload import History, Stay
from simulation.test_report import history


def colours(image: Image.Image, at: float, row: int, *, scale: float, low: bool = False) -> set[str]:
    """The colours of the bar of a row, or of what lies below it, at a time."""
    x = round(GUTTER + at * scale)
    top = HEAD + row * ROW + (BAR + 1 if low else 1)
    rows = range(top, top + (QUEUE if low else BAR - 2))
    return {"#{:02x}{:02x}{:02x}".format(*image.getpixel((x, y))) for y in rows}  # type: ignore[misc]


def drawn(one: History, path: Path) -> tuple[Image.Image, float]:
    draw(one, path)
    image = Image.open(path)
    seconds = max(one.until, *(stay.gone for stay in one.stays))
    return image.convert("RGB"), (image.width - GUTTER - plot.MARGIN) / seconds


def test_each_phase_has_its_colour_at_its_time(tmp_path: Path):
    one = history()
    closed = Stay(ModelId("b"), 9.2, 14.2, 30.0, 33.0, "", closed=25.0)
    image, scale = drawn(History(one.workload, "modeld", one.served, (one.stays[0], closed), 30.0), tmp_path / "x.png")
    assert colours(image, 4.0, 0, scale=scale) == {LOADING}
    assert READY in colours(image, 7.5, 0, scale=scale)
    assert colours(image, 18.0, 1, scale=scale) == {READY}
    assert colours(image, 27.0, 1, scale=scale) == {CLOSED}
    assert colours(image, 31.5, 1, scale=scale) == {STOPPING}
    assert colours(image, 20.0, 0, scale=scale).isdisjoint({LOADING, READY, CLOSED, STOPPING})
    assert WAITING in colours(image, 15.0, 1, scale=scale, low=True)
    assert WAITING not in colours(image, 25.0, 1, scale=scale, low=True)
    # a model that nobody used has no row
    assert image.height == HEAD + 2 * ROW + plot.FOOT


def test_how_many_wait_over_time():
    assert queue_lengths(history(), ModelId("a")) == [(1, 1), (2, 2), (6.0, 0)]
    assert queue_lengths(history(), ModelId("b")) == [(3, 1), (4, 2), (13.0, 1), (20.0, 0)]
    assert queue_lengths(history(), ModelId("never")) == []


def test_a_long_run_does_not_make_an_endless_picture(tmp_path: Path):
    one = history()
    image, _ = drawn(History(one.workload, "modeld", one.served, one.stays, 1e6), tmp_path / "x.png")
    assert image.width == plot.WIDTH_MAX


def test_without_pillow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    assert plot.missing() == ""
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert plot.missing() == "--plot needs Pillow: pip install 'modeld[plot]'"
