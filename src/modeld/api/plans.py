# SPDX-License-Identifier: GPL-3.0-only
"""What would be, and what was learned: /plan and /footprints; rule: the scheduler's own arithmetic is read and translated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from msgspec import Struct

from modeld.api.route import Call, Parameter, Reply, Route, Scope
from modeld.api.schemas import encode
from modeld.core import whatif
from modeld.core.footprint import Learned
from modeld.errors import BadRequest

if TYPE_CHECKING:
    from modeld.catalog.models import ModelTable
    from modeld.runtime.driver import Driver

MODELS_MAX: Final = 64
"""So many models may be named in one question."""


class PlanPart(Struct):
    """One part of what a model takes. `source` is declared, learned, probed or formula; `on_host`: beside the device."""

    name: str
    bytes: int
    source: str
    on_host: bool


class ModelPlan(Struct):
    """What would become of one model. MB means MiB, contexts are tokens.

    verdict     loaded, fits, soon, evicts, waits, no_room, too_large, unavailable, unknown or external; `why` says it in a sentence
    need_mb     what it takes, 0 = unknown; `parts` add up to it, `source` is where the sum comes from
    devices_mb  where it is or would be
    evicts      idle models that would go for it; `waits_for` those whose answers or loads it would have to wait for
    ctx         the context it would be started with; `ctx_alone` the largest that fits if all that may be evicted were, `ctx_beside`
                beside all that is held; 0 = none fits. `ctx_train` is what it was trained for
    """

    model_id: str
    verdict: str
    why: str
    need_mb: int
    source: str
    parts: list[PlanPart]
    devices_mb: dict[str, int]
    evicts: list[str]
    waits_for: list[str]
    ctx: int
    ctx_train: int
    ctx_alone: int
    ctx_beside: int
    degraded: list[str]


class DevicePlan(Struct):
    """One device, MiB. `room_mb` is what may be used of it, null = unlimited; `foreign_mb` what other programs hold; `held_mb` by model."""

    id: str
    budget_mb: int
    room_mb: int | None
    foreign_mb: int
    held_mb: dict[str, int]


class Plan(Struct):
    """`named`: models were named and taken together, one after the other. `fits`: all may be resident at the same time; `together`: those
    that may. Nothing was loaded or evicted for this answer."""

    named: bool
    fits: bool
    together: list[str]
    models: list[ModelPlan]
    devices: list[DevicePlan]


class FootprintStatus(Struct):
    """What was learned of one launch, in bytes.

    predicted_bytes, source   what was reserved for it, and where that came from; `error` how far off that was, as a share of the truth
    measured_bytes   the most it took, 0 = not measured; `devices_bytes` and `host_bytes` are its parts
    least_bytes      it ran out of memory with less than this, 0 = it never did
    loads            how often it became ready; `last_seen_unix` when it was measured last, 0 = in this run
    """

    model_id: str
    launch: str
    predicted_bytes: int
    source: str
    measured_bytes: int
    error: float | None
    devices_bytes: dict[str, int]
    host_bytes: int
    least_bytes: int
    loads: int
    last_seen_unix: int


class Footprints(Struct):
    footprints: list[FootprintStatus]


class Plans:
    """The handlers."""

    def __init__(self, driver: Driver, table: Callable[[], Awaitable[ModelTable]]) -> None:
        self._driver = driver
        self._table = table

    def routes(self) -> list[Route]:
        named = Parameter("model", "query", f"A model, again and again for up to {MODELS_MAX}; none = each for itself.", {"type": "string"})
        return [
            Route(
                "GET",
                "/plan",
                Scope.READ,
                "What would happen if these models were asked for. Loads and evicts nothing.",
                self.plan,
                answer=Plan,
                parameters=(named,),
            ),
            Route(
                "GET",
                "/footprints",
                Scope.READ,
                "What models really took, beside what was predicted.",
                self.footprints,
                answer=Footprints,
            ),
        ]

    async def plan(self, call: Call) -> Reply:
        """Raises UnknownModel for a name that nobody has, BadRequest for too many."""
        table = await self._table()
        names = [value for key, value in parse_qsl(call.query.decode("latin-1"), keep_blank_values=True) if key == "model"]
        if len(names) > MODELS_MAX:
            raise BadRequest(f"model: {len(names)} are named, at most {MODELS_MAX} may be")
        return Reply(200, encode(as_plan(self._driver.what_if([table.resolve(name) for name in names]))))

    async def footprints(self, call: Call) -> Reply:
        return Reply(200, encode(as_footprints(self._driver.footprints())))


def as_plan(seen: whatif.WhatIf) -> Plan:
    """The answer of /plan."""
    return Plan(
        named=seen.named,
        fits=seen.fits,
        together=list(seen.together),
        models=[_model(one) for one in seen.models],
        devices=[_device(one) for one in seen.devices],
    )


def as_footprints(learned: Iterable[Learned]) -> Footprints:
    """The answer of /footprints."""
    return Footprints([_footprint(one) for one in learned])


def _model(one: whatif.ModelPlan) -> ModelPlan:
    parts = one.need.parts if one.need is not None else ()
    return ModelPlan(
        model_id=one.model,
        verdict=one.verdict,
        why=one.why,
        need_mb=one.need.total_mb if one.need is not None else 0,
        source=one.need.source if one.need is not None else "",
        parts=[PlanPart(part.name, part.bytes, part.source, part.on_host) for part in parts],
        devices_mb={str(device): held for device, held in one.place_mb.items()},
        evicts=list(one.evicts),
        waits_for=list(one.waits_for),
        ctx=one.ctx,
        ctx_train=one.ctx_train,
        ctx_alone=one.ctx_alone,
        ctx_beside=one.ctx_beside,
        degraded=list(one.degraded),
    )


def _device(one: whatif.DevicePlan) -> DevicePlan:
    held = {str(model): held for model, held in one.held_mb.items()}
    return DevicePlan(one.id, one.budget_mb, one.room_mb, one.foreign_mb, held)


def _footprint(one: Learned) -> FootprintStatus:
    truth = one.footprint
    return FootprintStatus(
        model_id=one.model,
        launch=one.launch,
        predicted_bytes=one.predicted_bytes,
        source=one.source,
        measured_bytes=0 if truth is None else truth.total_bytes,
        error=None if (error := one.error) is None else round(error, 6),
        devices_bytes={} if truth is None else dict(truth.device_bytes),
        host_bytes=0 if truth is None else truth.host_bytes,
        least_bytes=one.least_bytes,
        loads=one.loads,
        last_seen_unix=int(one.seen_unix),
    )
