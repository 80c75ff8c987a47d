# SPDX-License-Identifier: GPL-3.0-only
"""What a model server takes, as values: measured, probed, remembered; rule: bytes here, MiB in the ledger; nothing here decides.

A *launch key* names one model with everything that moves its memory: what was measured for it holds for the next launch with the same key.
A *probe key* leaves out what llama.cpp's dry pass can be extrapolated over (context, batches, slots).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from modeld.core.model import DeviceId, FlashAttention, LaunchOptions, ModelId, ModelSpec

KEY_BYTES: Final = 16
POINTS_MAX: Final = 96
"""Contexts that are kept of all dry passes with one probe key."""
MIB: Final = 1 << 20
_NOT_MEMORY: Final = frozenset(("threads", "ctx_max", "devices", "tensor_split"))
"""Fields of LaunchOptions that move no memory, or only from one device to its like."""


class Source(StrEnum):
    """Where a figure comes from, best first."""

    DECLARED = "declared"
    LEARNED = "learned"
    PROBED = "probed"
    FORMULA = "formula"
    EXTERNAL = "external"


class When(StrEnum):
    """When a footprint was read: when the model was ready, after its first request, or later."""

    READY = "ready"
    FIRST = "first"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model server takes.

    device_bytes  by llama.cpp's name of the device ("CUDA0"); empty where nothing is on one
    host_bytes    anonymous memory of its process, and its weights in the mapped file
    complete      False: something could not be read, it takes more than this
    reported_bytes  what of it llama.cpp itself told of; the rest is the process, the driver and what grew
    """

    device_bytes: Mapping[str, int] = field(default_factory=dict)
    host_bytes: int = 0
    complete: bool = True
    reported_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(self.device_bytes.values()) + self.host_bytes

    def at_least(self, other: Footprint | None) -> Footprint:
        """The higher figure of both, each for itself: a high-water mark."""
        if other is None:
            return self
        names = dict.fromkeys([*self.device_bytes, *other.device_bytes])
        device_bytes = {name: max(self.device_bytes.get(name, 0), other.device_bytes.get(name, 0)) for name in names}
        return Footprint(device_bytes, *self._higher(other))

    def with_growth(self, growth_bytes: int) -> Footprint:
        """The same, with so much host memory beside what llama.cpp told of: it may still be to come."""
        least = self.reported_bytes - sum(self.device_bytes.values()) + growth_bytes
        return self if not growth_bytes or self.host_bytes >= least else replace(self, host_bytes=least)

    def peak(self, other: Footprint | None) -> Footprint:
        """The higher mark of two launches. They may have run on devices of different names: those are never added up."""
        if other is None:
            return self
        larger = max(self, other, key=lambda one: sum(one.device_bytes.values()))
        return Footprint(larger.device_bytes, *self._higher(other))

    def _higher(self, other: Footprint) -> tuple[int, bool, int]:
        """All but the devices."""
        host_bytes, reported_bytes = max(self.host_bytes, other.host_bytes), max(self.reported_bytes, other.reported_bytes)
        return host_bytes, self.complete or other.complete, reported_bytes


@dataclass(frozen=True, slots=True)
class Point:
    """The compute buffers of one context, in bytes by llama.cpp's name of the buffer type ("CPU", "CUDA0", "CUDA_Host")."""

    ctx: int
    parallel: int
    ubatch: int
    batch: int
    kv_unified: bool
    compute_bytes: Mapping[str, int]

    @property
    def context(self) -> tuple[int, int, int, int, bool]:
        """All but the answer."""
        return self.ctx, self.parallel, self.ubatch, self.batch, self.kv_unified


@dataclass(frozen=True, slots=True)
class Probe:
    """What llama.cpp's dry pass said of one launch, in bytes: nothing was allocated.

    ctx, parallel, ubatch   of the launch that was asked about
    weights_by, context_by  the same figures by name of the buffer type
    points                  that launch and others of the same probe key, between which `compute` interpolates
    """

    ctx: int
    parallel: int
    ubatch: int
    weights_bytes: int
    context_bytes: int
    compute_bytes: int
    weights_by: Mapping[str, int] = field(default_factory=dict)
    context_by: Mapping[str, int] = field(default_factory=dict)
    points: tuple[Point, ...] = ()

    def at(self, options: LaunchOptions) -> Mapping[str, int] | None:
        """The compute buffers of exactly these options, None where llama.cpp was not asked about them."""
        wanted = (options.ctx, options.parallel, options.ubatch, options.batch, options.kv_unified)
        return next((point.compute_bytes for point in self.points if point.context == wanted), None)

    def with_points_of(self, other: Probe | None) -> Probe:
        """The same, with what was asked before, newest first, POINTS_MAX at most."""
        if other is None:
            return self
        mine = {point.context for point in self.points}
        return replace(self, points=(*self.points, *(point for point in other.points if point.context not in mine))[:POINTS_MAX])


