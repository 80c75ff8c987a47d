# SPDX-License-Identifier: GPL-3.0-only
"""Any llama-server binary: what it says of itself, and the flags it gets. Its life cycle is tested with the supervisor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modeld.core.model import Companion, FlashAttention, KvType, LaunchOptions, ModelId, ModelKind, ModelSpec
from modeld.errors import EngineMissing, ModelUnavailable, SpawnFailed
from modeld.runtime.adapters import llama_server
from modeld.runtime.adapters.llama_server import Build, LlamaServerAdapter, arguments, read_build
from modeld.runtime.devices import EngineDevice

FAKE = Path(__file__).parents[2] / "stub" / "fake_llama.py"
SPEC = ModelSpec(ModelId("a.gguf"), path="/m/a.gguf", options=LaunchOptions(ctx=512, parallel=2, threads=3, extra_args=("--jinja",)))
Make = Callable[..., LlamaServerAdapter]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(**script: Any) -> LlamaServerAdapter:
        binary = tmp_path / "llama-server"
        shutil.copy(FAKE, binary)
        Path(f"{binary}.script.json").write_text(json.dumps(script), encoding="utf-8")
        return LlamaServerAdapter(binary=binary, runtime_dir=tmp_path / "run", stop_grace=1)

    return make


async def test_build_is_told(make: Make) -> None:
    adapter = make()
    info = await adapter.describe()
    assert (info.adapter, info.build, info.warning) == ("llama-server", "1 (fake)", "")
    await adapter.close()


async def test_a_silent_binary_is_an_unknown_build(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_server, "LOOK_SECONDS_MAX", 0.1)
    adapter = make(silent_version=True)
    info = await adapter.describe()
    assert (info.build, info.warning) == ("unknown build", "")
    await adapter.close()


async def test_flags_that_an_older_build_lacks_are_left_out_and_named(make: Make, tmp_path: Path) -> None:
    adapter = make(unknown_flags=["--fit", "-cram", "-kvu"])
    info = await adapter.describe()
    assert info.warning == "this llama-server does not know --fit, -cram, -kvu: left out"
    given = arguments(SPEC, Path("/s"), adapter._build)
    assert not {"--fit", "-cram", "-kvu", "--kv-unified"} & set(given)
    assert "--offline" in given
    await adapter.close()


@pytest.mark.parametrize(("flags", "given"), [(None, True), (frozenset(("-m", "--sse-ping-interval")), True), (frozenset(("-m",)), False)])
def test_no_pings_are_sent(flags: frozenset[str] | None, given: bool) -> None:
    """A build that does not know the flag sends none."""
    said = arguments(SPEC, Path("/s"), Build(flags=flags))
    assert ("--sse-ping-interval" in said) is given
    if given:
        assert said[said.index("--sse-ping-interval") + 1] == "-1"


async def test_a_binary_that_changed_is_looked_at_again(make: Make, tmp_path: Path) -> None:
    adapter = make()
    await adapter.describe()
    binary = tmp_path / "llama-server"
    binary.write_text(binary.read_text(encoding="utf-8").replace("1 (fake)", "22 (fake)"), encoding="utf-8")
    assert (await adapter.describe()).build == "22 (fake)"
    await adapter.close()


async def test_a_binary_that_is_not_there(tmp_path: Path) -> None:
    for binary, what in ((None, "set llama_bin"), (tmp_path / "no", "gone"), (Path("/etc/passwd"), "may not be run")):
        adapter = LlamaServerAdapter(binary=binary, runtime_dir=tmp_path, stop_grace=1)
        with pytest.raises(EngineMissing, match=what):
            await adapter.check(SPEC)
        assert (await adapter.describe()).build == "missing"
        await adapter.close()


async def test_a_runtime_dir_that_is_none_is_told_and_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    adapter = LlamaServerAdapter(binary=FAKE, runtime_dir=tmp_path / "file", stop_grace=1)
    info = await adapter.describe()
    assert "runtime_dir" in info.warning
    with pytest.raises(SpawnFailed, match="runtime_dir"):
        await adapter.check(SPEC)
    (tmp_path / "file").unlink()
    assert (await adapter.describe()).build == "1 (fake)"  # what could not be looked at is looked at again
    await adapter.close()


async def test_the_devices_are_listed(make: Make) -> None:
    adapter = make(devices=["  CUDA0: NVIDIA H100 (81559 MiB, 80000 MiB free)"])
    info = await adapter.describe()
    assert info.devices == ("CUDA0 (NVIDIA H100)",)
    assert info.found == (EngineDevice("CUDA0", "NVIDIA H100", "GPU", 81559, 80000),)
    await adapter.close()


@pytest.mark.parametrize("script", [{"unknown_flags": ["--list-devices"]}, {"devices": []}, {"silent_version": True}])
async def test_none_listed_and_nothing_said_are_not_the_same(make: Make, monkeypatch: pytest.MonkeyPatch, script: dict[str, Any]) -> None:
    monkeypatch.setattr(llama_server, "LOOK_SECONDS_MAX", 3.0)
    adapter = make(**script)
    assert (await adapter.describe()).found == (() if "devices" in script else None)
    await adapter.close()


def test_sizes_are_asked_for_where_that_does_not_show_what_people_ask() -> None:
    """In older builds the same level is the one for debugging, and the sizes are told by default."""
    usage = ["-m FNAME", "--host HOST", "-lv,   --verbosity, --log-verbosity N", "        - 3: info"]
    new, old = ([*usage, f"        - 4: {level}"] for level in ("trace (more info)", "debug"))
    assert " -lv 4 " in f" {' '.join(arguments(SPEC, Path('/s'), read_build(None, new)))} "
    assert "-lv" not in arguments(SPEC, Path("/s"), read_build(None, old))
    assert "-lv" not in arguments(SPEC, Path("/s"), Build())


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, ""),
        ({"devices": ("CUDA1",)}, "--device CUDA1"),
        ({"devices": ("CUDA0", "CUDA2"), "tensor_split": (3, 2)}, "--device CUDA0,CUDA2 --split-mode layer --tensor-split 3,2"),
        ({"ngl": 0}, "--device none"),  # else each device is opened, and takes memory for that
    ],
)
def test_the_devices_are_flags(options: dict[str, Any], flags: str) -> None:
    placed = arguments(ModelSpec(ModelId("a"), path="/m", options=LaunchOptions(**options)), Path("/s"), Build())
    wanted = flags.split()
    start = placed.index(wanted[0]) if wanted else 0
    assert placed[start : start + len(wanted)] == wanted
    assert {"--device", "--split-mode", "--tensor-split"} & set(placed) == {flag for flag in wanted if flag.startswith("--")}


def test_every_option_is_a_flag() -> None:
    options = LaunchOptions(
        ctx=512, parallel=2, threads=3, ngl=-1, batch=64, ubatch=32, kv_type=KvType.Q8_0, flash_attn=FlashAttention.ON, kv_unified=False
    )
    given = arguments(ModelSpec(ModelId("a"), path="/m", mmproj="/p", options=options), Path("/s"), Build())
    text = " ".join(given)
    for part in (
        *("-m /m", "--host /s", "-c 512", "-np 2", "-b 64", "-ub 32", "-ctk q8_0", "-ctv q8_0", "-ngl 999", "-t 3", "-tb 3", "-fa on"),
        *("--fit off", "-cram 0", "-ctxcp 0", "--slots", "--no-ui", "--offline", "-no-kvu", "--mmproj /p", "--alias a"),
    ):
        assert f" {part} " in f" {text} "


@pytest.mark.parametrize(
    ("kind", "pooling", "flags"),
    [
        (ModelKind.EMBED, "mean", ["--embeddings", "--pooling", "mean"]),
        (ModelKind.RERANK, "rank", ["--reranking"]),
        (ModelKind.GENERATE, "", []),
    ],
)
def test_the_kind_is_a_flag(kind: ModelKind, pooling: str, flags: list[str]) -> None:
    given = arguments(ModelSpec(ModelId("a"), path="/m", kind=kind, pooling=pooling), Path("/s"), Build())
    mine = {"--embeddings", "--embedding", "--pooling", "--reranking", "--rerank"}
    assert [item for item in given if item in mine or item == pooling] == flags


def test_what_is_loaded_beside_a_model() -> None:
    options = LaunchOptions(kv_type=KvType.Q8_0, ngl=3)
    beside = {"lora": (Companion("/l1", 1), Companion("/l2", 2)), "draft": Companion("/d", 3)}
    spec = ModelSpec(ModelId("a"), path="/m", options=options, **beside)  # type: ignore[arg-type]
    text = " ".join(arguments(spec, Path("/s"), Build()))
    assert "--lora /l1 --lora /l2 -md /d --spec-type draft-simple -ngld 3 -ctkd f16 -ctvd f16" in text
    old = " ".join(arguments(spec, Path("/s"), Build(flags=frozenset(("--lora", "--model-draft")))))
    assert "--lora /l1 --lora /l2 --model-draft /d" in old
    assert "--spec-type" not in old
    assert "--lora" not in arguments(SPEC, Path("/s"), Build())


@pytest.mark.parametrize(
    ("beside", "flags"), [({"lora": (Companion("/l", 1),)}, ["--lora"]), ({"draft": Companion("/d", 1)}, ["-md", "--model-draft"])]
)
async def test_a_build_that_cannot_load_what_stands_beside_is_not_started(make: Make, beside: dict[str, Any], flags: list[str]) -> None:
    adapter = make(unknown_flags=flags)
    with pytest.raises(ModelUnavailable, match=f"does not know {flags[0]}"):
        await adapter.check(replace(SPEC, **beside))
    await adapter.close()


def test_extra_arguments_come_last() -> None:
    assert arguments(SPEC, Path("/s"), Build())[-1] == "--jinja"


def test_help_of_an_old_build() -> None:
    usage = ["-m,    --model FNAME", "--host HOST", "-fa,   --flash-attn   enable Flash Attention", "--no-webui"]
    build = read_build(["version: 4000 (abc)", "built with cc"], usage)
    assert build.name == "4000 (abc)"
    on = ModelSpec(ModelId("a"), path="/m", options=LaunchOptions(flash_attn=FlashAttention.ON))
    assert arguments(on, Path("/s"), build)[-2:] == ["-fa", "--no-webui"]
    assert "-fa" not in arguments(SPEC, Path("/s"), build)


def test_help_that_is_none_is_not_believed() -> None:
    assert read_build(["hello"], ["unknown option --help"]) == Build()
    assert read_build(None, None) == Build()


def test_the_environment_does_not_reach_the_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_HOST", "0.0.0.0")
    assert "LLAMA_ARG_HOST" not in llama_server.child_environment(os.environ, Path("/h"))
