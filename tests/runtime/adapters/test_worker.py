# SPDX-License-Identifier: GPL-3.0-only
"""What the embedded engine's child is told, without starting it."""

from __future__ import annotations

import os
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeld.core.model import Companion, FlashAttention, KvType, LaunchOptions, ModelId, ModelKind, ModelSpec
from modeld.runtime.adapters import worker
from modeld.runtime.adapters.embedded import parameters


class GgmlType(IntEnum):
    GGML_TYPE_F16 = 1
    GGML_TYPE_Q8_0 = 8


class FlashAttn(IntEnum):
    LLAMA_FLASH_ATTN_TYPE_AUTO = -1
    LLAMA_FLASH_ATTN_TYPE_DISABLED = 0
    LLAMA_FLASH_ATTN_TYPE_ENABLED = 1


class Pooling(IntEnum):
    LLAMA_POOLING_TYPE_LAST = 3
    LLAMA_POOLING_TYPE_RANK = 4


class Speculative(IntEnum):
    COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE = 1


class SplitMode(IntEnum):
    LLAMA_SPLIT_MODE_NONE = 0
    LLAMA_SPLIT_MODE_LAYER = 1


DEVICES = [("CPU", "CPU"), ("CUDA0", "GPU"), ("BLAS", "ACCEL"), ("CUDA1", "GPU"), ("CUDA2", "GPU"), ("Vulkan3", "IGPU")]
ENGINE = SimpleNamespace(
    llama_split_mode=SplitMode,
    get_device_info=lambda: [{"name": name, "description": "", "type": f"GGML_BACKEND_DEVICE_TYPE_{kind}"} for name, kind in DEVICES],
    ggml_type=GgmlType,
    llama_flash_attn_type=FlashAttn,
    llama_pooling_type=Pooling,
    common_speculative_type=Speculative,
    CommonAdapterLoraInfo=SimpleNamespace,
)


def applied(spec: ModelSpec) -> SimpleNamespace:
    params = SimpleNamespace(
        model=SimpleNamespace(path=""),
        mmproj=SimpleNamespace(path=""),
        cpuparams=SimpleNamespace(),
        cpuparams_batch=SimpleNamespace(),
        lora_adapters=[],
        tensor_split=[0.0] * 8,
        speculative=SimpleNamespace(
            types=[0],
            draft=SimpleNamespace(mparams=SimpleNamespace(path=""), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()),
        ),
    )
    worker.apply(params, parameters(spec, Path("/run/1.sock"), Path("/lib")), ENGINE)
    return params


def test_every_option_is_passed_on() -> None:
    options = LaunchOptions(
        ctx=1024, parallel=3, threads=5, ngl=7, batch=64, ubatch=32, kv_type=KvType.Q8_0, flash_attn=FlashAttention.ON, kv_unified=False
    )
    params = applied(ModelSpec(ModelId("a.gguf"), path="/m/a.gguf", mmproj="/m/p.gguf", options=options))
    assert (params.model.path, params.mmproj.path, params.hostnames, params.model_alias) == (
        "/m/a.gguf",
        "/m/p.gguf",
        ["/run/1.sock"],
        {"a.gguf"},
    )
    assert (params.n_ctx, params.n_parallel, params.n_gpu_layers, params.n_batch, params.n_ubatch) == (1024, 3, 7, 64, 32)
    assert (params.cache_type_k, params.cache_type_v, params.flash_attn_type, params.kv_unified) == (8, 8, 1, False)
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (5, 5)
    assert params.n_threads_http > 3


@pytest.mark.parametrize(("pooling", "number"), [("last", 3), ("rank", 4)])
def test_a_model_that_embeds_is_started_so(pooling: str, number: int) -> None:
    params = applied(ModelSpec(ModelId("a.gguf"), path="/m/a.gguf", kind=ModelKind.EMBED, pooling=pooling))
    assert (params.embedding, params.pooling_type) == (True, number)


def test_a_model_that_writes_is_left_alone() -> None:
    assert not {"embedding", "pooling_type"} & vars(applied(ModelSpec(ModelId("a.gguf"), path="/m/a.gguf"))).keys()


