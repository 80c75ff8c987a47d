# SPDX-License-Identifier: GPL-3.0-only
"""A running model and a granted request, as booked; rule: changed by bookings.py alone.

An instance is there from StartInstance to MemoryFreed, with the spec it was started with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from modeld.core.estimate import Need
from modeld.core.footprint import Footprint
from modeld.core.lifecycle import Signal, State, advance
from modeld.core.model import HOST, InstanceId, ModelId, ModelSpec, Request, RequestId
from modeld.core.placement import Vector
from modeld.core.queues import Waiting
from modeld.errors import ModeldError

EVICTED: Final = "evicted"
STORY_MAX: Final = 24
SUSPECT_SECONDS: Final = 0.25
"""After a request failed on an instance nothing new is granted there for so long: if its child has died, the report is on its way."""


@dataclass(slots=True, eq=False)
class Instance:
    """A running model, from StartInstance to MemoryFreed, with the spec it was started with. Times in monotonic seconds.

    need_mb       MiB per device, as booked
    quiet_since   the last movement seen on it; while nothing was asked of it no time passes
    silent_seconds  how long nothing had moved when the last of its requests left
    closed_for    the due model for which it takes nothing new, or ""
    turn_until    the end of its turn at the latest, -inf = it has none (any more)
    watch_at      the alarm that is set to look whether it is stuck, +inf = none
    kept_until    its ttl ends no earlier: a request asked for that
    told_progress the share of the load that was told of last
    base          what the catalogue said when it was started; `spec` is that, fitted to the room
    cost          what was reserved for it, part by part; `measured` the high-water marks of what it took
    grew          it took more than was reserved for it
    """

    id: InstanceId
    spec: ModelSpec
    need_mb: Vector
    started: float
    last_used: float
    state: State = State.LOADING
    leases: dict[RequestId, None] = field(default_factory=dict)
    pid: int | None = None
    progress: float = 0.0
    ready_at: float = math.inf
    stopping_since: float = math.inf
    drain_why: str = ""
    drain_deadline: float = math.inf
    closed_for: ModelId | str = ""
    suspect_until: float = -math.inf
    quiet_since: float = -math.inf
    silent_seconds: float = 0.0
    turn_until: float = -math.inf
    watch_at: float = math.inf
    kept_until: float = -math.inf
    told_progress: float = 0.0
    base: ModelSpec | None = None
    cost: Need | None = None
    measured: Footprint | None = None
    grew: bool = False
    story: list[str] = field(default_factory=list)

    @property
    def model(self) -> ModelId:
        return self.spec.id

    @property
    def external(self) -> bool:
        return self.spec.external

    @property
    def free_slots(self) -> int:
        return self.spec.options.parallel - len(self.leases)

    @property
    def idle_until(self) -> float:
        return math.inf if self.spec.ttl_seconds is None else max(self.last_used + self.spec.ttl_seconds, self.kept_until)

    @property
    def is_closed(self) -> bool:
        """Draining for a swap: it can be opened again."""
        return self.state is State.DRAINING and self.drain_why == EVICTED

    @property
    def device_mb(self) -> int:
        """Without host memory."""
        return sum(amount for device, amount in self.need_mb.items() if device != HOST)

    def same_launch(self, spec: ModelSpec) -> bool:
        """Would `spec` start the very same thing?"""
        mine, other = self.base or self.spec, spec
        same_files = (mine.fingerprint, mine.mmproj) == (other.fingerprint, other.mmproj)
        same_way = (mine.options, mine.kind, mine.pooling, mine.degrade) == (other.options, other.kind, other.pooling, other.degrade)
        return same_files and same_way

    def advance(self, signal: Signal) -> None:
        self.state = advance(self.state, signal, story=f"{self.id}: " + " ".join(self.story))
        self.story.append(f"{signal}→{self.state}")
        del self.story[:-STORY_MAX]


@dataclass(slots=True, eq=False)
class LeaseBook:
    """A granted request with what is needed to put it back in line.

    deadline      the end of infer_timeout, or +inf
    left_seconds  of max_wait, when it was granted
    revoked       the error it was told to end with; `keeps_place` says whether it may stand in line again all the same
    began         its first byte has come, as far as anybody asked
    """

    waiting: Waiting
    instance: InstanceId
    granted: float
    deadline: float
    left_seconds: float
    revoked: ModeldError | None = None
    keeps_place: bool = True
    began: bool = False

    @property
    def request(self) -> Request:
        return self.waiting.request
