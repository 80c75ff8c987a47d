# SPDX-License-Identifier: GPL-3.0-only
"""llama.cpp inside our own child (`worker.py`), from the package xllamacpp; rule: the engine is never imported into the daemon.

One process per model: a crash or an out-of-memory kill costs one model, and unloading gives everything back.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modeld.core.estimate import draft_options
from modeld.core.model import InstanceId, ModelSpec
from modeld.errors import EngineMissing, ModelUnavailable, SpawnFailed
from modeld.runtime.adapters import worker
from modeld.runtime.adapters.interface import Adapter, EngineInfo, Served
from modeld.runtime.adapters.process import FileCheck, PrivateFolder, ServedProcess, Stall
from modeld.runtime.child import Child, LineFilter, child_environment
from modeld.runtime.devices import EngineDevice, read_described

DESCRIBE_SECONDS_MAX: Final = 15.0
STATE_LINES: Final = {"LLAMA_SERVER_ROUTER_PORT": "1"}
"""Makes llama.cpp write its state to standard output, as for a router of its own: progress, and readiness at once. No port is opened."""


class EmbeddedAdapter(Adapter):
    """`stop_grace` is seconds from TERM to KILL."""

    name = "embedded"

    def __init__(self, *, runtime_dir: Path, stop_grace: float, stall: Stall | None = None) -> None:
        self._folder = PrivateFolder(runtime_dir)
        self._stop_grace = stop_grace
        self._stall = stall or Stall()
        self._files = FileCheck()
        self._asked = False
        self._devices: tuple[EngineDevice, ...] | None = None
        self._why_silent = "the engine did not say which devices it can use"

    async def describe(self) -> EngineInfo:
        found = find_engine()
        if found is None:
            return EngineInfo(self.name, "missing", (), "the package xllamacpp is not installed: no model can be loaded")
        devices = await self.devices()
        if devices is None:
            return EngineInfo(self.name, build(), (), self._why_silent)
        return EngineInfo(self.name, build(), tuple(f"{one.name} ({one.description})" for one in devices), found=devices)

    async def devices(self) -> tuple[EngineDevice, ...] | None:
        """Asked in a child of its own, once: the engine's import costs memory and time. None when it is missing or gives no answer."""
        found = find_engine()
        if found is not None and not self._asked:
            self._devices = await self._ask(found)
            self._asked = True
        return None if found is None else self._devices

    async def _ask(self, found: Path) -> tuple[EngineDevice, ...] | None:
        lines: list[bytes] = []

        def keep(line: bytes) -> bool:
            lines.append(line)
            return True

        try:
            child = self._spawn(["describe"], {"import_path": str(found)}, keep)
        except SpawnFailed as error:
            self._why_silent = error.message
            return None
        try:
            async with asyncio.timeout(DESCRIBE_SECONDS_MAX):
                await asyncio.shield(child.exit)
        except TimeoutError:
            return None
        finally:
            child.kill()
            await asyncio.shield(child.exit)
        return _read_devices(lines)

    async def check(self, spec: ModelSpec) -> None:
        if find_engine() is None:
            raise EngineMissing("The embedded engine is missing: install the package xllamacpp, or set llama_bin to a llama-server.")
        if spec.options.extra_args:
            raise ModelUnavailable("llama_extra_args needs a llama-server binary: set llama_bin, or leave llama_extra_args empty.")
        await self._files.check(spec)

    def start(self, instance: InstanceId, spec: ModelSpec, on_progress: Callable[[float], None]) -> Served:
        found = find_engine()
        if found is None:
            raise SpawnFailed("The embedded engine is missing: install the package xllamacpp.")
        socket = self._folder.socket()
        wanted = parameters(spec, socket, found)
        return ServedProcess(
            lambda on_stdout, on_stderr: self._spawn([], wanted, on_stdout, STATE_LINES, on_stderr),
            socket=socket,
            stall_seconds=self._stall.limit(spec.size_bytes),
            ready_lines=True,
            ready_line=worker.READY.encode(),
            on_progress=on_progress,
        )

    async def close(self) -> None:
        self._folder.close()

    def _spawn(
        self,
        arguments: list[str],
        line: object,
        on_stdout: LineFilter,
        more_env: dict[str, str] | None = None,
        on_stderr: LineFilter | None = None,
    ) -> Child:
        # Isolated, and without `site`: what stands in a .pth file or in the user's folder is not run in a model server.
        return Child(
            [sys.executable, "-I", "-S", worker.__file__, str(os.getpid()), *arguments],
            env={**child_environment(os.environ, self._folder.path), **(more_env or {})},
            cwd=self._folder.path,
            first_line=json.dumps(line).encode() + b"\n",
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            stop_grace=self._stop_grace,
        )


def find_engine() -> Path | None:
    """The folder from which xllamacpp would be imported, found without importing it."""
    spec = importlib.util.find_spec("xllamacpp")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent.parent


def build() -> str:
    """The version of the package; its last part is llama.cpp's build number."""
    try:
        return f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    except importlib.metadata.PackageNotFoundError:
        return "xllamacpp, unknown build"


def parameters(spec: ModelSpec, socket: Path, import_path: Path) -> worker.Parameters:
    """What the worker is told: every value explicit."""
    options = spec.options
    return {
        "import_path": str(import_path),
        "model": spec.path,
        "socket": str(socket),
        "alias": spec.id,
        "mmproj": spec.mmproj,
        "lora": [one.path for one in spec.lora],
        "draft": None if spec.draft is None else spec.draft.path,
        "draft_kv_type": draft_options(options).kv_type.value,
        "ctx": options.ctx,
        "parallel": options.parallel,
        "threads": options.threads,
        "ngl": options.ngl,
        "devices": list(options.devices),
        "tensor_split": list(options.tensor_split),
        "batch": options.batch,
        "ubatch": options.ubatch,
        "kv_type": options.kv_type.value,
        "flash_attn": options.flash_attn.value,
        "kv_unified": options.kv_unified,
        "cache_ram_mb": options.cache_ram_mb,
        "ctx_checkpoints": options.ctx_checkpoints,
        "pooling": spec.pooling,
    }


def _read_devices(lines: list[bytes]) -> tuple[EngineDevice, ...] | None:
    for line in lines:
        try:
            listed = json.loads(line)["devices"]
        except (ValueError, TypeError, LookupError):
            continue
        if (found := read_described(listed)) is not None:
            return found
    return None
