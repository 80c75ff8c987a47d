# SPDX-License-Identifier: GPL-3.0-only
"""What would be, and what was learned: /plan and /footprints; rule: the scheduler's own arithmetic is read and translated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from modeld.api import schemas
from modeld.api.route import Call, Parameter, Reply, Route, Scope
from modeld.api.schemas import encode
from modeld.core.footprint import Learned
from modeld.core.whatif import DevicePlan, ModelPlan, WhatIf
from modeld.errors import BadRequest

if TYPE_CHECKING:
    from modeld.catalog.models import ModelTable
    from modeld.runtime.driver import Driver

MODELS_MAX: Final = 64
"""So many models may be named in one question."""


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
                answer=schemas.Plan,
                parameters=(named,),
            ),
            Route(
                "GET",
                "/footprints",
                Scope.READ,
                "What models really took, beside what was predicted.",
                self.footprints,
                answer=schemas.Footprints,
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


def as_plan(seen: WhatIf) -> schemas.Plan:
    """The answer of /plan."""
    return schemas.Plan(
        named=seen.named,
        fits=seen.fits,
        together=list(seen.together),
        models=[_model(one) for one in seen.models],
        devices=[_device(one) for one in seen.devices],
    )


def as_footprints(learned: Iterable[Learned]) -> schemas.Footprints:
    """The answer of /footprints."""
    return schemas.Footprints([_footprint(one) for one in learned])


def _model(one: ModelPlan) -> schemas.ModelPlan:
    parts = one.need.parts if one.need is not None else ()
    return schemas.ModelPlan(
        model_id=one.model,
        verdict=one.verdict,
        why=one.why,
        need_mb=one.need.total_mb if one.need is not None else 0,
        source=one.need.source if one.need is not None else "",
        parts=[schemas.PartStatus(part.name, part.bytes, part.source, part.on_host) for part in parts],
        devices_mb={str(device): held for device, held in one.place_mb.items()},
        evicts=list(one.evicts),
        waits_for=list(one.waits_for),
        ctx=one.ctx,
        ctx_train=one.ctx_train,
        ctx_alone=one.ctx_alone,
        ctx_beside=one.ctx_beside,
        degraded=list(one.degraded),
    )


def _device(one: DevicePlan) -> schemas.DevicePlan:
    held = {str(model): held for model, held in one.held_mb.items()}
    return schemas.DevicePlan(one.id, one.budget_mb, one.room_mb, one.foreign_mb, held)


def _footprint(one: Learned) -> schemas.FootprintStatus:
    truth = one.footprint
    return schemas.FootprintStatus(
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
