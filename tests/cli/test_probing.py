# SPDX-License-Identifier: GPL-3.0-only
"""llama.cpp is asked from the command line: an answer is known, none is a note."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from makegguf import make_gguf
from modeld.catalog.alone import model_at
from modeld.catalog.launch import ModelOverride
from modeld.cli.probing import ask
from modeld.core.footprint import Probe, Source, probe_key
from modeld.core.inspection import inspection
from modeld.core.model import ModelSpec
from modeld.errors import LoadFailed
from modeld.runtime.probe import Prober, find_library

STARTER = Path(os.environ.get("MODELD_TEST_STARTER", "none"))
ANSWER = Probe(4096, 4, 512, weights_bytes=1, context_bytes=2, compute_bytes=3)


def model(folder: Path) -> ModelSpec:
    return model_at(make_gguf(folder / "a.gguf"), ModelOverride())


def test_an_answer_is_known_under_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def answer(self: Prober, spec: ModelSpec) -> Probe:
        asked.append(spec.path)
        return ANSWER

    monkeypatch.setattr(Prober, "ask", answer)
    model(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = model_at(Path("a.gguf"), ModelOverride())
    known, note = ask(spec)
    assert (known.probes, note) == ({probe_key(spec): ANSWER}, "")
    assert asked == [str(tmp_path / "a.gguf")]  # the child that asks has another working folder


def test_no_answer_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: Prober, spec: ModelSpec) -> Probe:
        raise LoadFailed("llama.cpp would not load it: no.")

    monkeypatch.setattr(Prober, "ask", refuse)
    known, note = ask(model(tmp_path))
    assert (known.probes, note) == ({}, "llama.cpp would not load it: no; the formula stands")


@pytest.mark.skipif(find_library() is None, reason="the package xllamacpp is not here")
def test_a_file_that_llama_cpp_refuses_is_answered_by_the_formula(tmp_path: Path) -> None:
    spec = model(tmp_path)
    known, note = ask(spec)
    assert note.startswith("llama.cpp would not load it: ") and note.endswith("; the formula stands")
    assert inspection(spec, known).source is Source.FORMULA


@pytest.mark.skipif(find_library() is None or not STARTER.is_file(), reason="set MODELD_TEST_STARTER to the starter model's file")
def test_a_real_model_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STARTER.parent)
    spec = model_at(Path(STARTER.name), ModelOverride())
    known, note = ask(spec)
    assert note == ""
    (probe,) = known.probes.values()
    seen = inspection(spec, known)
    assert (seen.source, seen.kv_bytes, seen.compute_bytes) == (Source.PROBED, probe.context_bytes, probe.compute_bytes)
