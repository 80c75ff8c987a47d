# SPDX-License-Identifier: GPL-3.0-only
"""Combinations that cannot work; rule: each finding names one key, its value and what it collides with, most telling first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modeld.config.amounts import CtxMax, show_amount
from modeld.config.engine_flags import refused_flag
from modeld.config.settings import AdapterName, Settings, plain_id
from modeld.config.values import show_bytes, show_duration
from modeld.core.model import FlashAttention, KvType

UNQUANTISED = (KvType.F32, KvType.F16, KvType.BF16)


@dataclass(frozen=True, slots=True)
class Finding:
    """`text` continues a sentence that begins with the value of `key`; `other` is the key it collides with."""

    key: str
    value: object
    text: str
    other: str = ""


def findings(settings: Settings) -> Iterator[Finding]:
    """All that cannot work, in the order of the docs."""
    yield from _limits(settings)
    yield from _engine(settings)
    yield from _launch(settings, "", "")
    for name in settings.models:
        yield from _launch(settings, name, f"models.{name}.")
    yield from _models(settings)
    yield from _logs(settings)
    if settings.cors_enabled and not settings.cors_allowed_origins:
        yield Finding("cors_enabled", True, "allows nobody: cors_allowed_origins is empty", "cors_allowed_origins")


def _limits(settings: Settings) -> Iterator[Finding]:
    budget, margin = settings.vram_budget_mb, settings.vram_margin_mb
    amounts = list(budget.values()) if isinstance(budget, Mapping) else [budget]
    if budget is not None and any(amount and margin >= amount for amount in amounts):
        yield Finding("vram_margin_mb", margin, f"leaves no room in vram_budget_mb = {show_amount(budget)}", "vram_budget_mb")
    if settings.stop_grace > settings.shutdown_timeout:
        whole = show_duration(settings.shutdown_timeout)
        yield Finding("stop_grace", show_duration(settings.stop_grace), f"is longer than shutdown_timeout = {whole}", "shutdown_timeout")
    for key in ("max_api_body_bytes", "max_body_bytes"):
        largest = getattr(settings, key)
        if settings.max_waiting_body_bytes < largest:
            held = show_bytes(settings.max_waiting_body_bytes)
            yield Finding("max_waiting_body_bytes", held, f"is less than one body may have: {key} = {show_bytes(largest)}", key)


def _logs(settings: Settings) -> Iterator[Finding]:
    if settings.trace_file is not None and settings.trace_file.is_dir():
        yield Finding("trace_file", str(settings.trace_file), "is a folder; name a file in it")


def _engine(settings: Settings) -> Iterator[Finding]:
    if settings.adapter is AdapterName.EXTERNAL and settings.llama_url is None:
        yield Finding("adapter", "external", "needs llama_url, the address of the server", "llama_url")
    used = settings.adapter is AdapterName.LLAMA_SERVER or (settings.adapter is None and settings.llama_url is None)
    if used and settings.llama_bin is not None and (wrong := _not_runnable(settings.llama_bin)):
        yield Finding("llama_bin", str(settings.llama_bin), wrong)


def _not_runnable(path: Path) -> str | None:
    if not path.exists():
        return "does not exist"
    if not path.is_file():
        return "is not a file"
    return None if os.access(path, os.X_OK) else "is not executable"


def _launch(settings: Settings, name: str, prefix: str) -> Iterator[Finding]:
    """The llama_* values as they meet for one model, or (no name) for all that say nothing of their own."""

    def own(key: str) -> str:
        return prefix + key if prefix and key in settings.for_model(name).said else key

    def blamed(key: str, other: str) -> tuple[str, str] | None:
        """The pair of keys, the model's own first; None when neither is its own: then the pair for all was reported."""
        pair = own(key), own(other)
        if prefix and not any(part.startswith(prefix) for part in pair):
            return None
        return pair if not prefix or pair[0].startswith(prefix) else (pair[1], pair[0])

    values = {key: settings.effective(name, key) if name else getattr(settings, key) for key in _PAIRED}
    batch, ubatch = values["llama_batch"], values["llama_ubatch"]
    if batch is not None and ubatch is not None and ubatch > batch and (keys := blamed("llama_ubatch", "llama_batch")):
        yield _pair(keys, values, "is more than" if keys[0].endswith("llama_ubatch") else "is less than")
    ctx, parallel = values["llama_ctx"], values["llama_parallel"]
    if isinstance(ctx, CtxMax):
        ctx = ctx.cap or None
    if ctx is not None and parallel is not None and parallel > ctx and (keys := blamed("llama_parallel", "llama_ctx")):
        yield _pair(keys, values, "has less than one token for each slot with")
    kv_type, flash = values["llama_kv_type"], values["llama_flash_attn"]
    if kv_type not in (None, *UNQUANTISED) and flash is FlashAttention.OFF and (keys := blamed("llama_kv_type", "llama_flash_attn")):
        yield _pair(keys, values, "does not work with")
    args = settings.for_model(name).llama_extra_args if prefix else settings.llama_extra_args
    if wrong := refused_flag(args):
        yield Finding(prefix + "llama_extra_args", None, wrong)


_PAIRED = ("llama_batch", "llama_ubatch", "llama_ctx", "llama_parallel", "llama_kv_type", "llama_flash_attn")


def _pair(keys: tuple[str, str], values: dict[str, object], verb: str) -> Finding:
    first, second = (str(values[key.rpartition(".")[2]]) for key in keys)
    return Finding(keys[0], first, f"{verb} {keys[1]} = {second}", keys[1])


def _models(settings: Settings) -> Iterator[Finding]:
    names: dict[str, str] = {}
    for name, entry in settings.models.items():
        if entry.pinned and entry.ttl is not None:
            yield Finding(f"models.{name}.ttl", show_duration(entry.ttl), "contradicts pinned = true: a pinned model stays loaded")
        for alias in entry.aliases:
            taken = "is the model's own name" if plain_id(alias) == name else None
            if taken is None and plain_id(alias) in settings.models:
                taken = f"is the name of the model {plain_id(alias)}"
            if taken is None and alias in names:
                taken = f"is an alias of the model {names[alias]} already" if names[alias] != name else "stands there twice"
            if taken:
                yield Finding(f"models.{name}.aliases", alias, taken)
            names[alias] = name
    yield from _pins(settings)


def _pins(settings: Settings) -> Iterator[Finding]:
    """Those whose size was declared, against a budget that was: the rest is known when the machine has been looked at."""
    budget = settings.vram_budget_mb
    amounts = list(budget.values()) if isinstance(budget, Mapping) else [budget or 0]
    room = sum(amount - settings.vram_margin_mb for amount in amounts)
    pinned = {name: entry.vram_mb for name, entry in settings.models.items() if entry.pinned and entry.vram_mb}
    total = sum(pinned.values())
    if all(amounts) and total > room:
        last = next(reversed(pinned))
        text = f"makes the pinned models need {total} MiB, more than vram_budget_mb - vram_margin_mb = {room}"
        yield Finding(f"models.{last}.vram_mb", pinned[last], text, "vram_budget_mb")
