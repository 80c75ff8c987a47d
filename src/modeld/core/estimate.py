# SPDX-License-Identifier: GPL-3.0-only
"""What a model will cost, in MiB, with the parts of the sum; rule: a figure without its source is not given out.

Declared figures win. Otherwise: weights and context to the byte from the header (`memory`; the file's size where the header says
nothing), the file size of an attached projector, and (64 MiB + 5 % of the file) for compute buffers and the process; for a model that
embeds or reranks also what `embedding_bytes` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modeld.core.memory import context_bytes, head_bytes, weights_bytes
from modeld.core.model import FlashAttention, ModelKind, ModelSpec

MIB: Final = 1 << 20
OVERHEAD_MB: Final = 64
OVERHEAD_SHARE: Final = 0.05

EMBEDDING_WIDTH: Final = 18
"""Numbers per token in an encoder's widest step, in embedding lengths: BERT has 9, a gated feed-forward of 4 lengths 17."""
HEAD_ELEMENTS: Final = 64
"""Elements per attention head of the encoder families."""


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Need:
    """`total_mb` is the sum of the parts, rounded up. `source` is "declared", "formula" or "external".

    `certain`: weights and context are llama.cpp's own figures; else its family is one that was never compared with them.
    """

    total_mb: int
    source: str
    parts: tuple[Part, ...] = ()
    certain: bool = True


def need(spec: ModelSpec) -> Need:
    """MiB the ledger reserves for one instance of `spec`."""
    if spec.external:
        return Need(0, "external")
    if spec.vram_mb is not None:
        return Need(spec.vram_mb, "declared")
    parts = (
        Part("weights", weights_bytes(spec.memory) or spec.size_bytes),
        *([Part("output head", tied)] if (tied := head_bytes(spec.memory, spec.options)) else []),
        Part("context", context_bytes(spec.memory, spec.options)),
        *([Part("projector", spec.mmproj_bytes)] if spec.mmproj is not None else []),
        *([Part("embedding", embedding_bytes(spec))] if spec.kind is not ModelKind.GENERATE else []),
        Part("compute and process", OVERHEAD_MB * MIB + int(spec.size_bytes * OVERHEAD_SHARE)),
    )
    total = sum(part.bytes for part in parts)
    return Need(-(-total // MIB), "formula", parts, spec.memory.certain)


def embedding_bytes(spec: ModelSpec) -> int:
    """Bytes that a model which embeds or reranks takes for one physical batch, in which every token has a result.

    Measured with llama.cpp b11434: BERT 4 * ubatch * (feed-forward + 5 * embedding length) + 2 * ubatch^2 (the mask), and without
    flash attention 4 * ubatch^2 for each head. A decoder computes logits for every token, in the graph and again in the output.
    """
    tokens = spec.options.ubatch
    width = EMBEDDING_WIDTH * spec.embedding_length + (2 * spec.vocabulary if spec.logits else 0)
    heads = spec.embedding_length // HEAD_ELEMENTS if spec.options.flash_attn is FlashAttention.OFF else 0
    return 4 * tokens * width + (2 + 4 * heads) * tokens * tokens
