# SPDX-License-Identifier: GPL-3.0-only
"""The buffers a model computes in, from a dry pass or bounded from above; rule: after a probe exact within 0.5 % of the total.

What ggml's allocator needs for one physical batch grows with the batch: per token it is the same number for every batch as long as
the cells that are looked at and the slots per token are the same. So a dry pass over a few contexts (`lattice`) says it for all others:

  bytes = tokens * (R(cells, slots / tokens) + mask * cells)

`R` is interpolated; the mask, a number for each token and cell, is known. Slots matter where layers keep a state for each of them.
A model without a cache looks at the batch itself: its cells are its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from modeld.core.footprint import Point, Probe
from modeld.core.memory import cells, flash, quantised, row_bytes
from modeld.core.model import LaunchOptions, ModelKind, ModelSpec

MASK_BYTES: Final = 2
MASK_BYTES_NO_FLASH: Final = 4
FLOAT_BYTES: Final = 4
SPARE_ELEMENTS: Final = 256
"""Positions and other small inputs, per token."""
INDEX_ELEMENTS: Final = 2
"""Without flash attention each value has an index of 64 bits."""
INDEXED_PER_CELL: Final = 5
UNCERTAIN_FACTOR: Final = 1.5
"""For families that were never compared."""
ROTATION: Final = 64
"""Side of the matrix for values; that for keys has the largest power of two that divides their length."""
ROTATION_MAX: Final = 4096
CELLS_ASKED: Final = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
TOKENS_ASKED: Final = (128, 512, 2048)
"""Batches for which a model without a cache is asked."""
BATCHES_ASKED: Final = (512, 2048)
"""Without flash attention a model is asked for both: what is done for each cell is kept in other places of the buffer then."""
SLOTS_ASKED: Final = ((128, 1), (512, 1), (128, 4), (2048, 1))
"""Batches and slots for which a model with states is asked: per token as good as 4, 1, 16 and a quarter of a slot for a batch of 512.

States are really allocated in a dry pass, so this can take seconds: the likeliest come first, and what is left out is extrapolated.
"""
SLOT_CELLS_ASKED: Final = (512, 1024, 2048, 4096, 8192, 32768)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one context lies among others: tokens of a batch, cells in the longest and in all kinds of cache, kinds of cache.

    row   what tells contexts apart beside the cells: slots per token where there are states, the batch without flash attention
    """

    tokens: int
    cells: int
    masked: int
    row: float
    caches: int


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
        whole = replace(own, kv_unified=True, batch=BATCHES_ASKED[0], ubatch=BATCHES_ASKED[0])
        asked = [replace(whole, ctx=size, ubatch=min(size, whole.ubatch)) for size in CELLS_ASKED]
        if not flash(spec.memory, own):
            large = BATCHES_ASKED[1]
            asked += [replace(whole, ctx=size, batch=large, ubatch=large) for size in CELLS_ASKED if size >= large]
    return tuple(dict.fromkeys((own, *asked)))


def compute_by(spec: ModelSpec, probe: Probe) -> Mapping[str, int]:
    """Bytes of the compute buffers by name of the buffer type, for the options of `spec`; `probe` has its probe key."""
    asked = spec.options
    if (exact := probe.at(asked)) is not None:
        return exact
    here = _place(spec, asked)
    mask = MASK_BYTES if flash(spec.memory, asked) else MASK_BYTES_NO_FLASH
    asked_for = [(_options(spec, point), point.compute_bytes) for point in probe.points]
    known = [(_place(spec, options), _fixed_bytes(spec, options), by) for options, by in asked_for]
    found = {}
    for name in dict.fromkeys(name for _, by in asked_for for name in by):
        if not any(by.get(name) for _, by in asked_for):
            found[name] = 0
            continue
        rest = [(place, (by.get(name, 0) - fixed) / place.tokens - mask * place.masked) for place, fixed, by in known]
        found[name] = max(0, round(here.tokens * (_between_rows(rest, here) + mask * here.masked)) + _fixed_bytes(spec, asked))
    return found


def compute_bytes(spec: ModelSpec, probe: Probe) -> int:
    """Bytes of all compute buffers, from the probe."""
    return sum(compute_by(spec, probe).values())


def output_bytes(spec: ModelSpec) -> int:
    """Bytes of the rows a server puts out, in main memory beside the compute buffers: one for each slot, or for each token it embeds."""
    wide, here = spec.memory.widths, _place(spec, spec.options)
    if spec.kind is ModelKind.GENERATE:
        return FLOAT_BYTES * spec.options.parallel * wide.vocabulary
    return FLOAT_BYTES * here.tokens * ((wide.vocabulary if spec.logits else 0) + wide.embedding)


def is_host_buffer(name: str) -> bool:
    """Whether a buffer of llama.cpp's by that name lies in main memory: "CPU", "CPU_REPACK", "CUDA_Host"."""
    return name.startswith("CPU") or name.endswith("_Host")


