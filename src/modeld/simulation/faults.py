# SPDX-License-Identifier: GPL-3.0-only
"""What goes wrong in a run, as plain data; rule: each fault stands by itself, so that leaving one out changes no other.

A fault is found by what it belongs to (the n-th start of a model, a request, a moment): a shrunk story keeps its other faults as they were.
Seconds everywhere; +inf = never.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from modeld.core.model import ModelId, RequestId


class LoadEnd(StrEnum):
    """How a load ends."""

    READY = "ready"
    FAILS = "fails"
    CRASHES = "crashes"
    STALLS = "stalls"
    OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True, slots=True)
class ChildFate:
    """What becomes of the `start`-th child of a model (counted from 1).

    share          of its load time after which the load ends, when it does not end in READY
    dies_after     seconds after it became ready: it crashes, whoever runs on it
    hangs_after    seconds after it became ready: from then on nothing moves on it, no request ends by itself
    deaf_seconds   for so long it ignores TERM
    freed_seconds  between the end of the process and the return of its memory
    """

    model: ModelId
    start: int
    load: LoadEnd = LoadEnd.READY
    share: float = 1.0
    dies_after: float = math.inf
    hangs_after: float = math.inf
    deaf_seconds: float = 0.0
    freed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class LeaseFate:
    """What becomes of a request that was granted.

    fails_before   so many of its first grants fail before their first byte
    fails_after    it fails in the middle of its answer
    share          of its service after which it fails
    leaves_granted the client leaves between the grant booked and the grant taken
    leaves_requeued   the client leaves as soon as it stands in line again
    """

    request: RequestId
    fails_before: int = 0
    fails_after: bool = False
    share: float = 0.0
    leaves_granted: bool = False
    leaves_requeued: bool = False


@dataclass(frozen=True, slots=True)
class CheckFate:
    """The `check`-th launch check of a model (counted from 1) takes `seconds`, and may be rejected."""

    model: ModelId
    check: int
    seconds: float = 0.0
    rejected: bool = False


class Deed(StrEnum):
    """What an operator may do in the middle of everything. PIN and UNPIN are in the settings, HOLD and LET_GO the word at run time."""

    LOAD = "load"
    PRELOAD = "preload"
    UNLOAD = "unload"
    REPLACE = "replace"
    REMOVE = "remove"
    RESTORE = "restore"
    PIN = "pin"
    UNPIN = "unpin"
    HOLD = "hold"
    LET_GO = "let_go"
    SLOTS = "slots"
    BUDGET_SHARE = "budget_share"
    FAIRNESS_WAIT = "fairness_wait"
    MIN_RESIDENCY = "min_residency"
    PREEMPT_AFTER = "preempt_after"
    EVICTION_COST = "eviction_cost"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Act:
    """At this moment somebody does this, to a model or with a number (what it means depends on the deed; < 0 = off)."""

    at: float
    deed: Deed
    model: ModelId
    number: float = 0.0


@dataclass(frozen=True, slots=True)
class Faults:
    """All that goes wrong in one run."""

    children: tuple[ChildFate, ...] = ()
    leases: tuple[LeaseFate, ...] = ()
    checks: tuple[CheckFate, ...] = ()
    acts: tuple[Act, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.children) + len(self.leases) + len(self.checks) + len(self.acts)


NO_FAULTS = Faults()

KINDS = (
    *("left while waiting", "left at the grant", "left while streaming", "left after requeued"),
    *("lease failed before its first byte", "lease failed in its answer"),
    *("launch rejected", "slow launch check"),
    *(f"load {end}" for end in LoadEnd if end is not LoadEnd.READY),
    *("crash while idle", "crash while streaming", "child hangs", "TERM ignored", "memory freed late"),
    *(f"operator: {deed}" for deed in Deed),
)
"""How the world counts what happened."""
