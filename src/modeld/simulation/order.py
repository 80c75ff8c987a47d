# SPDX-License-Identifier: GPL-3.0-only
"""The invariant order: who of a line is granted next; rule: from the promise and from what is known outside, grant by grant.

1  A grant goes to the most urgent class that waits, or to the oldest of the line when it is aged (it has waited fairness_wait).
2  Of two grants of a line in succession at which the oldest was aged, one goes to the oldest.
3  Of two grants of an instance in succession one goes by class, except while its turn may last.
4  Between principals of one class that wait all the time, what they were served differs by at most two of the largest requests (deficit
   round robin, Shreedhar and Varghese, 1995). Not judged while somebody is served for his age, until that class has nobody in line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modeld.core.messages import Command, Event, Grant, RequestArrived
from modeld.core.model import InstanceId, ModelId, Principal
from modeld.simulation.outside import Outside
from modeld.simulation.seen import Asked, Seen

EPSILON = 1e-9
QUANTUM = 1.0
"""A round of deficit round robin gives each principal so many tokens."""


class Shares:
    """What the principals of one class of one line were served since they wait side by side. `queues` are theirs, to see who left."""

    __slots__ = ("blurred", "queues", "served")

    def __init__(self) -> None:
        self.blurred = False
        self.queues: list[object] = []
        self.served: dict[Principal, float] = {}


class Order:
    """Watches all lines."""

    def __init__(self, outside: Outside, fail: Callable[[str, str], None]) -> None:
        self._outside = outside
        self._fail = fail
        self._passed: dict[ModelId, Asked] = {}
        """The aged oldest of a line that the last grant passed over."""
        self._jumped: dict[ModelId, InstanceId] = {}
        """Where the last grant of a line went to the oldest although a more urgent class waited."""
        self._shares: dict[tuple[ModelId, int], Shares] = {}
        self._largest: dict[ModelId, float] = {}
        """The largest request that was ever asked of a model."""

    def before(self, event: Event, now: float) -> None:
        """Nothing to remember."""

    def after(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """All grants of the step, in their order."""
        outside = self._outside
        if type(event) is RequestArrived:
            self._largest[event.request.model] = max(self._largest.get(event.request.model, 0.0), event.request.work)
            if not commands:
                return
        grants = [outside.requests[command.request] for command in commands if type(command) is Grant]
        for index, asked in enumerate(grants):
            model = asked.request.model
            seen = outside.by_model.get(model)
            if seen is not None and model in outside.models:
                later = [other for other in grants[index:] if other.request.model == model]
                self._granted(asked, later, seen, now)
        for model in [model for model in self._passed.keys() | self._jumped.keys() if model not in outside.lines]:
            self._passed.pop(model, None)
            self._jumped.pop(model, None)
        for key in [key for key in self._shares if key[0] not in outside.lines]:
            del self._shares[key]

    def _granted(self, asked: Asked, later: list[Asked], seen: Seen, now: float) -> None:
        """`later` are those of the line that this step grants from now on, `asked` first."""
        outside, model = self._outside, asked.request.model
        line = outside.lines.get(model)
        waiting = later if line is None else [*later, next(iter(line.values()))]
        oldest = min(waiting, key=lambda one: one.ticket)
        mine, best = self._rank(asked), min(self._rank(one) for one in later)
        queues: dict[Principal, list[object]] = {}
        for key, group in outside.groups.items():
            if key[0] == model:
                first = next(iter(group.values()))
                rank = self._rank(first)
                best = min(best, rank)
                if rank == mine:
                    queues.setdefault(first.request.principal, []).append(group)
        aged = outside.due_at(oldest) <= now + EPSILON
        told = f"{asked.request.id} of class {mine} is granted on {seen.id}"
        if mine > best and not (asked is oldest and aged):  # 1
            self._fail("order", f"{told} while class {best} waits; the oldest is {oldest.request.id}, aged: {aged}")
        if asked is not oldest and outside.due_at(oldest) <= now - EPSILON:  # 2
            if self._passed.get(model) is oldest:
                self._fail("order", f"{told}, the second time that {oldest.request.id} is passed over, which is aged")
            self._passed[model] = oldest
        else:
            self._passed.pop(model, None)
        if mine > best and now >= seen.turn_until:  # 3
            if self._jumped.get(model) == seen.id:
                self._fail("order", f"{told}, the second in succession by age alone, while class {best} waits")
            self._jumped[model] = seen.id
        else:
            self._jumped.pop(model, None)
        self._served(asked, [one for one in later if self._rank(one) == mine], queues, by_age=asked is oldest and aged)

    def _served(self, asked: Asked, later: list[Asked], queues: dict[Principal, list[object]], *, by_age: bool) -> None:  # 4
        """`queues` are those of the same class that are not empty after this step."""
        key = (asked.request.model, self._rank(asked))
        shares = self._shares.get(key)
        if not queues and len(later) == 1:
            self._shares.pop(key, None)
            return
        if shares is None:
            shares = self._shares[key] = Shares()
        shares.blurred = shares.blurred or by_age
        if shares.blurred:
            return
        standing = [group for groups in queues.values() for group in groups]
        if len(queues) < 2 or not (
            len(standing) == len(shares.queues) and all(a is b for a, b in zip(standing, shares.queues, strict=True))
        ):
            shares.queues, shares.served = standing, dict.fromkeys(queues, 0.0)  # somebody has come or gone
            return
        if asked.request.principal in shares.served:
            shares.served[asked.request.principal] += 0.0 if asked.requeued else asked.request.work  # it was paid for
            most, least = max(shares.served.values()), min(shares.served.values())
            if most - least > 2 * (self._largest.get(key[0], 0.0) + QUANTUM) + EPSILON:
                self._fail("order", f"principals of class {key[1]} of {key[0]} wait side by side and were served {shares.served}")

    def _rank(self, asked: Asked) -> int:
        own = self._outside.models[asked.request.model].priority.rank
        return own if asked.request.priority is None else max(own, asked.request.priority.rank)
