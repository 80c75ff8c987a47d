# SPDX-License-Identifier: GPL-3.0-only
"""What was asked of this machine and what it loaded, as JSON lines; rule: one format, written and read here, and never a word of a prompt.

The first line is a header, {"trace": "modeld", "version": 1, "unix": ...}; each start of the daemon appends another one. All times are
seconds since the header before. Then, each with its "line":
    limits    the settings that decisions depend on: at the start and when they are replaced
    model     a model when it is first seen or changed: MiB, slots, class, pinned
    load      one start of a model, at its beginning, written at its end: "ready", "failed" or "stopped"
    request   one request, at its arrival, written at its end: "done", "left" or the kind of the error. A client that left while its
              answer streamed is "done": the slot was in use for that long.

Writing never waits for the disk: lines go through a queue to a thread, at most QUEUE_BYTES_MAX of them. A full disk, a folder that is gone,
a disk that hangs or the size limit ends the trace with one line in the log, and nothing else.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec

from modeld import __version__
from modeld.core.estimate import need
from modeld.core.messages import (
    Command,
    Event,
    Grant,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    LeaseFailed,
    LeaseReleased,
    ModelTableReplaced,
    PinChanged,
    Refuse,
    RequestArrived,
    RequestWithdrawn,
    RevokeLease,
    SettingsReplaced,
    StartInstance,
    StopInstance,
)
from modeld.core.model import InstanceId, Limits, ModelId, ModelSpec, Priority, Request, RequestId
from modeld.errors import ConfigError, InstanceFault

log = logging.getLogger("modeld.trace")

VERSION: Final = 1
SIZE_BYTES_MAX: Final = 256 << 20
QUEUE_BYTES_MAX: Final = 8 << 20
LINE_BYTES_MAX: Final = 1 << 20
CLOSE_SECONDS: Final = 1.0
"""How long the end of the daemon waits for the last lines."""
DONE, LEFT = "done", "left"
READY, FAILED, STOPPED = "ready", "failed", "stopped"

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Megabytes = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


class Header(msgspec.Struct, forbid_unknown_fields=False):
    """`unix` is the wall clock at this line, in seconds: it orders the runs of one file."""

    trace: str
    version: int
    unix: float
    modeld: str = ""


class LimitsLine(msgspec.Struct, tag_field="line", tag="limits"):
    """core.model.Limits, field by field; fields that are left out have their defaults."""

    at: Seconds
    limits: dict[str, object]


class ModelLine(msgspec.Struct, tag_field="line", tag="model", omit_defaults=True):
    at: Seconds
    id: Name
    need_mb: Megabytes
    slots: Annotated[int, msgspec.Meta(ge=1)] = 1
    host_mb: Megabytes = 0
    priority: Priority = Priority.NORMAL
    pinned: bool = False
    external: bool = False
    split: bool = False
    ttl_seconds: Seconds | None = None


class LoadLine(msgspec.Struct, tag_field="line", tag="load"):
    at: Seconds
    model: Name
    seconds: Seconds
    outcome: str
    need_mb: dict[str, Megabytes] = {}


class RequestLine(msgspec.Struct, tag_field="line", tag="request", rename={"priority": "class"}, omit_defaults=True):
    """`wait_seconds` until it was granted, `service_seconds` from then on: None when it never was. `seconds` from arrival to end."""

    at: Seconds
    id: Name
    model: Name
    priority: Priority
    principal: Name
    work: Seconds
    seconds: Seconds
    outcome: Name
    wait_seconds: Seconds | None = None
    service_seconds: Seconds | None = None
    tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    timeout_seconds: Seconds | None = None


Line = LimitsLine | ModelLine | LoadLine | RequestLine

# --- reading ----------------------------------------------------------------------------------------------------------

_T = TypeVar("_T")


def read(path: Path) -> Iterator[tuple[int, Header | Line]]:
    """(number, line) of each line of the file, in order. Raises ConfigError: file, line number, and what is wrong with it.

    A last line without an end is left out: the daemon was killed while it wrote. So is an empty line.
    """
    lines = msgspec.json.Decoder(Line)
    headers = msgspec.json.Decoder(Header)
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip() or (number > 1 and not raw.endswith(b"\n")):
                    continue
                is_header = number == 1 or raw.startswith(b'{"trace"')
                found = _decode(headers if is_header else lines, raw, path, number)
                if isinstance(found, Header):
                    _check(found, path, number)
                yield number, found
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def limits_of(line: LimitsLine) -> Limits:
    """Raises msgspec.ValidationError."""
    return msgspec.convert(line.limits, Limits)


def _decode(decoder: msgspec.json.Decoder[_T], raw: bytes, path: Path, number: int) -> _T:
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError as error:
        if number == 1:
            raise ConfigError(f"{path}:1: is not the head of a trace of modeld: {error}") from None
        raise ConfigError(f"{path}:{number}: {error}") from None


def _check(header: Header, path: Path, number: int) -> None:
    if header.trace != "modeld":
        raise ConfigError(f"{path}:{number}: is not a trace of modeld")
    if header.version != VERSION:
        raise ConfigError(f"{path}:{number}: is version {header.version}, this modeld reads version {VERSION}")


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Asked:
    """A request on its way."""

    request: Request
    at: float
    granted: float | None = None
    revoked: str = ""


class TraceWriter:
    """`record` is called by the driver after each step; all lines follow from events and commands."""

    def __init__(
        self,
        path: Path,
        limits: Limits,
        *,
        now: float,
        models: Mapping[ModelId, ModelSpec] | None = None,
        size_bytes_max: int = SIZE_BYTES_MAX,
    ) -> None:
        """Raises ConfigError when the file cannot be opened for appending or holds something else."""
        self._origin = now
        self._models: dict[ModelId, ModelSpec] = {}
        self._pins: dict[ModelId, bool] = {}
        """The operator's word at run time; who may not pin is told so before there is such an event."""
        self._asked: dict[RequestId, _Asked] = {}
        self._loading: dict[InstanceId, tuple[float, StartInstance]] = {}
        self._encode = msgspec.json.Encoder().encode
        self._sink = _Sink(path, size_bytes_max)
        self._write(Header("modeld", VERSION, time.time(), __version__))
        self._limits(limits, now)
        self._see(models or {}, now)

    def record(self, at: float, event: Event, commands: list[Command]) -> None:
        """One step of the core, `at` in the driver's seconds."""
        if self._sink.ended:
            return
        match event:
            case RequestArrived(request):
                self._asked[request.id] = _Asked(request, at)
            case ModelTableReplaced(models):
                self._see(models, at)
            case PinChanged(model, pinned):
                self._pins[model] = pinned
                self._see(self._models, at)
            case SettingsReplaced(limits):
                self._limits(limits, at)
            case InstanceReady(instance):
                self._loaded(instance, at, READY)
            case InstanceFailed(instance) | InstanceExited(instance):
                self._loaded(instance, at, FAILED)
            case _:
                pass
        for command in commands:
            self._command(command, at)
        self._ended(event, at)

    def close(self) -> None:
        """Write what is left, for CLOSE_SECONDS at most. Requests that have not ended are not in the trace."""
        self._sink.close()

    def _command(self, command: Command, at: float) -> None:
        match command:
            case Grant(request):
                if (asked := self._asked.get(request)) is not None:
                    asked.granted = at
            case RevokeLease(request, error):
                if (asked := self._asked.get(request)) is not None:
                    asked.revoked = error.kind
            case Refuse(request, error):
                self._end(request, at, error.kind)
            case StartInstance(instance):
                self._loading[instance] = (at, command)
            case StopInstance(instance):
                self._loaded(instance, at, STOPPED)
            case _:
                pass

    def _ended(self, event: Event, at: float) -> None:
        """After the commands: a request that failed early either stands in line again or was refused by one of them."""
        match event:
            case RequestWithdrawn(request):
                self._end(request, at, LEFT)
            case LeaseReleased(request, tokens):
                self._end(request, at, DONE, tokens)
            case LeaseFailed(request, before_first_byte, error) if not before_first_byte or self._is_revoked(request):
                self._end(request, at, InstanceFault.kind if error is None else error.kind)
            case _:
                pass

    def _is_revoked(self, request: RequestId) -> bool:
        return (asked := self._asked.get(request)) is not None and bool(asked.revoked)

    def _end(self, request: RequestId, at: float, outcome: str, tokens: int = 0) -> None:
        asked = self._asked.pop(request, None)
        if asked is None:
            return
        told, granted = asked.request, asked.granted
        spec = self._models.get(told.model)
        own = Priority.NORMAL if spec is None else spec.priority
        self._write(
            RequestLine(
                at=self._since(asked.at),
                id=told.id,
                model=told.model,
                priority=own if told.priority is None or told.priority.rank < own.rank else told.priority,
                principal=told.principal,
                work=told.work,
                seconds=_round(at - asked.at),
                outcome=asked.revoked or outcome,
                wait_seconds=None if granted is None else _round(granted - asked.at),
                service_seconds=None if granted is None else _round(at - granted),
                tokens=tokens,
                timeout_seconds=told.timeout_seconds if told.timeout_seconds < float("inf") else None,
            )
        )

    def _loaded(self, instance: InstanceId, at: float, outcome: str) -> None:
        if (found := self._loading.pop(instance, None)) is not None:
            began, start = found
            need_mb = {str(device): amount for device, amount in start.need_mb.items()}
            self._write(LoadLine(self._since(began), start.spec.id, _round(at - began), outcome, need_mb))

    def _see(self, models: Mapping[ModelId, ModelSpec], at: float) -> None:
        models = {
            model: dataclasses.replace(spec, pinned=self._pins[model]) if model in self._pins else spec for model, spec in models.items()
        }
        for model, spec in models.items():
            line = _model_line(spec, self._since(at))
            before = self._models.get(model)
            if before is None or _model_line(before, line.at) != line:
                self._write(line)
        self._models = dict(models)

    def _limits(self, limits: Limits, at: float) -> None:
        told = {one.name: getattr(limits, one.name) for one in dataclasses.fields(limits)}
        self._write(LimitsLine(self._since(at), told | {"budget_mb": dict(limits.budget_mb)}))

    def _since(self, at: float) -> float:
        return _round(at - self._origin)

    def _write(self, line: Header | Line) -> None:
        self._sink.put(self._encode(line) + b"\n")


