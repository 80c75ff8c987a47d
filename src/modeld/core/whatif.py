# SPDX-License-Identifier: GPL-3.0-only
"""What would happen if these models were asked for: the planner's own arithmetic on the book as it is; rule: it reads, and books nothing.

Named models are taken one after the other, in the order given, each with those before it in place: they are to be resident together.
Without names every model of the catalogue is taken for itself. For each, numbered as in the code:
1  it cannot be served, or runs elsewhere;
2  it runs already, or loads;
3  it has no place: more than the devices have, or than pinned models leave;
4  it fits into what is free, or into what is on its way back;
5  it fits when idle ones are evicted: those that placement.py picks for a model that is not due;
6  it has to wait: those that placement.py picks once it is due, busy ones that are closed for it among them;
7  nothing suffices beside what was asked for before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import takewhile
from typing import Final

from modeld.core import placement
from modeld.core.admission import gone
from modeld.core.book import Book
from modeld.core.estimate import Need
from modeld.core.eviction import Candidate, choose, in_order
from modeld.core.fitting import largest_ctx
from modeld.core.lifecycle import State
from modeld.core.model import DeviceId, InstanceId, ModelId, ModelSpec
from modeld.core.placement import Demand, Room, Vector

NAMED_MAX: Final = 4
"""So many models are named in a sentence."""


class Verdict(StrEnum):
    """What would become of a model that is asked for."""

    UNKNOWN = "unknown"
    UNAVAILABLE = "unavailable"
    EXTERNAL = "external"
    LOADED = "loaded"
    TOO_LARGE = "too_large"
    FITS = "fits"
    SOON = "soon"
    EVICTS = "evicts"
    WAITS = "waits"
    NO_ROOM = "no_room"


HAS_ROOM: Final = frozenset((Verdict.EXTERNAL, Verdict.LOADED, Verdict.FITS, Verdict.SOON, Verdict.EVICTS, Verdict.WAITS))
"""The model is or would be resident, sooner or later."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model. MiB, tokens.

    need        what it takes, with the parts of the sum; None where there is nothing to be said
    place_mb    MiB per device, where it is or would be
    evicts      idle models that would go for it; `waits_for` those whose answers or loads it would have to wait for
    ctx         the context it would be started with; `degraded` what else would be given up, in words
    ctx_alone   the largest context with which it would fit if all that may be evicted were, 0 = none; at most what it was trained for
    ctx_beside  the largest that would fit beside all that is held (and was asked for before it) without an eviction
    why         one sentence
    """

    model: ModelId
    verdict: Verdict
    why: str
    need: Need | None = None
    place_mb: Vector = field(default_factory=dict)
    evicts: tuple[ModelId, ...] = ()
    waits_for: tuple[ModelId, ...] = ()
    ctx: int = 0
    ctx_train: int = 0
    ctx_alone: int = 0
    ctx_beside: int = 0
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device, MiB.

    room_mb     what may be used: the budget less the margin, and less what others hold of the device; None = unlimited
    foreign_mb  what other programs hold of it for good
    held_mb     by model, once the named models are resident (without names: now)
    """

    id: DeviceId
    budget_mb: int
    room_mb: int | None
    foreign_mb: int
    held_mb: Mapping[ModelId, int]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """`named`: models were named, and taken together. `together` are those that would be resident at the same time: of the named ones,
    else of all, on empty devices, the pinned, the loaded, then the smallest first."""

    models: tuple[ModelPlan, ...]
    devices: tuple[DevicePlan, ...]
    named: bool
    together: tuple[ModelId, ...]

    @property
    def fits(self) -> bool:
        """Whether all of them may be resident at the same time."""
        return len(self.together) == sum(one.verdict is not Verdict.UNAVAILABLE for one in self.models)


def what_if(book: Book, candidates: Iterable[Candidate], waiting: Iterable[Demand], models: Sequence[ModelId]) -> WhatIf:
    """As the planner sees things now: `candidates` are the instances that may be evicted at all, `waiting` the models that wait for room
    already, first come first: those before a model have their room before it."""
    asked = list(dict.fromkeys(models)) or sorted(book.models)
    pool, demands = in_order(candidates), tuple(waiting)
    if models:
        table = _Table(book, [one for one in pool if book.instances[one.id].model not in asked], demands)
        plans = tuple(table.take(model) for model in asked)
        return WhatIf(plans, table.devices(), True, tuple(one.model for one in plans if one.verdict in HAS_ROOM))
    plans = tuple(_Table(book, pool, demands).take(model) for model in asked)
    return WhatIf(plans, _Table(book, pool, demands).devices(), False, _side_by_side(book))


@dataclass(slots=True)
class _Answer:
    """What placement.py would do for one model: the room before and after, and who is left when those who wait already have theirs."""

    plan: placement.Plan
    before: Room
    after: Room
    pool: list[Candidate]

    def victims(self, model: ModelId) -> list[InstanceId]:
        return [victim for victim, for_model in self.plan.evict.items() if for_model == model]


