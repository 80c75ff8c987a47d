# SPDX-License-Identifier: GPL-3.0-only
"""Models as Ollama's clients list them; rule: from the catalogue and a snapshot alone, and nothing is made up that is not known.

A digest is of what tells one version of the files from another (id, sizes, times), never of their content: that would take minutes.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

from modeld.api.ollama_out import rfc3339
from modeld.catalog.models import ModelTable
from modeld.core.lifecycle import State
from modeld.core.model import HOST, ModelKind, ModelSpec
from modeld.core.snapshot import InstanceView, Snapshot

MEBIBYTE: Final = 1 << 20
FOR_GOOD: Final = "2318-01-01T00:00:00Z"
"""When a model goes that nobody unloads: clients want a date, and Ollama says one in that year."""
_RUNS: Final = (State.READY, State.DRAINING)
_SCALES: Final = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


class OllamaDetails(Struct):
    """`parameter_size` is "" where the file does not say."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(Struct):
    """One model that can be served."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaTags(Struct):
    models: list[OllamaModel]


class OllamaShown(Struct):
    """One model in full. `parameters` are what it is started with; `model_info` what is known of its header."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaRunning(Struct):
    """One model that runs. Sizes are bytes by our estimate; `size_vram` is 0 where there is no GPU."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int | UnsetType = UNSET


class OllamaProcesses(Struct):
    models: list[OllamaRunning]


def tags(table: ModelTable, *, unknown: float) -> OllamaTags:
    """The models that can be served. `unknown` stands for the time of a file that is not ours, seconds since the epoch."""
    return OllamaTags(
        [
            OllamaModel(name, name, rfc3339(spec.modified_unix or unknown), spec.size_bytes, digest(spec), details(spec))
            for spec in table.models.values()
            if spec.unavailable is None
            for name in (table.ollama_name(spec),)
        ]
    )


def shown(table: ModelTable, spec: ModelSpec, *, unknown: float) -> OllamaShown:
    """One model; `unknown` as above."""
    started_with = [] if spec.external else [f"num_ctx {spec.options.ctx}"]
    return OllamaShown(
        f"FROM {table.ollama_name(spec)}\n",
        "\n".join(started_with),
        "",
        details(spec),
        _header(spec),
        capabilities(spec),
        rfc3339(spec.modified_unix or unknown),
    )


def processes(table: ModelTable, seen: Snapshot, *, now: float, unix: float, has_gpu: bool) -> OllamaProcesses:
    """What of the snapshot holds a model that answers. `now` is the snapshot's clock, `unix` the same moment since the epoch."""
    running = []
    for view in seen.instances:
        spec = table.models.get(view.model) or ModelSpec(view.model, "")  # it may have left the folder
        if view.state in _RUNS:
            name = table.ollama_name(spec)
            size_mb = sum(view.devices_mb.values())
            vram_mb = sum(held for device, held in view.devices_mb.items() if device != HOST) if has_gpu else 0
            running.append(
                OllamaRunning(
                    name,
                    name,
                    size_mb * MEBIBYTE,
                    digest(spec),
                    details(spec),
                    _expires(view, spec, unix - now),
                    vram_mb * MEBIBYTE,
                    UNSET if spec.external else (view.options or spec.options).ctx,
                )
            )
    return OllamaProcesses(running)


def digest(spec: ModelSpec) -> str:
    """64 hexadecimal digits that stay the same as long as the files do."""
    return hashlib.sha256(f"{spec.id}\0{spec.fingerprint}".encode()).hexdigest()


def details(spec: ModelSpec) -> OllamaDetails:
    size = _scaled(spec.parameters) or spec.size_label
    return OllamaDetails("", "gguf", spec.family, [spec.family] if spec.family else [], size, spec.quant)


def capabilities(spec: ModelSpec) -> list[str]:
    """Ollama's words for what a model can do. Whether it thinks no header says."""
    match spec.kind:
        case ModelKind.EMBED:
            return ["embedding"]
        case ModelKind.RERANK:
            return []
        case ModelKind.GENERATE:
            able = [("tools", spec.takes_tools), ("vision", "image" in spec.modalities), ("audio", "audio" in spec.modalities)]
            return ["completion", *(word for word, yes in able if yes)]


def _header(spec: ModelSpec) -> dict[str, Any]:
    """By the keys of GGUF, those that are known."""
    family = spec.family
    known: dict[str, Any] = {
        "general.architecture": family,
        "general.basename": spec.name,
        "general.parameter_count": spec.parameters,
        "general.size_label": spec.size_label,
        f"{family}.context_length": spec.ctx_train,
        f"{family}.embedding_length": spec.embedding_length,
        f"{family}.block_count": spec.memory.layers,
        f"{family}.attention.head_count_kv": spec.memory.heads_kv,
        f"{family}.attention.key_length": spec.memory.key_length,
        f"{family}.attention.value_length": spec.memory.value_length,
        f"{family}.vocab_size": spec.vocabulary,
    }
    return {key: value for key, value in known.items() if value and not key.startswith(".")}


def _expires(view: InstanceView, spec: ModelSpec, offset: float) -> str:
    """When its ttl unloads it. One that is evicted goes earlier: nobody knows when."""
    if spec.ttl_seconds is None or view.pinned or view.kept_until == math.inf:
        return FOR_GOOD
    return rfc3339(max(view.last_used + spec.ttl_seconds, view.kept_until) + offset)


def _scaled(count: int) -> str:
    """134515008 -> "134.5M": three or four digits, as Ollama writes it."""
    for unit, letter in _SCALES:
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return str(count) if count else ""
