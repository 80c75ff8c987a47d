# SPDX-License-Identifier: GPL-3.0-only
"""The rules one by one; that they are llama.cpp's is compared in runtime/test_probe_grid.py, over all families of `archgguf`."""

from __future__ import annotations

import pytest

from makegguf import Tensor, Typed, header, make_gguf, model_pairs
from modeld.catalog.gguf import parse_bytes
from modeld.catalog.layers import ENCODERS, NO_CACHE, memory_shape
from modeld.catalog.models import Catalog, ModelOverride
from modeld.core.model import AttentionLayers, MemoryShape, RecurrentLayers


def shape(arch: str = "llama", *, tensors: tuple[Tensor, ...] = (), **pairs) -> MemoryShape:
    extra = {f"{arch}.{key}": value for key, value in (pairs.pop("more", None) or {}).items()}
    return memory_shape(parse_bytes(header(model_pairs(arch, extra=extra, **pairs), tensors) + bytes(1 << 16)))


def test_rows_follow_from_heads_with_llama_cpps_defaults():
    assert shape(layers=3, embd=64, heads=4, heads_kv=2).attention == (AttentionLayers(3, 32, 32),)
    assert shape(layers=2, embd=64, heads=4, heads_kv=None).attention == (AttentionLayers(2, 64, 64),)
    assert shape(layers=2, embd=64, heads=4, heads_kv=(1, 0)).attention == (AttentionLayers(1, 16, 16),)
    assert shape(layers=1, heads_kv=1, more={"attention.key_length": 576, "attention.value_length": 512}).attention == (
        AttentionLayers(1, 576, 512),
    )


@pytest.mark.parametrize(
    "pairs",
    [
        {"layers": None},
        {"layers": (1 << 32) - 1},
        {"layers": -1},
        {"heads": None, "heads_kv": None},
        {"heads_kv": (1,), "heads": None},
        {"heads_kv": (0, 0)},
        {"heads_kv": (1 << 60, 1 << 60)},
        {"embd": None},
        {"embd": True},
        {"heads": 0},
    ],
)
def test_an_absurd_header_has_no_cache(pairs):
    assert shape(**pairs).attention == ()


@pytest.mark.parametrize(
    ("arch", "layers", "more", "expected"),
    [
        ("gemma3", 7, {"attention.sliding_window": 512}, {0: 1, 512: 6}),
        ("gemma3", 7, {}, {0: 7}),
        ("gemma3", 4, {"attention.sliding_window": 512, "attention.sliding_window_pattern": 2}, {0: 2, 512: 2}),
        ("gemma3", 4, {"attention.sliding_window": 512, "attention.sliding_window_pattern": (True, True, True, False)}, {0: 1, 512: 3}),
        ("gemma2", 4, {}, {0: 2, 4096: 2}),
        ("smallthinker", 8, {"attention.sliding_window": 99}, {0: 2, 4096: 6}),
        ("phi3", 4, {"attention.sliding_window": 512}, {0: 4}),
        ("llama", 4, {"attention.sliding_window": 512}, {0: 4}),
    ],
)
def test_windows(arch, layers, more, expected):
    assert {kind.window: kind.count for kind in shape(arch, layers=layers, more=more).attention} == expected


def test_latent_attention_keeps_one_row_where_both_lengths_are_given():
    said = {"attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128}
    assert shape("deepseek2", heads_kv=1, more=said).attention == (AttentionLayers(2, 576, 0),)
    assert shape("deepseek2", heads_kv=1, more=said | {"attention.key_length_mla": 0}).attention == (AttentionLayers(2, 576, 512),)


def test_layers_that_recur_keep_a_state_and_the_others_rows():
    said = {"ssm.conv_kernel": 4, "ssm.inner_size": 32, "ssm.state_size": 8, "ssm.group_count": 2}
    state = RecurrentLayers(3, 3 * (32 + 2 * 2 * 8), 8 * 32)
    hybrid = shape("qwen3next", layers=4, more=said)
    assert (hybrid.recurrent, hybrid.attention) == ((state,), (AttentionLayers(1, 32, 32),))
    both = shape("falcon-h1", layers=3, more=said)
    assert (both.recurrent, both.attention) == ((state,), (AttentionLayers(3, 32, 32),))
    mixed = shape("lfm2", layers=3, heads_kv=(2, 0, 0), more={"shortconv.l_cache": 3})
    assert (mixed.recurrent, mixed.attention) == ((RecurrentLayers(2, 128, 0),), (AttentionLayers(1, 32, 32),))


def test_a_family_without_a_cache_keeps_nothing():
    assert all(not shape(family).attention for family in NO_CACHE)
    assert all(shape(family).attention for family in ENCODERS - NO_CACHE)


def test_a_family_that_was_never_compared_is_not_certain():
    assert shape("llama").certain
    assert not shape("brand-new").certain and shape("brand-new").attention == shape("llama").attention
    assert not shape("llama", tensors=(Tensor(type=77),)).certain


def test_blocks_behind_the_trunk_are_not_counted():
    tensors = (Tensor("blk.0.x"), Tensor("blk.1.x", offset=32), Tensor("blk.2.x", (64,), offset=64), Tensor("a.weight", offset=128))
    assert shape("glm4moe", layers=3, tensors=tensors).weights_bytes == 32 + 32 + 64 + 32
    cut = shape("glm4moe", layers=3, tensors=tensors, more={"nextn_predict_layers": 1})
    assert (cut.weights_bytes, cut.attention[0].count) == (96, 2)
    assert shape("llama", layers=3, tensors=tensors, more={"nextn_predict_layers": 1}).weights_bytes == 160


def test_a_head_of_its_own_is_no_copy_and_a_strange_type_makes_weights_unknown():
    table, head = Tensor("token_embd.weight", (64,)), Tensor("output.weight", (64,), offset=64)
    assert (shape(tensors=(table,)).tied_bytes, shape(tensors=(table, head)).tied_bytes) == (64, 0)
    assert shape("bert", tensors=(table,)).tied_bytes == 0
    assert shape(tensors=(table, Tensor("x", type=77, offset=64))).weights_bytes == 0


def test_the_parts_of_a_split_model_add_up(tmp_path):
    pairs = {"arch": "glm4moe", "layers": 2, "extra": {"glm4moe.nextn_predict_layers": 1}}
    first = make_gguf(tmp_path / "m-00001-of-00002.gguf", split=(0, 2), **pairs)
    said = {"split.no": Typed(2, 1), "split.count": Typed(2, 2)}
    raw = header(said, [Tensor("blk.0.x", (320,)), Tensor("blk.1.x", (640,), offset=320), Tensor("output.weight", offset=960)])
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(raw + bytes(992))
    (spec,) = Catalog(tmp_path, lambda _: ModelOverride(), None, {}).scan().models.values()
    alone = memory_shape(parse_bytes(first.read_bytes()))
    assert alone.tied_bytes and spec.memory.tied_bytes == 0
    assert spec.memory.weights_bytes == alone.weights_bytes + 320 + 32
    assert len(spec.header_hash) == 32
