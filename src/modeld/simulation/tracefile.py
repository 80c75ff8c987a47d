# SPDX-License-Identifier: GPL-3.0-only
"""A recorded trace as a workload; rule: what the file does not say is put in by the rules below, and the note counts it.

* Each header of the file begins a run of the daemon; runs follow each other as their wall clocks say. The limits are those at the start of
  the file, so that one run is compared with what it really did.
* A model is what its last line says: one that was changed meanwhile has its newest size for the whole workload.
* A load takes the median of the model's own successful loads; one that was never loaded has the median seconds per MiB of all
  others; without any load LOAD_START_SECONDS plus its size at LOAD_MB_PER_SECOND.
* A request that never ran takes the median of its model, else of the trace, else SERVICE_SECONDS. One whose client left while it waited
  leaves after as long. One that no policy could have served (HOPELESS, or a model that the trace does not name) is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from modeld.core.model import LaunchOptions, Limits, ModelId, ModelSpec, Principal, RequestId
from modeld.errors import BadRequest, ConfigError, Draining, EngineMissing, ModelUnavailable, UnknownModel
from modeld.runtime.trace import LEFT, READY, Header, LimitsLine, Line, LoadLine, ModelLine, RequestLine, limits_of, read
from modeld.simulation.workload import Ask, SimModel, Workload

LOAD_START_SECONDS: Final = 1.2
LOAD_MB_PER_SECOND: Final = 1500.0
SERVICE_SECONDS: Final = 5.0
HOPELESS: Final = frozenset(error.kind for error in (BadRequest, UnknownModel, ModelUnavailable, EngineMissing, Draining))


def read_trace(path: Path) -> Workload:
    """The workload that was recorded. Raises ConfigError: file, line number, and what is wrong with it."""
    found = _Found()
    for number, line in read(path):
        try:
            found.take(line)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{path}:{number}: {error}") from None
    if not found.models:
        raise ConfigError(f"{path}: names no model")
    models = tuple(SimModel(_spec(line), found.load_seconds(line)) for line in found.models.values())
    known = [(at, line) for at, line in found.requests if found.is_of_use(line)]
    if not known:
        raise ConfigError(f"{path}: holds no request that could have been served")
    asks = tuple(found.ask(number, at, line) for number, (at, line) in enumerate(sorted(known, key=lambda one: (one[0], one[1].id))))
    return Workload(path.name, models, asks, found.limits or Limits(), found.note(len(known)))


@dataclass(slots=True)
class _Found:
    """What was read so far. `base` is where the present run begins, `seen` the latest time of all, in seconds."""

    base: float = 0.0
    seen: float = 0.0
    first_unix: float | None = None
    limits: Limits | None = None
    models: dict[str, ModelLine] = field(default_factory=dict)
    loads: dict[str, list[float]] = field(default_factory=dict)
    requests: list[tuple[float, RequestLine]] = field(default_factory=list)

    def take(self, line: Header | Line) -> None:
        match line:
            case Header():
                self.first_unix = line.unix if self.first_unix is None else self.first_unix
                self.base = max(self.seen, line.unix - self.first_unix)
                return
            case LimitsLine():
                limits = limits_of(line)
                self.limits = self.limits or limits
            case ModelLine():
                self.models[line.id] = line
            case LoadLine():
                if line.outcome == READY:
                    self.loads.setdefault(line.model, []).append(line.seconds)
            case RequestLine():
                self.requests.append((self.base + line.at, line))
                self.seen = max(self.seen, self.base + line.at + line.seconds)
        self.seen = max(self.seen, self.base + line.at)

    def is_of_use(self, line: RequestLine) -> bool:
        return line.model in self.models and line.outcome not in HOPELESS

    def load_seconds(self, line: ModelLine) -> float:
        if own := self.loads.get(line.id):
            return median(own)
        rates = [median(all_) / self.models[model].need_mb for model, all_ in self.loads.items() if self._mb(model)]
        return median(rates) * line.need_mb if rates else LOAD_START_SECONDS + line.need_mb / LOAD_MB_PER_SECOND

    def _mb(self, model: str) -> int:
        return self.models[model].need_mb if model in self.models else 0

    def ask(self, number: int, at: float, line: RequestLine) -> Ask:
        waits_in_vain = line.wait_seconds is None and line.outcome == LEFT
        return Ask(
            at=at,
            request=RequestId(f"{number:06}"),
            model=ModelId(line.model),
            service_seconds=self._service(line),
            tokens=line.tokens,
            principal=Principal(line.principal),
            priority=line.priority,
            work=line.work,
            timeout_seconds=math.inf if line.timeout_seconds is None else line.timeout_seconds,
            leaves_at=at + line.seconds if waits_in_vain else math.inf,
        )

    def _service(self, line: RequestLine) -> float:
        if line.service_seconds is not None:
            return line.service_seconds
        ran = [other for _, other in self.requests if other.service_seconds is not None]
        own = [other.service_seconds for other in ran if other.model == line.model]
        every = own or [other.service_seconds for other in ran]
        return median(seconds for seconds in every if seconds is not None) if every else SERVICE_SECONDS

    def note(self, taken: int) -> str:
        guessed = sum(line.service_seconds is None for _, line in self.requests if self.is_of_use(line))
        hopeless = len(self.requests) - taken
        parts = [f"recorded: {taken} requests, {len(self.models)} models"]
        parts += [f"{guessed} never ran, their length is a guess"] if guessed else []
        parts += [f"{hopeless} that no policy could have served are left out"] if hopeless else []
        return "; ".join(parts)


def _spec(line: ModelLine) -> ModelSpec:
    return ModelSpec(
        ModelId(line.id),
        path=line.id,
        fingerprint="trace",
        vram_mb=line.need_mb,
        options=LaunchOptions(parallel=line.slots),
        pinned=line.pinned,
        external=line.external,
        priority=line.priority,
        host_mb=line.host_mb,
        split=line.split,
        ttl_seconds=line.ttl_seconds,
    )
