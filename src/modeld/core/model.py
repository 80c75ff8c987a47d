# SPDX-License-Identifier: GPL-3.0-only
"""The nouns that decisions are about; rule: frozen values only, no behaviour beyond what follows from their own fields.

Units last: `*_mb` is MiB (2**20 bytes), `*_bytes` bytes, `*_seconds` seconds. `now` is monotonic seconds.
"""

from __future__ import annotations

import math
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
HOST = DeviceId("local/host")
"""Host memory, for what a model needs beside its device."""


class Priority(StrEnum):
    """The class of a request, most urgent first."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"

    @property
    def rank(self) -> int:
        """0 is served first."""
        return _RANKS[self]


_RANKS = {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BATCH: 2}


class EvictionPolicy(StrEnum):
    """In which order idle instances give way: least recently used first, or least worth keeping first."""

    LRU = "lru"
    COST = "cost"


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


class Degrade(StrEnum):
    """What of a launch may be given up when it does not fit: context, bytes of the cache, layers on the device."""

    CTX = "ctx"
    KV_TYPE = "kv_type"
    NGL = "ngl"


class ModelKind(StrEnum):
    """What a model is started for: to write text, to turn texts into vectors, or to score texts against a question."""

    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How llama.cpp is started for one model: every value explicit, nothing left to its own guesses.

    ctx            tokens over all slots, as llama.cpp's `-c`; with ctx_max the most of them: the largest context that fits is taken
    parallel       slots: requests that generate at the same time
    ngl            layers on the device; -1 = all
    cache_ram_mb   prompt cache in host memory, MiB; 0 = none
    ctx_checkpoints  context checkpoints per slot (recurrent and sliding-window models)
    devices, tensor_split  llama.cpp's names of the devices to run on, and the share of each; none = llama.cpp's own choice
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
    ctx_max: bool = False
    devices: tuple[str, ...] = ()
    tensor_split: tuple[int, ...] = ()
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """`count` layers that cache the same: elements of one cell's key row and value row (0 = llama.cpp keeps no such row).

    window   the layer looks back so many tokens and caches no more of them; 0 = all
    """

    count: int
    key_elements: int
    value_elements: int
    window: int = 0


@dataclass(frozen=True, slots=True)
class RecurrentLayers:
    """`count` layers that keep a state of fixed size for each slot: elements of the convolution's part and of the state proper."""

    count: int
    conv_elements: int
    state_elements: int


@dataclass(frozen=True, slots=True)
class Widths:
    """How many numbers a token has at the widest places of the computation; 0 = there is no such place, or the header does not say.

    embedding         between the layers
    feed_forward      inside the widest dense feed-forward network
    experts, expert   how many experts read a token, and its length inside one of them
    heads, head       attention heads of the widest layer, and the longest row that one of them compares
    inner             inside the widest recurrent layer
    side              all per-layer embeddings together
    vocabulary        in a row of output
    indexer           heads of the indexer that selects what is attended to
    """

    embedding: int = 0
    feed_forward: int = 0
    experts: int = 0
    expert: int = 0
    heads: int = 0
    head: int = 0
    inner: int = 0
    side: int = 0
    vocabulary: int = 0
    indexer: int = 0


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """What the header says about the memory a model takes.

    weights_bytes        the tensors llama.cpp loads, each once, padded; 0 = not known
    table_bytes, head_bytes  those of the token table, which stays in host memory, and of the output head, which is the last "layer"
    tied_bytes           those of the token table where it is the output head too: a second copy, where the two lie in different buffers
    attention, recurrent the layers that keep something of what was read
    value_elements_max   longest value row of any layer: without flash attention llama.cpp gives every layer that much
    no_flash             the family is always run without flash attention
    certain              the family is one whose figures were compared with llama.cpp's own, byte for byte
    layers               blocks that are loaded; `heads_kv` the most key/value heads of any of them, `key_length` and
                         `value_length` elements per head: to describe it. 0 = not known
    widths               what bounds the buffers it computes in
    """

    weights_bytes: int = 0
    tied_bytes: int = 0
    table_bytes: int = 0
    head_bytes: int = 0
    attention: tuple[AttentionLayers, ...] = ()
    recurrent: tuple[RecurrentLayers, ...] = ()
    value_elements_max: int = 0
    no_flash: bool = False
    certain: bool = False
    layers: int = 0
    heads_kv: int = 0
    key_length: int = 0
    value_length: int = 0
    widths: Widths = Widths()


