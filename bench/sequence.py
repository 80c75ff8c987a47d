# SPDX-License-Identifier: GPL-3.0-only
"""What came of one numbered stream: lost, reordered, late; rule: it is told from the bytes alone, whoever carried them.

Events look as engine.py writes them. One that comes after a higher number is reordered, one that came before is repeated, one that never
comes is lost. Two of these can be true of a stream at once; none of them is taken for another.
"""

from __future__ import annotations

from typing import Final

_START: Final = b'data: {"n":'
_NUMBER: Final = slice(11, 18)
_STAMP: Final = slice(23, 43)


class Sequence:
    """Takes the body of an answer as it comes. `delays` are nanoseconds from the writing of a chunk to its reading here."""

    def __init__(self) -> None:
        self.next = 0
        self.reordered = 0
        self.repeated = 0
        self.foreign = 0
        self.done = False
        self.delays: list[int] = []
        self._missing: set[int] = set()
        self._held = b""

    def take(self, body: bytes, now_ns: int) -> None:
        """Body bytes, cut anywhere."""
        *events, self._held = (self._held + body).split(b"\n\n")
        for event in events:
            if event.startswith(_START):
                self._count(int(event[_NUMBER]))
                self.delays.append(now_ns - int(event[_STAMP]))
            elif event == b"data: [DONE]":
                self.done = True
            else:
                self.foreign += 1

    def _count(self, number: int) -> None:
        if number == self.next:
            self.next += 1
        elif number > self.next:
            self._missing.update(range(self.next, number))
            self.next = number + 1
        elif number in self._missing:
            self._missing.discard(number)
            self.reordered += 1
        else:
            self.repeated += 1

    def lost(self, wanted: int) -> int:
        """Of so many chunks, those that have not come."""
        return len(self._missing) + max(0, wanted - self.next)
