# SPDX-License-Identifier: GPL-3.0-only
"""Adapters and a draft model that the operator sets beside a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from makegguf import make_gguf, make_split
from modeld.catalog.models import Catalog, ModelOverride
from modeld.core.footprint import launch_key
from modeld.core.model import ModelId, ModelKind, ModelSpec


@pytest.fixture
def models(tmp_path: Path) -> Path:
    make_gguf(tmp_path / "models" / "a.gguf", size_bytes=8192)
    make_gguf(tmp_path / "small.gguf")
    make_gguf(tmp_path / "style.gguf", size_bytes=6000)
    return tmp_path / "models"


def scanned(models: Path, **said: object) -> ModelSpec:
    override = ModelOverride(**said)  # type: ignore[arg-type]
    return Catalog(models, lambda _: override, None).scan().models[ModelId("a.gguf")]


def test_their_headers_and_sizes_are_known_and_they_are_files_of_the_model(models: Path, tmp_path: Path) -> None:
    style, small = tmp_path / "style.gguf", tmp_path / "small.gguf"
    spec = scanned(models, lora=(style, style), draft=small)
    assert spec.unavailable is None
    assert [(one.path, one.size_bytes) for one in spec.lora] == [(str(style), 6000)] * 2
    assert spec.draft is not None
    assert (spec.draft.path, spec.draft.size_bytes, spec.draft.memory.layers) == (str(small), 4096, 2)
    assert spec.files == (spec.path, str(style), str(style), str(small))
    bare = scanned(models)
    assert (bare.lora, bare.draft, bare.files) == ((), None, (bare.path,))


def test_another_file_is_another_model_and_another_key(models: Path, tmp_path: Path) -> None:
    style, small = tmp_path / "style.gguf", tmp_path / "small.gguf"
    kinds = [scanned(models), scanned(models, lora=(style,)), scanned(models, draft=small), scanned(models, lora=(style,), draft=small)]
    assert len({spec.fingerprint for spec in kinds}) == len({launch_key(spec) for spec in kinds}) == 4
    make_gguf(style, size_bytes=7000)
    again = scanned(models, lora=(style,))
    assert again.fingerprint != kinds[1].fingerprint
    assert launch_key(again) != launch_key(kinds[1])


def test_headers_of_files_elsewhere_are_remembered(models: Path, tmp_path: Path) -> None:
    override = ModelOverride(lora=(tmp_path / "style.gguf",), draft=tmp_path / "small.gguf")
    for read in (3, 0):
        catalog = Catalog(models, lambda _: override, tmp_path / "cache.json")
        first = catalog.scan()
        assert catalog._headers.files_read == read
        assert catalog.scan() == first
        assert catalog._headers.files_read == read


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("gone.gguf", "gone.gguf cannot be read: No such file or directory"),
        ("folder.gguf", "folder.gguf is not a file"),
        ("text.gguf", "text.gguf is not a GGUF file"),
    ],
)
def test_what_cannot_be_used_makes_the_model_unavailable(models: Path, tmp_path: Path, wrong: str, text: str) -> None:
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "text.gguf").write_text("no model at all, but a text of some length")
    assert scanned(models, lora=(tmp_path / wrong,)).unavailable == f"its adapter {text}"
    assert scanned(models, draft=tmp_path / wrong).unavailable == f"its draft model {text}"


def test_a_draft_model_is_one_file_that_writes_text_for_one_that_does(models: Path, tmp_path: Path) -> None:
    first, *_ = make_split(tmp_path, "big", 2)
    assert "must be one file" in str(scanned(models, draft=first).unavailable)
    make_gguf(tmp_path / "projector.gguf", arch="clip", layers=None)
    assert "is not a model that writes text" in str(scanned(models, draft=tmp_path / "projector.gguf").unavailable)
    embeds = scanned(models, draft=tmp_path / "small.gguf", kind=ModelKind.EMBED)
    assert embeds.unavailable == "it has a draft model, but is not started to write text"


def test_what_is_wrong_with_the_model_itself_is_said_first(models: Path, tmp_path: Path) -> None:
    (models / "a.gguf").write_bytes(b"GGUF")
    assert "a.gguf" in str(scanned(models, draft=tmp_path / "gone.gguf").unavailable)
