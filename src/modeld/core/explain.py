# SPDX-License-Identifier: GPL-3.0-only
"""What people and metrics may see of the book, and why things are as they are; rule: it reads, and puts facts into one sentence each."""

from __future__ import annotations

from modeld.core import placement
from modeld.core.book import Book
from modeld.core.forecast import forecast
from modeld.core.instance import Instance
from modeld.core.ledger import Hold
from modeld.core.lifecycle import State
from modeld.core.model import HOST, DeviceId, InstanceId, ModelId, Priority
from modeld.core.queues import Waiting
from modeld.core.snapshot import DeviceView, Explanation, InstanceView, LineView, Snapshot, WaitView

NAMED_MAX = 3
"""So many models are named in a sentence."""


def snapshot(book: Book, now: float, *, estimates: bool = True) -> Snapshot:
    """The book at one moment. Without `estimates` the expected waits are 0: they cost more than all the rest."""
    views = [_instance(book, instance) for instance in book.instances.values()]
    errors: list[str] = []
    for model in book.breaker.models():
        failure = book.breaker.failure(model)
        if failure is not None and failure.until > now:
            errors.append(f"{model}: {failure.error.message}")
            if model not in book.by_model:
                views.append(InstanceView(InstanceId(f"0/{model}"), model, State.FAILED, 0, 0, 0, failure.at, None, 0.0, False, {}))
    devices = tuple(_device(book, device) for device in _devices(book))
    accelerators = [view for view in devices if view.id != HOST]
    return Snapshot(
        instances=tuple(views),
        lines=tuple(_line(book, model, now, estimates) for model in book.lines.models()),
        devices=devices,
        budget_mb=sum(view.budget_mb for view in accelerators),
        used_mb=sum(view.used_mb for view in accelerators),
        margin_mb=book.limits.margin_mb,
        queue_depth_max=book.limits.queue_depth_max,
        waiting_bytes=book.lines.waiting_bytes,
        loads_total=book.loads_total,
        load_failures_total=book.load_failures_total,
        evictions_total=book.evictions_total,
        crashes_total=book.crashes_total,
        shutting_down=book.shutting_down,
        error=errors[0] if errors else None,
        last_error=book.last_error,
        fairness_closings_total=book.closings_total,
        preemptions_total=book.preemptions_total,
        requeued_total=book.requeued_total,
        stuck_total=book.stuck_total,
        pinned=frozenset(model for model in book.models if book.is_held(model)),
        wished=frozenset(book.wishes),
        out_of_memory_total=book.out_of_memory_total,
        grown_total=book.grown_total,
        one_pool=book.limits.one_pool,
    )


def _devices(book: Book) -> list[DeviceId]:
    return list(dict.fromkeys([*book.devices, *book.ledger.devices()]))


def _device(book: Book, device: DeviceId) -> DeviceView:
    return DeviceView(
        id=device,
        budget_mb=book.limits.budget_mb.get(device, 0),
        used_mb=book.ledger.used_mb(device),
        releasing_mb=book.ledger.releasing_mb(device),
        room_mb=book.room_mb(device),
        total_mb=book.totals_mb.get(device, 0),
        foreign_mb=book.foreign.settled_mb(device),
        reserved_mb=book.ledger.held_as(device, Hold.RESERVED),
        committed_mb=book.ledger.held_as(device, Hold.COMMITTED),
    )


def _instance(book: Book, instance: Instance) -> InstanceView:
    return InstanceView(
        id=instance.id,
        model=instance.model,
        state=instance.state,
        need_mb=instance.device_mb,
        slots=instance.spec.options.parallel,
        inflight=len(instance.leases),
        last_used=instance.last_used,
        pid=instance.pid,
        progress=instance.progress,
        external=instance.external,
        devices_mb=dict(instance.need_mb),
        closed_for=instance.closed_for,
        pinned=book.is_pinned(instance),
        kept_until=instance.kept_until,
        cost=instance.cost,
        measured=instance.measured,
        options=instance.spec.options,
        degraded=instance.spec.degraded,
    )


