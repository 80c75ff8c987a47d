# SPDX-License-Identifier: GPL-3.0-only
"""The buffers a model computes in, from a dry pass or bounded from above; rule: after a probe exact within 0.5 % of the total.

What ggml's allocator needs for one physical batch grows with the batch: per token it is the same number for every batch as long as
the cells that are looked at and the slots per token are the same. So a dry pass over a few contexts (`lattice`) says it for all others:

  bytes = tokens * (R(cells, slots / tokens) + mask * cells)

`R` is interpolated; the mask, a number for each token and cell, is known. Slots matter where layers keep a state for each of them.
A model without a cache looks at the batch itself: its cells are its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from modeld.core.footprint import Point, Probe
from modeld.core.memory import cells, flash
from modeld.core.model import LaunchOptions, ModelSpec

MASK_BYTES: Final = 2
MASK_BYTES_NO_FLASH: Final = 4
FLOAT_BYTES: Final = 4
CELLS_ASKED: Final = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
TOKENS_ASKED: Final = (128, 512, 2048)
"""Batches for which a model without a cache is asked."""
SLOTS_ASKED: Final = ((128, 4), (128, 1), (512, 1), (2048, 1))
"""Batches and slots for which a model with states is asked: per token as good as 16, 4, 1 and a quarter of a slot for a batch of 512."""
SLOT_CELLS_ASKED: Final = (512, 1024, 2048, 4096, 8192, 32768)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one context lies among others: tokens of a batch, cells with and without a window, slots per token."""

    tokens: int
    cells: int
    masked: int
    slots: float


def lattice(spec: ModelSpec) -> tuple[LaunchOptions, ...]:
    """The contexts to ask the dry pass for: that of the launch first, then those between which the others lie."""
    own = spec.options
    one = replace(own, parallel=1, kv_unified=True)
    if not spec.memory.attention and not spec.memory.recurrent:
        asked = [replace(one, ctx=max(size, 512), batch=max(size, 512), ubatch=size) for size in TOKENS_ASKED]
    elif spec.memory.recurrent:
        sizes = SLOT_CELLS_ASKED if spec.memory.attention else SLOT_CELLS_ASKED[3:4]
        asked = [
            replace(one, ctx=max(size, tokens), batch=2048, ubatch=tokens, parallel=slots)
            for tokens, slots in SLOTS_ASKED
            for size in sizes
        ]
    else:
        asked = [replace(one, ctx=size, batch=512, ubatch=min(512, size)) for size in CELLS_ASKED]
    return tuple(dict.fromkeys((own, *asked)))


def compute_by(spec: ModelSpec, probe: Probe) -> Mapping[str, int]:
    """Bytes of the compute buffers by name of the buffer type, for the options of `spec`; `probe` has its probe key."""
    asked = spec.options
    for point in probe.points:
        if (point.ctx, point.parallel, point.ubatch, point.batch, point.kv_unified) == (
            *(asked.ctx, asked.parallel, asked.ubatch, asked.batch, asked.kv_unified),
        ):
            return point.compute_bytes
    here = _place(spec, asked)
    mask = MASK_BYTES if flash(spec.memory, asked) else MASK_BYTES_NO_FLASH
    known = [(_place(spec, _options(spec, point)), point.compute_bytes) for point in probe.points]
    found = {}
    for name in dict.fromkeys(name for _, by in known for name in by):
        rest = [(place, by.get(name, 0) / place.tokens - mask * place.masked) for place, by in known]
        found[name] = max(0, round(here.tokens * (_between_rows(rest, here) + mask * here.masked)))
    return found


def compute_bytes(spec: ModelSpec, probe: Probe) -> int:
    """Bytes of all compute buffers, from the probe."""
    return sum(compute_by(spec, probe).values())


def _options(spec: ModelSpec, point: Point) -> LaunchOptions:
    return replace(
        spec.options, ctx=point.ctx, parallel=point.parallel, ubatch=point.ubatch, batch=point.batch, kv_unified=point.kv_unified
    )


def _place(spec: ModelSpec, options: LaunchOptions) -> _Place:
    tokens = max(1, min(options.ubatch, options.batch, options.ctx))
    streams = 1 if options.kv_unified else options.parallel
    windows = {layers.window for layers in spec.memory.attention}
    seen = [cells(options, window) // streams for window in sorted(windows)] or [0 if spec.memory.recurrent else tokens]
    return _Place(tokens, max(seen), sum(seen), options.parallel / tokens if spec.memory.recurrent else 0.0)


def _between_rows(known: Sequence[tuple[_Place, float]], here: _Place) -> float:
    """Interpolated over slots per token, between the values that each row of points has for these cells."""
    rows: dict[float, list[tuple[float, float]]] = {}
    for place, value in known:
        rows.setdefault(place.slots, []).append((float(place.cells), value))
    return _between([(slots, _between(row, float(here.cells))) for slots, row in rows.items()], here.slots)


def _between(known: Sequence[tuple[float, float]], at: float) -> float:
    """On the line through the two neighbours; before the first point as there, behind the last one as between the last two."""
    points = sorted(dict(known).items())
    if len(points) == 1 or at <= points[0][0]:
        return points[0][1]
    left, right = next((pair for pair in pairwise(points) if at <= pair[1][0]), (points[-2], points[-1]))
    return left[1] + (right[1] - left[1]) * (at - left[0]) / (right[0] - left[0])
