# SPDX-License-Identifier: GPL-3.0-only
"""What can be known of a scheduler from outside, from its events and commands alone; rule: no look inside, no decision.

The world acts on it, the invariants are judged by it, the history is written from it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from modeld.core.estimate import need
from modeld.core.messages import (
    CheckLaunch,
    Command,
    Event,
    Grant,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    LaunchChecked,
    LaunchRejected,
    LeaseFailed,
    LeaseReleased,
    LoadRequested,
    MemoryFreed,
    ModelTableReplaced,
    PinChanged,
    Refuse,
    RequestArrived,
    RequestWithdrawn,
    RevokeLease,
    SettingsReplaced,
    ShutdownRequested,
    StartInstance,
    StopInstance,
    UnloadRequested,
)
from modeld.core.model import HOST, LOCAL, DeviceId, InstanceId, Limits, ModelId, ModelSpec, RequestId
from modeld.simulation.seen import ENDED, FAILED, LOADING, READY, RUNNING, STOPPING, WAITING, Asked, Seen

PAST_MAX = 512
VICTIM = "evicted for "
STUCK, REPLACED = "stuck", "replaced"


class Outside:
    """Requests, lines, instances and memory. `fail(name, detail)` is called, and must raise, when a command makes no sense."""

    def __init__(
        self, limits: Limits, models: Mapping[ModelId, ModelSpec], fail: Callable[[str, str], None], *, requeues: bool = True
    ) -> None:
        self.limits = limits
        self.models = dict(models)
        self.fail = fail
        self.requeues = requeues
        self.requests: dict[RequestId, Asked] = {}
        """Those that have not ended."""
        self.lines: dict[ModelId, dict[RequestId, Asked]] = {}
        """In order of arrival; no empty ones."""
        self.groups: dict[tuple[object, ...], dict[RequestId, Asked]] = {}
        """The same by model, class asked for and principal."""
        self.waiting_bytes = 0
        self.instances: dict[InstanceId, Seen] = {}
        self.by_model: dict[ModelId, Seen] = {}
        self.used_mb: dict[DeviceId, int] = {}
        self.checked: dict[ModelId, str] = {}
        self.checking: dict[ModelId, float] = {}
        """Launch checks on their way, since when."""
        self.checked_at: dict[ModelId, float] = {}
        """When the last launch check of a model was answered."""
        self.wishes: dict[ModelId, bool] = {}
        self.pins: dict[ModelId, bool] = {}
        """What the operator last said of a model at run time."""
        self.pin_refused = False
        """What was answered to who asked just now whether a model may be pinned: such an event must change nothing."""
        self.pin_is_new = False
        """Whether the last pin was of a model that was not pinned."""
        self.renewed: dict[ModelId, float] = {}
        """When an instance of a model was last stopped because its file or its options changed: it is loaded anew without a request."""
        self.failed_at: dict[ModelId, float] = {}
        """When a load or an instance of a model last failed, was lost or got stuck."""
        self.died: dict[ModelId, bool] = {}
        """Whether the last instance of a model ended without being told to, or stuck."""
        self.gone_at: dict[ModelId, float] = {}
        """When the last instance of a model was gone."""
        self.past: deque[Seen] = deque(maxlen=PAST_MAX)
        """Instances that are gone, the last one last."""
        self.asked_count: dict[ModelId, int] = {}
        self.least_load: dict[ModelId, float] = {}
        """The shortest load of a model, seconds."""
        self.rejections: deque[tuple[float, ModelId, float]] = deque(maxlen=PAST_MAX)
        """Launches that were rejected: when, and the rank of age of who waited for them."""
        self.returns: deque[tuple[float, Asked]] = deque(maxlen=PAST_MAX)
        """Who came back into line, and when; the last one last."""
        self.shutting_down = False
        self.arrivals = 0
        self.asked_for: dict[ModelId, None] = {}
        """Models an operator wanted since they were last ready, also while they served or were closed."""
        self.gave_way: dict[ModelId, float] = {}
        """Arrivals until an instance of the model was last closed, or stopped, for another model."""
        self.stop_seconds: Mapping[ModelId, float] = {}
        """How long the child of a model takes to end when nothing goes wrong; what is not named takes 0."""
        self.on_end: Callable[[Asked, str, float], None] = _nobody
        self.on_gone: Callable[[Seen, float], None] = _nobody
        self._books()

    def _books(self) -> None:
        """How each event and each command is booked."""
        self._events: dict[type, Callable[[Any, float], None]] = {
            RequestArrived: self._arrived,
            RequestWithdrawn: self._withdrawn,
            LeaseReleased: self._released,
            LeaseFailed: self._lease_failed,
            LaunchChecked: self._launch_checked,
            LaunchRejected: self._launch_rejected,
            InstanceReady: self._ready,
            InstanceFailed: self._failed,
            InstanceExited: self._exited,
            MemoryFreed: self._freed,
            ModelTableReplaced: self._table,
            SettingsReplaced: self._settings,
            LoadRequested: self._load_requested,
            UnloadRequested: self._unload_requested,
            PinChanged: self._pin_changed,
            ShutdownRequested: self._shutdown,
        }
        self._commands: dict[type, Callable[[Any, float], None]] = {
            Grant: self._grant,
            Refuse: self._refuse,
            RevokeLease: self._revoke,
            StartInstance: self._start,
            StopInstance: self._stop,
            CheckLaunch: self._check,
        }

    def take(self, event: Event, now: float) -> None:
        """Book an event; its commands come after."""
        if (book := self._events.get(type(event))) is not None:
            book(event, now)

    def obey(self, commands: Iterable[Command], now: float) -> None:
        """Book what the scheduler decided."""
        for command in commands:
            if (book := self._commands.get(type(command))) is not None:
                book(command, now)

    def settle(self, asked: Asked, outcome: str, now: float) -> None:
        """The request is over."""
        asked.place = ENDED
        del self.requests[asked.request.id]
        self.on_end(asked, outcome, now)

    # --- what follows from it -----------------------------------------------------------------------------------------

    def demands(self) -> list[tuple[Asked, ModelId]]:
        """(oldest request, model) of the lines whose model has no instance, oldest first."""
        found = [(next(iter(line.values())), model) for model, line in self.lines.items() if model not in self.by_model]
        found.sort(key=_ticket)
        return found

    def rank_of_age(self, oldest: Asked, model: ModelId) -> float:
        """Due demands are served in this order: by their oldest request, but who gave way comes after all who were due then."""
        return max(self.due_at(oldest) + oldest.ticket * 1e-9, self.gave_way.get(model, 0.0))

    def give_way(self, seen: Seen, now: float) -> None:
        """It is closed, or stopped, for another model: its line comes after all that are due now."""
        self.gave_way[seen.model] = now + (self.arrivals + 0.5) * 1e-9

    def in_order(self, demands: list[tuple[Asked, ModelId]], now: float) -> list[tuple[Asked, ModelId]]:
        """Due ones in the order in which they are served, then the others."""
        due = [one for one in demands if self.due_at(one[0]) <= now + 1e-9]
        return sorted(due, key=lambda one: self.rank_of_age(*one)) + demands[len(due) :]

    def due_at(self, asked: Asked) -> float:
        return asked.arrived + self.limits.fairness_wait_seconds

    def is_pinned(self, seen: Seen) -> bool:
        return self.is_held(self.models.get(seen.model, seen.spec))

    def is_held(self, spec: ModelSpec) -> bool:
        """Whether the model is pinned, loaded or not."""
        return self.pins.get(spec.id, spec.pinned)

    def holds_any(self) -> bool:
        return any(map(self.is_held, self.models.values()))

    def in_turn(self, seen: Seen, now: float) -> bool:
        """No other due model may close it now: somebody of its turn has not been granted yet."""
        if not seen.turn or now >= seen.turn_until or seen.ready_at is None or not seen.turn_sure:
            return False
        return any(asked.granted is None or asked.granted < seen.ready_at for asked in seen.turn.values())

    def may_be_in_turn(self, seen: Seen, now: float) -> bool:
        """As `in_turn`, or somebody of its turn stands in line again."""
        return bool(seen.turn) and now < seen.turn_until

    def best_rank(self, model: ModelId) -> int:
        """Of the most urgent request in line; 0 comes first."""
        own = self.models[model].priority.rank
        return min(
            (max(own, asked.request.priority.rank) if asked.request.priority else own for asked in self.lines[model].values()), default=own
        )

    def is_checked(self, model: ModelId) -> bool:
        spec = self.models.get(model)
        return spec is not None and (spec.external or self.checked.get(model) == spec.fingerprint)

    def free_mb(self) -> dict[DeviceId, float]:
        """MiB that may be booked now, by device; < 0 after the budget was lowered. HOST stands there only when it is limited."""
        limits = self.limits
        free: dict[DeviceId, float] = {}
        for device, budget in limits.budget_mb.items():
            if budget == 0:
                if device != HOST:
                    free[device] = math.inf
                continue
            free[device] = budget - self.used_mb.get(device, 0) - limits.kept_free_mb(device)
        return free

    def capacity_mb(self) -> dict[DeviceId, float]:
        """Budget less margin, by device."""
        limits = self.limits
        return {device: math.inf if budget == 0 else budget - limits.kept_free_mb(device) for device, budget in limits.budget_mb.items()}

    # --- events -------------------------------------------------------------------------------------------------------

    def _arrived(self, event: RequestArrived, now: float) -> None:
        self.arrivals += 1
        model = event.request.model
        self.asked_count[model] = self.asked_count.get(model, 0) + 1
        asked = Asked(event.request, self.arrivals, now)
        self.requests[event.request.id] = asked
        self._stand(asked)

    def _stand(self, asked: Asked) -> None:
        request = asked.request
        self.lines.setdefault(request.model, {})[request.id] = asked
        self.groups.setdefault(asked.group, {})[request.id] = asked
        self.waiting_bytes += request.body_bytes

    def _leave_line(self, asked: Asked) -> None:
        request = asked.request
        line = self.lines[request.model]
        del line[request.id]
        if not line:
            del self.lines[request.model]
        group = self.groups[asked.group]
        del group[request.id]
        if not group:
            del self.groups[asked.group]
        self.waiting_bytes -= request.body_bytes

    def _leave_turn(self, asked: Asked, now: float) -> None:
        seen = self.by_model.get(asked.request.model)
        if seen is not None and seen.turn and seen.turn.pop(asked.request.id, None) is not None and not seen.turn:
            seen.turn_ended = now

    def _end_lease(self, asked: Asked, now: float) -> None:
        seen = self.instances.get(asked.instance) if asked.instance is not None else None
        if seen is not None:
            del seen.leases[asked.request.id]
            seen.idle_at = now
            if asked.request.keep_seconds > 0:
                seen.kept_until = max(seen.kept_until, now + asked.request.keep_seconds)
        asked.freed_at = now
        asked.instance = None

    def _withdrawn(self, event: RequestWithdrawn, now: float) -> None:
        asked = self.requests.get(event.request)
        if asked is None:
            return
        if asked.place is WAITING:
            self._leave_line(asked)
            self._leave_turn(asked, now)
        else:
            self._end_lease(asked, now)
        self.settle(asked, "left", now)

    def _released(self, event: LeaseReleased, now: float) -> None:
        asked = self.requests.get(event.request)
        if asked is None:
            return
        self._end_lease(asked, now)
        self.settle(asked, "done" if asked.error is None else asked.error.kind, now)

    def _lease_failed(self, event: LeaseFailed, now: float) -> None:
        asked = self.requests.get(event.request)
        if asked is None:
            return
        seen = self.instances.get(asked.instance) if asked.instance is not None else None
        if seen is not None:
            seen.suspect_at = now
        self._end_lease(asked, now)
        if not (event.before_first_byte and self.requeues):
            self.settle(asked, event.error.kind if event.error is not None else "instance_fault", now)
            return
        asked.place = WAITING
        asked.requeued += 1
        asked.revoked = False
        asked.error = None
        self._stand(asked)
        model = asked.request.model
        self.lines[model] = dict(sorted(self.lines[model].items(), key=_ticket_of_item))
        self.groups[asked.group] = dict(sorted(self.groups[asked.group].items(), key=_ticket_of_item))
        self.returns.append((now, asked))
        now_serving = self.by_model.get(model)
        if now_serving is not None and asked.request.id in now_serving.turn_of:
            now_serving.turn[asked.request.id] = asked
            now_serving.turn_ended = None

    def _launch_checked(self, event: LaunchChecked, now: float) -> None:
        self.checking.pop(event.model, None)
        spec = self.models.get(event.model)
        if spec is None or spec.fingerprint == event.fingerprint:  # a model that was removed may come back as it was
            self.checked[event.model] = event.fingerprint
            self.checked_at[event.model] = now

    def _launch_rejected(self, event: LaunchRejected, now: float) -> None:
        self.checking.pop(event.model, None)
        self.checked_at[event.model] = now
        if (line := self.lines.get(event.model)) is not None:
            self.rejections.append((now, event.model, self.rank_of_age(next(iter(line.values())), event.model)))
        self.failed_at[event.model] = now
        self.wishes.pop(event.model, None)

    def _ready(self, event: InstanceReady, now: float) -> None:
        seen = self.instances[event.instance]
        if seen.state is not LOADING:
            return
        seen.state = READY
        seen.ready_at = now
        self.least_load[seen.model] = min(self.least_load.get(seen.model, math.inf), now - seen.started)
        self.wishes.pop(seen.model, None)
        self.asked_for.pop(seen.model, None)
        self._mark_turn(seen, now)
        seen.turn_until = now + self.limits.turn_seconds
        if not seen.turn:
            seen.turn_ended = now

    def _mark_turn(self, seen: Seen, ready_at: float) -> None:
        wait = self.limits.fairness_wait_seconds
        seen.turn = {key: asked for key, asked in self.lines.get(seen.model, {}).items() if ready_at - asked.arrived >= wait - 1e-9}
        seen.turn_of = frozenset(seen.turn)

    def _failed(self, event: InstanceFailed, now: float) -> None:
        self._down(self.instances[event.instance], now)

    def _exited(self, event: InstanceExited, now: float) -> None:
        seen = self.instances[event.instance]
        seen.exited = True
        self._down(seen, now)

    def _down(self, seen: Seen, now: float) -> None:
        if seen.state in (LOADING, READY):
            self.failed_at[seen.model] = now
            self.died[seen.model] = True
            if seen.state is LOADING:
                self.wishes.pop(seen.model, None)
            seen.state = FAILED
            seen.stopped_at = now
            seen.victim_of = seen.closed_for  # it would have gone anyway
            seen.draining = False
            seen.closed_for = ""

    def _freed(self, event: MemoryFreed, now: float) -> None:
        seen = self.instances.pop(event.instance)
        del self.by_model[seen.model]
        for device, amount in seen.need_mb:
            self.used_mb[device] -= amount
        for asked in seen.leases.values():
            asked.instance = None
        self.gone_at[seen.model] = seen.gone_at = now
        self.past.append(seen)
        self.on_gone(seen, now)

    def _table(self, event: ModelTableReplaced, _: float) -> None:
        self.models = dict(event.models)

    def _settings(self, event: SettingsReplaced, now: float) -> None:
        self.limits = event.limits
        for seen in self.instances.values():
            if seen.turn_until > now and seen.ready_at is not None:
                seen.turn_sure = False
                self._mark_turn(seen, seen.ready_at)
                seen.turn_ended = None if seen.turn else now

    def _load_requested(self, event: LoadRequested, _: float) -> None:
        self.asked_for[event.model] = None
        seen = self.by_model.get(event.model)
        if seen is None or seen.state is not READY or seen.draining:
            self.wishes[event.model] = event.may_evict

    def _unload_requested(self, event: UnloadRequested, _: float) -> None:
        self.wishes.pop(event.model, None)
        self.asked_for.pop(event.model, None)

    def _pin_changed(self, event: PinChanged, _: float) -> None:
        spec = self.models.get(event.model)
        self.pin_is_new = spec is not None and not self.is_held(spec)
        if spec is not None and not (event.pinned and self.pin_refused):
            self.pins[event.model] = event.pinned

    def _shutdown(self, _event: ShutdownRequested, _: float) -> None:
        self.shutting_down = True

    # --- commands -----------------------------------------------------------------------------------------------------

    def _grant(self, command: Grant, now: float) -> None:
        asked = self.requests.get(command.request)
        seen = self.instances.get(command.instance)
        if asked is None or asked.place is not WAITING:
            self.fail("requests", f"{command.request} is granted and does not wait")
        elif seen is None or seen.state is not READY or seen.model != asked.request.model:
            self.fail("requests", f"{command.request} is granted on {command.instance}, which is {seen.state if seen else 'gone'}")
        else:
            self._leave_line(asked)
            self._leave_turn(asked, now)
            asked.place = RUNNING
            asked.granted = now
            asked.freed_at = math.inf
            asked.instance = seen.id
            seen.leases[command.request] = asked

    def _refuse(self, command: Refuse, now: float) -> None:
        asked = self.requests.get(command.request)
        if asked is None or asked.place is not WAITING:
            self.fail("requests", f"{command.request} is refused and does not wait")
        else:
            self._leave_line(asked)
            self._leave_turn(asked, now)
            self.settle(asked, command.error.kind, now)

    def _revoke(self, command: RevokeLease, _: float) -> None:
        asked = self.requests.get(command.request)
        if asked is None or asked.place is not RUNNING:
            self.fail("requests", f"{command.request} is revoked and does not run")
        elif asked.revoked:
            self.fail("requests", f"{command.request} is revoked twice")
        else:
            asked.revoked = True
            asked.error = command.error

    def _start(self, command: StartInstance, now: float) -> None:
        spec = command.spec
        other = self.by_model.get(spec.id)
        if other is not None:
            self.fail("one_instance", f"{command.instance} is started while {other.id} is {other.state}")
        seen = Seen(command.instance, spec, command.need_mb or {LOCAL: need(spec).total_mb}, now)
        self.instances[seen.id] = self.by_model[spec.id] = seen
        for device, amount in seen.need_mb:
            self.used_mb[device] = self.used_mb.get(device, 0) + amount
        self.checked.pop(spec.id, None)
        if spec.id in self.lines:
            seen.for_ticket = self.rank_of_age(next(iter(self.lines[spec.id].values())), spec.id)
        self.gave_way.pop(spec.id, None)

    def _stop(self, command: StopInstance, now: float) -> None:
        seen = self.instances.get(command.instance)
        if seen is None or seen.state not in (LOADING, READY):
            self.fail("one_instance", f"{command.instance} is stopped and is {seen.state if seen else 'gone'}")
        else:
            seen.state = STOPPING
            seen.stopped_at = now
            seen.why = command.why
            self.died[seen.model] = command.why == STUCK
            if command.why == REPLACED:
                self.renewed[seen.model] = now
            if command.why == STUCK:
                self.failed_at[seen.model] = now
            if command.why.startswith(VICTIM):
                seen.victim_of = command.why[len(VICTIM) :]
                if not seen.draining:
                    self.give_way(seen, now)

    def _check(self, command: CheckLaunch, now: float) -> None:
        self.checked.pop(command.spec.id, None)
        self.checking[command.spec.id] = now


def _ticket(pair: tuple[Asked, ModelId]) -> int:
    return pair[0].ticket


def _ticket_of_item(pair: tuple[RequestId, Asked]) -> int:
    return pair[1].ticket


def _nobody(*_: object) -> None:
    """Nobody listens."""
