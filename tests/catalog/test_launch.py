# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import os

import pytest

from modeld.catalog.launch import PartialOptions, resolve_options, usable_cpu_count
from modeld.core.model import FlashAttention, KvType, LaunchOptions


def test_all_auto_ends_in_explicit_numbers():
    assert resolve_options(PartialOptions(), 2048, 6) == LaunchOptions(
        ctx=2048,
        parallel=4,
        threads=6,
        ngl=-1,
        batch=512,
        ubatch=512,
        kv_type=KvType.F16,
        flash_attn=FlashAttention.AUTO,
        kv_unified=True,
        cache_ram_mb=0,
        ctx_checkpoints=0,
        extra_args=(),
    )


@pytest.mark.parametrize(("ctx_train", "ctx"), [(0, 4096), (512, 512), (8192, 8192), (131_072, 8192)])
def test_auto_context_is_the_models_own_capped(ctx_train, ctx):
    assert resolve_options(PartialOptions(), ctx_train, 1).ctx == ctx


@pytest.mark.parametrize(
    ("said", "ctx_train", "ctx"),
    [
        (PartialOptions(ctx_max=True), 131_072, 131_072),
        (PartialOptions(ctx_max=True, ctx=32_768), 131_072, 32_768),
        (PartialOptions(ctx_max=True, ctx=32_768), 2048, 2048),
        (PartialOptions(ctx_max=True), 0, 4096),
        (PartialOptions(ctx_max=True, kv_unified=False, parallel=3), 2048, 3 * 2048),
    ],
)
def test_the_most_context_is_what_the_model_was_trained_for(said, ctx_train, ctx):
    options = resolve_options(said, ctx_train, 1)
    assert (options.ctx, options.ctx_max) == (ctx, True)


def test_what_was_set_is_kept():
    said = PartialOptions(
        ctx=32_768,
        parallel=1,
        threads=3,
        ngl=0,
        batch=2048,
        ubatch=256,
        kv_type=KvType.Q8_0,
        flash_attn=FlashAttention.OFF,
        kv_unified=False,
        cache_ram_mb=100,
        ctx_checkpoints=2,
        extra_args=("--mlock",),
    )
    got = resolve_options(said, 2048, 8)
    assert {name: getattr(got, name) for name in PartialOptions.__slots__} == {
        name: getattr(said, name) for name in PartialOptions.__slots__
    }


@pytest.mark.parametrize(
    ("said", "batch", "ubatch"),
    [
        (PartialOptions(ctx=100), 100, 100),
        (PartialOptions(ctx=1000, batch=4000, ubatch=3000), 1000, 1000),
        (PartialOptions(batch=64), 64, 64),
        (PartialOptions(ubatch=1024), 1024, 1024),
        (PartialOptions(ubatch=128), 512, 128),
    ],
)
def test_batches_fit_into_each_other_and_the_context(said, batch, ubatch):
    got = resolve_options(said, 8192, 1)
    assert (got.batch, got.ubatch) == (batch, ubatch)


@pytest.mark.parametrize(
    ("said", "reads_whole", "both"),
    [
        (PartialOptions(), True, 2048),
        (PartialOptions(), False, 512),
        (PartialOptions(ctx=512), True, 512),
        (PartialOptions(ubatch=256), True, 256),
        (PartialOptions(batch=300), True, 300),
        (PartialOptions(ubatch=4096), True, 4096),
        (PartialOptions(batch=4096), True, 4096),
        (PartialOptions(batch=4096, ubatch=64), True, 64),
        (PartialOptions(batch=4096, ubatch=64), False, 64),
        (PartialOptions(batch=1024), False, 1024),
        (PartialOptions(ctx=100, batch=4096), True, 100),
    ],
)
def test_a_model_that_embeds_has_one_batch_size(said, reads_whole, both):
    got = resolve_options(said, 8192, 1, embeds=True, reads_whole=reads_whole)
    assert (got.batch, got.ubatch) == (both, both)


def test_threads_are_physical_cores_within_the_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 9})
    for cpu, siblings in {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    quota = tmp_path / "cpu.max"
    # Two cores with two threads each, and a CPU of which nothing is known.
    assert usable_cpu_count(tmp_path, quota) == 3
    for text, count in {"max 100000": 3, "150000 100000": 2, "10000 100000": 1, "nonsense": 3, "1 0": 3, "": 3}.items():
        quota.write_text(text)
        assert usable_cpu_count(tmp_path, quota) == count, text
