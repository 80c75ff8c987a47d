# SPDX-License-Identifier: GPL-3.0-only
"""Server-sent events out of bytes, as llama.cpp writes them; rule: sans-IO, the same events however the input is cut.

Lines end in LF or CRLF, a leading byte order mark and comments are skipped, several `data` lines of one event are joined, other fields are
ignored. llama.cpp sends an error after the head as `data: {"error": …}`, older builds as a line `error: {…}`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

EVENT_BYTES_MAX: Final = 16 << 20
"""An event beyond this is nonsense; the buffer for one never grows larger."""
DONE: Final = b"[DONE]"
"""The data of the event that ends a stream."""

_BOM: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """`failed`: the data is that of an `error:` line."""

    data: bytes
    failed: bool = False


class SseReader:
    """The events of one stream. `too_large` once one was larger than it may be: from then on there are no more."""

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self.too_large = False
        self._event_bytes_max = event_bytes_max
        self._first = True
        self._pieces: list[bytes] = []  # of the line that has not ended yet
        self._pieces_bytes = 0
        self._data: list[bytes] = []  # data lines of the event that has not ended yet
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """Bytes in, the events that have ended with them out. Never raises."""
        if self.too_large:
            return []
        lines = chunk.split(b"\n")
        events: list[Event] = []
        for ended in lines[:-1]:
            if self._pieces:
                ended = b"".join([*self._pieces, ended])
                self._pieces.clear()
                self._pieces_bytes = 0
            self._line(ended, events)
            if self.too_large:
                return events
        if lines[-1]:
            self._pieces.append(lines[-1])
            self._pieces_bytes += len(lines[-1])
        if self._pieces_bytes + self._data_bytes > self._event_bytes_max:
            self.too_large = True
            self.forget()
        return events

    def forget(self) -> None:
        """Let go of what has not ended."""
        self._pieces.clear()
        self._data.clear()

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        line = line.removesuffix(b"\r")
        if not line:
            if self._data:
                events.append(Event(b"\n".join(self._data)))
                self._data.clear()
                self._data_bytes = 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._event_bytes_max:
                self.too_large = True
                self.forget()
        elif name == b"error":
            events.append(Event(value, failed=True))
