# SPDX-License-Identifier: GPL-3.0-only
"""The operator's verbs over HTTP, with the real driver and scheduler behind them and hands that do as the test tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from api.edge import Edge, running
from core.play import spec
from modeld.catalog.models import ModelTable
from modeld.core.messages import (
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    LaunchRejected,
    MemoryFreed,
    ModelTableReplaced,
    SettingsReplaced,
    ShutdownRequested,
)
from modeld.core.model import LOCAL, InstanceId, Limits, ModelId, ModelSpec
from modeld.errors import LoadFailed
from runtime.test_driver import Stage

A, B = ModelId("a"), ModelId("b")
ONE = InstanceId("1/a")
MODELS = {
    one.id: one
    for one in (
        spec("a", 100),
        spec("b", 100, aliases=("bee",)),
        spec("torn", 10, unavailable="the file is cut short"),
        spec("far", 0, external=True),
        spec("huge", 1000),
    )
}


@dataclass
class House:
    edge: Edge
    stage: Stage

    async def ask(self, verb: str, model: str = "a", query: str = "") -> httpx.Response:
        return await self.edge.client.post(f"/models/{model}/{verb}{query}")

    async def told(self, verb: str, model: str = "a", query: str = "") -> tuple[int, str, bool]:
        """Status, state and pinned."""
        answer = await self.ask(verb, model, query)
        body = answer.json()
        assert body["model_id"] == {"bee": "b"}.get(model, model)
        return answer.status_code, body["state"], body["pinned"]

    async def begun(self, group: asyncio.TaskGroup, verb: str, model: str = "a") -> asyncio.Task[httpx.Response]:
        """Ask, and return when the driver is being watched for the answer."""
        count = len(self.stage.driver._watchers)
        task = group.create_task(self.ask(verb, model))
        await eventually(lambda: len(self.stage.driver._watchers) > count)
        return task


async def eventually(holds: Callable[[], object]) -> None:
    for _ in range(5000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    stage = Stage()
    stage.driver.post(ModelTableReplaced(MODELS))
    async with running(tmp_path, driver=stage.driver, table=lambda: ModelTable(MODELS)) as edge:
        yield House(edge, stage)
        await eventually(lambda: not stage.driver._watchers)
    stage.driver.close()
    assert stage.fatal == []


# --- load -------------------------------------------------------------------------------------------------------------


async def test_a_load_answers_when_the_model_is_ready(house: House):
    house.stage.hands.ready = False
    async with asyncio.TaskGroup() as group:
        task = await house.begun(group, "load")
        await asyncio.sleep(0.01)
        assert not task.done()
        house.stage.driver.post(InstanceReady(ONE, pid=1))
    assert (task.result().status_code, task.result().json()) == (
        200,
        {"model_id": "a", "state": "ready", "pinned": False, "instance_id": "1/a"},
    )


async def test_a_load_of_what_is_loaded_answers_at_once(house: House):
    assert await house.told("load") == await house.told("load") == (200, "ready", False)
    assert house.stage.hands.told == ["start 1/a"]


async def test_a_load_need_not_be_waited_for(house: House):
    house.stage.hands.ready = False
    assert await house.told("load", query="?wait=0") == (202, "loading", False)
    house.stage.driver.post(InstanceReady(ONE))
    assert await house.told("load", query="?wait=0") == (200, "ready", False)


async def test_names_are_those_of_everywhere_and_bodies_may_be_there(house: House):
    assert await house.told("load", "bee") == (200, "ready", False)
    for body in ({"json": {}}, {"content": b""}, {"content": b"", "headers": {"content-type": "application/json"}}):
        assert (await house.edge.client.post("/models/b/load", **body)).status_code == 200  # type: ignore[arg-type]
    wrong = await house.ask("load", "aa")
    assert (wrong.status_code, wrong.json()["kind"]) == (404, "unknown_model")


@pytest.mark.parametrize("media", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("verb", ["load", "unload", "pin", "unpin"])
async def test_a_form_of_a_page_cannot_reach_them(house: House, verb: str, media: str):
    for body in (b"", b"a=b"):
        answer = await house.edge.client.post(f"/models/a/{verb}", content=body, headers={"content-type": media})
        assert answer.status_code == 415
    assert (await house.edge.client.post(f"/models/a/{verb}", headers={"origin": "https://evil.example"})).status_code == 403
    assert (await house.edge.client.get(f"/models/a/{verb}")).status_code == 405
    assert house.stage.driver.snapshot().instances == ()


async def test_what_cannot_be_loaded_says_why(house: House):
    for model, status, kind in (("torn", 503, "model_unavailable"), ("huge", 507, "cannot_ever_fit")):
        for query in ("", "?wait=0"):
            answer = await house.ask("load", model, query)
            assert (answer.status_code, answer.json()["kind"]) == (status, kind)
    assert "1000 MB" in (await house.ask("load", "huge")).json()["error"]
    assert (await house.ask("load", "a", "?wait=maybe")).status_code == 400


async def test_a_load_that_fails_is_answered_with_its_error(house: House):
    house.stage.hands.ready = False
    async with asyncio.TaskGroup() as group:
        task = await house.begun(group, "load")
        house.stage.driver.post(InstanceFailed(ONE, LoadFailed("the file is damaged")))
        house.stage.driver.post(InstanceExited(ONE, code=1))
        house.stage.driver.post(MemoryFreed(ONE))
    assert (task.result().status_code, task.result().json()["error"]) == (502, "the file is damaged")


async def test_a_launch_that_is_rejected_is_answered_with_its_error(house: House, monkeypatch: pytest.MonkeyPatch):
    def reject(one: ModelSpec) -> None:
        house.stage.driver.post(LaunchRejected(one.id, one.fingerprint, LoadFailed("no such flag")))

    monkeypatch.setattr(house.stage.hands, "check", reject)
    answer = await house.ask("load")
    assert (answer.status_code, answer.json()["error"]) == (502, "no such flag")


async def test_a_load_waits_for_room_and_may_be_called_off(house: House):
    house.stage.hands.ready = False
    async with asyncio.TaskGroup() as group:
        first = await house.begun(group, "load")
        second = await house.begun(group, "load", "b")
        assert await house.told("load", "b", "?wait=0") == (202, "waiting", False)
        assert await house.told("unload", "b") == (200, "unloaded", False)
        house.stage.driver.post(InstanceReady(ONE))
    assert first.result().status_code == 200
    assert (second.result().status_code, second.result().json()["kind"]) == (503, "unloaded")


async def test_a_load_while_the_old_instance_ends_answers_for_the_new_one(house: House, monkeypatch: pytest.MonkeyPatch):
    await house.ask("load")
    monkeypatch.setattr(house.stage.hands, "stop", lambda *_: None)
    assert await house.told("unload", query="?wait=0") == (202, "stopping", False)
    async with asyncio.TaskGroup() as group:
        task = await house.begun(group, "load")
        house.stage.driver.post(InstanceExited(ONE, code=0))
        house.stage.driver.post(MemoryFreed(ONE))
    assert task.result().json()["instance_id"] == "2/a"


async def test_a_load_takes_the_room_of_who_is_idle(house: House):
    limits = Limits(budget_mb={LOCAL: 150}, min_residency_seconds=0.0)
    house.stage.driver.post(SettingsReplaced(limits))
    await house.ask("load", "a")
    assert await house.told("load", "b") == (200, "ready", False)
    assert house.stage.hands.told == ["start 1/a", "stop 1/a evicted for b", "start 2/b"]


async def test_the_shutdown_ends_who_waits_and_turns_others_away(house: House):
    house.stage.hands.ready = False
    async with asyncio.TaskGroup() as group:
        task = await house.begun(group, "load")
        house.stage.driver.post(ShutdownRequested())
    assert (task.result().status_code, task.result().json()["kind"]) == (503, "draining")
    for verb in ("load", "unload", "pin", "unpin"):
        assert (await house.ask(verb)).status_code == 503


async def test_who_leaves_is_forgotten_and_the_load_goes_on(house: House):
    house.stage.hands.ready = False
    async with asyncio.TaskGroup() as group:
        task = await house.begun(group, "load")
        task.cancel()
    await eventually(lambda: not house.stage.driver._watchers)
    house.stage.driver.post(InstanceReady(ONE))
    assert house.stage.driver.snapshot().instances[0].state == "ready"


# --- unload -----------------------------------------------------------------------------------------------------------


async def test_an_unload_answers_when_the_memory_is_free(house: House, monkeypatch: pytest.MonkeyPatch):
    await house.ask("load")
    monkeypatch.setattr(house.stage.hands, "stop", lambda *_: None)
    async with asyncio.TaskGroup() as group:
        task = await house.begun(group, "unload")
        house.stage.driver.post(InstanceExited(ONE, code=0))
        await asyncio.sleep(0.01)
        assert not task.done()
        house.stage.driver.post(MemoryFreed(ONE))
    assert task.result().json() == {"model_id": "a", "state": "unloaded", "pinned": False, "instance_id": None}


async def test_an_unload_of_what_is_not_loaded_is_done(house: House):
    assert await house.told("unload") == (200, "unloaded", False)
    assert await house.told("unload", query="?wait=0") == (200, "unloaded", False)


async def test_an_unload_while_it_loads_stops_it(house: House):
    house.stage.hands.ready = False
    async with asyncio.TaskGroup() as group:
        load = await house.begun(group, "load")
        assert await house.told("unload") == (200, "unloaded", False)
    assert (load.result().status_code, load.result().json()["kind"]) == (503, "unloaded")


async def test_what_runs_elsewhere_is_not_ours_to_unload(house: House):
    answer = await house.ask("unload", "far")
    assert (answer.status_code, "llama_url" in answer.json()["error"]) == (400, True)


# --- pin --------------------------------------------------------------------------------------------------------------


async def test_a_pin_loads_nothing_and_is_taken_back_by_an_unpin(house: House):
    assert await house.told("pin") == (200, "unloaded", True)
    assert house.stage.hands.told == []
    await house.ask("load")
    status = (await house.edge.client.get("/status")).json()
    assert [one["pinned"] for one in status["instances"]] == [True]
    assert await house.told("unpin") == (200, "ready", False)


async def test_a_pin_too_many_is_refused_with_the_numbers(house: House):
    await house.ask("pin")
    answer = await house.ask("pin", "b")
    assert (answer.status_code, answer.json()["kind"]) == (507, "cannot_ever_fit")
    assert "together they need 200 MB, 150 MB can be had" in answer.json()["error"]
    assert house.stage.driver.snapshot().pinned == {A}


async def test_what_cannot_be_served_cannot_be_pinned(house: House):
    assert (await house.ask("pin", "torn")).status_code == 503
    assert (await house.told("unpin", "torn"))[0] == 200
