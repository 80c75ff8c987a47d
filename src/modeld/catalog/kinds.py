# SPDX-License-Identifier: GPL-3.0-only
"""What a model is for, by its header; rule: the operator's word, then the pooling the file was made with, then the family.

  1. the operator's `kind` wins;
  2. pooling `rank`: it scores (RERANK); `mean`, `cls` or `last`: it embeds (also decoders, such as Qwen3 Embedding);
  3. a family that only encodes embeds;
  4. everything else writes text.

An embedding model always has a pooling, because llama.cpp's `/v1/embeddings` refuses `none`: where the header names none that is `mean`
for an encoder, and for a decoder `last`, the one place that has seen the whole text.
"""

from __future__ import annotations

from typing import Final

from modeld.catalog.headers import Facts
from modeld.catalog.layers import ENCODERS, NO_CACHE
from modeld.core.model import ModelKind

_ONE_VECTOR: Final = ("mean", "cls", "last")


def kind_of(facts: Facts, wanted: ModelKind | None = None) -> tuple[ModelKind, str]:
    """(kind, pooling the engine is started with, "" = none). `wanted` is the operator's word, None = auto."""
    if wanted is not None:  # 1
        kind = wanted
    elif facts.pooling == "rank":  # 2
        kind = ModelKind.RERANK
    elif facts.pooling in _ONE_VECTOR or facts.family in ENCODERS:  # 2, 3
        kind = ModelKind.EMBED
    else:  # 4
        kind = ModelKind.GENERATE
    return kind, _pooling(facts, kind)


def _pooling(facts: Facts, kind: ModelKind) -> str:
    if kind is ModelKind.GENERATE:
        return ""
    if kind is ModelKind.RERANK:
        return "rank"
    if facts.pooling in _ONE_VECTOR:
        return facts.pooling
    return "mean" if facts.family in ENCODERS else "last"


def reads_whole(facts: Facts, pooling: str) -> bool:
    """Whether llama.cpp must have an input in one physical batch: there is no cache, or every token has a share in the vector.

    As in its `can_split` (server-context.cpp).
    """
    if not pooling:
        return False
    looks_back = facts.causal and facts.family not in ENCODERS
    return facts.family in NO_CACHE or not (pooling == "last" or (pooling == "rank" and looks_back))


def modalities(projector: Facts | None) -> tuple[str, ...]:
    """What a model takes, with the projector that is attached to it. One that says nothing is for images: older files have no such keys."""
    if projector is None:
        return ("text",)
    sees = projector.vision or not projector.audio
    return ("text", *(["image"] if sees else []), *(["audio"] if projector.audio else []))