def bound_bytes(spec: ModelSpec) -> int:
    """Bytes that all compute buffers together do not exceed, by the header alone, for a model that generates.

    ggml's allocator reuses memory from step to step, so the widest step decides. Numbers per token, measured with llama.cpp b11549 on
    fifty-seven models (in brackets what was found where the bound is wider):

      feed-forward     3 * inside + 6 * embedding (5), per-layer embeddings twice beside it
      experts          3 * used * inside, or 2 * used * embedding, + 6 * embedding
      recurrent        8 * inside + 2 * embedding, and for each slot twice the state; without an inside 21 * embedding
      attention        8 * embedding + 3 * heads * head; without flash attention one number for each head and cell
      indexer          5 for each cell beside the attention
      output           one row for each slot
    """
    shape, options = spec.memory, spec.options
    wide, here = shape.widths, _place(spec, options)
    with_flash = flash(shape, options)
    states = max((2 * (layers.conv_elements + layers.state_elements) for layers in shape.recurrent), default=0)
    scores = (0 if with_flash else wide.heads * here.cells) + (INDEXED_PER_CELL * here.cells if wide.indexer else 0)
    steps = (
        3 * wide.feed_forward + 6 * wide.embedding + 2 * wide.side,
        wide.experts * max(3 * wide.expert, 2 * wide.embedding) + 6 * wide.embedding,
        (8 * wide.inner + 2 * wide.embedding if wide.inner else 21 * wide.embedding if states else 0)
        + states * options.parallel / here.tokens,
        8 * wide.embedding + 3 * wide.heads * wide.head + scores + 2 * wide.side,
        6 * wide.embedding + 4 * wide.side,
    )
    mask = MASK_BYTES if with_flash else MASK_BYTES_NO_FLASH
    inputs = SPARE_ELEMENTS + (0 if with_flash else INDEX_ELEMENTS * shape.value_elements_max * here.caches)
    body = here.tokens * (FLOAT_BYTES * (max(steps) + inputs) + mask * here.masked) + _fixed_bytes(spec, options)
    head = FLOAT_BYTES * options.parallel * (wide.vocabulary + 2 * wide.embedding)
    return math.ceil(max(body, head) * (1 if shape.certain else UNCERTAIN_FACTOR))


def _fixed_bytes(spec: ModelSpec, options: LaunchOptions) -> int:
    """What does not depend on the batch.

    Without flash attention latent attention (MLA) turns the compressed rows of all cells into columns. Before they are quantised, rows
    are rotated by a matrix for the keys and one for the values, of each kind of cache (llama-kv-cache.cpp).
    """
    shape = spec.memory
    if not flash(shape, options):
        latent = any(layers.value_elements == 0 for layers in shape.attention)
        return cells(options) * row_bytes(shape.value_length, options.kv_type) if latent else 0
    if not quantised(options.kv_type) or not shape.key_length or shape.key_length % ROTATION:
        return 0
    sides = ROTATION * math.gcd(shape.key_length // ROTATION, ROTATION_MAX // ROTATION), ROTATION
    return FLOAT_BYTES * sum(side * side for side in sides) * len({layers.window for layers in shape.attention})


def _options(spec: ModelSpec, point: Point) -> LaunchOptions:
    return replace(
        spec.options, ctx=point.ctx, parallel=point.parallel, ubatch=point.ubatch, batch=point.batch, kv_unified=point.kv_unified
    )


def _place(spec: ModelSpec, options: LaunchOptions) -> _Place:
    tokens = max(1, min(options.ubatch, options.batch, options.ctx))
    streams = 1 if options.kv_unified else options.parallel
    windows = {layers.window for layers in spec.memory.attention}
    seen = [cells(options, window) // streams for window in sorted(windows)] or [0 if spec.memory.recurrent else tokens]
    row = (
        options.parallel / tokens
        if spec.memory.recurrent
        else 0.0
        if flash(spec.memory, options)
        else float(_within(tokens, BATCHES_ASKED))
    )
    return _Place(tokens, max(seen), sum(seen), row, len(seen))


def _within(number: int, ends: tuple[int, int]) -> int:
    return min(max(number, ends[0]), ends[1])


def _between_rows(known: Sequence[tuple[_Place, float]], here: _Place) -> float:
    """Interpolated over the rows, between the values that each row of points has for these cells."""
    rows: dict[float, list[tuple[float, float]]] = {}
    for place, value in known:
        rows.setdefault(place.row, []).append((float(place.cells), value))
    reach = {row: points for row, points in rows.items() if min(points)[0] <= here.cells} or rows
    return _between([(row, _between(points, float(here.cells))) for row, points in reach.items()], here.row)


def _between(known: Sequence[tuple[float, float]], at: float) -> float:
    """On the line through the two neighbours; before the first point as there, behind the last one as between the last two."""
    points = sorted(dict(known).items())
    if len(points) == 1 or at <= points[0][0]:
        return points[0][1]
    left, right = next((pair for pair in pairwise(points) if at <= pair[1][0]), (points[-2], points[-1]))
    return left[1] + (right[1] - left[1]) * (at - left[0]) / (right[0] - left[0])