def test_what_is_loaded_beside_a_model() -> None:
    beside = {"lora": (Companion("/m/l1.gguf", 1), Companion("/m/l2.gguf", 2)), "draft": Companion("/m/d.gguf", 3)}
    options = LaunchOptions(threads=5, ngl=7, kv_type=KvType.Q8_0)
    params = applied(ModelSpec(ModelId("a.gguf"), path="/m/a.gguf", options=options, **beside))  # type: ignore[arg-type]
    assert [(one.path, one.scale) for one in params.lora_adapters] == [("/m/l1.gguf", 1.0), ("/m/l2.gguf", 1.0)]
    draft = params.speculative.draft
    assert (draft.mparams.path, draft.n_gpu_layers, draft.cache_type_k, draft.cache_type_v) == ("/m/d.gguf", 7, 1, 1)
    assert (draft.cpuparams.n_threads, draft.cpuparams_batch.n_threads) == (5, 5)
    assert params.speculative.types == [1]
    alone = applied(ModelSpec(ModelId("a.gguf"), path="/m/a.gguf"))
    assert (alone.lora_adapters, alone.speculative.types, alone.speculative.draft.mparams.path) == ([], [0], "")


def placed(**options: object) -> tuple[int | None, int | None, list[float]]:
    params = applied(ModelSpec(ModelId("a.gguf"), path="/m", options=LaunchOptions(**options)))  # type: ignore[arg-type]
    return getattr(params, "split_mode", None), getattr(params, "main_gpu", None), params.tensor_split


def test_it_runs_on_the_devices_that_were_chosen() -> None:
    none = [0.0] * 8
    assert placed() == (None, None, none)
    assert placed(devices=("CUDA1",)) == (SplitMode.LLAMA_SPLIT_MODE_NONE, 1, none)
    assert placed(devices=("CUDA2", "CUDA0"), tensor_split=(3, 5)) == (SplitMode.LLAMA_SPLIT_MODE_LAYER, None, [5.0, 0.0, 3.0, *none[3:]])
    assert placed(devices=("CUDA0", "CUDA1")) == (SplitMode.LLAMA_SPLIT_MODE_LAYER, None, [1.0, 1.0, *none[2:]])


def test_without_a_layer_on_a_device_none_is_opened() -> None:
    assert placed(ngl=0) == (SplitMode.LLAMA_SPLIT_MODE_NONE, -1, [0.0] * 8)


def test_a_device_that_is_gone_fails_the_load() -> None:
    with pytest.raises(RuntimeError, match="the engine has CUDA0, CUDA1, CUDA2"):
        placed(devices=("CUDA7",))


def test_no_pings_are_sent() -> None:
    """A ping would begin an answer before its first token, and a server that computes nothing any more would go on sending them."""
    assert applied(ModelSpec(ModelId("a.gguf"), path="/m/a.gguf")).sse_ping_interval == -1


def test_nothing_is_left_to_the_engine() -> None:
    """No fit pass, no page, no prompt cache beyond what was asked for, no download."""
    params = applied(ModelSpec(ModelId("a.gguf"), path="/m/a.gguf"))
    assert (params.fit_params, params.ui, params.cache_ram_mib, params.n_ctx_checkpoints, params.offline) == (False, False, 0, 0, True)
    assert (params.warmup, params.endpoint_slots, params.endpoint_props, params.n_gpu_layers) == (True, True, False, 999)
    assert params.mmproj.path == ""


def test_the_kv_types_are_known_to_the_engine() -> None:
    for kv_type in KvType:
        assert f"GGML_TYPE_{kv_type.value.upper()}".isidentifier()


@pytest.mark.engine
def test_the_names_are_the_real_engines() -> None:
    """In a child: an import of the engine would stay in this process."""
    import subprocess
    import sys

    names = [f"GGML_TYPE_{kv_type.value.upper()}" for kv_type in KvType]
    beside = "x.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE; x.CommonAdapterLoraInfo().scale"
    split = "x.llama_split_mode.LLAMA_SPLIT_MODE_NONE; x.llama_split_mode.LLAMA_SPLIT_MODE_LAYER; x.CommonParams().main_gpu"
    flash = [one.name for one in FlashAttn]
    code = f"import xllamacpp as x; {beside}; {split}; [x.ggml_type[n] for n in {names}]; [x.llama_flash_attn_type[n] for n in {flash}]"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_the_first_line_is_read() -> None:
    read, write = os.pipe()
    try:
        os.write(write, b'{"a": 1}\n')
        assert worker.read_line(read) == b'{"a": 1}\n'
    finally:
        os.close(read)
        os.close(write)
