# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import io

from modeld.catalog.progress import ConsoleProgress
from modeld.catalog.starter import Progress

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(stream: io.StringIO, steps: list[tuple[float, Progress]]) -> str:
    clock = Clock()
    progress = ConsoleProgress(stream, clock)
    for seconds, step in steps:
        clock.now = 100.0 + seconds
        progress(step)
    return stream.getvalue()


def download(done_mib: float) -> Progress:
    return Progress("download", "downloading x", int(done_mib * MIB), 100 * MIB)


def test_without_a_terminal_there_is_a_line_every_few_seconds():
    steps = [(second / 2, download(second)) for second in range(21)]
    lines = shown(
        io.StringIO(), [*steps, (11, download(100)), (12, download(100)), (20, Progress("done", "x is in place", 5, 5))]
    ).splitlines()
    assert lines == [
        "downloading x    0 %  0.0 of 100.0 MiB",
        "downloading x   10 %  10.0 of 100.0 MiB  2.0 MiB/s  0:45 left",
        "downloading x   20 %  20.0 of 100.0 MiB  2.0 MiB/s  0:40 left",
        "downloading x  100 %  100.0 of 100.0 MiB  9.1 MiB/s",
        "x is in place",
    ]


def test_on_a_terminal_one_line_is_redrawn_and_each_stage_has_its_own():
    text = shown(
        Terminal(),
        [
            (0, download(0)),
            (0.01, download(1)),
            (10, download(50)),
            (20, download(100)),
            (20.01, Progress("unpack", "unpacking", MIB, 4 * MIB)),
            (20.02, Progress("done", "in place", 1, 1)),
        ],
    )
    stages = text.split("\n")
    assert [stage.count("\r") for stage in stages] == [3, 1, 1, 0]
    bar = stages[0].split("\r")[2]
    assert bar.startswith("downloading x  [############............]   50 %  50.0 of 100.0 MiB  5.0 MiB/s  0:10 left")
    # A shorter line covers the longer one before it.
    assert len(stages[0].split("\r")[3]) == len(bar)
    assert stages[2].strip() == "in place"


def test_a_bar_that_was_cut_short_ends_its_line():
    stream = Terminal()
    progress = ConsoleProgress(stream)
    progress(download(3))
    progress.close()
    progress.close()
    assert stream.getvalue().endswith("MiB\n")
    assert stream.getvalue().count("\n") == 1
