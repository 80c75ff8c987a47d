# SPDX-License-Identifier: GPL-3.0-only
"""The operator's verbs: load, unload, pin and unpin a model; rule: post the event, and say what came of it.

A load belongs to the daemon: who asked for it may leave, it goes on. It waits for room as any model does, and takes it only from models
that are idle. An unload lets running answers end, up to drain_timeout; requests that wait load the model again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING

from modeld.api.relay import Relay
from modeld.api.route import Call, Parameter, Reply, Route, Scope
from modeld.api.schemas import ModelState, encode
from modeld.core.admission import gone
from modeld.core.changes import Change, InstanceMoved, WishDropped
from modeld.core.lifecycle import State
from modeld.core.messages import LoadRequested, PinChanged, UnloadRequested
from modeld.core.model import InstanceId, ModelId, ModelSpec
from modeld.core.snapshot import InstanceView, Snapshot
from modeld.errors import BadRequest, ClientGone, Draining, ModeldError, Unloaded

if TYPE_CHECKING:
    from modeld.runtime.driver import Driver

log = logging.getLogger("modeld.admin")

UNLOADED, WAITING = "unloaded", "waiting"
"""States of a model without an instance: nobody wants it; it is to be loaded and waits for its check or for room."""
_WAIT = Parameter("wait", "query", "0: answer at once (202), 1: when it is done.", {"type": "integer", "enum": [0, 1]})


class Moves:
    """What happens to one model while somebody waits for it."""

    def __init__(self, model: ModelId) -> None:
        self.error: ModeldError | None = None
        """Why the last load came to nothing."""
        self.moved = asyncio.Event()
        self._model = model

    def take(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, InstanceMoved | WishDropped) and change.model == self._model:
                self.error = change.error or self.error
                self.moved.set()


class Admin:
    """The handlers."""

    def __init__(self, relay: Relay, driver: Driver) -> None:
        self._relay = relay
        self._driver = driver

    def routes(self) -> list[Route]:
        def verb(name: str, summary: str, handler: Callable[[Call], object], *parameters: Parameter) -> Route:
            return Route(
                "POST",
                f"/models/{{id}}/{name}",
                Scope.ADMIN,
                summary,
                handler,  # type: ignore[arg-type]  # all of them are handlers
                answer=ModelState,
                parameters=parameters,
                small_body=True,
                body_optional=True,
                may_be_accepted=bool(parameters),
            )

        return [
            verb("load", "Load a model. Answers when it is ready, or says why it is not.", self.load, _WAIT),
            verb("unload", "Unload a model. Answers when its memory is free.", self.unload, _WAIT),
            verb("pin", "Keep a model from eviction. Does not load it.", self.pin),
            verb("unpin", "Let a model be evicted again.", self.unpin),
        ]

    async def load(self, call: Call) -> Reply:
        """200 when it is ready; 202 with wait=0. Raises what the load failed with, or why it can never be."""
        wait, spec = _waits(call), await self._open(call)
        if (absent := gone(spec.id, spec)) is not None:
            raise absent
        async with self._following(call, spec.id) as moves:
            log.info("load of %s asked for by request %s", spec.id, call.id)
            self._driver.post(LoadRequested(spec.id))
            while True:
                seen = self._seen()
                view = _instance(seen, spec.id)
                if view is not None and view.state == State.READY:
                    return self._reply(spec.id, 200)
                if spec.id not in seen.wished:
                    raise copy(moves.error) if moves.error is not None else _called_off(seen, spec.id)
                if not wait:
                    return self._reply(spec.id, 202)
                await _next(call, moves)

    async def unload(self, call: Call) -> Reply:
        """200 when the instance that was there is gone, also when there was none; 202 with wait=0."""
        wait, spec = _waits(call), await self._open(call)
        if spec.external:
            raise BadRequest(f'model "{spec.id}" runs on the server at llama_url: unload it there')
        view = _instance(self._seen(), spec.id)
        async with self._following(call, spec.id) as moves:
            log.info("unload of %s asked for by request %s", spec.id, call.id)
            self._driver.post(UnloadRequested(spec.id))
            while view is not None and _is_there(self._seen(), view.id):
                if not wait:
                    return self._reply(spec.id, 202)
                await _next(call, moves)
        return self._reply(spec.id, 200)

    async def pin(self, call: Call) -> Reply:
        """Raises CannotEverFit, with the numbers, when the pinned models would not fit together."""
        spec = await self._open(call)
        if (refusal := self._driver.pin_refusal(spec.id)) is not None:
            raise refusal
        return self._pinned(call, spec, pinned=True)

    async def unpin(self, call: Call) -> Reply:
        return self._pinned(call, await self._open(call), pinned=False)

    def _pinned(self, call: Call, spec: ModelSpec, *, pinned: bool) -> Reply:
        log.info("%s of %s asked for by request %s", "pin" if pinned else "unpin", spec.id, call.id)
        self._driver.post(PinChanged(spec.id, pinned))
        return self._reply(spec.id, 200)

    # --- what they share ----------------------------------------------------------------------------------------------

    async def _open(self, call: Call) -> ModelSpec:
        """The model that is named. Raises UnknownModel, Draining."""
        spec = await self._relay.resolve(call, call.values["id"])
        call.model = spec.id
        if self._seen().shutting_down:
            raise Draining("modeld is shutting down; try again when it is back", retry_after_seconds=5)
        return spec

    def _seen(self) -> Snapshot:
        return self._driver.snapshot(estimates=False)

    @asynccontextmanager
    async def _following(self, call: Call, model: ModelId) -> AsyncIterator[Moves]:
        moves = Moves(model)
        stop = self._driver.watch(moves.take)
        call.connection.on_disconnect(moves.moved.set)
        try:
            yield moves
        finally:
            stop()

    def _reply(self, model: ModelId, status: int) -> Reply:
        seen = self._seen()
        view = _instance(seen, model)
        state = view.state if view is not None else WAITING if model in seen.wished else UNLOADED
        return Reply(status, encode(ModelState(model, state, pinned=model in seen.pinned, instance_id=None if view is None else view.id)))


async def _next(call: Call, moves: Moves) -> None:
    """Until something has happened to the model. Raises ClientGone."""
    await moves.moved.wait()
    moves.moved.clear()
    if call.connection.disconnected:
        raise ClientGone("the client left")


def _instance(seen: Snapshot, model: ModelId) -> InstanceView | None:
    """The one that has, or had, a process; a launch that was rejected has none."""
    return next((view for view in seen.instances if view.model == model and not view.id.startswith("0/")), None)


def _is_there(seen: Snapshot, instance: InstanceId) -> bool:
    return any(view.id == instance for view in seen.instances)


def _called_off(seen: Snapshot, model: ModelId) -> ModeldError:
    if seen.shutting_down:
        return Draining("modeld is shutting down; try again when it is back", retry_after_seconds=5)
    return Unloaded(f'"{model}" was unloaded while it was to be loaded')


def _waits(call: Call) -> bool:
    asked = call.asked_of("wait")
    if asked not in (None, "0", "1"):
        raise BadRequest("wait: write wait=0 to be answered at once, wait=1 (or nothing) when it is done")
    return asked != "0"
