# SPDX-License-Identifier: GPL-3.0-only
"""Events (past tense) beside the commands (imperative) they answer; rule: frozen values, no behaviour.

    command         ends in exactly one of
    Grant           LeaseReleased | LeaseFailed
    Refuse          nothing: the request is over
    RevokeLease     LeaseReleased | LeaseFailed   (the running request ends with the error as its last record)
    CheckProgress   ProgressChecked
    CheckLaunch     LaunchChecked | LaunchRejected
    ProbeFootprint  FootprintProbed | ProbeFailed
    Remember        nothing: it is for the store
    StartInstance   InstanceReady | InstanceFailed; LoadProgressed on the way
    StopInstance    InstanceExited, then MemoryFreed

A child that ends by itself gives InstanceExited, then MemoryFreed, too; a failed start gives InstanceFailed, then both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modeld.core.footprint import DeviceMemory, Footprint, Learned, Probe, When
from modeld.core.model import DeviceId, InstanceId, Limits, ModelId, ModelSpec, Request, RequestId
from modeld.errors import InstanceFault, ModeldError, Refused

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestArrived:
    request: Request


@dataclass(frozen=True, slots=True)
class RequestWithdrawn:
    """The client left, or the caller gave up. Legal in every state; late ones are ignored."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    """The request has ended, its slot is free. `tokens` is what was generated, 0 if unknown; `moved_at` when its last byte came."""

    request: RequestId
    tokens: int = 0
    moved_at: float | None = None


@dataclass(frozen=True, slots=True)
class LeaseFailed:
    """The request ended with an error of the instance.

    Nothing has reached the client (`before_first_byte`): the request stands in line again, in its old place, and ends like any that
    waits, in Grant or Refuse; the second time it is refused at once, with `error`. Otherwise it is over.
    """

    request: RequestId
    before_first_byte: bool
    error: ModeldError | None = None


@dataclass(frozen=True, slots=True)
class ProgressChecked:
    """When each running request of the instance last moved (monotonic seconds): its last byte, or its grant when none came yet."""

    instance: InstanceId
    moved: Mapping[RequestId, float]
    began: frozenset[RequestId] = frozenset()
    """Those whose first byte has come."""


@dataclass(frozen=True, slots=True)
class LaunchChecked:
    model: ModelId
    fingerprint: str


@dataclass(frozen=True, slots=True)
class LaunchRejected:
    model: ModelId
    fingerprint: str
    error: InstanceFault | Refused


@dataclass(frozen=True, slots=True)
class LoadProgressed:
    """`fraction` is 0..1, of the weights."""

    instance: InstanceId
    fraction: float


@dataclass(frozen=True, slots=True)
class InstanceReady:
    instance: InstanceId
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class InstanceFailed:
    """The load did not succeed. The child may still have to be reaped: InstanceExited and MemoryFreed follow."""

    instance: InstanceId
    error: InstanceFault | Refused


@dataclass(frozen=True, slots=True)
class InstanceSpawned:
    instance: InstanceId
    pid: int


@dataclass(frozen=True, slots=True)
class InstanceExited:
    """The child is reaped. `code` is its exit code, negative = the signal that ended it; `ran_out` = of memory, while it served."""

    instance: InstanceId
    code: int | None = None
    reason: str = ""
    ran_out: bool = False


@dataclass(frozen=True, slots=True)
class MemoryFreed:
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class FootprintProbed:
    """llama.cpp's dry pass has answered. `key` is the probe key that was asked about."""

    model: ModelId
    key: str
    probe: Probe


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """It could not be asked, or did not answer: the formula stands."""

    model: ModelId
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class FootprintMeasured:
    """What the child of an instance takes. Ignored once the instance is gone."""

    instance: InstanceId
    footprint: Footprint
    when: When


@dataclass(frozen=True, slots=True)
class FootprintsLearned:
    """What earlier runs remembered, by launch key and by probe key."""

    learned: Mapping[str, Learned] = field(default_factory=dict)
    probes: Mapping[str, Probe] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemorySeen:
    """What the machine shows of its devices. Told again and again while a budget depends on it; a device that is not named was not seen."""

    devices: Mapping[DeviceId, DeviceMemory]


@dataclass(frozen=True, slots=True)
class ModelTableReplaced:
    """The catalogue as it is now; running instances keep their own spec."""

    models: Mapping[ModelId, ModelSpec]


@dataclass(frozen=True, slots=True)
class SettingsReplaced:
    limits: Limits


@dataclass(frozen=True, slots=True)
class LoadRequested:
    """The operator (or `preload`) wants the model resident, without a request. Preload does not evict for it."""

    model: ModelId
    may_evict: bool = True


@dataclass(frozen=True, slots=True)
class UnloadRequested:
    """Drain, at most drain_timeout, then stop."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class PinChanged:
    """The operator's word at run time: it stands before what the settings say, also when they or the catalogue are read again.

    Ignored where the pinned models would not fit together any more: ask Scheduler.pin_refusal first. Pinning loads nothing.
    """

    model: ModelId
    pinned: bool


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """Refuse all who wait, end all who run, stop all instances."""


@dataclass(frozen=True, slots=True)
class Wakeup:
    """A deadline named by next_wakeup() has come."""


Event = (
    RequestArrived
    | RequestWithdrawn
    | LeaseReleased
    | LeaseFailed
    | ProgressChecked
    | LaunchChecked
    | LaunchRejected
    | LoadProgressed
    | InstanceSpawned
    | InstanceReady
    | InstanceFailed
    | InstanceExited
    | MemoryFreed
    | FootprintProbed
    | ProbeFailed
    | FootprintMeasured
    | FootprintsLearned
    | MemorySeen
    | ModelTableReplaced
    | SettingsReplaced
    | LoadRequested
    | UnloadRequested
    | PinChanged
    | ShutdownRequested
    | Wakeup
)

# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    request: RequestId
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class Refuse:
    request: RequestId
    error: ModeldError


@dataclass(frozen=True, slots=True)
class RevokeLease:
    request: RequestId
    error: ModeldError


@dataclass(frozen=True, slots=True)
class CheckLaunch:
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class ProbeFootprint:
    """Ask llama.cpp what the launch would take, without allocating it. `key` is its probe key.

    `around`: also about contexts from which others follow; they are known otherwise.
    """

    spec: ModelSpec
    key: str
    around: bool = True


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep this across restarts. Under a launch key what was measured, under a probe key what was probed; one of both is given."""

    key: str
    header_hash: str
    learned: Learned | None = None
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class StartInstance:
    """`need_mb` is what was booked, MiB per device: where the instance is to run."""

    instance: InstanceId
    spec: ModelSpec
    need_mb: Mapping[DeviceId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StopInstance:
    """`why` is for the log: evicted, unload, ttl, replaced, stuck, shutdown."""

    instance: InstanceId
    why: str


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """Say when the running requests of the instance last moved. Answered at once."""

    instance: InstanceId


Command = Grant | Refuse | RevokeLease | CheckLaunch | ProbeFootprint | Remember | StartInstance | StopInstance | CheckProgress
