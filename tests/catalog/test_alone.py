# SPDX-License-Identifier: GPL-3.0-only
"""One model by one of its files: the same as the catalogue would say, and one sentence for what is none."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from makegguf import make_gguf, make_split
from modeld.catalog import headers
from modeld.catalog.alone import model_at
from modeld.catalog.launch import ModelOverride, PartialOptions
from modeld.catalog.models import Catalog
from modeld.core.model import ModelSpec
from modeld.errors import ModelUnavailable

NONE = ModelOverride()


def refused(path: Path, **more: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        model_at(path, NONE, **more)
    assert caught.value.message.isprintable()
    return caught.value.message


def scanned(folder: Path) -> dict[str, ModelSpec]:
    return {str(key): spec for key, spec in Catalog(folder, lambda name: NONE, None).scan().models.items()}


def test_it_is_what_the_catalogue_says(tmp_path: Path):
    path = make_gguf(tmp_path / "tiny-x.gguf", size_bytes=8192, arch="qwen3", ctx=4096, layers=2, heads_kv=1)
    make_gguf(tmp_path / "other.gguf")
    assert model_at(path, NONE) == scanned(tmp_path)["tiny-x.gguf"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_part_of_a_split_model_names_the_whole(tmp_path: Path, number: int):
    paths = make_split(tmp_path, "big", 3, arch="llama")
    make_split(tmp_path, "bigger", 2, arch="llama")
    spec = model_at(paths[number - 1], NONE)
    assert spec == scanned(tmp_path)["big.gguf"]
    assert (spec.path, spec.parts) == (str(paths[0]), tuple(map(str, paths)))


def test_a_missing_part_is_named(tmp_path: Path):
    paths = make_split(tmp_path, "big", 3, without=[2])
    assert refused(paths[0]).endswith("cannot be loaded: part big-00002-of-00003.gguf is missing")


def test_a_projector_that_lies_beside_is_found(tmp_path: Path):
    folder = tmp_path / "vision"
    path = make_gguf(folder / "gemma-3-4b-Q4_K_M.gguf", arch="gemma3")
    make_gguf(folder / "mmproj-F16.gguf", arch="clip", size_bytes=9000)
    spec = model_at(path, NONE)
    assert (spec.mmproj, spec.mmproj_bytes) == (str(folder / "mmproj-F16.gguf"), 9000)
    assert "image" in spec.modalities


def test_a_projector_of_another_model_is_left_alone(tmp_path: Path):
    folder = tmp_path / "many"
    path = make_gguf(folder / "llama-8b.gguf", arch="llama")
    make_gguf(folder / "gemma-3-4b.gguf", arch="gemma3")
    make_gguf(folder / "mmproj-gemma-3-4b-f16.gguf", arch="clip")
    assert model_at(path, NONE).mmproj is None
    assert model_at(folder / "gemma-3-4b.gguf", NONE).mmproj is not None


def test_a_projector_can_be_named(tmp_path: Path):
    path = make_gguf(tmp_path / "a" / "model-a.gguf")
    projector = make_gguf(tmp_path / "b" / "see.gguf", arch="clip", size_bytes=7000)
    assert model_at(path, NONE, projector).mmproj_bytes == 7000
    assert refused(path, mmproj=path).endswith("is no projector (its architecture is not clip)")
    assert "does not exist" in refused(path, mmproj=tmp_path / "none.gguf")
    assert "is a projector, not a model" in refused(projector)


def test_a_file_of_another_name_will_do(tmp_path: Path):
    path = make_gguf(tmp_path / "sha256-00aa", name=None)
    spec = model_at(path, NONE)
    assert (spec.id, spec.name) == ("sha256-00aa", "sha256-00aa")


def test_the_options_follow_from_what_was_asked(tmp_path: Path):
    path = make_gguf(tmp_path / "a.gguf", ctx=32_768)
    asked = ModelOverride(options=PartialOptions(ctx=1024, parallel=2, kv_unified=False, ubatch=256))
    options = model_at(path, asked).options
    assert options == replace(model_at(path, NONE).options, ctx=1024, parallel=2, kv_unified=False, ubatch=256)


def test_only_the_files_of_the_model_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = make_split(tmp_path, "big", 2)
    for name in ("x.gguf", "y.gguf", "z.gguf"):
        make_gguf(tmp_path / name)
    read: list[str] = []
    plain = headers.gguf.read_header
    monkeypatch.setattr(headers.gguf, "read_header", lambda path: (read.append(str(path)), plain(path))[1])
    model_at(paths[1], NONE)
    assert sorted(read) == sorted(map(str, paths))


@pytest.mark.parametrize(
    ("name", "content", "ending"),
    [
        ("no.gguf", b"<html>not found</html>", "is not a GGUF file"),
        ("empty.gguf", b"", "is incomplete: it ends inside its header"),
        ("cut.gguf", b"GGUF\x03\x00\x00\x00\x01", "is incomplete: it ends inside its header"),
    ],
)
def test_what_is_no_model_is_said(tmp_path: Path, name: str, content: bytes, ending: str):
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name) == f"{tmp_path / name} {ending}"


def test_a_file_that_was_cut_is_said(tmp_path: Path):
    path = make_gguf(tmp_path / "a.gguf", size_bytes=8192)
    os.truncate(path, 6000)
    assert "is incomplete" in refused(path)


def test_folders_and_nothing_are_said(tmp_path: Path):
    assert refused(tmp_path).endswith("is a folder: name a file in it")
    assert refused(tmp_path / "none.gguf").endswith("does not exist")
    assert "cannot be read" in refused(tmp_path / ("x" * 5000))
    os.mkfifo(tmp_path / "pipe.gguf")
    assert refused(tmp_path / "pipe.gguf").endswith("is not a regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; run it as another user")
def test_a_file_that_may_not_be_read_is_said(tmp_path: Path):
    path = make_gguf(tmp_path / "a.gguf")
    path.chmod(0)
    assert refused(path).endswith("cannot be read: Permission denied")


def test_a_file_without_a_family_is_said(tmp_path: Path):
    assert "names no model family in its header" in refused(make_gguf(tmp_path / "a.gguf", arch=""))
