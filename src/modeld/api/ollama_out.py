# SPDX-License-Identifier: GPL-3.0-only
"""llama.cpp's event stream into Ollama's records; rule: sans-IO, the same records however the input is cut, and one last line always.

A record is one line of JSON. The last one has `done`, why the answer ended, the counts of tokens, and durations in nanoseconds: those of
reading and generating are llama.cpp's own, the total and the wait for the model are ours. A call of a tool goes out whole, just before the
last record: llama.cpp sends it in pieces, and Ollama's clients know none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from modeld.api.ndjson import INCOMPLETE, NOT_UNDERSTOOD, TOO_LARGE, Problem, in_band, problem_of, read_or_none
from modeld.api.schemas import encode, fault
from modeld.api.sse import DONE, EVENT_BYTES_MAX, Event, SseReader
from modeld.api.usage import TokenUsage
from modeld.errors import BadUpstreamReply, ModeldError

TOOL_CALLS_MAX: Final = 128
"""More calls in one answer are nonsense."""
NANOSECONDS: Final = 1_000_000_000

Nanoseconds = Annotated[int, Meta(ge=0)]

# --- out --------------------------------------------------------------------------------------------------------------


class OllamaLogprob(Struct):
    """How likely a token was, and its rivals."""

    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | UnsetType = UNSET
    top_logprobs: list[OllamaLogprob] | UnsetType = UNSET


class OllamaCalled(Struct):
    """The function of a call; `arguments` is an object."""

    name: str
    arguments: Raw
    index: int = 0


class OllamaCall(Struct):
    """A call of a tool."""

    function: OllamaCalled
    id: str | UnsetType = UNSET


class OllamaMessage(Struct):
    """What the model says, or the piece of it that this record brings."""

    role: str
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class OllamaRecord(Struct, kw_only=True):
    """What all records have. The durations, in nanoseconds, and what follows them are in the last one only."""

    model: str
    created_at: str
    done: bool
    done_reason: str | UnsetType = UNSET
    logprobs: list[OllamaLogprob] | UnsetType = UNSET
    total_duration: Nanoseconds | UnsetType = UNSET
    load_duration: Nanoseconds | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: Nanoseconds | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: Nanoseconds | UnsetType = UNSET


class OllamaChatRecord(OllamaRecord, kw_only=True):
    """A line of /api/chat, and its whole answer where no stream is wanted."""

    message: OllamaMessage


class OllamaGenerateRecord(OllamaRecord, kw_only=True):
    """A line of /api/generate, and its whole answer where no stream is wanted."""

    response: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCall] | UnsetType = UNSET


# --- in ---------------------------------------------------------------------------------------------------------------


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _CallPiece(Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_CallPiece] | None = None


class _Logprobs(Struct):
    content: list[OllamaLogprob] | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Timings(Struct):
    cache_n: int = 0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    predicted_per_second: float = 0.0


class _Event(Struct):
    """What is read of one event: a chunk of a chat completion (`choices`), or a piece of a completion (`content`, the last one `stop`)."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    content: str = ""
    stop: bool = False
    stop_type: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    completion_probabilities: list[OllamaLogprob] | None = None
    error: Problem | str | None = None


_events: Final = msgspec.json.Decoder(_Event)


@dataclass(frozen=True, slots=True)
class Frame:
    """What the records of one answer say besides the model's words.

    model    the name that the client used
    chat     /api/chat's records, else /api/generate's
    unix     the time now, seconds since the epoch
    spent    seconds since the request came, and those of them that it waited for its model
    """

    model: str
    chat: bool
    unix: Callable[[], float]
    spent: Callable[[], tuple[float, float]]


