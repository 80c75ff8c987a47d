# SPDX-License-Identifier: GPL-3.0-only
"""Shows a fetch to a person; rule: a bar that redraws itself on a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TextIO

from modeld.catalog.starter import Progress

LINE_SECONDS: Final = 5.0
DRAW_SECONDS: Final = 0.1
BAR_WIDTH: Final = 24


class ConsoleProgress:
    """Give it to `fetch_starter` as `progress`. `clock` gives monotonic seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._stage = ""
        self._started = 0.0
        self._shown = 0.0
        self._width = 0
        self._full = False

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        new = progress.stage != self._stage
        if new:
            self.close()
            self._stage, self._started, self._full = progress.stage, now, False
        full = 0 < progress.total_bytes <= progress.done_bytes
        every = DRAW_SECONDS if self._terminal else LINE_SECONDS
        if not new and (self._full or (now - self._shown < every and not full)):
            return
        self._shown, self._full = now, full
        line = self._line(progress, now - self._started)
        if not self._terminal:
            self._stream.write(line + "\n")
        else:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
            if progress.stage == "done":
                self.close()
        self._stream.flush()

    def close(self) -> None:
        """End the line of an unfinished bar, so that what is written next starts on its own line."""
        if self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0

    def _line(self, progress: Progress, seconds: float) -> str:
        done, total = progress.done_bytes, progress.total_bytes
        if progress.stage == "done" or not total:
            return progress.text
        parts = [progress.text, f"{done * 100 // total:3d} %", f"{done / (1 << 20):.1f} of {total / (1 << 20):.1f} MiB"]
        if self._terminal:
            filled = BAR_WIDTH * done // total
            parts.insert(1, "[" + "#" * filled + "." * (BAR_WIDTH - filled) + "]")
        if done and seconds >= 1:
            rate = done / seconds
            parts.append(f"{rate / (1 << 20):.1f} MiB/s")
            if done < total:
                left = round((total - done) / rate)
                parts.append(f"{left // 60}:{left % 60:02d} left")
        return "  ".join(parts)
