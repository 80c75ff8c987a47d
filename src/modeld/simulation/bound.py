# SPDX-License-Identifier: GPL-3.0-only
"""How long the oldest request of a model without instance may wait at most; rule: from the promise, not from the scheduler's code.

A model becomes due at D, when its oldest request has waited `fairness_wait_seconds` (or later: when its own last instance is gone, when
its launch check has passed). From then on it may wait for, and for nothing else:

    ahead      what stood in its way at D, all at once: loads in progress and their turns, turns in progress, memory on its way back
    each older demand A (frozen at D): its launch check, its drain, its loads (a failed one until its memory is back) and its turn
    itself     its own drain (the longest of all that went meanwhile and do not stand above), launch check and loads

The durations are the actual ones of this run: a drain runs from the moment an instance was closed (or stopped, when it was idle) until its
memory is back, the longest over the victims of that demand; a turn until its last request was granted or has left, at most
`turn_seconds`. So the bound has no slack of its own: it exceeds the wait only by what overlapped.

What faults do to it. The clock starts again, at that moment and with a new list of older demands, when the oldest request leaves or is
refused (the bound is for the oldest), when the models, the settings or a pin change, when an operator wishes or unloads a model. A demand
that lost its instance to a crash, a hang or an unload, or whose request, older than ours, failed and stands in line again, joins A, and
is counted with all its loads, its check and the drains of what it loaded again. A model that failed while its request waited is excused
(back-off). So is one beside pinned models that leave it no room (a budget was lowered) or that, with several devices, may stand in the
only place that is large enough: they never give way. So is one beside another model whose file was replaced meanwhile: its place is kept
while the new file is checked. `judged` and `excused` count both, so that the check cannot become empty unseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from modeld.core.messages import Event, LoadRequested, ModelTableReplaced, PinChanged, SettingsReplaced, UnloadRequested
from modeld.core.model import ModelId
from modeld.simulation.outside import Outside
from modeld.simulation.room import fits
from modeld.simulation.seen import LOADING, READY, Asked, Seen

SLACK_SECONDS = 1e-6
"""For sums of floating-point numbers."""
RESTARTS = (ModelTableReplaced, SettingsReplaced, LoadRequested, UnloadRequested, PinChanged)


class Due:
    """A demand that is due: since when, its oldest request, what stood in its way then, and the older demands."""

    __slots__ = ("ahead", "older", "oldest", "rank", "since", "unchecked")

    def __init__(self, since: float, oldest: Asked, ahead: list[Seen], older: list[ModelId], unchecked: list[ModelId], rank: float) -> None:
        self.rank = rank
        self.since = since
        self.oldest = oldest
        self.ahead = ahead
        self.older = older
        self.unchecked = unchecked


class Bound:
    """Watches all due demands. Calls `fail` when a grant came later than it may.

    used_share   sum over the judged of (wait since due) / (what was allowed): over `judged`, how tight the bound is
    """

    def __init__(self, outside: Outside, fail: Callable[[str, str], None]) -> None:
        self._outside = outside
        self._fail = fail
        self._due: dict[ModelId, Due] = {}
        self._restarted_at = 0.0
        self.judged = 0
        self.excused = 0
        self.used_share = 0.0

    def before(self, event: Event, now: float, demands: list[tuple[Asked, ModelId]]) -> None:
        """After the event, before what the scheduler makes of it: who has become due, whose oldest has changed."""
        outside = self._outside
        changed: list[ModelId] = []
        if isinstance(event, RESTARTS):
            self._restarted_at = now
        if self._due:
            restart = isinstance(event, RESTARTS)
            for model, due in list(self._due.items()):
                line = outside.lines.get(model)
                if line is None or restart or next(iter(line.values())) is not due.oldest:
                    del self._due[model]
                    changed.append(model)
                    if line is not None and model in outside.by_model and outside.due_at(next(iter(line.values()))) <= now:
                        self._open(model, next(iter(line.values())), now, demands)
        for oldest, model in demands:
            if outside.due_at(oldest) > now:
                break  # they are in order of arrival
            if model not in self._due and outside.is_checked(model):
                late = max(outside.due_at(oldest), outside.gone_at.get(model, 0.0), outside.checked_at.get(model, 0.0), self._restarted_at)
                self._open(model, oldest, now if model in changed else late, demands)

    def granted(self, asked: Asked, now: float) -> None:
        """A request was granted: if it is the oldest of a demand that was due, its wait is judged."""
        due = self._due.get(asked.request.model)
        if due is None or due.oldest is not asked:
            return
        del self._due[asked.request.model]
        if self._is_excused(asked, due):
            self.excused += 1
            return
        waited, parts = now - due.since, self._allowed(asked.request.model, due, now)
        allowed = sum(parts.values())
        if waited > allowed + SLACK_SECONDS:
            told = ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items())
            self._fail("bound", f"{asked.request.id} waited {waited:.3f} s since it was due, allowed are {allowed:.3f} s: {told}")
        if allowed > 0:
            self.judged += 1
            self.used_share += max(0.0, waited) / allowed

    def _open(self, model: ModelId, oldest: Asked, since: float, demands: list[tuple[Asked, ModelId]]) -> None:
        outside = self._outside
        mine = outside.rank_of_age(oldest, model)
        leaving = [
            (next(iter(line.values())), name)
            for name, line in outside.lines.items()
            if (seen := outside.by_model.get(name)) is not None and (seen.draining or seen.state not in (LOADING, READY))
        ]
        older = [name for asked, name in [*demands, *leaving] if outside.rank_of_age(asked, name) <= mine and name != model]
        ahead = [
            seen
            for seen in outside.instances.values()
            if seen.state is not READY or outside.may_be_in_turn(seen, since) or (seen.draining and not seen.closed_for)
        ]
        self._due[model] = Due(since, oldest, ahead, older, [name for name in older if not outside.is_checked(name)], mine)

    def _is_excused(self, asked: Asked, due: Due) -> bool:
        outside = self._outside
        if outside.failed_at.get(asked.request.model, -math.inf) >= asked.arrived or asked.requeued:
            return True
        if any(at >= due.since and model != asked.request.model for model, at in outside.renewed.items()):
            return True
        pinned = [seen for seen in self._recent(due.since) if outside.is_pinned(seen)]
        spec = outside.models.get(asked.request.model)
        if not pinned or spec is None:
            return False
        room = {device: mb - sum(seen.frees_mb(device) for seen in pinned) for device, mb in outside.capacity_mb().items()}
        return len(outside.limits.budget_mb) > 1 or not fits(spec, room, outside.capacity_mb())

    def _recent(self, since: float) -> list[Seen]:
        """Instances of now, and those that went since then."""
        recent = [*self._outside.instances.values()]
        for seen in reversed(self._outside.past):
            if seen.gone_at <= since:
                break
            recent.append(seen)
        return recent

    def _allowed(self, model: ModelId, due: Due, now: float) -> dict[str, float]:
        """The parts of the bound, by name."""
        since, outside = due.since, self._outside
        recent = self._recent(since)
        parts = {"ahead": max((self._out_of_the_way(seen, now) - since for seen in due.ahead), default=0.0)}
        ticket, rank = due.oldest.ticket, due.rank
        lost = {seen.model for seen in recent if seen.gone_at < now and not seen.victim_of and seen.model != model}
        hit = {seen.model for seen in recent if seen.model in lost and seen.started >= since and seen.for_ticket <= rank}
        hit |= {name for at, name, other in outside.rejections if name in lost and at > since and other <= rank}
        hit |= {asked.request.model for at, asked in outside.returns if at >= since and asked.ticket < ticket} - {model}
        counted = dict.fromkeys([*due.older, *sorted(hit)])
        for name in counted:
            check, again = 0.0, 0.0
            if name in hit:
                gone_at = min((seen.gone_at for seen in recent if seen.model == name and seen.gone_at > since), default=since)
                check = outside.checked_at.get(name, since) - min(gone_at, now)
                again = sum(self._going_seconds(seen, since, now) for seen in recent if seen.model == name and seen.started >= since)
            if name in outside.checking:
                check = now - max(since, outside.checking[name])
            if name in due.unchecked:
                check = max(check, outside.checked_at.get(name, since) - since)
            loads, turns = self._load_seconds(name, recent, since, now, again=name in hit)
            parts[f"older {name}"] = max(0.0, check) + again + self._drain_seconds(name.__eq__, recent, since, now) + loads + turns
        parts["drain"] = self._drain_seconds(lambda name: name not in counted, recent, since, now)
        checked_at = outside.checked_at.get(model, since)
        if checked_at > since:  # it lost its own instance after it was due
            parts["check"] = checked_at - max(since, min(outside.gone_at.get(model, since), checked_at))
        parts["load"] = self._load_seconds(model, recent, since, now, again=True)[0]
        return parts

    def _out_of_the_way(self, seen: Seen, now: float) -> float:
        """When what stood in the way at the beginning no longer did."""
        if seen.ready_at is None or seen.stopped_at is not None or (seen.draining and not seen.closed_for):
            return min(now, seen.gone_at)
        return seen.ready_at + self._turn_seconds(seen, now)

    def _turn_seconds(self, seen: Seen, now: float) -> float:
        """The turn as it was, or is so far."""
        if seen.ready_at is None:
            return 0.0
        ended = min(now, seen.gone_at if seen.turn_ended is None else seen.turn_ended)
        return max(0.0, min(ended, seen.turn_until) - seen.ready_at)

    def _drain_seconds(self, is_for: Callable[[str], bool], recent: list[Seen], since: float, now: float) -> float:
        """The longest of those that went for a model that `is_for` says yes to ("": by itself), until their memory was back.

        A victim that was opened again counts as if it had not been: until the last of the leases that ran on it had ended, and the longer
        stop of the two; and what the stop of the victim that was taken instead took longer than it should.
        """
        longest, usual = 0.0, self._outside.stop_seconds
        extra = max(
            (min(now, seen.gone_at) - seen.stopped_at - usual.get(seen.model, 0.0) for seen in recent if seen.stopped_at is not None),
            default=0.0,
        )
        for seen in recent:
            last_for = seen.victim_of or seen.closed_for
            if is_for(last_for):
                longest = max(longest, self._going_seconds(seen, since, now))
            for name, at, leases in seen.closings:
                if is_for(name) and (at, name) != (seen.closed_at, last_for):
                    stop = max((usual.get(other.model, 0.0) for other in recent), default=0.0) + max(0.0, extra)
                    ends = max((min(now, _end_of(asked, at)) for asked in leases), default=at) + stop
                    longest = max(longest, min(now, ends) - max(since, at))
        return longest

    @staticmethod
    def _going_seconds(seen: Seen, since: float, now: float) -> float:
        """From when it was closed, or stopped, until its memory was back; 0 if it stays."""
        going_at = min(seen.closed_at, math.inf if seen.stopped_at is None else seen.stopped_at)
        return max(0.0, min(now, seen.gone_at) - max(since, going_at)) if going_at < now else 0.0

    def _load_seconds(self, model: ModelId, recent: list[Seen], since: float, now: float, *, again: bool) -> tuple[float, float]:
        """(loads, turns) of a model, up to the first load that became ready; `again`: all, for it may have been lost by a fault.

        A failed or abandoned load counts until its memory was back.
        """
        loads, turns = 0.0, 0.0
        for seen in sorted((seen for seen in recent if seen.model == model and seen.started >= since), key=lambda seen: seen.started):
            loads += min(now, seen.gone_at if seen.ready_at is None else seen.ready_at) - seen.started
            turns += self._turn_seconds(seen, now)
            if seen.ready_at is not None and not again:
                break
        return loads, turns


def _end_of(asked: Asked, at: float) -> float:
    """When the lease that ran at that time ended; a later one of the same request tells that it had, not when."""
    if asked.granted is not None and asked.granted > at:
        return at
    return asked.freed_at
