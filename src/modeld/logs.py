# SPDX-License-Identifier: GPL-3.0-only
"""How a log line looks, for people or for machines; rule: one line each on stderr, control characters escaped, no prompts, no keys."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TextIO

CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Characters that could forge a line or move a terminal's cursor. A line break inside one of our own messages is kept, indented."""


class ConsoleFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO  driver: start 1/a.gguf`"""

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("modeld.")
        lines = [clean(line) for line in _text(record, self).split("\n")]
        return f"{_time(record)} {record.levelname:<7} {name}: " + "\n    ".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and `error` with a traceback when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True)


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send every log line to `stream` (stderr by default). `level` is a name such as "info", `form` "console" or "json"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("modeld").setLevel(level.upper())
    # A log that cannot be written (a closed pipe, a full disk) must not disturb the service.
    logging.raiseExceptions = False
    # No line of ours names thread, process or caller, and they are looked up for each record. The names are those of logging's manual.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None


def clean(text: str) -> str:
    """The text with control characters written out."""
    return text.translate(CONTROL)


def _text(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    message = record.getMessage()
    return message if not record.exc_info else f"{message}\n{formatter.formatException(record.exc_info)}"


def _time(record: logging.LogRecord) -> str:
    return f"{_second(int(record.created))}.{int(record.msecs):03d}Z"


@lru_cache(maxsize=2)  # a busy daemon logs many lines a second
def _second(since_epoch: int) -> str:
    return datetime.fromtimestamp(since_epoch, UTC).isoformat().removesuffix("+00:00")
