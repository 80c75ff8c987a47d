# SPDX-License-Identifier: GPL-3.0-only
"""Asks llama.cpp, in a child of its own (`probe_worker.py`), what a launch would take; rule: nothing is allocated, and nobody waits for it.

One child at a time: an answer is wanted soon, not now, and the machine has models to serve. What was answered before a child ended
counts, however it ended: the launch itself is asked about first.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from modeld.core.compute import lattice
from modeld.core.footprint import Point, Probe
from modeld.core.model import LaunchOptions, ModelKind, ModelSpec
from modeld.errors import BadUpstreamReply, EngineMissing, LoadFailed, LoadStalled, ModeldError, SpawnFailed
from modeld.runtime import probe_worker
from modeld.runtime.child import Child, child_environment
from modeld.runtime.probe_worker import ContextWanted, Question

SECONDS_MAX: Final = 30.0
ENOUGH_SHARE: Final = 10
"""One part in so many of the time limit is spent on contexts beside the launch itself."""
AT_ONCE: Final = 1
NOT_ASKED: Final = -1
POOLING: Final = {"": NOT_ASKED, "none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
"""llama.cpp's words for what makes one vector of a text -> its numbers."""


class _Reply(msgspec.Struct):
    """`probe_worker.Reply` as it comes back."""

    buffers: dict[str, tuple[int, int, int]] = {}
    error: str = ""


class Prober:
    """Asks with the library that the package xllamacpp brings. `folder` is the child's working folder, made when it is first needed."""

    def __init__(self, folder: Path, *, seconds_max: float = SECONDS_MAX) -> None:
        self._folder = folder
        self._seconds_max = seconds_max
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def ask(self, spec: ModelSpec, *, around: bool = True) -> Probe:
        """What a launch of `spec` would take; `around`: also what others take, from which all others follow.

        Raises EngineMissing without the library, SpawnFailed when there is no child, LoadFailed when llama.cpp refuses the model or the
        launch, LoadStalled when no answer came in time, BadUpstreamReply when the library is one that cannot be asked.
        """
        library = find_library()
        if library is None:
            raise EngineMissing("The package xllamacpp is not installed: llama.cpp cannot be asked what a model takes.")
        contexts = lattice(spec) if around else (spec.options,)
        async with self._turn:
            replies, code = await self._answers(spec, library, contexts)
        if not replies:
            raise _no_answer(code)
        if replies[0].error or not replies[0].buffers:
            raise _refused(code, replies[0].error)
        return _probe(spec, contexts, replies)

    async def _answers(self, spec: ModelSpec, library: Path, contexts: tuple[LaunchOptions, ...]) -> tuple[list[_Reply], int | None]:
        """The replies in the order of the contexts, as many as came, and the child's exit code; None = it was slow and is killed."""
        replies: list[_Reply] = []

        def keep(line: bytes) -> bool:
            try:
                replies.append(msgspec.json.decode(line, type=_Reply))
            except msgspec.MsgspecError:
                return False  # the library's own words, for the log
            return True

        child = self._spawn(question(spec, library, contexts, self._seconds_max), keep)
        code: int | None = None
        try:
            async with asyncio.timeout(self._seconds_max):
                code = await asyncio.shield(child.exit)
        except TimeoutError:
            pass
        finally:
            child.kill()
            await asyncio.shield(child.exit)
        return replies, code

    def _spawn(self, asked: Question, keep: Callable[[bytes], bool]) -> Child:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SpawnFailed(f"The folder of the probe cannot be made: {error.strerror}. Check runtime_dir.", detail=str(error)) from error
        return Child(
            [sys.executable, "-I", "-S", probe_worker.__file__, str(os.getpid())],
            env=child_environment(os.environ, self._folder),
            cwd=self._folder,
            first_line=json.dumps(asked).encode() + b"\n",
            on_stdout=keep,
        )


def find_library() -> Path | None:
    """xllamacpp's shared object, found without importing it."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))), None)


def question(spec: ModelSpec, library: Path, contexts: tuple[LaunchOptions, ...], seconds_max: float, *, repack: bool = True) -> Question:
    """The line for the worker. `repack`: as a real server, which has a copy of a tied head where the CPU wants it in another layout."""
    return {
        "library": str(library),
        "model": spec.path,
        "ngl": spec.options.ngl,
        "repack": repack,
        "seconds": max(1, round(seconds_max)),
        "enough": seconds_max / ENOUGH_SHARE,
        "contexts": [wanted(spec, options) for options in contexts],
    }


def wanted(spec: ModelSpec, options: LaunchOptions) -> ContextWanted:
    """One context: a server that generates gives one row of logits per slot, one that embeds something for every token."""
    generates = spec.kind is ModelKind.GENERATE
    return {
        "ctx": options.ctx,
        "parallel": options.parallel,
        "batch": options.batch,
        "ubatch": options.ubatch,
        "outputs": options.parallel if generates else 0,
        "kv_type": options.kv_type.value,
        "flash_attn": options.flash_attn.value,
        "kv_unified": options.kv_unified,
        "embeddings": not generates,
        "pooling": POOLING.get(spec.pooling, NOT_ASKED),
    }


def _probe(spec: ModelSpec, contexts: tuple[LaunchOptions, ...], replies: list[_Reply]) -> Probe:
    own = replies[0].buffers
    points = tuple(
        Point(asked.ctx, asked.parallel, asked.ubatch, asked.batch, asked.kv_unified, _column(reply.buffers, 2))
        for asked, reply in zip(contexts, replies, strict=False)
        if reply.buffers
    )
    weights, context, compute = (_column(own, index) for index in range(3))
    return Probe(
        ctx=spec.options.ctx,
        parallel=spec.options.parallel,
        ubatch=spec.options.ubatch,
        weights_bytes=sum(weights.values()),
        context_bytes=sum(context.values()),
        compute_bytes=sum(compute.values()),
        weights_by=weights,
        context_by=context,
        points=points,
    )


def _column(buffers: dict[str, tuple[int, int, int]], index: int) -> dict[str, int]:
    return {name: sizes[index] for name, sizes in buffers.items()}


def _no_answer(code: int | None) -> ModeldError:
    if code is None:
        return LoadStalled("llama.cpp did not say in time what the model takes.")
    what = f"signal {-code}" if code < 0 else f"exit code {code}"
    return LoadFailed(f"llama.cpp ended ({what}) when it was asked what the model takes.")


def _refused(code: int | None, error: str) -> ModeldError:
    if code == probe_worker.EXIT_UNASKABLE:
        return BadUpstreamReply(f"This build of llama.cpp cannot be asked what a model takes: {error}")
    return LoadFailed(f"llama.cpp would not load it: {error or 'it gave no reason'}")