@dataclass(frozen=True, slots=True)
class Learned:
    """What is remembered of one launch key, across restarts.

    footprint    high-water marks; None while no launch with this key was measured
    least_bytes  it ran out of memory with less than this
    predicted_bytes, source   what was reserved for the launch that was measured last
    loads        so many were measured when they were ready
    launch       its options in short, for people
    seen_unix    when it was measured last, by the store's word; 0 = in this run
    """

    model: ModelId
    footprint: Footprint | None = None
    least_bytes: int = 0
    predicted_bytes: int = 0
    source: Source = Source.FORMULA
    loads: int = 0
    launch: str = ""
    seen_unix: float = 0.0

    @property
    def error(self) -> float | None:
        """How far off the prediction was, as a share of the truth: +0.02 = 2 % too much. None without both."""
        truth = 0 if self.footprint is None else self.footprint.total_bytes
        return (self.predicted_bytes - truth) / truth if truth and self.predicted_bytes else None


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One device as the machine shows it, MiB. `ours_mb` is what of it our own children hold."""

    total_mb: int
    free_mb: int
    ours_mb: int

    @property
    def foreign_mb(self) -> int:
        """What others hold."""
        return max(0, self.total_mb - self.free_mb - self.ours_mb)


class Known:
    """All that was measured or probed, by key."""

    def __init__(self) -> None:
        self.learned: dict[str, Learned] = {}
        self.probes: dict[str, Probe] = {}


def launch_key(spec: ModelSpec) -> str:
    """Of the model's headers and everything that moves its memory; "" where the header is not known."""
    if not spec.header_hash:
        return ""
    moves = [(name, str(getattr(spec.options, name))) for name in LaunchOptions.__slots__ if name not in _NOT_MEMORY]
    beside = [("lora", one.header_hash or one.size_bytes, one.size_bytes) for one in spec.lora]
    if spec.draft is not None:
        beside.append(("draft", spec.draft.header_hash or spec.draft.size_bytes, spec.draft.size_bytes))
    return _digest(spec.header_hash, spec.kind, spec.pooling, spec.mmproj_bytes if spec.mmproj else 0, *moves, *beside)


def probe_key(spec: ModelSpec) -> str:
    """Of what the dry pass depends on beside context, batches and slots; "" where the header is not known."""
    if not spec.header_hash:
        return ""
    options = spec.options
    return _digest(spec.header_hash, spec.kind, spec.pooling, options.kv_type, options.flash_attn, options.ngl)


def in_short(options: LaunchOptions) -> str:
    """The options that move memory most, for people."""
    words = [f"ctx {options.ctx}", f"{options.parallel} slot{'s' if options.parallel > 1 else ''}"]
    words += [] if options.kv_unified else ["not unified"]
    words += [f"ubatch {options.ubatch}", f"kv {options.kv_type}"]
    words += [] if options.flash_attn is FlashAttention.AUTO else [f"flash {options.flash_attn}"]
    words += [] if options.ngl < 0 else [f"ngl {options.ngl}"]
    return ", ".join(words)


def as_vector(footprint: Footprint, place: Mapping[DeviceId, int], host: DeviceId, *, one_pool: bool) -> dict[DeviceId, int]:
    """MiB per device of the ledger for an instance that was booked in `place`.

    Where host and device are one pool all counts there. Otherwise each device of the place has what its name says; on a single one,
    whatever it is called, everything that is not host memory.
    """
    devices = [device for device in place if device != host]
    if one_pool or not devices:
        return {device: mib(footprint.total_bytes) for device in devices[:1]}
    if len(devices) == 1:
        found = {devices[0]: mib(sum(footprint.device_bytes.values()))}
    else:
        found = {device: mib(footprint.device_bytes.get(device.partition("/")[2], 0)) or place[device] for device in devices}
    return {**found, host: mib(footprint.host_bytes)}


def mib(size: int) -> int:
    """Bytes in whole MiB, rounded up."""
    return -(-size // MIB)


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=KEY_BYTES).hexdigest()
