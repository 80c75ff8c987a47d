# SPDX-License-Identifier: GPL-3.0-only
"""The largest context that fits, and what is given up in the operator's order, told in words, and nothing that he did not list."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modeld.core.fitting import CTX_STEP, DEGRADED_CTX_MIN, fitted, largest_ctx
from modeld.core.memory import ROW_BYTES
from modeld.core.model import Degrade, FlashAttention, KvType, LaunchOptions, MemoryShape, ModelId, ModelSpec

LAYERS = 8


def model(*degrade: Degrade, layers: int = LAYERS, no_flash: bool = False, **options: object) -> ModelSpec:
    made = replace(LaunchOptions(ctx=16384, kv_type=KvType.F16), **options)  # type: ignore[arg-type]
    return ModelSpec(ModelId("m"), "/m", options=made, degrade=degrade, memory=MemoryShape(layers=layers, no_flash=no_flash))


def cost(spec: ModelSpec) -> float:
    """Context tokens times bytes per element, and 1,000 for each layer on the device."""
    elements, size = ROW_BYTES[spec.options.kv_type]
    ngl = spec.memory.layers + 1 if spec.options.ngl < 0 else min(spec.options.ngl, spec.memory.layers + 1)
    return spec.options.ctx * size / elements + 1000 * ngl


class Fits:
    """Whether it costs no more than so much. Notes what was asked about."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.asked: list[LaunchOptions] = []

    def __call__(self, spec: ModelSpec) -> bool:
        self.asked.append(spec.options)
        return cost(spec) <= self.most


def test_what_fits_is_left_alone() -> None:
    spec = model(Degrade.CTX, Degrade.KV_TYPE, Degrade.NGL)
    assert fitted(spec, Fits(1e9)) is spec


def test_nothing_is_given_up_that_is_not_listed() -> None:
    spec, fits = model(), Fits(100)
    assert fitted(spec, fits) is spec
    assert fits.asked == []


@pytest.mark.parametrize("most", [100, 9_000 + 2 * 300, 20_000, 9_000 + 2 * 16384 - 1, 9_000 + 2 * 16384, 1e9])
def test_the_largest_context_is_the_largest(most: float) -> None:
    """Compared with all of them tried one by one; in no more questions than a search by halves needs."""
    spec, fits = model(ctx_max=True), Fits(most)
    all_of_them = [
        ctx for ctx in range(CTX_STEP, 16384 + 1, CTX_STEP) if cost(replace(spec, options=replace(spec.options, ctx=ctx))) <= most
    ]
    assert fitted(spec, fits).options.ctx == max(all_of_them, default=CTX_STEP)
    assert len(fits.asked) <= 8


def test_a_context_that_is_no_multiple_of_the_step_is_taken_whole_where_it_fits() -> None:
    spec = model(ctx_max=True, ctx=1000, batch=1000)
    assert largest_ctx(spec, Fits(1e9)) == 1000
    smaller = fitted(spec, Fits(9_000 + 2 * 999))
    assert (smaller.options.ctx, smaller.options.batch, smaller.options.ubatch) == (768, 768, 512)
    assert largest_ctx(model(ctx_max=True, ctx=100), Fits(0)) == 100


def test_a_largest_context_is_no_degradation() -> None:
    assert fitted(model(Degrade.CTX, ctx_max=True), Fits(15_000)).degraded == ()


def test_ctx_is_halved_until_it_fits_and_no_further() -> None:
    spec = fitted(model(Degrade.CTX), Fits(9_000 + 2 * 4096))
    assert (spec.options.ctx, spec.degraded) == (4096, ("llama_ctx 16384 -> 4096",))
    fits = Fits(0)
    asked = model(Degrade.CTX)
    assert fitted(asked, fits) is asked  # 4: nothing is enough, and the refusal tells of what was asked for
    assert [options.ctx for options in fits.asked] == [16384, 8192, 4096, DEGRADED_CTX_MIN]


def test_a_context_that_is_small_already_is_not_made_smaller() -> None:
    fits = Fits(0)
    fitted(model(Degrade.CTX, ctx=DEGRADED_CTX_MIN), fits)
    assert len(fits.asked) == 1


@pytest.mark.parametrize(
    ("before", "tried"),
    [
        (KvType.F32, ["q8_0", "q4_0"]),
        (KvType.F16, ["q8_0", "q4_0"]),
        (KvType.Q8_0, ["q4_0"]),
        (KvType.Q5_0, ["q4_0"]),
        (KvType.Q4_1, ["q4_0"]),
        (KvType.Q4_0, []),
        (KvType.IQ4_NL, []),
    ],
)
def test_the_cache_takes_smaller_elements_only(before: KvType, tried: list[str]) -> None:
    fits = Fits(0)
    fitted(model(Degrade.KV_TYPE, kv_type=before), fits)
    assert [options.kv_type.value for options in fits.asked[1:]] == tried


@pytest.mark.parametrize("spec", [model(Degrade.KV_TYPE, flash_attn=FlashAttention.OFF), model(Degrade.KV_TYPE, no_flash=True)])
def test_the_cache_is_not_quantised_without_flash_attention(spec: ModelSpec) -> None:
    fits = Fits(0)
    assert fitted(spec, fits) is spec
    assert len(fits.asked) == 1


def test_layers_leave_the_device_one_by_one() -> None:
    spec = fitted(model(Degrade.NGL, ctx=256), Fits(512 + 6500))
    assert (spec.options.ngl, spec.degraded) == (6, ("llama_ngl -1 -> 6",))
    assert fitted(model(Degrade.NGL, ctx=256, ngl=3), Fits(512 + 2000)).options.ngl == 2


def test_the_steps_are_taken_in_the_operators_order_and_add_up() -> None:
    first_ctx = fitted(model(Degrade.CTX, Degrade.KV_TYPE, Degrade.NGL), Fits(9_000 + 2048 * 1.0625))
    assert first_ctx.degraded == ("llama_ctx 16384 -> 2048", "llama_kv_type f16 -> q8_0")
    first_type = fitted(model(Degrade.KV_TYPE, Degrade.CTX), Fits(9_000 + 8192 * 0.5625))
    assert first_type.degraded == ("llama_ctx 16384 -> 8192", "llama_kv_type f16 -> q4_0")
    only_type = fitted(model(Degrade.KV_TYPE, Degrade.CTX), Fits(9_000 + 16384 * 1.0625))
    assert only_type.degraded == ("llama_kv_type f16 -> q8_0",)
