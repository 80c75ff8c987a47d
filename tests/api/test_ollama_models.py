# SPDX-License-Identifier: GPL-3.0-only
"""Models as Ollama's clients list them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from modeld.api.ollama_models import FOR_GOOD, capabilities, details, digest, processes, shown, tags
from modeld.catalog.models import ModelTable
from modeld.core.lifecycle import State
from modeld.core.model import HOST, LOCAL, InstanceId, LaunchOptions, MemoryShape, ModelId, ModelKind, ModelSpec
from modeld.core.snapshot import InstanceView, Snapshot

UNIX = 1767323045.5
WHEN = "2026-01-02T03:04:05.500000Z"
SPEC = ModelSpec(
    ModelId("Tiny-Q4_1.gguf"),
    "/models/Tiny-Q4_1.gguf",
    size_bytes=98_000_000,
    fingerprint="f1",
    name="Tiny",
    family="llama",
    quant="Q4_1",
    ctx_train=2048,
    memory=MemoryShape(layers=2, heads_kv=3, key_length=64, value_length=64),
    options=LaunchOptions(ctx=1024),
    ttl_seconds=60,
    parameters=134_515_008,
    embedding_length=576,
    vocabulary=49_152,
    takes_tools=True,
    modified_unix=UNIX,
)
TORN = ModelSpec(ModelId("torn.gguf"), "/models/torn.gguf", unavailable="it is cut short")
AWAY = ModelSpec(ModelId("away"), "", external=True)


def table(*specs: ModelSpec) -> ModelTable:
    return ModelTable({spec.id: spec for spec in specs})


def view(state: State = State.READY, *, model: str = SPEC.id, **more: Any) -> InstanceView:
    usual: dict[str, Any] = {
        "id": InstanceId("1/x"), "model": ModelId(model), "state": state, "need_mb": 100, "slots": 4, "inflight": 0, "last_used": 40.0,
        "pid": 7, "progress": 1.0, "external": False, "devices_mb": {LOCAL: 100, HOST: 11},
    }  # fmt: skip
    return InstanceView(**(usual | more))


def running(*views: InstanceView, specs: tuple[ModelSpec, ...] = (SPEC,), has_gpu: bool = True) -> Any:
    seen = Snapshot(views, (), (), 0, 0, 0, 32, 0, 0, 0, 0, 0, False, None, None)
    return processes(table(*specs), seen, now=100.0, unix=UNIX + 60, has_gpu=has_gpu).models


def test_a_list_names_what_can_be_served() -> None:
    tiny, away = tags(table(SPEC, TORN, AWAY), unknown=UNIX - 0.5).models
    assert (tiny.name, tiny.model, tiny.size, tiny.modified_at) == ("Tiny:Q4_1", "Tiny:Q4_1", 98_000_000, WHEN)
    assert (away.name, away.modified_at) == ("away:latest", "2026-01-02T03:04:05.000000Z")


def test_details() -> None:
    seen = details(SPEC)
    assert (seen.format, seen.family, seen.families, seen.quantization_level) == ("gguf", "llama", ["llama"], "Q4_1")
    assert seen.parameter_size == "134.5M"
    assert (details(AWAY).families, details(AWAY).parameter_size) == ([], "")


@pytest.mark.parametrize(
    ("count", "label", "text"), [(0, "7B", "7B"), (8_030_261_312, "8B", "8.0B"), (999, "", "999"), (1_200_000_000_000, "", "1.2T")]
)
def test_sizes_in_words(count: int, label: str, text: str) -> None:
    assert details(replace(SPEC, parameters=count, size_label=label)).parameter_size == text


def test_a_digest_is_of_one_version_of_one_model() -> None:
    ours = digest(SPEC)
    assert len(ours) == 64
    assert ours == digest(replace(SPEC, name="another"))
    assert len({ours, digest(replace(SPEC, fingerprint="f2")), digest(replace(SPEC, id=ModelId("b.gguf")))}) == 3


@pytest.mark.parametrize(
    ("change", "able"),
    [
        ({}, ["completion", "tools"]),
        ({"takes_tools": False, "modalities": ("text", "image", "audio")}, ["completion", "vision", "audio"]),
        ({"kind": ModelKind.EMBED}, ["embedding"]),
        ({"kind": ModelKind.RERANK}, []),
    ],
)
def test_what_a_model_can_do(change: dict[str, Any], able: list[str]) -> None:
    assert capabilities(replace(SPEC, **change)) == able


def test_one_model_in_full() -> None:
    seen = shown(table(SPEC), SPEC, unknown=0)
    assert (seen.modelfile, seen.parameters, seen.modified_at) == ("FROM Tiny:Q4_1\n", "num_ctx 1024", WHEN)
    assert seen.model_info == {
        "general.architecture": "llama",
        "general.basename": "Tiny",
        "general.parameter_count": 134_515_008,
        "llama.context_length": 2048,
        "llama.embedding_length": 576,
        "llama.block_count": 2,
        "llama.attention.head_count_kv": 3,
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 64,
        "llama.vocab_size": 49_152,
    }
    bare = shown(table(AWAY), AWAY, unknown=UNIX)
    assert (bare.parameters, bare.model_info, bare.modified_at) == ("", {}, WHEN)


def test_what_runs_and_for_how_long() -> None:
    (one,) = running(view())
    assert (one.name, one.model, one.size, one.size_vram, one.context_length) == ("Tiny:Q4_1", "Tiny:Q4_1", 111 << 20, 100 << 20, 1024)
    assert one.expires_at == "2026-01-02T03:05:05.500000Z"  # last used 60 s ago, by which time the ttl is over
    assert running(view(), has_gpu=False)[0].size_vram == 0


@pytest.mark.parametrize(
    ("more", "ttl", "expires"),
    [
        ({"kept_until": 160.0}, 60, "2026-01-02T03:06:05.500000Z"),
        ({"kept_until": 50.0}, 60, "2026-01-02T03:05:05.500000Z"),
        ({"kept_until": math.inf}, 60, FOR_GOOD),
        ({"pinned": True}, 60, FOR_GOOD),
        ({}, None, FOR_GOOD),
    ],
)
def test_who_stays_longer(more: dict[str, Any], ttl: float | None, expires: str) -> None:
    assert running(view(**more), specs=(replace(SPEC, ttl_seconds=ttl),))[0].expires_at == expires


def test_only_what_answers_is_listed() -> None:
    assert running(view(State.LOADING), view(State.FAILED), view(State.STOPPING)) == []
    assert len(running(view(State.DRAINING))) == 1


def test_a_model_that_left_the_folder_runs_still() -> None:
    (one,) = running(view(model="gone.gguf"), specs=())
    assert (one.name, one.size, one.expires_at) == ("gone.gguf", 111 << 20, FOR_GOOD)
