# SPDX-License-Identifier: GPL-3.0-only
"""The launch that fits: the largest context where the operator asked for that, less where he listed what may be given up; rule: nothing
is given up that he did not list, and what was is named in `ModelSpec.degraded`.

1  `ctx_max`: the largest context, in steps of CTX_STEP, that fits the room.
2  It fits: as it is.
3  Each step of `degrade` in the operator's order, one after the other until it fits: `ctx` halves the context, down to DEGRADED_CTX_MIN;
   `kv_type` takes q8_0, then q4_0, for the cache; `ngl` puts fewer layers on the device.
4  Nothing is enough: as it was, so that the refusal tells of what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from modeld.core.memory import ROW_BYTES, flash
from modeld.core.model import Degrade, KvType, LaunchOptions, ModelSpec

CTX_STEP: Final = 256
DEGRADED_CTX_MIN: Final = 2048
_SMALLER_CACHES: Final = (KvType.Q8_0, KvType.Q4_0)

Fits = Callable[[ModelSpec], bool]


def fitted(spec: ModelSpec, fits: Fits) -> ModelSpec:
    """`spec` with the options it is started with. `fits` says whether there could ever be room for such a launch."""
    if spec.options.ctx_max:
        spec = replace(spec, options=_with_ctx(spec.options, largest_ctx(spec, fits)))
    if not spec.degrade or fits(spec):
        return spec
    least = spec
    for step in spec.degrade:
        for smaller in _steps(step, least):
            if fits(smaller):
                return replace(smaller, degraded=_told(spec.options, smaller.options))
            least = smaller
    return spec


def largest_ctx(spec: ModelSpec, fits: Fits) -> int:
    """The most tokens of context that fit, at most `options.ctx`; the least there can be where not even that fits."""
    least, most = 1, max(1, spec.options.ctx // CTX_STEP)
    if fits(replace(spec, options=_with_ctx(spec.options, spec.options.ctx))):
        return spec.options.ctx
    while least < most:
        middle = (least + most + 1) // 2
        if fits(replace(spec, options=_with_ctx(spec.options, middle * CTX_STEP))):
            least = middle
        else:
            most = middle - 1
    return min(spec.options.ctx, least * CTX_STEP)


def _steps(step: Degrade, spec: ModelSpec) -> Iterator[ModelSpec]:
    """Ever smaller launches."""
    options = spec.options
    if step is Degrade.CTX:
        ctx = options.ctx
        while ctx > DEGRADED_CTX_MIN:
            ctx = max(DEGRADED_CTX_MIN, ctx // 2)
            yield replace(spec, options=_with_ctx(options, ctx))
    elif step is Degrade.KV_TYPE:
        if flash(spec.memory, options):  # llama.cpp refuses quantised values without it
            for kv_type in _SMALLER_CACHES:
                if _element_bytes(kv_type) < _element_bytes(options.kv_type):
                    yield replace(spec, options=replace(options, kv_type=kv_type))
    else:
        layers = spec.memory.layers + 1
        for ngl in range((layers if options.ngl < 0 else min(options.ngl, layers)) - 1, -1, -1):
            yield replace(spec, options=replace(options, ngl=ngl))


def _element_bytes(kv_type: KvType) -> float:
    elements, size = ROW_BYTES[kv_type]
    return size / elements


def _with_ctx(options: LaunchOptions, ctx: int) -> LaunchOptions:
    """A batch is never larger than the context."""
    batch = min(options.batch, ctx)
    return replace(options, ctx=ctx, batch=batch, ubatch=min(options.ubatch, batch))


def _told(asked: LaunchOptions, given: LaunchOptions) -> tuple[str, ...]:
    """What was given up, in words of the settings."""
    pairs = [
        ("llama_ctx", asked.ctx, given.ctx),
        ("llama_kv_type", asked.kv_type.value, given.kv_type.value),
        ("llama_ngl", asked.ngl, given.ngl),
    ]
    return tuple(f"{name} {before} -> {after}" for name, before, after in pairs if before != after)
