# SPDX-License-Identifier: GPL-3.0-only
"""/plan and /footprints over a real socket."""

from __future__ import annotations

import pytest

from api.edge import Edge
from modeld.api.plans import MODELS_MAX
from modeld.core.footprint import MIB, Footprint, Learned, Source
from modeld.core.model import ModelId


async def test_a_plan_names_each_model_and_each_device(edge: Edge) -> None:
    answer = await edge.client.get("/plan?model=small&model=torn")  # an alias, and an id without its ending
    assert answer.status_code == 200
    plan = answer.json()
    assert [(one["model_id"], one["verdict"]) for one in plan["models"]] == [("tiny.gguf", "fits"), ("torn.gguf", "unavailable")]
    first = plan["models"][0]
    assert sum(part["bytes"] for part in first["parts"]) <= first["need_mb"] * MIB
    assert first["devices_mb"] == {"local/all": first["need_mb"]}
    assert plan["devices"] == [
        {"id": "local/all", "budget_mb": 1000, "room_mb": 1000, "foreign_mb": 0, "held_mb": {"tiny.gguf": first["need_mb"]}}
    ]
    assert (plan["named"], plan["fits"], plan["together"]) == (True, True, ["tiny.gguf"])


async def test_without_names_every_model_is_told(edge: Edge) -> None:
    plan = (await edge.client.get("/plan")).json()
    assert ([one["model_id"] for one in plan["models"]], plan["named"]) == (["tiny.gguf", "torn.gguf"], False)


@pytest.mark.parametrize(
    ("query", "status", "kind"), [("model=nobody", 404, "unknown_model"), ("&".join(["model=tiny"] * (MODELS_MAX + 1)), 400, "bad_request")]
)
async def test_names_that_make_no_sense_are_refused(edge: Edge, query: str, status: int, kind: str) -> None:
    answer = await edge.client.get(f"/plan?{query}")
    assert (answer.status_code, answer.json()["kind"]) == (status, kind)


async def test_as_many_names_as_are_allowed_pass(edge: Edge) -> None:
    answer = await edge.client.get("/plan?" + "&".join(["model=tiny"] * MODELS_MAX))
    assert [one["model_id"] for one in answer.json()["models"]] == ["tiny.gguf"]


async def test_footprints_tell_prediction_and_truth(edge: Edge) -> None:
    measured = Footprint({"CUDA0": 90 * MIB}, 10 * MIB)
    edge.driver.learned = (
        Learned(ModelId("a.gguf"), measured, predicted_bytes=102 * MIB, source=Source.PROBED, launch="ctx 4096", loads=3, seen_unix=7.5),
        Learned(ModelId("b.gguf"), None, least_bytes=5 * MIB),
    )
    answer = await edge.client.get("/footprints")
    first, second = answer.json()["footprints"]
    assert first == {
        "model_id": "a.gguf",
        "launch": "ctx 4096",
        "predicted_bytes": 102 * MIB,
        "source": "probed",
        "measured_bytes": 100 * MIB,
        "error": 0.02,
        "devices_bytes": {"CUDA0": 90 * MIB},
        "host_bytes": 10 * MIB,
        "least_bytes": 0,
        "loads": 3,
        "last_seen_unix": 7,
    }
    assert (second["error"], second["measured_bytes"], second["least_bytes"]) == (None, 0, 5 * MIB)


async def test_nothing_learned_is_an_empty_list(edge: Edge) -> None:
    assert (await edge.client.get("/footprints")).json() == {"footprints": []}
