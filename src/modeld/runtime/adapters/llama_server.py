# SPDX-License-Identifier: GPL-3.0-only
"""Any llama-server binary as our child; rule: every value is a flag, and only flags that this build knows are given.

The binary is looked at (`--version`, `--help`) before its first use and again when the file has changed.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modeld.core.estimate import draft_options
from modeld.core.model import FlashAttention, InstanceId, ModelKind, ModelSpec
from modeld.errors import EngineMissing, ModelUnavailable, SpawnFailed
from modeld.runtime.adapters import shim
from modeld.runtime.adapters.interface import Adapter, EngineInfo, Served
from modeld.runtime.adapters.process import FileCheck, PrivateFolder, ServedProcess, Stall
from modeld.runtime.child import Child, capture, child_environment
from modeld.runtime.devices import EngineDevice, read_list

LOOK_SECONDS_MAX: Final = 2.0
DEVICES_SECONDS_MAX: Final = 10.0
"""For a binary that has answered before: the drivers of several cards take seconds to start."""
LAYERS_ALL: Final = 999
LOG_LEVEL: Final = "4"
"""llama-server tells the sizes of its buffers at this level, one above its default; a request costs fifteen more lines of log. In older
builds, which tell them by default, this is the level for debugging: what people ask would be in the log."""
BUILD_CHARS_MAX: Final = 120

_FLAG: Final = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
_TRACE: Final = re.compile(rf"-\s*{LOG_LEVEL}:\s*trace\b")
_VERSION: Final = re.compile(r"version:?\s*(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Build:
    """What a binary says of itself. `flags` is None when it did not say: then it is taken to know them all.

    `flash_attn_takes_value` is false for old builds, where the flag stands alone. `tells_sizes_at` is the log level at which it tells the
    sizes of its buffers, "" where it does so by default.
    """

    name: str = "unknown build"
    flags: frozenset[str] | None = None
    flash_attn_takes_value: bool = True
    tells_sizes_at: str = ""

    def knows(self, *names: str) -> str | None:
        """The first of the names that this build knows, or None."""
        return next((name for name in names if self.flags is None or name in self.flags), None)


class LlamaServerAdapter(Adapter):
    """`binary` None means that there is none: every check says so. `stop_grace` is seconds from TERM to KILL."""

    name = "llama-server"

    def __init__(self, *, binary: Path | None, runtime_dir: Path, stop_grace: float, stall: Stall | None = None) -> None:
        self._binary = binary
        self._folder = PrivateFolder(runtime_dir)
        self._stop_grace = stop_grace
        self._stall = stall or Stall()
        self._build = Build()
        self._looked_at: tuple[int, int] | None = None
        self._looking = asyncio.Lock()
        self._files = FileCheck()

    async def describe(self) -> EngineInfo:
        try:
            build = await self._look()
        except EngineMissing as error:
            return EngineInfo(self.name, "missing", (), error.message)
        except SpawnFailed as error:  # no folder to run it in: every start will say the same
            return EngineInfo(self.name, "unknown build", (), error.message)
        devices = await self._ask_devices(build)
        left_out = left_out_flags(build)
        warning = f"this llama-server does not know {', '.join(left_out)}: left out" if left_out else ""
        return EngineInfo(self.name, build.name, tuple(f"{one.name} ({one.description})" for one in devices or ()), warning, found=devices)

    async def check(self, spec: ModelSpec) -> None:
        build = await self._look()
        for flags, wanted in ((("--lora",), bool(spec.lora)), (("-md", "--model-draft"), spec.draft is not None)):
            if wanted and build.knows(*flags) is None:
                raise ModelUnavailable(f"This llama-server does not know {flags[0]}: use a newer one, or leave the setting out.")
        await self._files.check(spec)

    def start(self, instance: InstanceId, spec: ModelSpec, on_progress: Callable[[float], None]) -> Served:
        if self._binary is None:
            raise SpawnFailed("There is no llama-server to start: set llama_bin.")
        socket = self._folder.socket()
        command = [str(self._binary), *arguments(spec, socket, self._build)]
        return ServedProcess(
            lambda on_stdout, on_stderr: Child(
                self._argv(command),
                env=child_environment(os.environ, self._folder.path),
                cwd=self._folder.path,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                stop_grace=self._stop_grace,
            ),
            socket=socket,
            stall_seconds=self._stall.limit(spec.size_bytes),
            ready_lines=False,
            on_progress=on_progress,
        )

    async def close(self) -> None:
        self._folder.close()

    @staticmethod
    def _argv(command: list[str]) -> list[str]:
        return [sys.executable, "-I", "-S", shim.__file__, str(os.getpid()), "--", *command]

    async def _look(self) -> Build:
        """Read version and flags, once for each state of the file. Raises EngineMissing, SpawnFailed (no folder to run it in)."""
        if self._binary is None:
            raise EngineMissing("There is no llama-server: set llama_bin to one, or put it on PATH.")
        async with self._looking:
            try:
                stat = self._binary.stat()
            except OSError as error:
                raise EngineMissing("The llama-server binary is gone: check llama_bin.", detail=str(error)) from error
            if not os.access(self._binary, os.X_OK) or not self._binary.is_file():
                raise EngineMissing("The llama-server binary may not be run: check llama_bin.")
            if self._looked_at != (stat.st_mtime_ns, stat.st_size):
                said = [await self._ask("--version"), await self._ask("--help")]
                self._build = read_build(*said)
                self._looked_at = (stat.st_mtime_ns, stat.st_size)
            return self._build

    async def _ask_devices(self, build: Build) -> tuple[EngineDevice, ...] | None:
        """The devices this build can use; None when it does not say. A binary that was silent is not waited for again."""
        if build.flags is None or build.knows("--list-devices") is None:
            return None
        return read_list(await self._ask("--list-devices", DEVICES_SECONDS_MAX) or ())

    async def _ask(self, flag: str, seconds_max: float | None = None) -> list[str] | None:
        """What the binary says within 2 s (`seconds_max`), or None. Raises SpawnFailed."""
        folder = self._folder.path
        command = self._argv([str(self._binary), flag])
        try:
            code, lines = await capture(
                command, env=child_environment(os.environ, folder), cwd=folder, seconds_max=seconds_max or LOOK_SECONDS_MAX
            )
        except SpawnFailed:
            return None
        return lines if code is not None and not any(line.startswith(shim.MARK) for line in lines) else None


def read_build(version: list[str] | None, usage: list[str] | None) -> Build:
    """Make sense of `--version` and `--help`; silence is no answer. Flags are believed only if the text looks like llama-server's."""
    name = next((found[1] for line in version or () if (found := _VERSION.search(line))), "").strip()
    flags = frozenset(flag for line in usage or () for flag in _FLAG.findall(line))
    known = flags if {"-m", "--host"} <= flags else None
    flash_line = next((line for line in usage or () if "--flash-attn" in line), "")
    takes_value = known is None or any(mark in flash_line for mark in ("on|off", "FA", "{on"))
    level = LOG_LEVEL if any(_TRACE.search(line) for line in usage or ()) else ""
    return Build(name[:BUILD_CHARS_MAX] or "unknown build", known, takes_value, level)


