# SPDX-License-Identifier: GPL-3.0-only
"""handle(event, now) -> commands: the one door to every decision; rule: book first, then return the command.

After each event the same decision runs, in this order (`_decide`):
1  What the clock says: who waited too long is refused, who ran past infer_timeout is revoked, who is idle past its ttl is drained, who
   did not move is asked for its progress.
2  Placement (placement.py), when something changed that it depends on: checks, starts, victims. An instance closed for a due model that
   does not need it any more is opened again.
3  Free slots are granted (queues.py says to whom).
4  Drained instances are stopped; past their deadline what runs there is revoked.

When a model is due, and what follows from it: docs/scheduling.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from modeld.core import admission
from modeld.core.accounting import Accounting
from modeld.core.book import Alarm, Book
from modeld.core.bookings import Bookings
from modeld.core.changes import PROGRESS_STEP, Change, LoadMoved, PinMoved, TableMoved
from modeld.core.estimate import Need
from modeld.core.explain import explain, snapshot, why_waits
from modeld.core.footprint import Learned
from modeld.core.forecast import forecast
from modeld.core.instance import Instance
from modeld.core.lifecycle import State
from modeld.core.messages import (
    CheckProgress,
    Command,
    Event,
    FootprintMeasured,
    FootprintProbed,
    FootprintsLearned,
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
    MemorySeen,
    ModelTableReplaced,
    PinChanged,
    ProbeFailed,
    ProgressChecked,
    RequestArrived,
    RequestWithdrawn,
    SettingsReplaced,
    ShutdownRequested,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import InstanceId, Limits, ModelId, ModelSpec, Request, RequestId
from modeld.core.pins import pin_refusal
from modeld.core.planning import Planner
from modeld.core.queues import Waiting
from modeld.core.snapshot import Explanation, Snapshot
from modeld.core.whatif import WhatIf, what_if
from modeld.errors import DeadlineExceeded, Died, Draining, InvariantError, ModeldError, Stuck, Unloaded, WaitTimeout


class Scheduler:
    """Every decision of the daemon. Deterministic: the same events at the same times give the same commands."""

    def __init__(self, limits: Limits, models: Mapping[ModelId, ModelSpec]) -> None:
        self._book = Book(limits, dict(models))
        self._do = Bookings(self._book)
        self._planner = Planner(self._book, self._do)
        self._accounting = Accounting(self._book, self._do)

    # --- the door -----------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:  # noqa: C901 - one arm for each event, no logic of its own
        """Book the event, decide, return what is to be done. Raises InvariantError for a pair the tables do not know."""
        book, do = self._book, self._do
        do.out = []
        match event:
            case RequestArrived(request):
                self._arrive(request, now)
            case LeaseReleased(request_id, tokens, moved_at):
                self._released(request_id, tokens, now if moved_at is None and tokens > 0 else moved_at, now)
            case Wakeup():
                pass
            case RequestWithdrawn(request_id):
                self._withdraw(request_id, now)
            case LeaseFailed(request_id, before_first_byte, error):
                self._lease_failed(request_id, before_first_byte, error, now)
            case ProgressChecked(instance_id, moved, began):
                instance = book.instances.get(instance_id)
                if instance is not None and not do.watch(instance, now, moved, began):
                    self._stuck(instance, now)
            case LaunchChecked(model, fingerprint):
                self._launch_checked(model, fingerprint)
            case LaunchRejected(model, fingerprint, rejection):
                self._launch_rejected(model, fingerprint, rejection, now)
            case LoadProgressed(instance_id, fraction):
                if (instance := book.instances.get(instance_id)) is not None:
                    self._progressed(instance, fraction)
            case InstanceSpawned(instance_id, pid):
                book.get(instance_id).pid = pid
            case InstanceReady(instance_id, pid):
                instance = book.get(instance_id)
                do.ready(instance, pid, now)
                if instance.state is State.READY:
                    do.grant_slots(instance, now)  # before anybody may close it: a load is never in vain
            case InstanceFailed(instance_id, failure):
                do.load_failed(book.get(instance_id), failure, now)
            case InstanceExited(instance_id, code, reason, ran_out):
                do.exited(book.get(instance_id), _ending(code, reason), now, ran_out=ran_out)
            case MemoryFreed(instance_id):
                freed = book.get(instance_id)
                do.freed(freed, now)
                self._refuse_misfits([freed.model])  # settings or pins may have changed since its line was let in
            case FootprintMeasured() | FootprintProbed() | ProbeFailed() | FootprintsLearned() | MemorySeen():
                self._accounting.take(event, now)
            case ModelTableReplaced(models):
                self._replace_models(models, now)
            case SettingsReplaced(limits):
                self._replace_settings(limits, now)
            case LoadRequested(model, may_evict):
                if (wished := book.by_model.get(model)) is None or wished.state is not State.READY:
                    self._wish(model, may_evict)
            case UnloadRequested(model):
                book.drop_wish(model, Unloaded(f'an unload of "{model}" was asked for while it was to be loaded'))
                if (wished := book.by_model.get(model)) is not None:
                    do.drain(wished, "unload", now)
                do.replan = True
            case PinChanged(model, pinned):
                self._pin(model, pinned)
            case ShutdownRequested():
                self._shut_down(now)
            case _:
                assert_never(event)
        if not book.shutting_down:
            self._decide(now)
        return do.out

    def next_wakeup(self) -> float | None:
        """The next moment (monotonic seconds) at which there may be something to decide, or None."""
        return None if self._book.shutting_down else self._book.next_alarm()

    def is_empty(self) -> bool:
        """No instance holds anything any more."""
        return not self._book.instances

    def snapshot(self, now: float, *, estimates: bool = True) -> Snapshot:
        return snapshot(self._book, now, estimates=estimates)

    def explain(self, now: float) -> Explanation:
        """Why each model and each waiting request is where it is, in a sentence each."""
        return explain(self._book, now)

    def expected_wait(self, model: ModelId, now: float) -> float:
        """Seconds that a request for `model`, which is in the catalogue, would wait if it came now."""
        return forecast(self._book, model, now, ahead=self._book.lines.length(model)).seconds

    def expected_wait_of(self, request: RequestId, now: float) -> float:
        """Seconds that a request which waits has still to wait; 0 for one that does not."""
        waiting = self._book.lines.get(request)
        if waiting is None or waiting.request.model not in self._book.models:
            return 0.0
        line = self._book.lines.of(waiting.request.model)
        return 0.0 if line is None else forecast(self._book, waiting.request.model, now, ahead=line.ahead_of(waiting.rank) - 1).seconds

    def need(self, model: ModelId) -> Need:
        """What a model of the catalogue would take if it were started now, by all that is known."""
        return self._book.need(model)

    def launch(self, model: ModelId) -> ModelSpec:
        """What a model of the catalogue would be started with now: fitted to the room there could be."""
        return self._book.spec(model)

    def degraded(self, model: ModelId) -> tuple[str, ...]:
        """What was given up of the instance that runs, in words; without one, what would be. Nothing for a model nobody knows."""
        if (instance := self._book.by_model.get(model)) is not None:
            return instance.spec.degraded
        return self._book.spec(model).degraded if model in self._book.models else ()

    def pin_refusal(self, model: ModelId) -> ModeldError | None:
        """Why PinChanged(model, True) would be ignored now, or None. A read for whoever asks: the door looks again."""
        return pin_refusal(self._book, model)

    def what_if(self, models: Sequence[ModelId], now: float) -> WhatIf:
        """What would happen if these models were asked for, or each model of the catalogue for itself. A read: it books nothing."""
        return what_if(self._book, self._planner.candidates(now), self._planner.demands(now), models)

    def footprints(self) -> tuple[Learned, ...]:
        """What was learned of launches, by model."""
        return tuple(sorted(self._book.known.learned.values(), key=lambda one: (one.model, one.launch)))

    def take_changes(self) -> list[Change]:
        """What has changed since the last call, oldest first; the newest CHANGES_MAX when nobody called for long."""
        return self._book.changes.take(self._book.lines.length)

    def check_invariants(self) -> None:
        """Cheap and total. Raises InvariantError."""
        self._book.check()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _arrive(self, request: Request, now: float) -> None:
        book, model = self._book, request.model
        if request.id in book.lines or request.id in book.leases:
            raise InvariantError(f"request {request.id} arrived twice")
        spec = book.models.get(model)
        known = spec is not None and spec.unavailable is None
        instance = book.by_model.get(model)
        failure = book.breaker.failure(model)
        line = book.lines.of(model)
        rank = 0 if spec is None else book.rank_of(request, spec)
        ahead = 0 if line is None else line.ahead_of(rank)
        open_now = instance is not None and instance.state is State.READY and instance.suspect_until <= now
        fits = not known or instance is not None or not book.is_misfit(model)

        def outlook() -> admission.Outlook:
            expected = forecast(book, model, now, ahead=ahead)
            load = 0.0 if expected.guessed else expected.load_seconds
            line = expected.line_seconds if book.pace.knows_request(model) else 0.0
            return admission.Outlook(expected.seconds, expected.room_seconds + load + line)

        door = admission.Door(
            open=not book.shutting_down,
            spec=spec,
            need=book.need(model) if known and not fits else None,
            fits=fits,
            available_mb=max((limit or 0 for limit in book.capacity(model).values()), default=0) if not fits else 0,
            failure=None if failure is None else failure.error,
            retry_in_seconds=0.0 if failure is None else failure.until - now,
            line_length=0 if line is None else len(line.waiting),
            waiting_bytes=book.lines.waiting_bytes,
            goes_straight_through=open_now and line is None and instance is not None and instance.free_slots > 0,
            line_seconds=0.0
            if spec is None or not book.pace.knows_request(model)
            else ahead / spec.options.parallel * book.pace.request_seconds(model),
            outlook=outlook,
        )
        refusal = admission.refusal(request, door, book.limits)
        if refusal is not None:
            self._do.refuse(request.id, refusal)
            return
        book.pace.asked(model, now)
        self._do.enqueue(request, rank, now)

    def _withdraw(self, request: RequestId, now: float) -> None:
        """Legal in every state, also between the grant booked and the grant taken."""
        waiting = self._book.lines.remove(request)
        if waiting is not None:
            self._do.line_changed(waiting.request.model)
        else:
            self._do.end_lease(request, now)

    def _released(self, request: RequestId, tokens: int, moved_at: float | None, now: float) -> None:
        lease = self._do.end_lease(request, now, moved_at)
        if lease is None:
            return
        book = self._book
        if lease.revoked is None:
            book.pace.served(lease.request.model, now - lease.granted)
            if tokens > 0:
                book.breaker.answered(lease.request.model, now)

    def _lease_failed(self, request: RequestId, before_first_byte: bool, error: ModeldError | None, now: float) -> None:
        """1 Something reached the client: it is over. 2 Once, it keeps its place. 3 The second time, or when it is to end: refused."""
        book, do = self._book, self._do
        lease = do.end_lease(request, now)
        if lease is None:
            return
        if (instance := book.instances.get(lease.instance)) is not None:
            do.suspect(instance, now)
        if not before_first_byte:  # 1
            return
        model = lease.request.model
        gone = admission.gone(model, book.models.get(model))
        circuit_open = book.breaker.is_open(model) and book.breaker.blocked_until(model) > now
        if not lease.keeps_place or book.shutting_down:  # 3
            do.refuse(request, lease.revoked or error or _fault(model))
        elif gone is not None or lease.waiting.requeued or circuit_open:
            do.refuse(request, error or lease.revoked or gone or _fault(model))
        else:  # 2
            do.restore(lease, now)
            self._refuse_misfits([model])  # settings or pins may have changed since it was let in

    def _stuck(self, instance: Instance, now: float) -> None:
        """Nothing moves: it looks alive and is not. What has not begun is asked again of its successor."""
        self._book.stuck_total += 1
        error = Stuck(f'the model server of "{instance.model}" lives, but nothing came from it; it was stopped')
        self._do.stop(instance, "stuck", now)
        self._do.died(instance, error, now)
        self._do.replan = True  # memory comes back that nobody counted on

    # --- launches -----------------------------------------------------------------------------------------------------

    def _launch_checked(self, model: ModelId, fingerprint: str) -> None:
        if self._book.checking.get(model) != fingerprint:
            return  # about a file that was replaced: another check is on its way
        del self._book.checking[model]
        self._book.checked[model] = fingerprint
        self._do.replan = True

    def _launch_rejected(self, model: ModelId, fingerprint: str, error: ModeldError, now: float) -> None:
        if self._book.checking.get(model) != fingerprint:
            return
        del self._book.checking[model]
        spec = self._book.models.get(model)
        if spec is not None and spec.fingerprint == fingerprint:
            self._do.fail(model, fingerprint, error, now)

    # --- the operator -------------------------------------------------------------------------------------------------

    def _replace_models(self, models: Mapping[ModelId, ModelSpec], now: float) -> None:
        """Instances keep their spec; those whose file changed or went are drained, and loaded anew when they were resident."""
        book, do = self._book, self._do
        book.unprobed.clear()
        book.models = dict(models)
        book.forget_memory(needs=True)
        for model in book.breaker.models():
            spec, failure = models.get(model), book.breaker.failure(model)
            if spec is None or (failure is not None and spec.fingerprint != failure.fingerprint):
                book.breaker.forget(model)
        for instance in list(book.instances.values()):
            spec = models.get(instance.model)
            if instance.state in (State.LOADING, State.READY, State.DRAINING) and (
                spec is None or spec.unavailable is not None or not instance.same_launch(spec)
            ):
                if spec is not None and spec.unavailable is None and (instance.drain_why == "" or instance.is_closed):
                    book.wishes.setdefault(instance.model, False)
                    do.unchecked[instance.model] = None
                do.drain(instance, "replaced", now)
        for model in list(book.wishes):
            if admission.gone(model, models.get(model)) is None:
                do.unchecked[model] = None
            else:
                book.drop_wish(model, admission.gone(model, models.get(model)) or _fault(model))
        book.changes.note(TableMoved(len(models)))
        for model in book.lines.models():
            if (refusal := admission.gone(model, models.get(model))) is not None:
                do.refuse_line(model, refusal)
            else:
                do.unchecked[model] = None
        self._refuse_misfits()

    def _wish(self, model: ModelId, may_evict: bool) -> None:
        spec = self._book.models.get(model)
        if spec is not None and spec.unavailable is None and not self._book.shutting_down:
            self._book.wishes[model] = may_evict
            self._do.unchecked[model] = None
            self._refuse_misfits()

    def _pin(self, model: ModelId, pinned: bool) -> None:
        """The operator's word. Who no longer fits beside it hears of it at once; who was closed and is pinned now is opened again."""
        book = self._book
        if model not in book.models or (pinned and pin_refusal(book, model) is not None):
            return
        was = book.is_held(model)
        book.pins[model] = pinned
        if was != pinned:
            book.changes.note(PinMoved(model, pinned))
            book.forget_memory()
            self._refuse_misfits()

    def _progressed(self, instance: Instance, fraction: float) -> None:
        instance.progress = fraction
        if abs(fraction - instance.told_progress) >= PROGRESS_STEP or (fraction >= 1.0 > instance.told_progress):
            instance.told_progress = fraction
            self._book.changes.note(LoadMoved(instance.model, instance.id, fraction))

    def _replace_settings(self, limits: Limits, now: float) -> None:
        book = self._book
        book.limits = limits
        book.forget_memory(needs=True)
        for model in book.lines.models():
            book.sync_demand(model)
        for instance in book.instances.values():
            if instance.leases:
                self._do.watch(instance, now)
        self._refuse_misfits()

    def _refuse_misfits(self, models: Iterable[ModelId] | None = None, *, replan: bool = True) -> None:
        """Lines of models that could never fit any more; wishes too. Of all that wait for room, or of `models`."""
        book = self._book
        for model in [*(model for _, _, model in book.demands), *book.wishes] if models is None else models:
            if model in book.models and model not in book.by_model and book.is_misfit(model):
                available = max((limit or 0 for limit in book.capacity(model).values()), default=0)
                misfit = admission.never_fits(book.models[model], book.need(model), available)
                self._do.refuse_line(model, misfit)
                book.drop_wish(model, misfit)
                book.last_error = misfit.message
        self._do.replan = self._do.replan or replan

    def _shut_down(self, now: float) -> None:
        book, do = self._book, self._do
        book.shutting_down = True
        for model in list(book.wishes):
            book.drop_wish(model, Draining("modeld is shutting down; try again when it is back", retry_after_seconds=5))
        book.checking.clear()  # what a check still finds is of no interest: a rejection would be shown as a failed model
        for model in book.breaker.models():
            book.breaker.forget(model)
        for model in book.lines.models():
            do.refuse_line(model, Draining("modeld is shutting down; try again when it is back", retry_after_seconds=5))
        for lease in book.leases.values():
            do.revoke(lease, Unloaded("modeld is shutting down", retry_after_seconds=5))
        for instance in book.instances.values():
            if instance.state in (State.LOADING, State.READY, State.DRAINING):
                do.stop(instance, "shutdown", now)

    # --- the decision -------------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> None:
        do = self._do
        for kind, key in self._book.ring(now):  # 1
            self._rung(kind, key, now)
        while True:
            if do.replan:  # 2
                do.replan = False
                self._planner.run(now)
                if do.look_for_misfits:
                    do.look_for_misfits = False
                    self._refuse_misfits(replan=False)  # they had no room in it
            self._settle(now)
            if not do.replan:
                return

    def _settle(self, now: float) -> None:
        """3 and 4, for the instances that were touched."""
        book, do = self._book, self._do
        while do.touched:
            touched, do.touched = do.touched, {}
            for key in touched:
                instance = book.instances.get(key)
                if instance is None:
                    continue
                if instance.state is State.READY and instance.free_slots > 0 and book.lines.of(instance.model) is not None:
                    do.grant_slots(instance, now, by_age=book.in_turn(instance, now) and book.due_count(now) > 0)
                elif instance.state is State.DRAINING:
                    do.finish_drain(instance, now)

    def _rung(self, kind: int, key: str, now: float) -> None:
        """An alarm: whoever it is about may have gone or been seen to meanwhile."""
        book, do = self._book, self._do
        if kind == Alarm.PLAN:
            do.replan = True
        elif kind == Alarm.WAITING:
            waiting = book.lines.get(RequestId(key))
            if waiting is not None and book.lines.is_late(waiting, now):
                self._expire(waiting, now)
            elif waiting is not None:
                do.arm(waiting, now)
        elif kind == Alarm.LEASE:
            lease = book.leases.get(RequestId(key))
            if lease is not None and lease.deadline <= now:
                do.revoke(lease, DeadlineExceeded(f"the answer took longer than {book.limits.infer_timeout_seconds:g} s (infer_timeout)"))
        elif (instance := book.instances.get(InstanceId(key))) is None:
            return
        elif kind == Alarm.PROGRESS:
            if instance.watch_at > now:
                return
            instance.watch_at = math.inf
            if not do.watch(instance, now):
                do.out.append(CheckProgress(instance.id))
        elif kind == Alarm.IDLE:
            idle = instance.state is State.READY and not instance.leases and not book.lines.length(instance.model)
            if idle and instance.idle_until <= now:
                do.drain(instance, "ttl", now)
        else:
            do.touched[instance.id] = None

    def _expire(self, waiting: Waiting, now: float) -> None:
        """Its time in line is over."""
        book, request = self._book, waiting.request
        ahead = book.lines.length(request.model)
        seconds = admission.whole_seconds(forecast(book, request.model, now, ahead=ahead).seconds)
        why = why_waits(book, request.model, now)
        limit = "X-Modeld-Timeout" if waiting.hard <= now else "max_wait"
        book.lines.remove(request.id)
        self._do.line_changed(request.model)
        text = f"waited {now - waiting.arrived:.1f} s ({limit}) for {why}; try again in about {seconds} s"
        self._do.refuse(request.id, WaitTimeout(text, retry_after_seconds=seconds))


def _ending(code: int | None, reason: str) -> str:
    if reason:
        return reason
    if code is None:
        return "connection lost"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _fault(model: ModelId) -> Died:
    return Died(f'the model server of "{model}" failed twice before it could answer')
