# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

from pathlib import Path

import pytest

from modeld.catalog.headers import Facts
from modeld.catalog.kinds import kind_of, modalities, reads_whole
from modeld.catalog.layers import ENCODERS
from modeld.catalog.models import Catalog, ModelOverride
from modeld.core.model import ModelId, ModelKind
from tinymodels import make_decoder, make_embedder, make_reranker

GENERATE, EMBED, RERANK = ModelKind.GENERATE, ModelKind.EMBED, ModelKind.RERANK


@pytest.mark.parametrize(
    ("family", "pooling", "kind", "started_with"),
    [
        ("llama", "", GENERATE, ""),
        ("llama", "none", GENERATE, ""),
        ("qwen3", "last", EMBED, "last"),
        ("gemma3", "mean", EMBED, "mean"),
        ("qwen3", "rank", RERANK, "rank"),
        ("bert", "cls", EMBED, "cls"),
        ("bert", "rank", RERANK, "rank"),
        ("bert", "", EMBED, "mean"),
        ("nomic-bert-moe", "none", EMBED, "mean"),
        ("pangu-embedded", "", GENERATE, ""),
    ],
)
def test_the_kind_follows_from_pooling_and_family(family, pooling, kind, started_with):
    assert kind_of(Facts(family=family, pooling=pooling)) == (kind, started_with)


@pytest.mark.parametrize(
    ("facts", "wanted", "started_with"),
    [
        (Facts(family="llama"), EMBED, "last"),
        (Facts(family="llama"), RERANK, "rank"),
        (Facts(family="qwen3", pooling="last"), GENERATE, ""),
        (Facts(family="qwen3", pooling="rank"), EMBED, "last"),
        (Facts(family="bert", pooling="rank"), EMBED, "mean"),
        (Facts(family="bert", pooling="cls"), EMBED, "cls"),
    ],
)
def test_the_operators_word_wins(facts, wanted, started_with):
    assert kind_of(facts, wanted) == (wanted, started_with)


@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_an_encoder_embeds_without_being_told(family):
    assert kind_of(Facts(family=family))[0] is EMBED


@pytest.mark.parametrize(
    ("facts", "pooling", "whole"),
    [
        (Facts(family="llama"), "", False),
        (Facts(family="qwen3"), "last", False),
        (Facts(family="qwen3"), "mean", True),
        (Facts(family="qwen3"), "rank", False),
        (Facts(family="qwen3", causal=False), "rank", True),
        (Facts(family="bert"), "last", True),
        (Facts(family="bert"), "rank", True),
        (Facts(family="llama-embed"), "last", False),
        (Facts(family="llama-embed"), "rank", True),
    ],
)
def test_an_input_is_read_whole_where_llama_cpp_cannot_split_it(facts, pooling, whole):
    assert reads_whole(facts, pooling) is whole


def test_a_projector_that_says_nothing_is_for_images():
    assert modalities(None) == ("text",)
    assert modalities(Facts()) == ("text", "image")
    assert modalities(Facts(audio=True)) == ("text", "audio")
    assert modalities(Facts(audio=True, vision=True)) == ("text", "image", "audio")


@pytest.mark.parametrize(
    ("make", "kind", "pooling", "family"),
    [(make_embedder, EMBED, "mean", "bert"), (make_reranker, RERANK, "rank", "bert"), (make_decoder, EMBED, "last", "llama")],
)
def test_files_of_llama_cpps_own_writer_are_recognised(tmp_path: Path, make, kind, pooling, family):
    """The tiny models, which are the same bytes each time and small."""
    first = make(tmp_path / "a.gguf").read_bytes()
    assert make(tmp_path / "again" / "b.gguf").read_bytes() == first
    assert len(first) < 1 << 20
    spec = Catalog(tmp_path, lambda _: ModelOverride(), None).scan().models[ModelId("a.gguf")]
    assert (spec.kind, spec.pooling, spec.family, spec.unavailable) == (kind, pooling, family, None)
    assert spec.parameters * 4 < len(first) < spec.parameters * 4 + 20_000  # all of them are 32-bit numbers
