# SPDX-License-Identifier: GPL-3.0-only
"""The last events and what was commanded for them; rule: bounded, written by the driver only, read for logs and crash dumps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from modeld.core.messages import CheckProgress, Command, Event, LoadProgressed, ProgressChecked, Wakeup

KEEP: Final = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of the core: `at` in monotonic seconds."""

    at: float
    event: Event
    commands: tuple[Command, ...]


class Journal:
    """A ring of steps. Events that changed nothing worth telling (timers, progress) are kept only with their commands.

    A look at the progress is no such command: one each few seconds would push out all that led to a crash.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self._ring: deque[Entry] = deque(maxlen=keep)

    def record(self, at: float, event: Event, commands: list[Command]) -> None:
        told = any(not isinstance(command, CheckProgress) for command in commands)
        if told or not isinstance(event, Wakeup | LoadProgressed | ProgressChecked):
            self._ring.append(Entry(at, event, tuple(commands)))

    def lines(self) -> list[str]:
        """For a crash dump: one line per step, oldest first."""
        return [f"{entry.at:.3f} {entry.event} -> {', '.join(map(str, entry.commands)) or '-'}" for entry in self._ring]

    def __len__(self) -> int:
        return len(self._ring)
