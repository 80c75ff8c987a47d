# SPDX-License-Identifier: GPL-3.0-only
"""What a model is made of and what it would cost, as values to show; rule: the figures are the ledger's own, sorted, never computed anew.

weights  every tensor once, whatever the buffer it lies in
kv       all that is kept of what was read: attention caches and recurrent states
compute  the buffers in which one batch is computed
host     the rest: rows of output, a second copy of a tied token table, projector, prompt cache
What the process and a driver keep beside llama.cpp's own figures is not in the sum; `outside` has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modeld.core.estimate import DEVICE_CONTEXT, PROCESS, Part, need
from modeld.core.footprint import Known, Source
from modeld.core.memory import context_bytes, weights_bytes
from modeld.core.model import ModelSpec

WEIGHTS, CONTEXT = "weights", "context"
OUTSIDE = (PROCESS, DEVICE_CONTEXT)
"""Parts that are none of llama.cpp's own."""
_COMPUTE = ("compute", "embedding")
"""How the names of the parts that are buffers of computation begin."""
_MEASURED = ("measured", "ran out")
"""How the names of the parts that only correct the sum begin."""
_BEST_FIRST = (Source.DECLARED, Source.LEARNED, Source.PROBED, Source.FORMULA)


@dataclass(frozen=True, slots=True)
class Layers:
    """`count` layers of one kind, in words: "full attention", "attention over 1024 tokens", "recurrent"."""

    count: int
    kind: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """Bytes. `source` is that of the least sure part; `certain`: weights and kv were compared with llama.cpp's own, for this family."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    host_bytes: int
    source: Source
    certain: bool
    parts: tuple[Part, ...]
    outside: tuple[Part, ...]
    layers: tuple[Layers, ...]

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.host_bytes


def inspection(spec: ModelSpec, known: Known) -> Inspection:
    """What one launch of `spec` would take, by what is known."""
    cost = need(spec, known, one_pool=False)
    weights = weights_bytes(spec.memory) or spec.size_bytes
    kv = context_bytes(spec.memory, spec.options)
    compute = sum(part.bytes for part in cost.parts if part.name.startswith(_COMPUTE))
    inside = tuple(part for part in cost.parts if part.name not in OUTSIDE)
    total = sum(part.bytes for part in inside)
    return Inspection(
        weights_bytes=weights,
        kv_bytes=kv,
        compute_bytes=compute,
        host_bytes=total - weights - kv - compute,
        source=_least_sure(cost.source, inside),
        certain=cost.certain,
        parts=inside,
        outside=tuple(part for part in cost.parts if part.name in OUTSIDE),
        layers=layers_by_kind(spec),
    )


def layers_by_kind(spec: ModelSpec) -> tuple[Layers, ...]:
    """The layers that keep something, most first, then those that keep nothing."""
    shape = spec.memory
    kinds: dict[str, int] = {}
    for group in shape.attention:
        kind = f"attention over {group.window} tokens" if group.window else "full attention"
        kinds[kind] = kinds.get(kind, 0) + group.count
    for state in shape.recurrent:
        kinds["recurrent"] = kinds.get("recurrent", 0) + state.count
    rest = shape.layers - sum(kinds.values())
    if rest > 0:
        kinds["no cache"] = rest
    return tuple(Layers(count, kind) for kind, count in sorted(kinds.items(), key=lambda one: -one[1]))


def _least_sure(source: Source, parts: Iterable[Part]) -> Source:
    """A sum that was learned is learned. Otherwise weights and context follow from the header, and the least sure other part decides."""
    if source in (Source.LEARNED, Source.DECLARED):
        return source
    others = [part.source for part in parts if not part.name.startswith((WEIGHTS, CONTEXT))]
    if Source.PROBED not in others:
        return source
    return Source.PROBED if all(part.source is Source.PROBED for part in parts if part.name.startswith(_COMPUTE)) else Source.FORMULA