def _line(book: Book, model: ModelId, now: float, estimates: bool) -> LineView:
    line = book.lines.of(model)
    oldest = book.oldest(model)
    if line is None or oldest is None:
        return LineView(model, 0, 0.0, {}, None, 0.0)
    return LineView(
        model=model,
        length=len(line.waiting),
        oldest_wait_seconds=now - oldest.arrived,
        by_class={priority: count for priority in Priority if (count := line.count(priority.rank))},
        due_in_seconds=max(0.0, book.due_at(oldest) - now) if _wants_room(book, model) else None,
        estimate_seconds=forecast(book, model, now, ahead=len(line.waiting)).seconds if estimates and model in book.models else 0.0,
    )


def _wants_room(book: Book, model: ModelId) -> bool:
    instance = book.by_model.get(model)
    return instance is None or instance.state not in (State.LOADING, State.READY)


# --- sentences --------------------------------------------------------------------------------------------------------


def explain(book: Book, now: float) -> Explanation:
    """One sentence for each model that runs, waits or failed, and for each waiting request."""
    models = dict.fromkeys([*book.by_model, *book.lines.models(), *book.wishes, *book.breaker.models()])
    waits: list[WaitView] = []
    for model in book.lines.models():
        line = book.lines.of(model)
        if line is None or model not in book.models:
            continue
        why, slots = why_waits(book, model, now), book.models[model].options.parallel
        first, usual = forecast(book, model, now, ahead=0).seconds, book.pace.request_seconds(model)
        for place, waiting in enumerate(line.waiting.values()):
            waits.append(_wait(waiting, place, first + place // slots * usual, why, now))
    return Explanation({model: model_sentence(book, model, now) for model in models}, tuple(waits))


def _wait(waiting: Waiting, place: int, seconds: float, why: str, now: float) -> WaitView:
    request, priority = waiting.request, next(one for one in Priority if one.rank == waiting.rank)
    waited = now - waiting.arrived
    text = f"{request.id} ({request.model}, {priority}) waits {_s(waited)}, number {place + 1} in line, for {why}"
    if waiting.requeued:
        text += ", after its model server failed once"
    return WaitView(request.id, request.model, request.principal, priority, place + 1, waited, seconds, text)


def model_sentence(book: Book, model: ModelId, now: float) -> str:
    """Why the model is where it is."""
    oldest = book.oldest(model)
    if oldest is not None:
        return f"{model} waits {_s(now - oldest.arrived)} for {why_waits(book, model, now)}"
    instance = book.by_model.get(model)
    if instance is not None:
        return f"{model} {_doing(book, instance, now)}"
    failure = book.breaker.failure(model)
    if failure is not None and failure.until > now:
        return f"{model} failed ({failure.error.message.rstrip('.')}); the next try is allowed in {_s(failure.until - now)}"
    if model in book.wishes:
        return f"{model} is to be loaded and waits for {_for_room(book, model, now)}"
    return f"{model} is not loaded and nobody waits for it"


def why_waits(book: Book, model: ModelId, now: float) -> str:
    """What the requests of this model wait for: the end of a sentence that begins with "waits 4.1 s for"."""
    instance = book.by_model.get(model)
    if instance is None:
        return _for_room(book, model, now) + _due(book, model, now)
    if instance.state is State.READY:
        if instance.suspect_until > now:
            return "a look whether its model server lives: a request just failed there"
        return f"a free slot: all {instance.spec.options.parallel} are taken" if instance.free_slots <= 0 else "its slot"
    if instance.state is State.LOADING:
        load = book.pace.load_seconds(model, instance.device_mb)
        return f"its model to load: {_s(now - instance.started)} of about {_s(load)}"
    if instance.is_closed:
        return f"its turn: it gives way to {instance.closed_for}, {_running(instance)}" + _due(book, model, now)
    return f"its old instance, which is {instance.state}" + _due(book, model, now)


def _for_room(book: Book, model: ModelId, now: float) -> str:
    until = book.breaker.blocked_until(model)
    if until > now:
        return f"the next try after a failure, in {_s(until - now)}"
    wait = book.waits.get(model, placement.OTHERS)
    if model in book.checking:
        return "its file to be checked"
    if model in book.probing or wait == placement.CHECKING:
        return "its memory to be measured"
    if wait == placement.COMING:
        gone = [one for one in book.instances.values() if one.state not in (State.LOADING, State.READY)]
        return "memory that comes back" + (f" from {_names(gone)}" if gone else "")
    if wait in (placement.VICTIMS, placement.LOADS):
        closed = [one for one in book.instances.values() if one.closed_for == model]
        if closed:
            return f"{_names(closed)}: {_running(*closed)}"
        return "others to load and have their turn" if wait == placement.LOADS else "memory that comes back"
    ahead = [other for _, _, other in book.demands[: next((n for n, one in enumerate(book.demands) if one[2] == model), 0)]]
    oldest = book.oldest(model)
    if oldest is not None and book.due_at(oldest) <= now and ahead:
        return f"{_listed(ahead)}, due before it"
    if foreign := _taken(book, model):
        return f"memory that other programs hold: {foreign}"
    holders = [one for one in book.instances.values() if one.state in (State.LOADING, State.READY) and one.device_mb]
    return f"{_names(holders)}: {_running(*holders)}" if holders else "room"


def _taken(book: Book, model: ModelId) -> str:
    """What others hold, where without that the model would have a place, and with it has none even if all of ours went; else ""."""
    room = {device: mb for device in book.devices if (mb := book.room_mb(device)) is not None}
    if model not in book.models or any(all(mb <= room.get(device, mb) for device, mb in place.items()) for place in book.places(model)):
        return ""
    taken = [device for device, mb in room.items() if mb < (book.limit_mb(device) or 0)]
    return ", ".join(f"{book.foreign.settled_mb(device)} MB of {device}" for device in taken)


def _due(book: Book, model: ModelId, now: float) -> str:
    oldest = book.oldest(model)
    if oldest is None:
        return ""
    rest = book.due_at(oldest) - now
    return f", due in {_s(rest)}" if rest > 0 else ", due"


def _doing(book: Book, instance: Instance, now: float) -> str:
    if instance.state is State.LOADING:
        return f"loads: {_s(now - instance.started)} of about {_s(book.pace.load_seconds(instance.model, instance.device_mb))}"
    if instance.is_closed:
        return f"takes nothing new: it gives way to {instance.closed_for}, {_running(instance)}"
    if instance.state is not State.READY:
        return f"is {instance.state}" + (f" ({instance.drain_why})" if instance.drain_why else "")
    if instance.leases:
        return f"is ready: {_running(instance)}, {instance.free_slots} slots free"
    kept = book.protected_until(instance, now) - now
    pinned = ", pinned" if book.is_pinned(instance) else ""
    return f"is ready and idle for {_s(now - max(instance.ready_at, instance.last_used))}{pinned}" + (
        f", kept for its next request for {_s(kept)}" if kept > 0 and not pinned else ""
    )


def _running(*instances: Instance) -> str:
    count = sum(len(one.leases) for one in instances)
    loads = sum(one.state is State.LOADING for one in instances)
    running = f"{count} request{'' if count == 1 else 's'} running"
    return running + (f", {loads} load{'' if loads == 1 else 's'} in progress" if loads else "")


def _names(instances: list[Instance]) -> str:
    return _listed([one.model for one in instances])


def _listed(models: list[ModelId]) -> str:
    named = ", ".join(models[:NAMED_MAX])
    return named + (f" and {len(models) - NAMED_MAX} more" if len(models) > NAMED_MAX else "")


def _s(seconds: float) -> str:
    return f"{max(0.0, seconds):.1f} s"