@dataclass(frozen=True, slots=True)
class Companion:
    """A file that is loaded beside a model: an adapter, or a draft model with its memory."""

    path: str
    size_bytes: int
    memory: MemoryShape = MemoryShape()
    header_hash: str = ""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of the catalogue. An instance keeps the spec it was started with until it is gone.

    path           first (or only) file; `parts` all files in order, `path` included
    size_bytes     sum of all parts
    fingerprint    changes when a file is replaced (sizes, mtimes, inodes): the model's generation
    memory         what its header says about the memory it takes
    header_hash    of what its headers say about memory: what was measured of one file holds for its copies; "" = unknown
    unavailable    why it cannot be served, or None; safe to show (no path)
    vram_mb        the operator's own figure, or None
    ttl_seconds    unload after so long idle, or None = never
    external       runs elsewhere: never started, stopped or evicted by us, 0 MB
    priority       class of its requests; a request may ask for a less urgent one
    host_mb        host memory it needs beside its device
    split          may be spread over several devices when no single one has room
    kind           what it is started for; `pooling` how the engine makes one vector of a text (llama.cpp's word), "" where it makes none
    modalities     what it takes: text, and image or audio where its projector can read them
    parameters     number of weights, 0 = unknown; `size_label` the header's own word for it ("7B"), or ""
    embedding_length, vocabulary   elements of its inner vectors, tokens it knows; 0 = unknown
    logits         it computes a row of `vocabulary` numbers for each token it reads: all but the encoder families
    has_chat_template, takes_tools   what its chat template says; format_version is that of the file
    modified_unix  when the newest of its files was last written, seconds since the epoch; 0 = unknown
    degrade        what may be given up, in this order, when it does not fit; `degraded` what was, in words
    lora           adapters that are loaded with it; `draft` the model that guesses its next tokens, which costs memory of its own
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
    memory: MemoryShape = MemoryShape()
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
    priority: Priority = Priority.NORMAL
    host_mb: int = 0
    split: bool = False
    kind: ModelKind = ModelKind.GENERATE
    pooling: str = ""
    modalities: tuple[str, ...] = ("text",)
    parameters: int = 0
    size_label: str = ""
    embedding_length: int = 0
    vocabulary: int = 0
    logits: bool = True
    has_chat_template: bool = False
    takes_tools: bool = False
    format_version: int = 0
    modified_unix: float = 0.0
    header_hash: str = ""
    degrade: tuple[Degrade, ...] = ()
    degraded: tuple[str, ...] = ()
    lora: tuple[Companion, ...] = ()
    draft: Companion | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All that its model server reads."""
        beside = (*self.lora, *(() if self.draft is None else (self.draft,)))
        return (*(self.parts or (self.path,)), *(() if self.mmproj is None else (self.mmproj,)), *(one.path for one in beside))


@dataclass(frozen=True, slots=True)
class Request:
    """What the scheduler knows of one request: never its text.

    priority         the class the client asked for, or None; it may lower the model's own class, never raise it
    work             estimated tokens, read and generated: what principals share by
    prompt_tokens    estimated tokens to read before the first one comes
    answer_tokens    most tokens before the next byte comes: 1 for a stream, the whole answer where nothing is sent before its end
    timeout_seconds  the client's own limit on the time until it is granted, +inf = none
    keep_seconds     for so long after its end its instance is not ended by its ttl, +inf = until it is evicted; never shortens a ttl
    """

    id: RequestId
    model: ModelId
    principal: Principal = ANONYMOUS
    body_bytes: int = 0
    priority: Priority | None = None
    work: float = 1.0
    prompt_tokens: int = 0
    answer_tokens: int = 1
    timeout_seconds: float = math.inf
    keep_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that decisions depend on. 0 means "no limit" for a device's budget, infer_timeout and the two token times.

    budget_mb               MiB per device; HOST is host memory, unlimited when it is not named
    margin_mb               MiB kept free on each device, host_margin_mb on HOST
    one_pool                devices have no memory of their own: all that a model takes counts on its device
    cpu_only                there is no device beside the CPU: no layer is put on one, whatever llama_ngl says
    fairness_wait_seconds   a model whose oldest request has waited so long is due: room is made for it
    turn_max_seconds        longest time for which a due model, once loaded, is safe from other due models; None = fairness_wait
    min_residency_seconds   longest time for which an idle model is kept for its own next request, from others that are not due
    preempt_after_seconds   requests that still run so long after their instance was closed for a due model are cut; None = never
    first_token_seconds, prompt_token_seconds, inter_token_seconds   an instance none of whose requests moved for so long is stuck
    """

    budget_mb: Mapping[DeviceId, int] = field(default_factory=lambda: {LOCAL: 0})
    margin_mb: int = 0
    host_margin_mb: int = 0
    one_pool: bool = True
    cpu_only: bool = False
    queue_depth_max: int = 32
    wait_max_seconds: float = 30.0
    infer_timeout_seconds: float = 0.0
    drain_timeout_seconds: float = 30.0
    waiting_bytes_max: int = 256 << 20
    fairness_wait_seconds: float = 10.0
    turn_max_seconds: float | None = None
    min_residency_seconds: float = 5.0
    preempt_after_seconds: float | None = None
    eviction: EvictionPolicy = EvictionPolicy.COST
    first_token_seconds: float = 120.0
    prompt_token_seconds: float = 0.25
    inter_token_seconds: float = 60.0

    def kept_free_mb(self, device: DeviceId) -> int:
        """MiB of a device that nobody gets."""
        return self.host_margin_mb if device == HOST else self.margin_mb

    @property
    def turn_seconds(self) -> float:
        """Longest turn of a due model."""
        return self.fairness_wait_seconds if self.turn_max_seconds is None else self.turn_max_seconds
