# SPDX-License-Identifier: GPL-3.0-only
"""handle(event, now) -> commands: the one door to every decision; rule: book first, then return the command.

After each event the same decision runs, in this order (`_decide`):
1  Who waited too long is refused; who ran past infer_timeout is revoked.
2  Placement (placement.py): checks, starts, victims. A drain nobody needs any more is resumed.
3  Free slots are granted, first in first out per model.
4  Idle instances whose ttl is over are unloaded.
5  Drained instances are stopped; past drain_timeout (never for a swap) their requests are revoked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import assert_never

from modeld.core import admission, placement
from modeld.core.book import EVICTED, SUSPECT_SECONDS, Book, Instance, LeaseBook
from modeld.core.estimate import Need, need
from modeld.core.eviction import Candidate
from modeld.core.lifecycle import Signal, State
from modeld.core.messages import (
    CheckLaunch,
    Command,
    Event,
    Grant,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    InstanceSpawned,
    LaunchChecked,
    LaunchRejected,
    LeaseFailed,
    LeaseReleased,
    LoadProgressed,
    LoadRequested,
    MemoryFreed,
    ModelTableReplaced,
    ProgressChecked,
    Refuse,
    RequestArrived,
    RequestWithdrawn,
    RevokeLease,
    SettingsReplaced,
    ShutdownRequested,
    StartInstance,
    StopInstance,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import LOCAL, Limits, ModelId, ModelSpec, Request, RequestId
from modeld.core.pace import Failure, backoff_seconds
from modeld.core.queues import Waiting
from modeld.core.snapshot import Explanation, Snapshot
from modeld.errors import DeadlineExceeded, Died, Draining, InvariantError, ModeldError, Unloaded, WaitTimeout


class Scheduler:
    """Every decision of the daemon. Deterministic: the same events at the same times give the same commands."""

    def __init__(self, limits: Limits, models: Mapping[ModelId, ModelSpec]) -> None:
        self._book = Book(limits, dict(models))
        self._granted: dict[RequestId, Waiting] = {}

    # --- the door -----------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:  # noqa: C901 - one arm for each event, no logic of its own
        """Book the event, decide, return what is to be done. Raises InvariantError for a pair the tables do not know."""
        out: list[Command] = []
        match event:
            case RequestArrived(request):
                self._arrive(request, now, out)
            case RequestWithdrawn(request_id):
                self._book.lines.remove(request_id)
                self._end_lease(request_id, now)
            case LeaseReleased(request_id):
                self._end_lease(request_id, now)
            case LeaseFailed(request_id, before_first_byte, fault):
                self._lease_failed(request_id, fault if before_first_byte else None, now, out)
            case LaunchChecked(model, fingerprint):
                if self._book.checking.pop(model, None) == fingerprint:
                    self._book.checked[model] = fingerprint
            case LaunchRejected(model, fingerprint, error):
                spec = self._book.models.get(model)
                if self._book.checking.pop(model, None) == fingerprint and spec is not None and spec.fingerprint == fingerprint:
                    self._fail(model, fingerprint, error, now, out)  # else it is about a file that was replaced: checked again
            case LoadProgressed(instance_id, fraction):
                if (instance := self._book.instances.get(instance_id)) is not None:
                    instance.progress = fraction
            case InstanceSpawned(instance_id, pid):
                self._book.get(instance_id).pid = pid
            case InstanceReady(instance_id, pid):
                self._ready(self._book.get(instance_id), pid, now)
            case InstanceFailed(instance_id, error):
                self._load_failed(self._book.get(instance_id), error, now, out)
            case InstanceExited(instance_id, code, reason):
                self._exited(self._book.get(instance_id), code, reason, now, out)
            case MemoryFreed(instance_id):
                self._freed(self._book.get(instance_id))
            case ProgressChecked():
                pass
            case ModelTableReplaced(models):
                self._replace_models(models, now, out)
            case SettingsReplaced(limits):
                self._book.limits = limits
            case LoadRequested(model, may_evict):
                if (instance := self._book.of_model(model)) is None or instance.state is not State.READY:
                    self._book.wishes[model] = may_evict
            case UnloadRequested(model):
                self._book.wishes.pop(model, None)
                if (instance := self._book.of_model(model)) is not None:
                    self._drain(instance, "unload", now, out)
            case ShutdownRequested():
                self._shut_down(now, out)
            case Wakeup():
                pass
            case _:
                assert_never(event)
        if not self._book.shutting_down:
            self._decide(now, out)
        return out

    def next_wakeup(self) -> float | None:
        """The next moment (monotonic seconds) at which a deadline passes, or None."""
        book = self._book
        deadlines = [book.lines.next_deadline()]
        deadlines += [lease.deadline for lease in book.leases.values() if not lease.revoked]
        for instance in book.instances.values():
            if instance.state is State.DRAINING and instance.leases:
                deadlines.append(instance.drain_deadline)
            elif instance.state is State.READY:
                if not instance.leases:
                    deadlines.append(instance.idle_until)
                if book.lines.length(instance.model) and instance.free_slots > 0:
                    deadlines.append(instance.suspect_until)  # nothing else keeps who waits here from a free slot
        earliest = min(deadlines)
        return None if earliest == math.inf else earliest

    def is_empty(self) -> bool:
        """No instance holds anything any more."""
        return not self._book.instances

    def snapshot(self, now: float) -> Snapshot:
        return self._book.snapshot(now)

    def explain(self, now: float) -> Explanation:
        """Why each model and each waiting request is where it is, in a sentence each."""
        return Explanation({}, ())

    def check_invariants(self) -> None:
        """Cheap and total. Raises InvariantError."""
        self._book.check()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _arrive(self, request: Request, now: float, out: list[Command]) -> None:
        book = self._book
        if request.id in book.lines or request.id in book.leases:
            raise InvariantError(f"request {request.id} arrived twice")
        spec = book.models.get(request.model)
        instance = book.of_model(request.model)
        failure = book.failures.get(request.model)
        line_length = book.lines.length(request.model)
        slots = 1 if spec is None else spec.options.parallel
        resident = instance is not None and instance.state is State.READY and instance.suspect_until <= now
        door = admission.Door(
            open=not book.shutting_down,
            spec=spec,
            need=None if spec is None else need(spec),
            available_mb=book.available_at_most_mb(request.model) if instance is None else None,
            failure=None if failure is None else failure.error,
            retry_in_seconds=0.0 if failure is None else failure.until - now,
            line_length=line_length,
            waiting_bytes=book.lines.waiting_bytes,
            expected_wait_seconds=book.pace.expected_wait(request.model, ahead=line_length, slots=slots, resident=resident),
            goes_straight_through=resident and line_length == 0 and instance is not None and instance.free_slots > 0,
        )
        refusal = admission.refusal(request, door, book.limits)
        if refusal is not None:
            out.append(Refuse(request.id, refusal))
            return
        book.lines.append(request, now, book.limits.wait_max_seconds)

    def _end_lease(self, request: RequestId, now: float) -> Instance | None:
        """Idempotent: a release may come after the withdrawal, or after the instance has gone. The instance it ran on, if it is there."""
        lease = self._book.leases.pop(request, None)
        self._granted.pop(request, None)
        if lease is None:
            return None
        instance = self._book.instances.get(lease.instance)
        if instance is not None:
            instance.leases.discard(request)
            instance.last_used = now
        self._book.pace.served(lease.model, now - lease.granted)
        return instance

    def _lease_failed(self, request: RequestId, fault: ModeldError | None, now: float, out: list[Command]) -> None:
        """With `fault` nothing has reached the client: it waits in its old place again, once."""
        waiting = self._granted.get(request)
        lease = self._book.leases.get(request)
        instance = self._end_lease(request, now)
        if instance is not None:
            instance.suspect_until = now + SUSPECT_SECONDS
        if fault is None or waiting is None or lease is None:
            return
        gone = admission.gone(lease.model, self._book.models.get(lease.model))
        if waiting.failed or gone is not None or self._book.shutting_down or isinstance(fault, Unloaded):
            out.append(Refuse(request, gone or fault))
        else:
            waiting.failed = True
            self._book.lines.put_back(waiting, now, self._book.limits.wait_max_seconds)

    # --- reports about instances --------------------------------------------------------------------------------------

    def _ready(self, instance: Instance, pid: int | None, now: float) -> None:
        book = self._book
        instance.advance(Signal.BECAME_READY)
        instance.pid = pid if pid is not None else instance.pid
        if instance.state is not State.READY:
            return
        instance.progress = 1.0
        instance.last_used = now
        book.ledger.commit(instance.id)
        book.loads_total += 1
        book.pace.loaded(instance.model, now - instance.started)
        book.failures.pop(instance.model, None)
        book.wishes.pop(instance.model, None)
        book.lines.start_clock(instance.model, now)

    def _load_failed(self, instance: Instance, error: ModeldError, now: float, out: list[Command]) -> None:
        was = instance.state
        instance.advance(Signal.LOAD_FAILED)
        if was is State.LOADING:
            self._book.ledger.release(instance.id)
            self._fail(instance.model, instance.spec.fingerprint, error, now, out)

    def _exited(self, instance: Instance, code: int | None, reason: str, now: float, out: list[Command]) -> None:
        book = self._book
        was = instance.state
        instance.advance(Signal.EXITED)
        instance.pid = None
        if was is State.LOADING:
            error = Died(f'the model server of "{instance.model}" ended while it loaded ({_ending(code, reason)})')
            self._fail(instance.model, instance.spec.fingerprint, error, now, out)
        elif was in (State.READY, State.DRAINING):
            error = Died(f'the model server of "{instance.model}" ended ({_ending(code, reason)}); the next request starts it again')
            book.crashes_total += 1
            book.last_error = error.message
            for request in sorted(instance.leases):
                self._revoke(book.leases[request], error, out)
        book.ledger.release(instance.id)

    def _freed(self, instance: Instance) -> None:
        instance.advance(Signal.FREED)
        self._book.ledger.free(instance.id)
        del self._book.instances[instance.id]

    def _fail(self, model: ModelId, fingerprint: str, error: ModeldError, now: float, out: list[Command]) -> None:
        """The load did not succeed: every waiter hears why, and the next attempt backs off."""
        book = self._book
        before = book.failures.get(model)
        attempts = 1 if before is None or before.fingerprint != fingerprint else before.attempts + 1
        book.failures[model] = Failure(error, fingerprint, attempts, now, now + backoff_seconds(model, attempts))
        book.load_failures_total += 1
        book.last_error = f"{model}: {error.message}"
        book.wishes.pop(model, None)
        book.checked.pop(model, None)
        book.lines.start_clock(model, now)
        out.extend(Refuse(waiting.request.id, error) for waiting in book.lines.take(model))

    # --- the operator -------------------------------------------------------------------------------------------------

    def _replace_models(self, models: Mapping[ModelId, ModelSpec], now: float, out: list[Command]) -> None:
        """Instances keep their spec; those whose file changed or went are drained, and loaded anew when they were resident."""
        book = self._book
        book.models = dict(models)
        for model, failure in list(book.failures.items()):
            spec = models.get(model)
            if spec is None or spec.fingerprint != failure.fingerprint:
                del book.failures[model]
        for instance in list(book.instances.values()):
            spec = models.get(instance.model)
            if instance.state in (State.LOADING, State.READY, State.DRAINING) and (
                spec is None or spec.unavailable is not None or not instance.same_launch(spec)
            ):
                if spec is not None and spec.unavailable is None and instance.drain_why in ("", EVICTED):
                    book.wishes.setdefault(instance.model, False)
                self._drain(instance, "replaced", now, out)
        for model in book.lines.models():
            spec = models.get(model)
            refusal = admission.gone(model, spec)
            if refusal is not None:
                out.extend(Refuse(waiting.request.id, refusal) for waiting in book.lines.take(model))

    def _drain(self, instance: Instance, why: str, now: float, out: list[Command]) -> None:
        """By operator, reload or ttl: with a deadline. Loading instances are stopped at once, nobody runs on them."""
        if instance.state is State.LOADING:
            self._stop(instance, why, now, out)
        elif instance.state in (State.READY, State.DRAINING):
            instance.advance(Signal.DRAIN)
            if instance.drain_why in ("", EVICTED):
                instance.drain_why = why
                instance.drain_deadline = now + self._book.limits.drain_timeout_seconds

    def _shut_down(self, now: float, out: list[Command]) -> None:
        book = self._book
        book.shutting_down = True
        book.wishes.clear()
        book.failures.clear()
        for model in book.lines.models():
            gone = Draining("modeld is shutting down; try again when it is back", retry_after_seconds=5)
            out.extend(Refuse(waiting.request.id, gone) for waiting in book.lines.take(model))
        for lease in book.leases.values():
            self._revoke(lease, Unloaded("modeld is shutting down", retry_after_seconds=5), out)
        for instance in book.instances.values():
            if instance.state in (State.LOADING, State.READY, State.DRAINING):
                self._stop(instance, "shutdown", now, out)

    # --- the decision -------------------------------------------------------------------------------------------------

    def _decide(self, now: float, out: list[Command]) -> None:
        self._expire(now, out)  # 1
        self._place(now, out)  # 2
        self._grant(now, out)  # 3
        for instance in self._book.instances.values():  # 4
            if instance.state is State.READY and not instance.leases and instance.idle_until <= now:
                self._drain(instance, "ttl", now, out)
        self._finish_drains(now, out)  # 5

    def _expire(self, now: float, out: list[Command]) -> None:
        book = self._book
        for waiting in book.lines.expired(now):
            spec = book.models.get(waiting.request.model)
            slots = 1 if spec is None else spec.options.parallel
            expected = book.pace.expected_wait(
                waiting.request.model, ahead=book.lines.length(waiting.request.model), slots=slots, resident=False
            )
            seconds = admission.whole_seconds(expected)
            message = f"waited {now - waiting.arrived:.1f} s (max_wait) for {book.why_waits(waiting.request.model)}"
            out.append(Refuse(waiting.request.id, WaitTimeout(f"{message}; try again in about {seconds} s", retry_after_seconds=seconds)))
        for lease in book.leases.values():
            if lease.deadline <= now:
                seconds_run = book.limits.infer_timeout_seconds
                self._revoke(lease, DeadlineExceeded(f"the answer took longer than {seconds_run:g} s (infer_timeout)"), out)

    def _place(self, now: float, out: list[Command]) -> None:
        book = self._book
        needs: dict[ModelId, Need] = {}
        demands = self._demands(needs, out)
        plan = placement.plan(demands, self._residents(), book.free_mb(), book.coming_mb(), book.loading_mb())
        book.waits = plan.waits
        for instance in book.instances.values():
            if instance.state is State.DRAINING and instance.drain_why == EVICTED and instance.id not in plan.evict:
                instance.advance(Signal.RESUME)
                instance.drain_why = ""
        for victim, for_model in plan.evict.items():
            self._evict(book.instances[victim], for_model, now, out)
        for model in plan.check:
            if model not in book.checking:
                book.checking[model] = book.models[model].fingerprint
                out.append(CheckLaunch(book.models[model]))
        for model in plan.start:
            self._start(book.models[model], needs[model], now, out)

    def _demands(self, needs: dict[ModelId, Need], out: list[Command]) -> list[placement.Demand]:
        """Models with a line, oldest head first, then the operator's wishes; only those without any instance."""
        book = self._book
        demands: list[placement.Demand] = []
        wanted = book.lines.oldest_first()
        wanted += [(math.inf, model) for model in book.wishes if not book.lines.length(model)]
        for since, model in wanted:
            spec = book.models.get(model)
            if book.of_model(model) is not None:
                continue
            if spec is None or spec.unavailable is not None:
                book.wishes.pop(model, None)
                continue
            needs[model] = need(spec)
            misfit = admission.never_fits(spec, needs[model], book.available_at_most_mb(model))
            if misfit is not None:
                out.extend(Refuse(waiting.request.id, misfit) for waiting in book.lines.take(model))
                book.wishes.pop(model, None)
                book.last_error = misfit.message
                continue
            is_wish = since == math.inf
            demands.append(
                placement.Demand(
                    model=model,
                    need_mb=needs[model].total_mb,
                    since=since,
                    checked=book.checked.get(model) == spec.fingerprint,
                    may_evict=not is_wish or book.wishes[model],
                    may_drain=not is_wish,
                )
            )
        return demands

    def _residents(self) -> list[placement.Resident]:
        """Who may be evicted: ready or draining for a swap, and loads nobody waits for; never the pinned, never what is not ours."""
        book = self._book
        found: list[placement.Resident] = []
        for instance in book.instances.values():
            head = book.lines.head(instance.model)
            unwanted_load = instance.state is State.LOADING and head is None and instance.model not in book.wishes
            swappable = instance.state is State.READY or (instance.state is State.DRAINING and instance.drain_why == EVICTED)
            if instance.external or book.is_pinned(instance) or not (swappable or unwanted_load):
                continue
            candidate = Candidate(
                id=instance.id,
                frees_mb=book.ledger.held_mb(instance.id, LOCAL),
                last_used=instance.last_used,
                busy=bool(instance.leases),
                draining=instance.state is State.DRAINING,
            )
            found.append(placement.Resident(candidate, None if head is None else head.ticket))
        return found

    def _evict(self, instance: Instance, for_model: ModelId, now: float, out: list[Command]) -> None:
        if instance.leases:
            instance.advance(Signal.DRAIN)
            instance.drain_why, instance.drain_deadline = EVICTED, math.inf
        else:
            self._stop(instance, f"{EVICTED} for {for_model}", now, out)

    def _start(self, spec: ModelSpec, cost: Need, now: float, out: list[Command]) -> None:
        book = self._book
        instance = Instance(book.next_instance_id(spec.id), spec, cost.total_mb, started=now, last_used=now)
        book.instances[instance.id] = instance
        book.ledger.reserve(instance.id, {LOCAL: cost.total_mb})
        book.checked.pop(spec.id, None)
        book.lines.stop_clock(spec.id, now)
        out.append(StartInstance(instance.id, spec, {LOCAL: cost.total_mb}))

    def _grant(self, now: float, out: list[Command]) -> None:
        book = self._book
        timeout = book.limits.infer_timeout_seconds
        for instance in book.instances.values():
            while instance.state is State.READY and instance.free_slots > 0 and instance.suspect_until <= now:
                head = book.lines.head(instance.model)
                if head is None:
                    break
                book.lines.remove(head.request.id)
                self._granted[head.request.id] = head
                deadline = now + timeout if timeout > 0 else math.inf
                book.leases[head.request.id] = LeaseBook(head.request.id, instance.id, instance.model, now, deadline)
                instance.leases.add(head.request.id)
                instance.last_used = now
                out.append(Grant(head.request.id, instance.id))

    def _finish_drains(self, now: float, out: list[Command]) -> None:
        for instance in self._book.instances.values():
            if instance.state is not State.DRAINING:
                continue
            if not instance.leases:
                self._stop(instance, instance.drain_why, now, out)
            elif instance.drain_deadline <= now:
                error = Unloaded(f'model "{instance.model}" was unloaded ({instance.drain_why}) before the answer ended')
                instance.drain_deadline = math.inf
                for request in sorted(instance.leases):
                    self._revoke(self._book.leases[request], error, out)

    def _stop(self, instance: Instance, why: str, now: float, out: list[Command]) -> None:
        if instance.state is State.LOADING:
            self._book.lines.start_clock(instance.model, now)
        instance.advance(Signal.STOP)
        self._book.evictions_total += why.startswith(EVICTED)
        self._book.ledger.release(instance.id)
        out.append(StopInstance(instance.id, why))

    def _revoke(self, lease: LeaseBook, error: ModeldError, out: list[Command]) -> None:
        if not lease.revoked:
            lease.revoked = True
            out.append(RevokeLease(lease.request, error))


def _ending(code: int | None, reason: str) -> str:
    if reason:
        return reason
    if code is None:
        return "connection lost"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
