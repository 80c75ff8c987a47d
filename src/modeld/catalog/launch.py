# SPDX-License-Identifier: GPL-3.0-only
"""What the operator says about a model, and the launch options that follow; rule: "auto" ends here, llama.cpp is left nothing to guess."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modeld.core.model import Degrade, FlashAttention, KvType, LaunchOptions, ModelKind, Priority

CTX_AUTO_MAX: Final = 8192
CTX_UNKNOWN: Final = 4096
PARALLEL_AUTO: Final = 4
BATCH_AUTO: Final = 512
WHOLE_INPUT_AUTO_MAX: Final = 2048
"""Longest text that a model which must have it in one physical batch reads, unless the operator says more: its memory grows with it."""
_TOPOLOGY: Final = Path("/sys/devices/system/cpu")
_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class PartialOptions:
    """`LaunchOptions` as far as somebody has set them; None = auto. With `ctx_max`, `ctx` is the most that may be taken, None = all."""

    ctx: int | None = None
    ctx_max: bool = False
    parallel: int | None = None
    threads: int | None = None
    ngl: int | None = None
    batch: int | None = None
    ubatch: int | None = None
    kv_type: KvType | None = None
    flash_attn: FlashAttention | None = None
    kv_unified: bool | None = None
    cache_ram_mb: int | None = None
    ctx_checkpoints: int | None = None
    extra_args: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ModelOverride:
    """The operator's word on one model. `options` has the general settings merged in; `kind` None = by the header.

    `ttl_seconds` None = never unloaded for idleness.
    """

    options: PartialOptions = PartialOptions()
    aliases: tuple[str, ...] = ()
    vram_mb: int | None = None
    pinned: bool = False
    ttl_seconds: float | None = None
    preload: bool = False
    priority: Priority = Priority.NORMAL
    kind: ModelKind | None = None
    degrade: tuple[Degrade, ...] = ()
    lora: tuple[Path, ...] = ()
    draft: Path | None = None


def resolve_options(
    partial: PartialOptions, ctx_train: int, cpu_count: int, *, embeds: bool = False, reads_whole: bool = False
) -> LaunchOptions:
    """Turn "auto" into numbers. `ctx_train` is the context the model was trained for, 0 = unknown; `cpu_count` see `usable_cpu_count()`.

    `embeds` is a model started for embedding or reranking, `reads_whole` one that must have each input in one physical batch.

    ctx           auto: what the model was trained for (unknown: 4096), at most 8192 tokens over all slots
                  with ctx_max: what it was trained for, for each slot where each has a cache of its own, at most what was set
    parallel      auto: 4 slots
    kv_unified    auto: on, so that one long request may use the whole context while the other slots are idle
    threads       auto: cpu_count
    batch         auto: 512, or ubatch where that was set higher; never more than ctx
    ubatch        auto: 512; never more than batch. Where an input is read whole: 2048, or batch where that was set
                  A model that embeds has batch = ubatch: llama.cpp would lower the one to the other behind the ledger's back
    ngl           auto: -1, all layers on the device
    kv_type, flash_attn   auto: f16, llama.cpp's choice per backend
    cache_ram_mb, ctx_checkpoints   auto: 0, because memory that is not in the ledger is not taken
    """
    parallel = PARALLEL_AUTO if partial.parallel is None else partial.parallel
    unified = True if partial.kv_unified is None else partial.kv_unified
    trained = ctx_train or CTX_UNKNOWN
    if partial.ctx_max:
        most = trained * (1 if unified else parallel)
        ctx = most if partial.ctx is None else min(most, partial.ctx)
    else:
        ctx = partial.ctx if partial.ctx is not None else min(trained, CTX_AUTO_MAX)
    auto = WHOLE_INPUT_AUTO_MAX if reads_whole else BATCH_AUTO
    batch = partial.batch if partial.batch is not None else max(auto, partial.ubatch or 0)
    batch = min(batch, ctx)
    ubatch = min(partial.ubatch if partial.ubatch is not None else batch if embeds else auto, batch)
    batch = ubatch if embeds else batch
    return LaunchOptions(
        ctx=ctx,
        parallel=parallel,
        threads=cpu_count if partial.threads is None else partial.threads,
        ngl=-1 if partial.ngl is None else partial.ngl,
        batch=batch,
        ubatch=ubatch,
        kv_type=partial.kv_type or KvType.F16,
        flash_attn=partial.flash_attn or FlashAttention.AUTO,
        kv_unified=unified,
        cache_ram_mb=partial.cache_ram_mb or 0,
        ctx_checkpoints=partial.ctx_checkpoints or 0,
        ctx_max=partial.ctx_max,
        extra_args=partial.extra_args or (),
    )


def usable_cpu_count(topology: Path = _TOPOLOGY, quota: Path = _CPU_QUOTA) -> int:
    """Physical cores this process may run on, at most what its cgroup may use: a second thread on a core only makes llama.cpp slower."""
    allowed = sorted(os.sched_getaffinity(0))
    cores: set[str] = set()
    for cpu in allowed:
        try:
            cores.add((topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(f"cpu {cpu}")
    count = len(cores)
    try:
        limit, period = quota.read_text().split()[:2]
        if limit != "max":
            count = min(count, -(-int(limit) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no cgroup v2, or not ours to see: then there is no quota to respect
    return max(1, count)