@dataclass(slots=True)
class _Call:
    """A call of a tool while its pieces come."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class SseToOllama:
    """The translator of one answer.

    stream   False leaves all records but the last out, which then holds the whole answer
    done     the last line has been made; what comes after it is ignored
    error    why the answer failed, once it has
    """

    def __init__(self, frame: Frame, *, stream: bool = True, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self.done = False
        self.error: ModeldError | None = None
        self.usage = TokenUsage()
        self._frame = frame
        self._stream = stream
        self._reader = SseReader(event_bytes_max=event_bytes_max)
        self._reason = ""
        self._timings = _Timings()
        self._calls: dict[int, _Call] = {}
        # The whole answer, where no stream is wanted.
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._logprobs: list[OllamaLogprob] = []

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
        return self._last(encode(fault(error)) + b"\n")

    def _event(self, seen: Event) -> bytes:
        if seen.failed:
            return self.fail(problem_of(seen.data))
        if seen.data == DONE:
            return self._finished() if self._reason else self.end()
        event = read_or_none(_events, seen.data)
        if event is None:
            return self.fail(BadUpstreamReply(NOT_UNDERSTOOD))
        if event.error is not None:
            return self.fail(in_band(event.error))
        if event.timings is not None:
            self._timings = event.timings
        return self._piece_of_completion(event) if event.choices is None else self._piece_of_chat(event, event.choices)

    def _piece_of_completion(self, event: _Event) -> bytes:
        self._count(event.tokens_evaluated, event.tokens_predicted)
        line = self._piece(event.content, "", event.completion_probabilities)
        if not event.stop:
            return line
        self._reason = "length" if event.stop_type == "limit" else "stop"
        return line + self._finished()

    def _piece_of_chat(self, event: _Event, choices: list[_Choice]) -> bytes:
        if event.usage is not None:
            self._count(event.usage.prompt_tokens, event.usage.completion_tokens)
        line = b""
        for choice in choices[:1]:
            delta = choice.delta or _Delta()
            likely = choice.logprobs.content if choice.logprobs else None
            line = self._piece(delta.content or "", delta.reasoning_content or "", likely)
            for piece in delta.tool_calls or ():
                if not self._collect(piece):
                    return line + self.fail(BadUpstreamReply("the model server sent too many tool calls"))
            if choice.finish_reason:
                self._reason = "length" if choice.finish_reason == "length" else "stop"
        return line

    def _count(self, prompt: int, completion: int) -> None:
        self.usage = TokenUsage(prompt, self._timings.cache_n, completion, self._timings.predicted_per_second)

    def _collect(self, piece: _CallPiece) -> bool:
        """A piece of a call of a tool; False when there are too many."""
        call = self._calls.setdefault(piece.index, _Call())
        call.id = call.id or piece.id or ""
        if piece.function is not None:
            call.name += piece.function.name or ""
            if piece.function.arguments:
                call.arguments.append(piece.function.arguments)
        return len(self._calls) <= TOOL_CALLS_MAX

    def _piece(self, text: str, thoughts: str, likely: list[OllamaLogprob] | None) -> bytes:
        """The record for a piece of the answer, b"" when there is nothing in it or nobody wants it yet."""
        if not text and not thoughts and not likely:
            return b""
        if not self._stream:
            self._text.append(text)
            self._thoughts.append(thoughts)
            self._logprobs += likely or ()
            return b""
        return self._line(text, thoughts, done=False, logprobs=likely or UNSET)

    def _finished(self) -> bytes:
        """The records of the end: the calls of tools, and the last one."""
        try:
            calls = self._whole_calls()
        except msgspec.DecodeError:
            return self.fail(BadUpstreamReply("the model server sent a tool call whose arguments are not an object"))
        spent, waited = self._frame.spent()
        last: dict[str, Any] = {
            "done": True,
            "done_reason": self._reason,
            "total_duration": nanoseconds(spent),
            "load_duration": nanoseconds(waited),
            "prompt_eval_count": self.usage.prompt,
            "prompt_eval_duration": nanoseconds(self._timings.prompt_ms / 1000),
            "eval_count": self.usage.completion,
            "eval_duration": nanoseconds(self._timings.predicted_ms / 1000),
        }
        if self._stream:
            line = self._line("", "", done=False, tool_calls=calls) if calls else b""
            return line + self._last(self._line("", "", **last))
        text, thoughts = "".join(self._text), "".join(self._thoughts)
        return self._last(self._line(text, thoughts, tool_calls=calls or UNSET, logprobs=self._logprobs or UNSET, **last))

    def _whole_calls(self) -> list[OllamaCall]:
        """The calls of tools. One that the token limit cut short is left out: half its arguments would be other arguments."""
        calls = []
        for at, (_, call) in enumerate(sorted(self._calls.items())):
            raw = "".join(call.arguments) or "{}"
            try:
                arguments = encode(msgspec.json.decode(raw, type=dict[str, Any]))
            except (msgspec.DecodeError, RecursionError):
                if self._reason == "length":
                    continue
                raise msgspec.DecodeError from None
            calls.append(OllamaCall(OllamaCalled(call.name, Raw(arguments), at), call.id or UNSET))
        return calls

    def _line(self, text: str, thoughts: str, *, tool_calls: list[OllamaCall] | UnsetType = UNSET, **more: Any) -> bytes:
        frame = self._frame
        more |= {"model": frame.model, "created_at": rfc3339(frame.unix())}
        thinking = thoughts or UNSET
        record: OllamaRecord
        if frame.chat:
            record = OllamaChatRecord(message=OllamaMessage("assistant", text, thinking, tool_calls), **more)
        else:
            record = OllamaGenerateRecord(response=text, thinking=thinking, tool_calls=tool_calls, **more)
        return encode(record) + b"\n"

    def _last(self, line: bytes) -> bytes:
        self.done = True
        self._reader.forget()
        self._calls.clear()
        self._text.clear()
        self._thoughts.clear()
        self._logprobs.clear()
        return line


def loaded_record(frame: Frame, reason: str) -> bytes:
    """The one record of a request that generates nothing; `reason` is "load" or "unload"."""
    common: dict[str, Any] = {"model": frame.model, "created_at": rfc3339(frame.unix()), "done": True, "done_reason": reason}
    if reason == "load":
        spent, waited = frame.spent()
        common |= {"total_duration": nanoseconds(spent), "load_duration": nanoseconds(waited)}
    if frame.chat:
        return encode(OllamaChatRecord(message=OllamaMessage("assistant", ""), **common)) + b"\n"
    return encode(OllamaGenerateRecord(response="", **common)) + b"\n"


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds, never below 0."""
    return max(0, round(seconds * NANOSECONDS))


def rfc3339(unix: float) -> str:
    """A moment, as `2025-01-31T23:59:59.123456Z`."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
