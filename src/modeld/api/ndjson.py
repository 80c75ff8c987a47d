# SPDX-License-Identifier: GPL-3.0-only
"""llama.cpp's event stream into the lines of /infer; rule: sans-IO, the same output however the input is cut, and one last line always."""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from modeld.api.schemas import Done, Failed, Token, Usage, encode, fault
from modeld.api.sse import DONE, EVENT_BYTES_MAX, Event, SseReader
from modeld.api.usage import TokenUsage
from modeld.errors import BadRequest, BadUpstreamReply, ModeldError

T = TypeVar("T")

INCOMPLETE: Final = "the model server's answer ended before it was complete"
TOO_LARGE: Final = "the model server sent an event that is too large"
NOT_UNDERSTOOD: Final = "the model server sent an event that is not understood"
_SOME_PATH: Final = re.compile(r"""(?:^|[\s"'`(\[{<=:,])(?:~?/(?!v1/|\s|$|/)|[A-Za-z]:\\)|\.(?:sock|gguf)\b|Traceback|\n""")


class Problem(Struct):
    """An error as llama.cpp words it."""

    message: str = ""
    code: int = 0


class _Timings(Struct):
    cache_n: int = 0
    predicted_per_second: float = 0.0


class _Event(Struct):
    """What is read of one event. The last one has `stop`."""

    content: str = ""
    stop: bool = False
    stop_type: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    timings: _Timings | None = None
    error: Problem | str | None = None


class _ErrorBody(Struct):
    error: Problem | str


_events: Final = msgspec.json.Decoder(_Event)
_problems: Final = msgspec.json.Decoder(Problem | str)
_error_bodies: Final = msgspec.json.Decoder(_ErrorBody)


class SseToNdjson:
    """The translator of one answer.

    stream   False leaves the token lines out: only the last line is made
    done     the last line has been made; what comes after it is ignored
    error    why the answer failed, once it has
    """

    def __init__(self, *, stream: bool = True, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self.done = False
        self.error: ModeldError | None = None
        self.usage = TokenUsage()
        self._stream = stream
        self._reader = SseReader(event_bytes_max=event_bytes_max)
        self._content: list[str] = []

    def feed(self, chunk: bytes) -> bytes:
        """Bytes of the event stream in, whole lines out (b"" when there is none yet). Never raises."""
        if self.done:
            return b""
        out: list[bytes] = []
        for event in self._reader.feed(chunk):
            out.append(self._event(event))
            if self.done:
                return b"".join(out)
        if self._reader.too_large:
            out.append(self.fail(BadUpstreamReply(TOO_LARGE)))
        return b"".join(out)

    def end(self) -> bytes:
        """The stream has ended: b"" if the last line has been made, else the line that says it is missing."""
        return self.fail(BadUpstreamReply(INCOMPLETE))

    def fail(self, error: ModeldError) -> bytes:
        """The last line for an error; b"" if the last line has been made."""
        if self.done:
            return b""
        self.error = error
        return self._last(failed_line(error))

    def _event(self, seen: Event) -> bytes:
        if seen.failed:
            return self.fail(problem_of(seen.data))
        if seen.data == DONE:
            return self.end()
        event = read_or_none(_events, seen.data)
        if event is None:
            return self.fail(BadUpstreamReply(NOT_UNDERSTOOD))
        if event.error is not None:
            return self.fail(in_band(event.error))
        timings = event.timings or _Timings()
        self.usage = TokenUsage(event.tokens_evaluated, timings.cache_n, event.tokens_predicted, timings.predicted_per_second)
        line = b""
        if event.content:
            self._content.append(event.content)
            line = encode(Token(event.content)) + b"\n" if self._stream else b""
        return line + self._last(self._done_line(event)) if event.stop else line

    def _done_line(self, event: _Event) -> bytes:
        usage = Usage(event.tokens_evaluated, event.tokens_predicted, event.tokens_evaluated + event.tokens_predicted)
        reason = "length" if event.stop_type == "limit" else "stop"
        return encode(Done(True, content="".join(self._content), finish_reason=reason, usage=usage)) + b"\n"

    def _last(self, line: bytes) -> bytes:
        self.done = True
        self._reader.forget()
        self._content.clear()
        return line


def failed_line(error: ModeldError) -> bytes:
    """The last line that says why."""
    seen = fault(error)
    return encode(Failed(True, error=seen.error, code=seen.code, kind=seen.kind, source=seen.source)) + b"\n"


def upstream_message(body: bytes) -> str:
    """The message in a model server's JSON error body, "" when there is none that may be shown to a client."""
    read = read_or_none(_error_bodies, body)
    return _message(read.error) if read is not None else ""


def is_showable(message: str) -> bool:
    """Whether a text of a model server holds nothing that looks like a path or a traceback. In doubt it does."""
    return len(message) <= 2000 and not _SOME_PATH.search(message)


def problem_of(raw: bytes) -> ModeldError:
    """The error of an `error:` line."""
    return in_band(read_or_none(_problems, raw))


def in_band(problem: Problem | str | None) -> ModeldError:
    """An error that a model server sent in its stream."""
    message = _message(problem) if problem is not None else ""
    if isinstance(problem, Problem) and problem.code == BadRequest.http_status:
        return BadRequest(message or "the model server refused the request")
    return BadUpstreamReply(f"the model server failed: {message}" if message else "the model server failed")


def _message(problem: Problem | str) -> str:
    message = problem.message if isinstance(problem, Problem) else problem
    return message if is_showable(message) else ""


def read_or_none(decoder: msgspec.json.Decoder[T], data: bytes) -> T | None:
    """What a model server sent, None when it is not what `decoder` expects."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
