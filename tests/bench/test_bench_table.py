# SPDX-License-Identifier: GPL-3.0-only
"""The table of the bench can say "missed", and its picture can be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from picture import BAD, GOOD, draw
from PIL import Image
from table import Bar, Row, as_data, differences, medians, ratios, render, verdict


@pytest.mark.parametrize(("judged", "met"), [(1.4, True), (1.5, True), (1.51, False), (float("nan"), False), (None, False)])
def test_a_bar_from_above(judged: float | None, met: bool):
    assert Bar(1.5, "x floor").met(judged) is met


@pytest.mark.parametrize(("judged", "met"), [(0.97, False), (0.98, True), (1.2, True), (None, False)])
def test_a_bar_from_below(judged: float | None, met: bool):
    assert Bar(0.98, "of direct", at_most=False).met(judged) is met


def test_the_median_of_the_rounds_is_judged():
    rounds = [{"floor": 10.0, "modeld": 12.0}, {"floor": 20.0, "modeld": 60.0}, {"floor": 10.0, "modeld": 14.0}]
    row = Row("CPU", medians(rounds, ["floor", "modeld", "peer"]), 1, Bar(1.5, "x floor"), ratios(rounds, "modeld", "floor"))
    assert row.values == {"floor": 10.0, "modeld": 14.0, "peer": None}
    assert (row.rounds, row.judged, row.met) == ((1.2, 3.0, 1.4), 1.4, True)
    assert verdict(row) == "1.40 (1.20 to 3.00) x floor, <= 1.5: met"


def test_a_missed_bar_says_so():
    row = Row("CPU", {"modeld": 5.0}, 1, Bar(1.5, "x floor"), (1.6,))
    assert row.met is False
    assert verdict(row) == "1.60 x floor, <= 1.5: MISSED"
    assert as_data([row])[0]["met"] is False


def test_what_was_not_measured_has_not_met_its_bar():
    row = Row("CPU", {}, 1, Bar(1.5, "x floor"), ())
    assert row.met is False
    assert verdict(row) == "not measured, x floor <= 1.5: MISSED"


def test_a_row_without_a_bar_is_neither():
    row = Row("requests/s", {"modeld": 1234.0}, 0)
    assert (row.met, verdict(row)) == (None, "")


def test_rounds_without_both_columns_are_left_out():
    rounds = [{"modeld": 3.0}, {"modeld": 3.0, "floor": 0.0}, {"modeld": 3.0, "floor": 2.0}]
    assert ratios(rounds, "modeld", "floor") == (1.5,)
    assert differences(rounds, "modeld", "floor") == (3.0, 1.0)


def test_the_table_is_markdown_with_a_cell_for_each_column():
    lines = render([Row("requests/s", {"direct": 12345.6, "modeld": None}, 0)], ["direct", "modeld"]).splitlines()
    assert [line.count("|") for line in lines] == [5, 5, 5]
    assert [cell.strip() for cell in lines[2].split("|")] == ["", "requests/s", "12,346", "-", "", ""]


def test_the_picture_shows_met_and_missed_in_their_colours(tmp_path: Path):
    met, missed = Row("a", {"modeld": 1.0}, 1, Bar(2, "x"), (1.0,)), Row("b", {"modeld": 3.0}, 1, Bar(2, "x"), (3.0,))
    for rows, there, not_there in (([met], GOOD, BAD), ([missed], BAD, GOOD)):
        draw(rows, ["modeld"], {"processor": "2 x some"}, tmp_path / "x.png")
        image = Image.open(tmp_path / "x.png").convert("RGB")
        found = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in image.getcolors(1 << 20)}  # type: ignore[misc, union-attr]
        assert there in found
        assert not_there not in found