class _Table:
    """The room, and who may give way, as the models that were taken so far leave them."""

    def __init__(self, book: Book, pool: Sequence[Candidate], waiting: Sequence[Demand]) -> None:
        self._book = book
        self._pool = list(pool)
        self._waiting = waiting
        self._room = Room(book.free_mb(), book.coming_mb())
        self._held: dict[ModelId, Vector] = {one.model: one.need_mb for one in book.instances.values()}

    def take(self, model: ModelId) -> ModelPlan:
        """Give the model its place, if it has one. The numbers are those of the module's list."""
        book, spec = self._book, self._book.models.get(model)
        absent = gone(model, spec)
        if spec is None or absent is not None:  # 1
            verdict = Verdict.UNKNOWN if spec is None else Verdict.UNAVAILABLE
            return ModelPlan(model, verdict, absent.message if absent is not None else "")
        if spec.external:
            return ModelPlan(model, Verdict.EXTERNAL, "runs on another server, and takes nothing here")
        chosen = book.spec(model)
        base = ModelPlan(
            model,
            Verdict.NO_ROOM,
            "",
            need=book.need(model),
            ctx=chosen.options.ctx,
            ctx_train=spec.ctx_train,
            ctx_alone=self._largest(model, book.capacity(model)),
            ctx_beside=self._largest(model, self._beside(model)),
            degraded=chosen.degraded,
        )
        return self._resident(base) or self._homeless(base) or self._at_once(base) or self._in_time(base)

    def devices(self) -> tuple[DevicePlan, ...]:
        """What each device would hold."""
        book = self._book
        return tuple(
            DevicePlan(
                device,
                book.limits.budget_mb.get(device, 0),
                book.room_mb(device),
                book.foreign.settled_mb(device),
                {model: place[device] for model, place in sorted(self._held.items()) if place.get(device)},
            )
            for device in book.devices
        )

    def _resident(self, base: ModelPlan) -> ModelPlan | None:  # 2
        instance = self._book.by_model.get(base.model)
        if instance is None or (instance.state not in (State.LOADING, State.READY) and not instance.is_closed):
            return None
        word = {State.LOADING: "loads", State.READY: "is loaded"}.get(instance.state, "is loaded, and closed for another model")
        options = instance.spec.options
        return replace(
            base,
            verdict=Verdict.LOADED,
            why=f"{word}, and holds {instance.device_mb} MB",
            need=instance.cost or base.need,
            place_mb=dict(instance.need_mb),
            ctx=options.ctx,
            degraded=instance.spec.degraded,
        )

    def _homeless(self, base: ModelPlan) -> ModelPlan | None:  # 3
        book, model = self._book, base.model
        if book.places(model) or base.need is None:
            return None
        available = max((limit or 0 for limit in book.capacity(model).values()), default=0)
        smaller = (
            f"; with {base.ctx_alone} tokens of context it would fit" if base.ctx_alone else "; not even the smallest context would fit"
        )
        beside = [other for other in sorted(book.models) if other != model and book.is_held(other)]
        pins = f" beside the pinned {_names(beside)}" if beside else ""
        return replace(
            base,
            verdict=Verdict.TOO_LARGE,
            why=f"needs {base.need.total_mb} MB ({base.need.source}), at most {available} MB can be had{pins}{smaller}",
        )

    def _at_once(self, base: ModelPlan) -> ModelPlan | None:  # 4, 5
        model, answer = base.model, self._ask(base.model, due=False)
        if model not in answer.plan.start and answer.plan.waits.get(model) not in (placement.COMING, placement.VICTIMS):
            return None
        out = answer.victims(model)
        place = answer.plan.start.get(model) or self._taken(model, answer, out)
        self._book_in(model, place, answer, out)
        if model in answer.plan.start:
            return replace(base, verdict=Verdict.FITS, why="fits into what is free", place_mb=place)
        if not out:
            return replace(base, verdict=Verdict.SOON, why="fits once memory that is on its way back is free", place_mb=place)
        victims = self._models(out)
        verb = "is" if len(victims) == 1 else "are"
        why = f"fits when {_names(victims)}, which {verb} idle, {verb} evicted"
        return replace(base, verdict=Verdict.EVICTS, why=why, place_mb=place, evicts=victims)

    def _in_time(self, base: ModelPlan) -> ModelPlan:  # 6, 7
        model, answer = base.model, self._ask(base.model, due=True)
        if answer.plan.waits.get(model) not in (placement.COMING, placement.VICTIMS, placement.LOADS):
            held = [other for other in self._held if other != model]
            why = f"has no room beside {_names(held)}" if held else "has no room now"
            why += f"; with {base.ctx_beside} tokens of context it would fit" if base.ctx_beside else ""
            return replace(base, verdict=Verdict.NO_ROOM, why=why)
        evicted = answer.victims(model)
        out = [*evicted, *self._later(model, answer, evicted)]
        instances = self._book.instances
        busy = self._models(one for one in out if one not in evicted or instances[one].leases)
        idle = self._models(one for one in out if one in evicted and not instances[one].leases)
        place = self._taken(model, answer, out)
        self._book_in(model, place, answer, out)
        also = f"; {_names(idle)} would be evicted" if idle else ""
        why = f"has to wait for {_names(busy)}{also}" if busy else f"has to wait until it is due{also}"
        return replace(base, verdict=Verdict.WAITS, why=why, place_mb=place, evicts=idle, waits_for=busy)

    # --- arithmetic, all of it the planner's --------------------------------------------------------------------------

    def _ask(self, model: ModelId, *, due: bool) -> _Answer:
        """What placement.py would do for this model once those before it have their room: all that wait, or, once it is due, the due."""
        first = [one for one in takewhile(lambda one: one.model != model, self._waiting) if one.due or not due]
        before, after = self._copy_room(), self._copy_room()
        out = placement.plan(first, self._pool, before).evict
        demand = Demand(model, self._book.places(model), due=due, checked=True)
        plan = placement.plan([*first, demand], self._pool, after)
        return _Answer(plan, before, after, [one for one in self._pool if one.id not in out])

    def _copy_room(self) -> Room:
        return Room(dict(self._room.free), dict(self._room.coming))

    def _taken(self, model: ModelId, answer: _Answer, victims: Iterable[InstanceId]) -> Vector:
        """Which of its places the model took: what is missing now of what there was, and of what the victims free."""
        missing = self._soon(answer.before, victims)
        for device in missing:
            missing[device] -= answer.after.free[device] + answer.after.coming.get(device, 0)
        places = self._book.places(model)
        return next((place for place in places if all(place.get(on, 0) == mb for on, mb in missing.items())), places[0])

    def _later(self, model: ModelId, answer: _Answer, victims: Iterable[InstanceId]) -> list[InstanceId]:
        """Those that cannot go yet and are waited for besides the victims: fewest, as eviction.py picks them."""
        have = self._soon(answer.before, victims)
        later = [one for one in answer.pool if one.later]
        found = [
            choose(later, short) if (short := {on: mb - have[on] for on, mb in place.items() if mb > have.get(on, mb)}) else ()
            for place in self._book.places(model)
        ]
        return [one.id for one in min((one for one in found if one is not None), key=len, default=())]

    def _soon(self, room: Room, victims: Iterable[InstanceId]) -> dict[DeviceId, int]:
        """What is free, comes back, or is held by the victims."""
        have = {device: amount + room.coming.get(device, 0) for device, amount in room.free.items()}
        for victim in victims:
            for device, amount in self._book.instances[victim].need_mb.items():
                if device in have:
                    have[device] += amount
        return have

    def _models(self, instances: Iterable[InstanceId]) -> tuple[ModelId, ...]:
        return tuple(self._book.instances[one].model for one in instances)

    def _book_in(self, model: ModelId, place: Vector, answer: _Answer, victims: Iterable[InstanceId]) -> None:
        """On this table, not in the book. Those who wait already have their room from now on."""
        out = set(victims)
        self._waiting = ()
        self._room = answer.after
        self._pool = [one for one in answer.pool if one.id not in out]
        for victim in out:
            self._held.pop(self._book.instances[victim].model, None)
        self._held[model] = place

    def _beside(self, model: ModelId) -> dict[DeviceId, int | None]:
        """What is free now for `model`; what it holds itself is free for it."""
        own = self._held.get(model, {})
        return {
            device: None if device not in self._room.free else self._room.free[device] + own.get(device, 0) for device in self._book.devices
        }

    def _largest(self, model: ModelId, capacity: Mapping[DeviceId, int | None]) -> int:
        """The largest context of `model` inside `capacity`, 0 = none."""
        book = self._book
        spec = book.models[model]
        most = max(spec.ctx_train, 0) or spec.options.ctx

        def fits(one: ModelSpec) -> bool:
            cost = book.cost(one)
            return bool(placement.places(cost.total_mb, cost.host_mb, capacity, split=one.split))

        wanted = replace(spec, options=replace(spec.options, ctx=most))
        found = largest_ctx(wanted, fits)
        return found if fits(replace(spec, options=replace(spec.options, ctx=found))) else 0


def _side_by_side(book: Book) -> tuple[ModelId, ...]:
    """Models that fit at the same time when none is evicted: the pinned, the loaded, then the smallest first, on empty devices."""
    left = {device: book.room_mb(device) for device in book.devices}
    found: list[ModelId] = []

    def order(model: ModelId) -> tuple[bool, bool, int, ModelId]:
        return (not book.is_held(model), model not in book.by_model, book.need(model).total_mb, model)

    for model in sorted((one for one, spec in book.models.items() if spec.unavailable is None), key=order):
        fitting = [place for place in book.places(model) if all((has := left.get(on)) is None or has >= mb for on, mb in place.items())]
        if fitting:
            found.append(model)
            for device, amount in fitting[0].items():
                if (has := left.get(device)) is not None:
                    left[device] = has - amount
    return tuple(found)


def _names(models: Sequence[ModelId]) -> str:
    shown = list(models[:NAMED_MAX])
    more = len(models) - len(shown)
    text = ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1] if shown and not more else ", ".join(shown)
    return f"{text} and {more} more" if more else text
