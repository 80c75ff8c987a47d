# SPDX-License-Identifier: GPL-3.0-only
"""Compares what the headers say with what llama.cpp's dry pass says; rule: llama.cpp is right.

Weights are not repacked here: each tensor counts once, whatever the buffer. (A CPU that repacks has a second copy of a tied head.)

Run as a program (`make memory-grid`) it compares every family of `archgguf` and every model of `realgguf` over the full grid, prints a
table, writes memory-grid.json, and ends with 1 when a bar is missed:

  weights and context   0 bytes off, and refused exactly where llama.cpp refuses
  compute, probed       0.5 % of the total, worst case, with flash attention and at least 1 GiB (the rest is shown)
  compute, bounded      never below, at least 1 GiB; 5 % of the total above at the 95th percentile
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from archgguf import SHAPES, make_arch
from modeld.catalog.gguf import read_header
from modeld.catalog.layers import memory_shape
from modeld.core.compute import bound_bytes, compute_bytes, lattice
from modeld.core.footprint import Point, Probe
from modeld.core.memory import context_bytes, flash, refused, weights_bytes
from modeld.core.model import FlashAttention, KvType, LaunchOptions, ModelId, ModelSpec
from modeld.runtime import probe_worker
from modeld.runtime.probe import find_library, question
from realgguf import MODELS, make_real

GIB = 1 << 30
REFUSAL = re.compile(r"quantized V cache requires flash_attn|cache type .* does not divide")
SECONDS_MAX = 600
ASKED_AT_ONCE = 100
"""Contexts for one child: its first line has a limit."""
FLASH, NO_FLASH = FlashAttention.ON, FlashAttention.OFF
BARS = {"probed": 0.005, "bounded": 0.05}


def options(ctx: int, slots: tuple[int, bool], attention: FlashAttention, kv_type: KvType, ubatch: int = 512) -> LaunchOptions:
    """`slots` is (parallel, unified)."""
    return LaunchOptions(
        ctx=ctx, parallel=slots[0], kv_unified=slots[1], flash_attn=attention, kv_type=kv_type, batch=max(2048, ubatch), ubatch=ubatch
    )


SLOTS = ((1, True), (1, False), (4, True), (4, False))
KV_TYPES = (KvType.F16, KvType.Q8_0, KvType.Q4_0)


def full_grid() -> Iterator[LaunchOptions]:
    for ctx, slots, attention, kv_type in product((4096, 32768), SLOTS, (FLASH, NO_FLASH), KV_TYPES):
        yield options(ctx, slots, attention, kv_type)
    for ctx, slots, attention, ubatch in product((6144, 20480), SLOTS[1:], (FLASH, NO_FLASH), (128, 2048)):
        yield options(ctx, slots, attention, KvType.F16, ubatch)


def small_grid() -> Iterator[LaunchOptions]:
    for ctx, slots in product((4096, 32768), SLOTS[1:]):
        yield options(ctx, slots, FLASH, KvType.F16)
    yield options(6144, (4, False), FLASH, KvType.Q8_0, 128)
    yield options(4096, (4, True), NO_FLASH, KvType.F16)
    yield options(32768, (4, False), NO_FLASH, KvType.F16, 2048)
    yield options(4096, (1, True), NO_FLASH, KvType.Q4_0)


@dataclass
class Row:
    """One model. Errors are shares of the total; `probed_small` is for contexts that take less than 1 GiB in all.

    `wrong` tells each cell in which weights, context or refusal differ.
    """

    name: str
    family: str
    cells: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    probed: float = 0.0
    probed_without_flash: float = 0.0
    probed_small: float = 0.0
    bounded: list[float] = field(default_factory=list)
    seconds: float = 0.0


def compare(path: Path, grid: Iterable[LaunchOptions], *, probes: bool = True) -> Row:
    """One file over the grid. `probes`: also the compute buffers, after one dry pass for each probe key."""
    started = time.monotonic()
    header = read_header(path)
    spec = ModelSpec(ModelId(path.stem), str(path), memory=memory_shape(header))
    row = Row(path.stem, str(header.metadata["general.architecture"]))
    cells = list(grid)
    row.cells = len(cells)
    compared = [(one, answer) for one, answer in zip(cells, ask(spec, cells), strict=True) if _same(row, spec, one, answer)]
    known = {}
    for one, answer in compared:
        sums = _sums(answer)
        total = sum(sums)
        here = replace(spec, options=one)
        if total >= GIB:
            row.bounded.append((bound_bytes(here) - sums[2]) / total)
        key = (one.flash_attn, one.kv_type)
        if probes and key not in known:
            known[key] = probe(replace(spec, options=options(4096, (4, True), *key)))
        if probes:
            error = (compute_bytes(here, known[key]) - sums[2]) / total
            name = "probed_small" if total < GIB else "probed" if flash(spec.memory, one) else "probed_without_flash"
            setattr(row, name, max(getattr(row, name), error, key=abs))
    row.seconds = round(time.monotonic() - started, 2)
    return row


def _same(row: Row, spec: ModelSpec, one: LaunchOptions, answer: dict[str, Any]) -> bool:
    """Whether the cell was answered; what is wrong goes into the row."""
    said = "error" in answer
    if said is not refused(spec.memory, one) or (said and REFUSAL.search(answer["error"]) is None):
        row.wrong.append(f"{one}: {answer.get('error', 'not refused')}")
    elif said:
        row.refused += 1
    if said:
        return False
    weights, context, _ = _sums(answer)
    off = weights_bytes(spec.memory) - weights, context_bytes(spec.memory, one) - context
    if off != (0, 0):
        row.wrong.append(f"{one}: weights {off[0]:+}, context {off[1]:+}")
    return True


def probe(spec: ModelSpec) -> Probe:
    """As runtime.probe makes it."""
    asked = lattice(spec)
    own = spec.options
    points = [
        Point(one.ctx, one.parallel, one.ubatch, one.batch, one.kv_unified, {name: sizes[2] for name, sizes in answer["buffers"].items()})
        for one, answer in zip(asked, ask(spec, asked), strict=True)
        if "buffers" in answer
    ]
    return Probe(own.ctx, own.parallel, own.ubatch, 0, 0, 0, points=tuple(points))


def ask(spec: ModelSpec, contexts: Sequence[LaunchOptions]) -> list[dict[str, Any]]:
    """llama.cpp's answers, in the order of the contexts. Raises RuntimeError with its words when there are fewer."""
    library = find_library()
    assert library is not None
    found: list[dict[str, Any]] = []
    for start in range(0, len(contexts), ASKED_AT_ONCE):
        some = tuple(contexts[start : start + ASKED_AT_ONCE])
        asked = question(spec, library, some, SECONDS_MAX, repack=False) | {"enough": SECONDS_MAX}
        ran = subprocess.run(
            [sys.executable, "-I", "-S", probe_worker.__file__, str(os.getpid())],
            input=json.dumps(asked) + "\n",
            capture_output=True,
            text=True,
            check=False,
            env={"GGML_NO_BACKTRACE": "1"},
        )
        answers = [json.loads(line) for line in ran.stdout.splitlines()]
        if len(answers) != len(some):
            raise RuntimeError(f"{spec.id}: {answers[:1]}, exit {ran.returncode}: {ran.stderr.strip()[-300:]}")
        found += answers
    return found