def _model_line(spec: ModelSpec, at: float) -> ModelLine:
    return ModelLine(
        at=at,
        id=spec.id,
        need_mb=need(spec).total_mb,
        slots=spec.options.parallel,
        host_mb=spec.host_mb,
        priority=spec.priority,
        pinned=spec.pinned,
        external=spec.external,
        split=spec.split,
        ttl_seconds=spec.ttl_seconds,
    )


def _round(seconds: float) -> float:
    return max(0.0, round(seconds, 6))


class _Sink:
    """The file and the thread that writes to it."""

    def __init__(self, path: Path, size_bytes_max: int) -> None:
        self._path = path
        self._size_max = size_bytes_max
        self.ended = False
        self._put_bytes = 0
        self._taken_bytes = 0
        """Counted by the thread, as the other is by the loop: neither writes what the other writes."""
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        try:
            _mend(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f'trace_file: "{path}": {error.strerror or error}') from None
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        if self.ended:
            return
        if self._put_bytes - self._taken_bytes > QUEUE_BYTES_MAX:
            self._stop("the disk does not keep up")
            return
        self._put_bytes += len(line)
        self._lines.put(line)

    def close(self) -> None:
        self._lines.put(None)
        self._thread.join(CLOSE_SECONDS)
        self.ended = True

    def _run(self) -> None:
        """The thread. Each line is a write of its own, so that a line is whole or missing, and nothing waits in a buffer when we die."""
        try:
            with self._file:
                size = self._file.tell()
                while (line := self._lines.get()) is not None:
                    self._taken_bytes += len(line)
                    if size + len(line) > self._size_max:
                        self._stop(f"it has reached {self._size_max >> 20} MiB")
                        return
                    if not self._path.exists():
                        self._stop("the file is gone")
                        return
                    if self._file.write(line) != len(line):
                        self._stop("the disk is full")
                        return
                    size += len(line)
        except OSError as error:
            self._stop(error.strerror or str(error))

    def _stop(self, why: str) -> None:
        if not self.ended:
            self.ended = True
            log.error("the trace %s ends here: %s", self._path, why)


def _mend(path: Path) -> None:
    """A file that is there must be a trace. Half a line at its end, of a daemon that was killed, is cut off."""
    if not path.exists() or not path.stat().st_size:
        return
    next(read(path))
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LINE_BYTES_MAX))
        tail = file.read()
        if not tail.endswith(b"\n"):
            file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
