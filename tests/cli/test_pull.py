# SPDX-License-Identifier: GPL-3.0-only
"""How progress is shown."""

from __future__ import annotations

import pytest

from modeld.catalog.starter import Progress
from modeld.cli.pull import Display


def test_progress_is_a_line_per_stage_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(moving=False)
    for done in (0, 50, 100):
        display.show(Progress("download", "fetching", done, 100))
    display.show(Progress("done", "in place"))
    display.close()
    assert capsys.readouterr().err == "fetching\nin place\n"


def test_progress_moves_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(moving=True)
    display.show(Progress("download", "fetching", 50, 100))
    display.show(Progress("done", "in place"))
    display.close()
    assert capsys.readouterr().err == "\r\x1b[Kfetching  50 %\r\x1b[Kin place\n"
