# SPDX-License-Identifier: GPL-3.0-only
"""Which engine runs; rule: what is set decides, and a GPU that would stand unused is never passed over in silence.

`adapter: auto`, in this order:
 1. llama_url is set: external
 2. llama_bin is set: that llama-server
 3. a GPU is there that the embedded build cannot use, and a llama-server is on PATH: that one
 4. the embedded engine is not installed, and a llama-server is on PATH: that one
 5. embedded
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from modeld.errors import ConfigError
from modeld.runtime.adapters.embedded import EmbeddedAdapter, find_engine
from modeld.runtime.adapters.external import ExternalAdapter
from modeld.runtime.adapters.interface import Adapter, EngineInfo
from modeld.runtime.adapters.llama_server import LlamaServerAdapter
from modeld.runtime.devices import EngineDevice

BINARY: Final = "llama-server"
_UNUSED: Final = "this machine has a {} that {} cannot use: models run on the CPU. {} llama-server that was built for it."
_GPU_FILES: Final = (("NVIDIA GPU", "nvidia[0-9]*"), ("AMD GPU", "kfd"), ("GPU", "dri/renderD*"))


def find_gpus(dev: Path = Path("/dev")) -> tuple[str, ...]:
    """Kinds of GPU this machine shows by its device files, the most telling name first."""
    return tuple(kind for kind, pattern in _GPU_FILES if any(dev.glob(pattern)))


async def choose(
    *,
    adapter: str | None,
    llama_bin: Path | None,
    llama_url: str | None,
    llama_api_key: str | None,
    runtime_dir: Path,
    stop_grace: float,
    gpus: Callable[[], tuple[str, ...]] = find_gpus,
) -> tuple[Adapter, EngineInfo]:
    """The adapter, and what to say of it at start. `adapter` None is auto. Raises ConfigError for a choice that lacks its setting."""
    on_path = _on_path()
    if adapter == "external" or (adapter is None and llama_url is not None):  # 1
        if llama_url is None:
            raise ConfigError("adapter: external needs llama_url")
        return await _described(ExternalAdapter(url=llama_url, api_key=llama_api_key))
    if adapter == "llama-server" or (adapter is None and llama_bin is not None):  # 2
        if llama_bin is None and on_path is None:
            raise ConfigError("adapter: llama-server needs llama_bin, or a llama-server on PATH")
        return await _llama_server(llama_bin or on_path, runtime_dir, stop_grace, gpus())
    embedded = EmbeddedAdapter(runtime_dir=runtime_dir, stop_grace=stop_grace)
    seen = gpus()
    async with _closed_on_failure(embedded):
        unused = seen[0] if seen and not _uses_gpu(await embedded.devices()) else None
    if adapter is None and on_path is not None and (unused is not None or find_engine() is None):  # 3, 4
        await embedded.close()
        return await _llama_server(on_path, runtime_dir, stop_grace, seen)
    _, info = await _described(embedded)  # 5
    if unused is not None and not info.warning:
        info = dataclasses.replace(info, warning=_UNUSED.format(unused, "the embedded build", "Set llama_bin to a"))
    return embedded, info


async def _llama_server(binary: Path | None, runtime_dir: Path, stop_grace: float, gpus: tuple[str, ...]) -> tuple[Adapter, EngineInfo]:
    adapter, info = await _described(LlamaServerAdapter(binary=binary, runtime_dir=runtime_dir, stop_grace=stop_grace))
    if gpus and info.found is not None and not _uses_gpu(info.found) and not info.warning:
        info = dataclasses.replace(info, warning=_UNUSED.format(gpus[0], "this llama-server", "Take a"))
    return adapter, info


async def _described(adapter: Adapter) -> tuple[Adapter, EngineInfo]:
    async with _closed_on_failure(adapter):
        return adapter, await adapter.describe()


@contextlib.asynccontextmanager
async def _closed_on_failure(adapter: Adapter) -> AsyncIterator[None]:
    """Until it is returned nobody else knows of the adapter: a stop while its engine is asked must not leave its folder behind."""
    try:
        yield
    except BaseException:
        await adapter.close()
        raise


def _on_path() -> Path | None:
    found = shutil.which(BINARY)
    return None if found is None else Path(found)


def _uses_gpu(devices: tuple[EngineDevice, ...] | None) -> bool:
    return any(device.kind not in ("CPU", "ACCEL") for device in devices or ())
