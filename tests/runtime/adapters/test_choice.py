# SPDX-License-Identifier: GPL-3.0-only
# ruff: noqa: ASYNC240 - small files in a temporary folder
"""Which engine runs, row by row."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from modeld.errors import ConfigError
from modeld.runtime.adapters import choice, embedded
from modeld.runtime.adapters.choice import choose, find_gpus
from modeld.runtime.adapters.embedded import EmbeddedAdapter
from modeld.runtime.adapters.llama_server import LlamaServerAdapter
from modeld.runtime.devices import EngineDevice

FAKE = Path(__file__).parents[2] / "stub" / "fake_llama.py"
CPU = EngineDevice("CPU", "some", "CPU")
GPU = EngineDevice("CUDA0", "some", "GPU")


@pytest.fixture
def path_with_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(FAKE, folder / "llama-server")
    monkeypatch.setenv("PATH", f"{folder}:{Path(shutil.which('python3') or '').parent}")
    return folder / "llama-server"


async def chosen(
    tmp_path: Path, *, adapter: str | None = None, bin_: Path | None = None, url: str | None = None, gpus: tuple[str, ...] = ()
) -> tuple[str, str]:
    made, info = await choose(
        adapter=adapter,
        llama_bin=bin_,
        llama_url=url,
        llama_api_key=None,
        runtime_dir=tmp_path / "run",
        stop_grace=1,
        gpus=lambda: gpus,
    )
    await made.close()
    assert made.name == info.adapter
    return made.name, info.warning


def can_use(monkeypatch: pytest.MonkeyPatch, *devices: EngineDevice) -> None:
    async def answer(self: EmbeddedAdapter) -> tuple[EngineDevice, ...]:
        return devices

    monkeypatch.setattr(EmbeddedAdapter, "devices", answer)


async def test_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path_with_server: Path) -> None:
    can_use(monkeypatch, CPU)
    assert (await chosen(tmp_path, url="http://127.0.0.1:9", bin_=FAKE))[0] == "external"
    assert (await chosen(tmp_path, bin_=FAKE))[0] == "llama-server"
    assert (await chosen(tmp_path, gpus=("NVIDIA GPU",)))[0] == "llama-server"
    assert await chosen(tmp_path) == ("embedded", "")
    can_use(monkeypatch, CPU, GPU)
    assert await chosen(tmp_path, gpus=("NVIDIA GPU",)) == ("embedded", "")


async def test_a_gpu_that_stands_unused_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path_with_server: Path) -> None:
    can_use(monkeypatch, CPU)
    name, warning = await chosen(tmp_path, adapter="embedded", gpus=("AMD GPU", "GPU"))
    assert name == "embedded"
    assert "AMD GPU" in warning
    assert "llama_bin" in warning
    path_with_server.unlink()
    name, warning = await chosen(tmp_path, gpus=("NVIDIA GPU",))
    assert (name, "NVIDIA GPU" in warning) == ("embedded", True)


@pytest.mark.parametrize(
    ("script", "warns"),
    [({}, True), ({"devices": ["  CUDA0: NVIDIA H100 (1 MiB, 1 MiB free)"]}, False), ({"unknown_flags": ["--list-devices"]}, False)],
)
async def test_a_server_that_was_built_for_no_gpu_is_told_of(tmp_path: Path, script: dict[str, Any], warns: bool) -> None:
    """One that does not say what it can use is believed to use all."""
    binary = tmp_path / "server"
    shutil.copy(FAKE, binary)
    Path(f"{binary}.script.json").write_text(json.dumps(script), encoding="utf-8")
    _, warning = await chosen(tmp_path, adapter="llama-server", bin_=binary, gpus=("NVIDIA GPU",))
    assert ("NVIDIA GPU" in warning) is warns
    assert await chosen(tmp_path, adapter="llama-server", bin_=binary) == ("llama-server", "")


async def test_without_the_package_a_server_on_path_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path_with_server: Path) -> None:
    for module in (choice, embedded):
        monkeypatch.setattr(module, "find_engine", lambda: None)
    assert (await chosen(tmp_path))[0] == "llama-server"
    path_with_server.unlink()
    name, warning = await chosen(tmp_path)
    assert (name, "not installed" in warning) == ("embedded", True)


async def test_named(tmp_path: Path, path_with_server: Path) -> None:
    assert (await chosen(tmp_path, adapter="llama-server"))[0] == "llama-server"
    assert (await chosen(tmp_path, adapter="embedded", url="http://127.0.0.1:9"))[0] == "embedded"
    with pytest.raises(ConfigError, match="llama_url"):
        await chosen(tmp_path, adapter="external")
    path_with_server.unlink()
    with pytest.raises(ConfigError, match="llama_bin"):
        await chosen(tmp_path, adapter="llama-server")


def test_gpus_are_seen_by_their_device_files(tmp_path: Path) -> None:
    assert find_gpus(tmp_path) == ()
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    assert find_gpus(tmp_path) == ("GPU",)
    (tmp_path / "nvidia0").touch()
    (tmp_path / "kfd").touch()
    assert find_gpus(tmp_path) == ("NVIDIA GPU", "AMD GPU", "GPU")


async def test_the_devices_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    async def ask(self: EmbeddedAdapter, found: Path) -> tuple[EngineDevice, ...]:
        asked.append(found)
        return (GPU,)

    monkeypatch.setattr(embedded, "find_engine", lambda: tmp_path)
    monkeypatch.setattr(EmbeddedAdapter, "_ask", ask)
    assert await chosen(tmp_path, adapter="embedded", gpus=("NVIDIA GPU",)) == ("embedded", "")
    assert asked == [tmp_path]


@pytest.mark.parametrize("adapter", ["embedded", "llama-server"])
@pytest.mark.parametrize("gpus", [(), ("NVIDIA GPU",)])
async def test_a_choice_that_is_broken_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str, gpus: tuple[str, ...]
) -> None:
    """A stop that comes while the engine is asked: its folder is there by then."""
    asking = asyncio.Event()

    async def silent(self: EmbeddedAdapter | LlamaServerAdapter, *_: object) -> None:
        assert self._folder.path.is_dir()
        asking.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(embedded, "find_engine", lambda: tmp_path)
    monkeypatch.setattr(EmbeddedAdapter, "_ask", silent)
    monkeypatch.setattr(LlamaServerAdapter, "_ask", silent)
    async with asyncio.TaskGroup() as group:
        choosing = group.create_task(chosen(tmp_path, adapter=adapter, bin_=FAKE, gpus=gpus))
        await asking.wait()
        choosing.cancel()
    assert list((tmp_path / "run").iterdir()) == []