def left_out_flags(build: Build) -> list[str]:
    """Flags we would give that this build does not know."""
    wanted = (("--fit",), ("-cram",), ("-ctxcp", "--swa-checkpoints"), ("--slots",), ("--no-ui", "--no-webui"), ("--offline",), ("-kvu",))
    return [names[0] for names in wanted if build.knows(*names) is None]


def _beside(spec: ModelSpec) -> list[tuple[tuple[str, ...], str | None]]:
    """Adapters and draft model: (names of the flag, value). Newer builds must be told what the draft model is for."""
    flags: list[tuple[tuple[str, ...], str | None]] = [(("--lora",), one.path) for one in spec.lora]
    if spec.draft is not None:
        kv_type = draft_options(spec.options).kv_type.value
        layers = str(LAYERS_ALL if spec.options.ngl < 0 else spec.options.ngl)
        flags += [
            (("-md", "--model-draft"), spec.draft.path),
            (("--spec-type",), "draft-simple"),
            (("-ngld", "--n-gpu-layers-draft"), layers),
            (("-ctkd", "--cache-type-k-draft"), kv_type),
            (("-ctvd", "--cache-type-v-draft"), kv_type),
        ]
    return flags


def arguments(spec: ModelSpec, socket: Path, build: Build) -> list[str]:
    """The command line without the binary: nothing that matters is left to a default."""
    options = spec.options
    kv_type = options.kv_type.value
    layers = str(LAYERS_ALL if options.ngl < 0 else options.ngl)
    result = ["-m", spec.path, "--host", str(socket), "-c", str(options.ctx), "-np", str(options.parallel)]
    result += ["-b", str(options.batch), "-ub", str(options.ubatch), "-ctk", kv_type, "-ctv", kv_type]
    result += ["-ngl", layers, "-t", str(options.threads), "-tb", str(options.threads), "--alias", spec.id]
    if build.flash_attn_takes_value:
        result += ["-fa", options.flash_attn.value]
    elif options.flash_attn is FlashAttention.ON:
        result.append("-fa")
    wanted: list[tuple[tuple[str, ...], str | None]] = [
        (("--fit",), "off"),
        *([(("-lv", "--verbosity", "--log-verbosity"), build.tells_sizes_at)] if build.tells_sizes_at else []),
        (("-cram",), str(options.cache_ram_mb)),
        (("-ctxcp", "--swa-checkpoints"), str(options.ctx_checkpoints)),
        (("--slots",), None),
        (("--no-ui", "--no-webui"), None),
        (("--offline",), None),
        (("--sse-ping-interval",), "-1"),  # a ping is neither the first byte of an answer nor a sign that it moves
        (("--threads-http",), str(options.parallel + 4)),
        (("-kvu", "--kv-unified") if options.kv_unified else ("-no-kvu", "--no-kv-unified"), None),
    ]
    if spec.kind is ModelKind.RERANK:
        wanted.append((("--reranking", "--rerank"), None))  # llama.cpp's word for embeddings with pooling rank
    elif spec.kind is ModelKind.EMBED:
        wanted += [(("--embeddings", "--embedding"), None), (("--pooling",), spec.pooling)]
    wanted += _beside(spec)
    wanted += placement(spec)
    for names, value in wanted:
        if (known := build.knows(*names)) is not None:
            result += [known] if value is None else [known, value]
    if spec.mmproj is not None:
        result += ["--mmproj", spec.mmproj]
    return [*result, *options.extra_args]


def placement(spec: ModelSpec) -> list[tuple[tuple[str, ...], str | None]]:
    """On the devices that were chosen, and on none when no layer is to be on one: else each takes memory that nobody counted."""
    options = spec.options
    if options.ngl == 0:
        return [(("--device", "-dev"), "none")]
    if not options.devices:
        return []
    chosen: list[tuple[tuple[str, ...], str | None]] = [(("--device", "-dev"), ",".join(options.devices))]
    if len(options.devices) > 1:
        chosen.append((("--split-mode", "-sm"), "layer"))
        if options.tensor_split:
            chosen.append((("--tensor-split", "-ts"), ",".join(map(str, options.tensor_split))))
    return chosen