def _sums(answer: dict[str, Any]) -> tuple[int, int, int]:
    weights, context, compute = (sum(sizes[index] for sizes in answer["buffers"].values()) for index in range(3))
    return weights, context, compute


def share(numbers: Sequence[float], at: float) -> float:
    """The number below which `at` of all lie."""
    return sorted(numbers)[min(len(numbers) - 1, int(len(numbers) * at))]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    bounded = [error for row in rows for error in row.bounded]
    worst = max(rows, key=lambda row: abs(row.probed))
    return {
        "models": len(rows),
        "families": len({row.family for row in rows}),
        "cells": sum(row.cells for row in rows),
        "refused": sum(row.refused for row in rows),
        "wrong": sum(len(row.wrong) for row in rows),
        "probed_worst_1gib": abs(worst.probed),
        "probed_worst_model": worst.name,
        "probed_worst_without_flash_1gib": max(abs(row.probed_without_flash) for row in rows),
        "probed_worst_small": max(abs(row.probed_small) for row in rows),
        "probed_small_p95": share([abs(row.probed_small) for row in rows], 0.95),
        "bounded_cells_1gib": len(bounded),
        "bounded_least": min(bounded),
        "bounded_p95": share(bounded, 0.95),
        "bounded_most": max(bounded),
    }


def missed(found: dict[str, Any]) -> list[str]:
    """The bars that are missed."""
    bars = {
        "weights, context, refusals": found["wrong"] == 0,
        "compute after a probe": found["probed_worst_1gib"] <= BARS["probed"],
        "compute bounded, never below": found["bounded_least"] >= 0,
        "compute bounded, 95 %": found["bounded_p95"] <= BARS["bounded"],
    }
    return [name for name, held in bars.items() if not held]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports"))
    parser.add_argument("--only", default="", help="models whose names hold this")
    wanted = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        makers = [(arch, lambda arch=arch: make_arch(folder / "small", arch)) for arch in SHAPES]
        makers += [(real, lambda real=real: make_real(folder / "real", real)) for real in MODELS]
        print(f"{'model':22}{'family':15} cells refused wrong    probed  no flash    small   bound    most     s")
        for title, make in makers:
            if wanted.only not in title:
                continue
            row = compare(make(), full_grid())
            rows.append(row)
            least, most = (f"{100 * end(row.bounded):.2f}%" if row.bounded else "-" for end in (min, max))
            print(
                f"{row.name:22}{row.family:15}{row.cells:6}{row.refused:8}{len(row.wrong):6}{100 * row.probed:9.3f}%"
                f"{100 * row.probed_without_flash:9.3f}%{100 * row.probed_small:8.3f}%{least:>8}{most:>8}{row.seconds:6.1f}",
                flush=True,
            )
            for text in row.wrong[:2]:
                print("   ", text)
    found = summary(rows)
    print(json.dumps(found, indent=2))
    wanted.out.mkdir(parents=True, exist_ok=True)
    (wanted.out / "memory-grid.json").write_text(json.dumps({"summary": found, "rows": [asdict(row) for row in rows]}, indent=1))
    for bar in missed(found):
        print(f"missed: {bar}")
    return 1 if missed(found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
