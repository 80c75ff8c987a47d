# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import pytest

from modeld.catalog.names import fold, shown_name, stem, tag_names, tagged
from modeld.core.model import ModelId, ModelSpec


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("tiny.Q4_0.gguf", "tiny:Q4_0"),
        ("tiny-q4_k_m.GGUF", "tiny:Q4_K_M"),
        ("tiny_bf16.gguf", "tiny:BF16"),
        ("a/tiny-UD-IQ2_XXS.gguf", "a/tiny:UD-IQ2_XXS"),
        ("tiny-Q4_0-v2.gguf", ""),
        ("Q4_0.gguf", ""),
        ("tinyQ4_0.gguf", ""),
        ("tiny.gguf", ""),
    ],
)
def test_a_quantization_at_the_end_is_a_tag(model, name):
    assert tagged(ModelId(model)) == name


def test_a_stem_is_the_name_without_its_ending():
    assert [stem(name) for name in ("a.gguf", "a.GGUF", "a", ".gguf")] == ["a", "a", "a", ""]


def test_a_tag_of_two_models_or_of_another_name_is_nobodys():
    specs = [ModelSpec(ModelId(key), key) for key in ("a-Q4_0.gguf", "a.Q4_0.gguf", "a_Q4_0.gguf", "b-F16.gguf", "c-F16.gguf")]
    assert tag_names(specs, {"c:F16": "x"}) == {"b:F16": "b-F16.gguf"}


def test_names_that_differ_in_case_alone_fold_to_none():
    one, two = ModelId("1"), ModelId("2")
    assert fold({"a": one, "A": two, "b": one, "B": one}) == {"a": None, "b": one}


def test_the_first_spelling_that_leads_back_is_shown():
    spec = ModelSpec(ModelId("a-Q4_0.gguf"), "a")
    for known, name in (
        ({"a:Q4_0", "a-Q4_0:latest"}, "a:Q4_0"),
        ({"a-Q4_0:latest"}, "a-Q4_0:latest"),
        ({"a-Q4_0.gguf:latest"}, "a-Q4_0.gguf:latest"),
        (set(), "a-Q4_0.gguf"),
    ):
        assert shown_name(spec, lambda asked, known=known: spec.id if asked in known else None) == name
