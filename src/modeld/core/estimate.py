# SPDX-License-Identifier: GPL-3.0-only
"""What a model will cost, in MiB, with the parts of the sum; rule: a figure without its source is not given out.

1  declared   the operator's own figure
2  learned    what the same launch took before (high-water marks)
3  probed     weights and context to the byte from the header, compute from llama.cpp's dry pass
4  formula    the same, with compute bounded from above by the header alone; 5 % of the file where that says nothing
A launch that once ran out of memory gets at least what follows from that (`Learned.least_bytes`), whatever the others say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from modeld.core.compute import bound_bytes, compute_by, is_host_buffer, output_bytes
from modeld.core.footprint import MIB, Footprint, Known, Learned, Probe, Source, launch_key, mib, probe_key
from modeld.core.memory import checkpoint_bytes, context_bytes, head_bytes, host_share, host_weights_bytes, weights_bytes
from modeld.core.model import FlashAttention, KvType, LaunchOptions, ModelKind, ModelSpec

PROCESS: Final = "process"
PROCESS_MB: Final = 64
"""Code, vocabulary and threads of one model server."""
DEVICE_CONTEXT: Final = "device context"
DEVICE_CONTEXT_MB: Final = 600
"""What a driver keeps for each process that computes on its device: 107 to 555 MiB were reported for CUDA; learned with the first load."""
ON_HOST: Final = " on host"
PROMPT_CACHE: Final = "prompt cache"
CHECKPOINTS: Final = "context checkpoints"
GROWING: Final = frozenset((PROMPT_CACHE, CHECKPOINTS))
"""Parts that llama.cpp takes bit by bit."""
COMPUTE_SHARE: Final = 0.05
"""Of the file, for compute buffers where the header does not say how wide the model is."""
DRAFT_OVERHEAD_MB: Final = 32
"""Buffers of a draft model's own context: it shares the process with the model it guesses for."""

EMBEDDING_WIDTH: Final = 18
"""Numbers per token in an encoder's widest step, in embedding lengths: BERT has 9, a gated feed-forward of 4 lengths 17."""
HEAD_ELEMENTS: Final = 64
"""Elements per attention head of the encoder families."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the sum. `bytes` is negative where less was measured than the other parts say. `on_host`: beside the device."""

    name: str
    bytes: int
    source: Source = Source.FORMULA
    on_host: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """`total_mb` is what the device must have, rounded up, `host_mb` what host memory must have beside it.

    certain  weights and context are llama.cpp's own figures; else the family is one that was never compared with them
    key      the launch key under which it is learned, "" = it is not
    """

    total_mb: int
    source: Source
    parts: tuple[Part, ...] = ()
    certain: bool = True
    host_mb: int = 0
    key: str = ""

    @property
    def total_bytes(self) -> int:
        """All parts; where the operator declared a figure, that."""
        return sum(part.bytes for part in self.parts) or (self.total_mb + self.host_mb) * MIB


_NOTHING: Final = Known()


def need(spec: ModelSpec, known: Known = _NOTHING, *, one_pool: bool = True) -> Need:
    """What the ledger reserves for one instance of `spec`. `one_pool`: host memory and device are the same, all counts on the device."""
    if spec.external:
        return Need(0, Source.EXTERNAL)
    key = launch_key(spec)
    learned = known.learned.get(key) if key else None
    if spec.vram_mb is not None:
        least_mb = mib(learned.least_bytes) - spec.host_mb if learned is not None else 0
        source = Source.DECLARED if least_mb <= spec.vram_mb else Source.LEARNED
        return Need(max(spec.vram_mb, least_mb), source, host_mb=spec.host_mb, key=key)
    parts = _predicted(spec, known)
    source = Source.PROBED if any(part.source is Source.PROBED for part in parts) else Source.FORMULA
    if one_pool:
        parts = _in_one_pool(parts)
    elif spec.options.ngl == 0:
        parts = tuple(replace(part, on_host=True) for part in parts)
    if learned is not None:
        parts, source = _learned(parts, learned, source, one_pool=one_pool)
    device, host = (sum(part.bytes for part in parts if part.on_host is on_host) for on_host in (False, True))
    return Need(mib(device), source, parts, spec.memory.certain, mib(host) + spec.host_mb, key)


def _predicted(spec: ModelSpec, known: Known) -> tuple[Part, ...]:
    """The parts as they follow from header, options and dry pass."""
    probe = known.probes.get(probe_key(spec))
    weights, context = weights_bytes(spec.memory) or spec.size_bytes, context_bytes(spec.memory, spec.options)
    beside, share = host_weights_bytes(spec.memory, spec.options), host_share(spec.memory, spec.options)
    head = head_bytes(spec.memory, spec.options) if probe is None else max(0, probe.weights_bytes - weights)
    return (
        *([Part("weights", weights - beside)] if weights > beside else []),
        *([Part("weights on host", beside, on_host=True)] if beside else []),
        *([Part("output head", head)] if head else []),
        *([Part("context", context - int(share * context))] if share < 1 else []),
        *([Part("context on host", int(share * context), on_host=True)] if share else []),
        *([Part("projector", spec.mmproj_bytes)] if spec.mmproj is not None else []),
        *_computing(spec, probe),
        *([Part(DEVICE_CONTEXT, DEVICE_CONTEXT_MB * MIB)] if spec.options.ngl else []),
        Part(PROCESS, PROCESS_MB * MIB, on_host=True),
        *([Part(PROMPT_CACHE, spec.options.cache_ram_mb * MIB, on_host=True)] if spec.options.cache_ram_mb else []),
        *_beside(spec),
    )


