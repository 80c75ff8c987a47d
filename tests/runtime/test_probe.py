# SPDX-License-Identifier: GPL-3.0-only
"""llama.cpp is asked for real, with files that are a header and nothing else. All families are compared in test_probe_grid.py."""

from __future__ import annotations

import asyncio
import ctypes.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from archgguf import make_arch
from modeld.catalog.gguf import read_header
from modeld.catalog.layers import memory_shape
from modeld.core.compute import compute_bytes, lattice
from modeld.core.memory import context_bytes, weights_bytes
from modeld.core.model import FlashAttention, KvType, LaunchOptions, ModelId, ModelKind, ModelSpec
from modeld.errors import BadUpstreamReply, EngineMissing, LoadFailed, LoadStalled, SpawnFailed
from modeld.runtime import probe
from modeld.runtime.probe import Prober

pytestmark = pytest.mark.engine
OPTIONS = LaunchOptions(ctx=2048, parallel=2, kv_unified=False)


def spec(path: Path, options: LaunchOptions = OPTIONS) -> ModelSpec:
    return ModelSpec(ModelId("a.gguf"), str(path), options=options, memory=memory_shape(read_header(path)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_arch(tmp_path_factory.mktemp("probe"), "llama")


@pytest.fixture
def prober(tmp_path: Path) -> Prober:
    return Prober(tmp_path / "probe")


async def test_the_answer_is_what_the_header_says_and_says_what_it_does_not(prober: Prober, llama: Path):
    asked = spec(llama)
    found = await prober.ask(asked)
    assert (found.weights_bytes, found.context_bytes) == (weights_bytes(asked.memory), context_bytes(asked.memory, asked.options))
    assert (found.ctx, found.parallel, found.ubatch) == (2048, 2, 512)
    assert found.weights_by["CPU_REPACK"] > 0 and sum(found.weights_by.values()) == found.weights_bytes
    assert found.compute_bytes == compute_bytes(asked, found) > 1 << 20
    assert len(found.points) == len(lattice(asked))
    other = replace(asked, options=replace(asked.options, ctx=1536))
    alone = await prober.ask(other, around=False)
    assert [point.ctx for point in alone.points] == [1536]
    both = alone.with_points_of(found)
    assert both.at(other.options) == alone.at(other.options) != found.at(other.options)
    assert both.at(asked.options) == found.at(asked.options)


async def test_the_starter_model_is_asked_about(prober: Prober):
    path = os.environ.get("MODELD_TEST_STARTER")
    if not path:
        pytest.skip("MODELD_TEST_STARTER names no file; `make unit` sets it")
    asked = spec(Path(path))
    found = await prober.ask(asked)
    assert (found.weights_bytes, found.context_bytes) == (weights_bytes(asked.memory), context_bytes(asked.memory, asked.options))


async def test_a_server_that_embeds_has_a_row_for_every_token(prober: Prober, llama: Path):
    generates, embeds = (replace(spec(llama), kind=kind) for kind in (ModelKind.GENERATE, ModelKind.EMBED))
    assert (await prober.ask(replace(embeds, pooling="mean"))).compute_bytes > (await prober.ask(generates)).compute_bytes


async def test_what_llama_cpp_refuses_is_said_in_its_own_words(prober: Prober, llama: Path, tmp_path: Path):
    refused = spec(llama, replace(OPTIONS, flash_attn=FlashAttention.OFF, kv_type=KvType.Q8_0))
    with pytest.raises(LoadFailed, match="quantized V cache requires flash_attn"):
        await prober.ask(refused)
    (tmp_path / "a.gguf").write_bytes(b"no model")
    with pytest.raises(LoadFailed, match="invalid magic"):
        await prober.ask(replace(refused, path=str(tmp_path / "a.gguf")))


async def test_llama_cpp_may_end_its_process(prober: Prober, tmp_path: Path):
    """No file says what the layers without a cache of their own use: an assertion of llama.cpp's fails."""
    broken = make_arch(tmp_path, "gemma4", more={"attention.sliding_window_pattern": (*(True,) * 5, False) * 2})
    with pytest.raises(LoadFailed, match="ended \\(signal 6\\)"):
        await prober.ask(spec(broken))


async def test_a_slow_answer_is_none(tmp_path: Path, llama: Path):
    with pytest.raises(LoadStalled):
        await Prober(tmp_path / "probe", seconds_max=0.001).ask(spec(llama))


async def test_without_the_library_or_with_another_nothing_is_asked(prober: Prober, llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "find_library", lambda: None)
    with pytest.raises(EngineMissing, match="xllamacpp"):
        await prober.ask(spec(llama))
    monkeypatch.setattr(probe, "find_library", lambda: Path(ctypes.util.find_library("c") or "libc.so.6"))
    with pytest.raises(BadUpstreamReply, match="undefined symbol"):
        await prober.ask(spec(llama))


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, llama: Path):
    (tmp_path / "file").touch()
    with pytest.raises(SpawnFailed, match="runtime_dir"):
        await Prober(tmp_path / "file" / "probe").ask(spec(llama))


async def test_one_child_at_a_time(prober: Prober, llama: Path, monkeypatch: pytest.MonkeyPatch):
    alive, most = 0, 0
    answers: Callable[..., object] = prober._answers

    async def counted(*args: object) -> object:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        try:
            return await answers(*args)
        finally:
            alive -= 1

    monkeypatch.setattr(prober, "_answers", counted)
    found = await asyncio.gather(*(prober.ask(spec(llama)) for _ in range(3)))
    assert most == 1 and found[0] == found[1] == found[2]


async def test_after_a_while_no_further_context_is_asked_about(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "ENOUGH_SHARE", 10**9)
    asked = spec(llama)
    found = await Prober(tmp_path / "probe").ask(asked)
    assert len(found.points) == 1 and found.compute_bytes == compute_bytes(asked, found)
