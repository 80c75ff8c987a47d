# SPDX-License-Identifier: GPL-3.0-only
"""The nouns that decisions are about; rule: frozen values only, no behaviour beyond what follows from their own fields.

Units last: `*_mb` is MiB (2**20 bytes), `*_bytes` bytes, `*_seconds` seconds. `now` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

ModelId = NewType("ModelId", str)
InstanceId = NewType("InstanceId", str)
RequestId = NewType("RequestId", str)
DeviceId = NewType("DeviceId", str)
"""`node/device`, for example `local/all`: a node name from the first day, so that one core can place over several machines."""
Principal = NewType("Principal", str)
"""Who a request is for. Everybody is `ANONYMOUS` until keys exist."""

ANONYMOUS = Principal("anonymous")
LOCAL = DeviceId("local/all")
"""The one budget that spans all devices of this machine."""


class KvType(StrEnum):
    """Element type of the KV cache, by llama.cpp's name."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"
    IQ4_NL = "iq4_nl"


class FlashAttention(StrEnum):
    ON = "on"
    OFF = "off"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How llama.cpp is started for one model: every value explicit, nothing left to its own guesses.

    ctx            tokens over all slots, as llama.cpp's `-c`
    parallel       slots: requests that generate at the same time
    ngl            layers on the device; -1 = all
    cache_ram_mb   prompt cache in host memory, MiB; 0 = none
    ctx_checkpoints  context checkpoints per slot (recurrent and sliding-window models)
    extra_args     further llama-server flags; only those that cannot change the memory the ledger was told of
    """

    ctx: int = 4096
    parallel: int = 4
    threads: int = 2
    ngl: int = -1
    batch: int = 512
    ubatch: int = 512
    kv_type: KvType = KvType.F16
    flash_attn: FlashAttention = FlashAttention.AUTO
    kv_unified: bool = True
    cache_ram_mb: int = 0
    ctx_checkpoints: int = 0
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KvShape:
    """What the header says about the attention cache of a model.

    heads_kv    key/value heads of each layer, length = number of layers (0 = the layer has no attention cache)
    key_length, value_length   elements per head
    """

    heads_kv: tuple[int, ...] = ()
    key_length: int = 0
    value_length: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of the catalogue. An instance keeps the spec it was started with until it is gone.

    path           first (or only) file; `parts` all files in order, `path` included
    size_bytes     sum of all parts
    fingerprint    changes when a file is replaced (sizes, mtimes, inodes): the model's generation
    unavailable    why it cannot be served, or None; safe to show (no path)
    vram_mb        the operator's own figure, or None
    ttl_seconds    unload after so long idle, or None = never
    external       runs elsewhere: never started, stopped or evicted by us, 0 MB
    """

    id: ModelId
    path: str
    parts: tuple[str, ...] = ()
    size_bytes: int = 0
    fingerprint: str = ""
    name: str = ""
    family: str = ""
    quant: str = ""
    ctx_train: int = 0
    kv_shape: KvShape = KvShape()
    mmproj: str | None = None
    mmproj_bytes: int = 0
    aliases: tuple[str, ...] = ()
    unavailable: str | None = None
    options: LaunchOptions = LaunchOptions()
    vram_mb: int | None = None
    pinned: bool = False
    preload: bool = False
    ttl_seconds: float | None = None
    external: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What the scheduler knows of one request: never its text."""

    id: RequestId
    model: ModelId
    principal: Principal = ANONYMOUS
    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that decisions depend on. 0 means "no limit" for budget_mb and infer_timeout_seconds."""

    budget_mb: Mapping[DeviceId, int] = field(default_factory=lambda: {LOCAL: 0})
    margin_mb: int = 0
    queue_depth_max: int = 32
    wait_max_seconds: float = 30.0
    infer_timeout_seconds: float = 0.0
    drain_timeout_seconds: float = 30.0
    waiting_bytes_max: int = 256 << 20
