# SPDX-License-Identifier: GPL-3.0-only
"""Weights, context and compute against llama.cpp's dry pass, over a part of the grid of `memorygrid`; all of it is `make memory-grid`."""

from __future__ import annotations

from pathlib import Path

import pytest

import archgguf
import memorygrid
import realgguf
from memorygrid import FLASH, compare, options, small_grid
from modeld.catalog.layers import CERTAIN
from modeld.core.model import KvType

pytestmark = pytest.mark.engine
TIED = ("llama", "qwen3", "gemma3", "gemma3n", "gemma4", "falcon-h1", "deepseek2")


@pytest.mark.parametrize("family", archgguf.SHAPES)
def test_weights_and_context_are_llama_cpps_to_the_byte(family: str, tmp_path: Path):
    row = compare(archgguf.make_arch(tmp_path, family), small_grid(), probes=False)
    assert row.wrong == [] and row.refused in (1, 2)


@pytest.mark.parametrize("family", TIED)
def test_a_head_that_is_the_token_table_too(family: str, tmp_path: Path):
    grid = [options(4096, (4, True), FLASH, KvType.F16)]
    whole, tied = (compare(archgguf.make_arch(tmp_path, family, name=f"{family}{tie}", tied=tie), grid) for tie in (False, True))
    assert whole.wrong == tied.wrong == []


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "gemma-3-27b", "qwen3-30b-a3b", "lfm2-2.6b", "deepseek-v2-lite", "gpt-oss-20b", "mamba-2.8b"]
)
def test_compute_of_real_sizes_after_one_probe_and_without(name: str, tmp_path: Path):
    row = compare(realgguf.make_real(tmp_path, name), small_grid())
    assert row.wrong == [] and row.bounded
    assert abs(row.probed) <= memorygrid.BARS["probed"]
    assert min(row.bounded) >= 0 and max(row.bounded) <= 0.1


def test_what_is_called_certain_was_compared():
    assert set(archgguf.SHAPES) == CERTAIN


def test_a_formula_that_is_off_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memorygrid, "context_bytes", lambda *_: 1)
    monkeypatch.setattr(memorygrid, "refused", lambda *_: False)
    row = compare(archgguf.make_arch(tmp_path, "llama"), small_grid(), probes=False)
    assert len(row.wrong) == row.cells and "context -" in row.wrong[0]
