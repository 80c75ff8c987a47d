# SPDX-License-Identifier: GPL-3.0-only
"""What is booked when something is decided or reported; rule: the book first, then the command for it; whether to do it is scheduler.py's.

Each method leaves the book consistent. What may change the plan sets `replan`; instances whose slots or drains must be looked at
again stand in `touched`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import replace

from modeld.core import shortage
from modeld.core.book import Alarm, Book
from modeld.core.changes import InstanceMoved
from modeld.core.fairness import Running, stuck_at
from modeld.core.footprint import Learned
from modeld.core.instance import EVICTED, SUSPECT_SECONDS, Instance, LeaseBook
from modeld.core.lifecycle import Signal, State
from modeld.core.messages import (
    CheckLaunch,
    Command,
    Grant,
    ProbeFootprint,
    Refuse,
    Remember,
    RevokeLease,
    StartInstance,
    StopInstance,
)
from modeld.core.model import InstanceId, ModelId, Request, RequestId
from modeld.core.placement import Vector
from modeld.core.queues import Waiting
from modeld.errors import Died, ModeldError, OutOfMemory, Unloaded


class Bookings:
    """Changes of one book. `out` collects the commands of the present step."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.out: list[Command] = []
        self.replan = False
        self.look_for_misfits = False
        """A pinned model took memory that others may have counted on, or more is known of what somebody takes."""
        self.touched: dict[InstanceId, None] = {}
        self.unchecked: dict[ModelId, None] = {}
        """New demands, whose launch is to be checked."""

    # --- requests in line ---------------------------------------------------------------------------------------------

    def enqueue(self, request: Request, rank: int, now: float) -> None:
        book = self.book
        waiting = book.lines.append(request, rank, now, book.limits.wait_max_seconds)
        book.changes.lines[request.model] = None
        self.arm(waiting, now)
        instance = book.by_model.get(request.model)
        if instance is None:
            line = book.lines.of(request.model)
            if self.line_changed(request.model) or (line is not None and line.count(rank) == 1):
                self.replan = True  # a new demand, or one of a more urgent class now
        else:
            self.touched[instance.id] = None

    def restore(self, lease: LeaseBook, now: float) -> None:
        """Back in line, in the old place."""
        book, waiting = self.book, lease.waiting
        book.lines.restore(waiting, now, lease.left_seconds)
        book.requeued_total += 1
        self.arm(waiting, now)
        self.line_changed(waiting.request.model)
        if (instance := book.by_model.get(waiting.request.model)) is not None:
            self.touched[instance.id] = None

    def refuse(self, request: RequestId, error: ModeldError) -> None:
        """The end of a request that stands in no line any more."""
        self.out.append(Refuse(request, error))

    def refuse_line(self, model: ModelId, error: ModeldError) -> None:
        for waiting in self.book.lines.take(model):
            self.refuse(waiting.request.id, error)
        self.line_changed(model)

    def line_changed(self, model: ModelId) -> bool:
        """Somebody came, left or was taken. True when the list of demands changed."""
        book = self.book
        book.changes.lines[model] = None
        changed = book.sync_demand(model)
        if changed:
            self.replan = True
            if book.is_demand(model):
                self.unchecked[model] = None
        instance = book.by_model.get(model)
        if instance is None:
            return changed
        if not instance.leases and not book.lines.length(model):
            self.replan = True  # nobody wants it, or its load, any more
        if instance.turn_until > -math.inf and not book.turn_waits(instance):
            instance.turn_until = -math.inf
            self.replan = True
        return changed

    def start_clock(self, model: ModelId, now: float) -> None:
        """The load of the model has ended, whichever way: who waits for it ages again."""
        for waiting in self.book.lines.start_clock(model, now):
            self.arm(waiting, now)

    def arm(self, waiting: Waiting, now: float) -> None:
        """Be called when its time may be up."""
        self.book.alarm(self.book.lines.next_look(waiting, now), Alarm.WAITING, waiting.request.id)

    # --- leases -------------------------------------------------------------------------------------------------------

    def grant_slots(self, instance: Instance, now: float, *, by_age: bool = False) -> None:
        """As many as there are free slots. `by_age`: the oldest first, whatever its class (in a turn that others wait for)."""
        book, model = self.book, instance.model
        if instance.suspect_until > now:
            return
        timeout = book.limits.infer_timeout_seconds
        granted, idle = False, not instance.leases
        while instance.free_slots > 0 and (line := book.lines.of(model)) is not None:
            if by_age:
                line.by_age = False
            waiting = book.lines.next(model, now, book.limits.fairness_wait_seconds)
            if waiting is None:
                break
            granted = True
            request = waiting.request.id
            deadline = now + timeout if timeout > 0 else math.inf
            book.leases[request] = LeaseBook(waiting, instance.id, now, deadline, book.lines.left_seconds(waiting, now))
            book.alarm(deadline, Alarm.LEASE, request)
            if not instance.leases:
                instance.quiet_since = now - instance.silent_seconds
            instance.leases[request] = None
            instance.last_used = now
            self.out.append(Grant(request, instance.id))
        if granted:
            self.line_changed(model)
            if idle:
                self.watch(instance, now)

    def watch(
        self, instance: Instance, now: float, moved: Mapping[RequestId, float] | None = None, began: Container[RequestId] = ()
    ) -> bool:
        """Arm the time at which the instance counts as stuck. False when that time has come. `moved`: what is known of its requests."""
        leases = [(request, self.book.leases[request]) for request in instance.leases]
        if not leases or instance.state not in (State.READY, State.DRAINING):
            return True
        for request, lease in leases:
            lease.began = lease.began or request in began
        running = [
            Running(
                began=lease.began,
                moved=lease.granted if moved is None else moved.get(request, lease.granted),
                prompt_tokens=lease.request.prompt_tokens,
                answer_tokens=lease.request.answer_tokens,
            )
            for request, lease in leases
        ]
        at = stuck_at(running, instance.quiet_since, self.book.limits)
        instance.quiet_since = max([instance.quiet_since, *(request.moved for request in running if request.began)])
        if at <= now:
            return False
        if at < instance.watch_at:  # an earlier look comes anyway, and sets the next one
            instance.watch_at = at
            self.book.alarm(at, Alarm.PROGRESS, instance.id)
        return True

    def end_lease(self, request: RequestId, now: float, moved_at: float | None = None) -> LeaseBook | None:
        """Idempotent: a release may come after the withdrawal, or after the instance has gone. The lease, if there was one.

        `moved_at` is when its last byte came. Of a request that left without one the time is forgiven that its prompt may have taken: it
        shows neither that the instance moves nor that it does not.
        """
        book = self.book
        lease = book.leases.pop(request, None)
        if lease is None:
            return None
        instance = book.instances.get(lease.instance)
        if instance is not None:
            instance.leases.pop(request, None)
            instance.last_used = now
            if lease.request.keep_seconds > 0:
                instance.kept_until = max(instance.kept_until, now + lease.request.keep_seconds)
            self._silence(instance, lease, moved_at, now)
            self.touched[instance.id] = None
            if not instance.leases:
                book.alarm(instance.idle_until, Alarm.IDLE, instance.id)
                if book.lines.of(instance.model) is None:
                    self.replan = True  # it is idle now
        return lease

    def _silence(self, instance: Instance, lease: LeaseBook, moved_at: float | None, now: float) -> None:
        """What the end of a lease tells about whether its instance moves."""
        asked = lease.request
        if moved_at is not None:
            instance.quiet_since = max(instance.quiet_since, moved_at)
        elif not lease.began:
            reading = asked.prompt_tokens * self.book.limits.prompt_token_seconds
            instance.quiet_since = min(now, instance.quiet_since + min(now - lease.granted, reading))
        if not instance.leases:
            instance.silent_seconds = now - instance.quiet_since
        elif asked.answer_tokens > 1 or asked.prompt_tokens > 0:
            self.watch(instance, now)  # it may have been allowed a longer silence than the others

    def suspect(self, instance: Instance, now: float) -> None:
        """A request failed there: nothing new until a report of its death had time to come."""
        instance.suspect_until = now + SUSPECT_SECONDS
        self.book.alarm(instance.suspect_until, Alarm.GRANT, instance.id)

    def revoke(self, lease: LeaseBook, error: ModeldError, *, keeps_place: bool = False) -> None:
        if lease.revoked is None:
            lease.revoked, lease.keeps_place = error, keeps_place
            self.out.append(RevokeLease(lease.request.id, error))

    def revoke_all(self, instance: Instance, error: ModeldError, *, keeps_place: bool = False) -> None:
        for request in instance.leases:
            self.revoke(self.book.leases[request], error, keeps_place=keeps_place)

    # --- instances ----------------------------------------------------------------------------------------------------

    def check(self, model: ModelId) -> None:
        """Ask whether the launch could work, once for each version of the model."""
        book = self.book
        if model not in book.models:
            return
        spec = book.spec(model)
        self.probe(model)
        if book.checking.get(model) == spec.fingerprint or book.checked.get(model) == spec.fingerprint:
            return
        book.checking[model] = spec.fingerprint
        self.out.append(CheckLaunch(spec))

    def probe(self, model: ModelId) -> None:
        """Ask llama.cpp what the launch would take, where only the formula is known. Nobody but this model waits for the answer."""
        book = self.book
        key = book.unasked(model)
        if key and book.probing.get(model) != key:
            book.probing[model] = key
            self.out.append(ProbeFootprint(book.spec(model), key, around=key not in book.known.probes))

    def start(self, model: ModelId, place: Vector, now: float) -> None:
        book = self.book
        spec, base, cost = book.spec(model), book.models[model], book.need(model)
        book.gave_way.pop(model, None)
        instance = Instance(book.next_instance_id(model), spec, place, started=now, last_used=now, base=base, cost=cost)
        book.add(instance)
        book.checked.pop(model, None)
        book.lines.stop_clock(model, now)
        self._moved(instance)
        if book.is_pinned(instance):
            book.forget_memory()
            self.look_for_misfits = True
        self.out.append(StartInstance(instance.id, spec, place))

    def close(self, instance: Instance, for_model: ModelId, now: float) -> None:
        """For a due model: nothing new, what runs runs on (up to preempt_after)."""
        instance.closed_for = for_model
        if instance.is_closed:
            return
        instance.advance(Signal.DRAIN)
        instance.drain_why, instance.drain_deadline = EVICTED, math.inf
        after = self.book.limits.preempt_after_seconds
        if after is not None:
            instance.drain_deadline = now + after
            self.book.alarm(instance.drain_deadline, Alarm.DRAIN, instance.id)
        self.book.closings_total += 1
        self._moved(instance, f"{EVICTED} for {for_model}")

    def reopen(self, instance: Instance) -> None:
        """Whoever it was closed for does not need it any more."""
        instance.advance(Signal.RESUME)
        instance.drain_why, instance.closed_for = "", ""
        self.book.wishes.pop(instance.model, None)
        self.book.gave_way.pop(instance.model, None)
        self.touched[instance.id] = None
        self._moved(instance)

    def drain(self, instance: Instance, why: str, now: float) -> None:
        """By operator, reload or ttl: with a deadline. Loading instances are stopped at once, nobody runs on them."""
        self.replan = True
        if instance.state is State.LOADING:
            self.stop(instance, why, now)
        elif instance.state in (State.READY, State.DRAINING):
            instance.advance(Signal.DRAIN)
            if instance.drain_why in ("", EVICTED):
                instance.drain_why, instance.closed_for = why, ""
                instance.drain_deadline = now + self.book.limits.drain_timeout_seconds
                self.book.alarm(instance.drain_deadline, Alarm.DRAIN, instance.id)
                self._moved(instance, why)
            self.touched[instance.id] = None

    def stop(self, instance: Instance, why: str, now: float) -> None:
        if instance.state is State.LOADING:
            self.start_clock(instance.model, now)
        instance.advance(Signal.STOP)
        instance.stopping_since = now
        self.book.evictions_total += why.startswith(EVICTED)
        self.book.ledger.release(instance.id)
        self._pin_lost(instance)
        self._moved(instance, why)
        self.out.append(StopInstance(instance.id, why))

    def _moved(self, instance: Instance, why: str = "", error: ModeldError | None = None) -> None:
        """Told of, for whoever follows."""
        self.book.changes.note(InstanceMoved(instance.model, instance.id, instance.state, why, error))

    def _pin_lost(self, instance: Instance) -> None:
        """It ends: if it was pinned, others may have its place now."""
        if self.book.is_pinned(instance):
            self.book.forget_memory()
            self.replan = True

    def finish_drain(self, instance: Instance, now: float) -> None:
        """Nothing runs any more: stop. Past its deadline: end what runs."""
        if instance.state is not State.DRAINING:
            return
        if not instance.leases:
            why = f"{EVICTED} for {instance.closed_for}" if instance.is_closed else instance.drain_why
            self.stop(instance, why, now)
        elif instance.drain_deadline <= now:
            instance.drain_deadline = math.inf
            if instance.is_closed:
                self.book.preemptions_total += sum(self.book.leases[request].revoked is None for request in instance.leases)
                text = f'cut to make room for "{instance.closed_for}", which waited longer (preempt_after)'
                self.revoke_all(instance, Unloaded(text, retry_after_seconds=1), keeps_place=True)
            else:
                text = f'model "{instance.model}" was unloaded ({instance.drain_why}) before the answer ended'
                self.revoke_all(instance, Unloaded(text))

    def ready(self, instance: Instance, pid: int | None, now: float) -> None:
        """It serves from now on. Who made it due gets a turn; the free slots are granted by the caller, in the same step."""
        book, model = self.book, instance.model
        instance.advance(Signal.BECAME_READY)
        instance.pid = pid if pid is not None else instance.pid
        if instance.state is not State.READY:
            return
        instance.progress, instance.ready_at, instance.last_used = 1.0, now, now
        self._moved(instance)
        book.ledger.commit(instance.id)
        book.loads_total += 1
        book.pace.loaded(model, now - instance.started, instance.device_mb)
        book.breaker.ready(model)
        book.second_try.pop(model, None)
        book.wishes.pop(model, None)
        self.start_clock(model, now)
        book.alarm(instance.idle_until, Alarm.IDLE, instance.id)
        line = book.lines.of(model)
        if line is not None:
            line.by_age = False
            if book.due_at(line.oldest()) <= now:
                instance.turn_until = now + book.limits.turn_seconds
        self.replan = True

    def load_failed(self, instance: Instance, error: ModeldError, now: float) -> None:
        was = instance.state
        instance.advance(Signal.LOAD_FAILED)
        if was is State.LOADING:
            instance.stopping_since = now
            self.book.ledger.release(instance.id)
            self._pin_lost(instance)
            final = self._out_of_memory(instance, error) if isinstance(error, OutOfMemory) else error
            self._moved(instance, (final or error).message, final or error)
            if final is not None:
                self.fail(instance.model, instance.spec.fingerprint, final, now)
            else:
                self.start_clock(instance.model, now)
                self.replan = True

    def _out_of_memory(self, instance: Instance, error: OutOfMemory) -> OutOfMemory | None:
        """It takes more than it got: that is remembered, and it is tried once more with room for more. The second time, the error."""
        book, model, cost = self.book, instance.model, instance.cost
        book.out_of_memory_total += 1
        if cost is None or not cost.key:
            return error  # nothing can be remembered of it: the second start would be the first one again
        again = book.second_try.pop(model, None) != instance.spec.fingerprint
        self._ran_out(instance, error.asked_bytes, others_may_be_why=again)
        if again:
            book.second_try[model] = instance.spec.fingerprint
            return None
        return shortage.told(book, instance, cost, error)

    def _ran_out(self, instance: Instance, asked_bytes: int = 0, *, others_may_be_why: bool) -> None:
        """What follows from that is known from now on; what others hold by the last look is believed at once."""
        book, cost = self.book, instance.cost
        for device in instance.need_mb:
            book.foreign.believe(device)
        if cost is None or not cost.key or (others_may_be_why and not shortage.was_there(book, instance)):
            return
        known = book.known.learned.get(cost.key) or Learned(instance.model)
        least = max(known.least_bytes, shortage.least_bytes(book, instance, cost, asked_bytes))
        self.learn(instance, cost.key, replace(known, least_bytes=least))

    def learn(self, instance: Instance, key: str, learned: Learned) -> None:
        """Known from now on, and kept across restarts."""
        if self.book.known.learned.get(key) != learned:
            self.book.known.learned[key] = learned
            self.book.forget_header(instance.spec.header_hash)
            self.look_for_misfits = self.replan = True
            self.out.append(Remember(key, instance.spec.header_hash, learned=learned))

    def exited(self, instance: Instance, ending: str, now: float, *, ran_out: bool = False) -> None:
        """Its process has ended; `ending` says how, for people. `ran_out` of memory while it served: the next launch gets more."""
        book = self.book
        was = instance.state
        instance.advance(Signal.EXITED)
        instance.pid = None
        if was is State.LOADING:
            error = Died(f'the model server of "{instance.model}" ended while it loaded ({ending})')
            self._moved(instance, error.message, error)
            self.fail(instance.model, instance.spec.fingerprint, error, now)
        elif was in (State.READY, State.DRAINING):
            error = Died(f'the model server of "{instance.model}" ended ({ending}); the next request starts it again')
            book.crashes_total += 1
            if ran_out:
                self._ran_out(instance, others_may_be_why=True)
            self._moved(instance, error.message, error)
            self.died(instance, error, now)
        if was is not State.STOPPING:
            instance.stopping_since = now
            self.replan = True
            self._pin_lost(instance)
        book.ledger.release(instance.id)

    def died(self, instance: Instance, error: ModeldError, now: float) -> None:
        """A ready instance is lost: what ran there is told, and the record counts it. An open circuit turns the line away."""
        book = self.book
        book.last_error = error.message
        book.breaker.died(instance.model, instance.spec.fingerprint, error, now)
        self.revoke_all(instance, error, keeps_place=True)
        if book.breaker.is_open(instance.model):
            self.refuse_line(instance.model, error)

    def freed(self, instance: Instance, now: float) -> None:
        book, model = self.book, instance.model
        instance.advance(Signal.FREED)
        if instance.stopping_since < now:
            book.pace.stopped(now - instance.stopping_since)
        was_pinned = book.is_pinned(instance)
        book.drop(instance)
        self._moved(instance)
        if was_pinned:
            book.forget_memory()
        self.touched.pop(instance.id, None)
        if book.is_demand(model) or model in book.wishes:
            self.unchecked[model] = None
        self.replan = True

    def fail(self, model: ModelId, fingerprint: str, error: ModeldError, now: float) -> None:
        """The load did not succeed: every waiter hears why, and the next attempt backs off."""
        book = self.book
        book.breaker.load_failed(model, fingerprint, error, now)
        book.load_failures_total += 1
        book.last_error = f"{model}: {error.message}"
        book.wishes.pop(model, None)
        book.checked.pop(model, None)
        book.second_try.pop(model, None)
        if model not in book.by_model:
            book.changes.note(InstanceMoved(model, InstanceId(f"0/{model}"), State.FAILED, error.message, error))
        self.start_clock(model, now)
        self.refuse_line(model, error)
        self.replan = True