def _in_one_pool(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Where host memory and device are the same: what lies here and there is one part, and no driver keeps a context of its own."""
    found: dict[str, Part] = {}
    for part in parts:
        name = part.name.removesuffix(ON_HOST)
        before = found.get(name)
        if name != DEVICE_CONTEXT and (part.bytes or before is None):
            found[name] = replace(part, name=name, bytes=part.bytes + (before.bytes if before else 0), on_host=False)
    return tuple(found.values())


def _computing(spec: ModelSpec, probe: Probe | None) -> list[Part]:
    """The buffers of one batch, and what it puts out. Where all buffers lie in main memory, that is the device."""
    if probe is not None and probe.points:
        by = compute_by(spec, probe)
        beside = {name: size for name, size in by.items() if is_host_buffer(name)}
        if len(beside) == len(by):
            beside = {}
        parts = [Part("compute", sum(by.values()) - sum(beside.values()), Source.PROBED)]
        parts += [Part("compute on host", sum(beside.values()), Source.PROBED, on_host=True)] if beside else []
        return [*parts, Part("output rows", output_bytes(spec), on_host=True)]
    if spec.kind is not ModelKind.GENERATE or not spec.memory.widths.embedding:
        embedding = [Part("embedding", embedding_bytes(spec))] if spec.kind is not ModelKind.GENERATE else []
        return [*embedding, Part("compute", int(spec.size_bytes * COMPUTE_SHARE))]
    return [Part("compute", bound_bytes(spec)), Part("output rows", output_bytes(spec), on_host=True)]


def _beside(spec: ModelSpec) -> list[Part]:
    """What is loaded or kept beside the model itself."""
    options, parts = spec.options, []
    if spec.lora:
        parts.append(Part("lora", sum(one.size_bytes for one in spec.lora)))
    if (draft := spec.draft) is not None:
        weights = (weights_bytes(draft.memory) or draft.size_bytes) + head_bytes(draft.memory, options)
        work = DRAFT_OVERHEAD_MB * MIB + int(draft.size_bytes * COMPUTE_SHARE)
        parts.append(Part("draft model", weights + context_bytes(draft.memory, draft_options(options)) + work))
    kept = options.ctx_checkpoints * options.parallel * checkpoint_bytes(spec.memory, options)
    return [*parts, Part(CHECKPOINTS, kept, on_host=True)] if kept else parts


def growth_bytes(cost: Need | None) -> int:
    """What of it comes only while requests are served: it cannot be seen when the model is ready."""
    return 0 if cost is None else sum(part.bytes for part in cost.parts if part.name in GROWING)


def draft_options(options: LaunchOptions) -> LaunchOptions:
    """How a draft model is started beside a model with these: the same context and slots, and a cache that is never quantised.

    Seen with llama.cpp b11549: its context has the cells of the model's own, for all slots.
    """
    return replace(options, kv_type=KvType.F16)


def _learned(parts: tuple[Part, ...], learned: Learned, source: Source, *, one_pool: bool) -> tuple[tuple[Part, ...], Source]:
    """The parts with what was measured set against them."""
    more: list[Part] = []
    if learned.footprint is not None and learned.footprint.complete:
        source = Source.LEARNED
        for on_host in (False, True):
            measured = _bytes_on(learned.footprint, on_host=on_host, one_pool=one_pool)
            predicted = sum(part.bytes for part in parts if part.on_host is on_host)
            if measured != predicted:
                more.append(Part("measured beside these", measured - predicted, Source.LEARNED, on_host))
    total = sum(part.bytes for part in (*parts, *more))
    if total < learned.least_bytes:
        more.append(Part("ran out of memory with less", learned.least_bytes - total, Source.LEARNED))
        source = Source.LEARNED
    return (*parts, *more), source


def _bytes_on(footprint: Footprint, *, on_host: bool, one_pool: bool) -> int:
    if one_pool:
        return 0 if on_host else footprint.total_bytes
    return footprint.host_bytes if on_host else sum(footprint.device_bytes.values())


def embedding_bytes(spec: ModelSpec) -> int:
    """Bytes that a model which embeds or reranks takes for one physical batch, in which every token has a result.

    Measured with llama.cpp b11434: BERT 4 * ubatch * (feed-forward + 5 * embedding length) + 2 * ubatch^2 (the mask), and without
    flash attention 4 * ubatch^2 for each head. A decoder computes logits for every token, in the graph and again in the output.
    """
    tokens = spec.options.ubatch
    width = EMBEDDING_WIDTH * spec.embedding_length + (2 * spec.vocabulary if spec.logits else 0)
    heads = spec.embedding_length // HEAD_ELEMENTS if spec.options.flash_attn is FlashAttention.OFF else 0
    return 4 * tokens * width + (2 + 4 * heads) * tokens * tokens
