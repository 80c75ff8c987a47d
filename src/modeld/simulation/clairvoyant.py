# SPDX-License-Identifier: GPL-3.0-only
"""The yardstick: what somebody who knows every arrival would load; rule: it is told what it may ignore, and whether its answer is proved.

The clairvoyant minimises the sum of load seconds, and lets nobody wait longer than the scheduler does:
  * each request begins within [at, at + W], with W = fairness_wait + drain + load of its model, the bound of a request whose model is the
    only one that is due (drain = the longest request plus the longest stop of all). Where more were due, so that the promise was longer,
    W is what the request did wait under the scheduler. A request that the scheduler did not serve need not be served.
Beyond that its world is kinder than the real one:
  * slots do not exist: a model that is ready runs all who ask for it at once, in the order of their arrival;
  * runs are cut to whole halves of a second, and a model that nobody runs on is gone at once;
  * a load takes load_seconds and holds its memory from its start; loads do not slow each other down;
  * all devices are one, with the sum of their budgets (host memory is not looked at); external models cost nothing; pins do not exist.
So what the scheduler did is a solution too, and the clairvoyant is never worse. What is searched and what "exact" means:
simulation.puzzle and simulation.swapsearch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from modeld.core.estimate import need
from modeld.core.model import HOST, Limits, ModelId
from modeld.simulation.puzzle import Puzzle, line
from modeld.simulation.swapsearch import CHAIN_MAX, POINTS_MAX, Start, solve
from modeld.simulation.workload import History, Served, SimModel, Stay, Workload

MS: Final = 1000
RUN_MS: Final = 500
"""Runs are cut to whole halves of a second."""


@dataclass(frozen=True, slots=True)
class Clairvoyant:
    """Load seconds and loads. Not `exact`: the best that was found, while the optimum may be as low as `at_least_seconds`.

    `stays` are empty when nothing better than what the scheduler did was found: then `loads` are the scheduler's.
    """

    swap_seconds: float
    loads: int
    exact: bool
    at_least_seconds: float
    stays: tuple[Stay, ...]

    @property
    def label(self) -> str:
        """What stands beside every figure of it."""
        return "exact" if self.exact else f"heuristic: best found, at least {self.at_least_seconds:.1f} s"


def foresee(history: History, *, points_max: int = POINTS_MAX, chain_max: int = CHAIN_MAX) -> Clairvoyant:
    """The clairvoyant's loads for what the scheduler did."""
    workload = history.workload
    begun = [one for one in history.served if one.granted is not None]
    asked = {one.ask.model for one in begun}
    models = [model for model in workload.models if not model.spec.external and model.id in asked]
    load = {model.id: round(model.load_seconds * MS) for model in models}
    loads = [load[stay.model] for stay in history.stays if stay.model in load]
    answer = solve(_puzzle(workload, models, begun), known=sum(loads), points_max=points_max, chain_max=chain_max)
    assert answer is not None  # what the scheduler did is one
    stays = _stays(models, answer.starts, history.until)
    return Clairvoyant(answer.cost / MS, len(stays) or len(loads), answer.exact, answer.at_least / MS, stays)


def wait_bound(model: SimModel, workload: Workload) -> float:
    """Longest wait of the oldest request of a model that is the only one due: fairness_wait + drain + its load."""
    return workload.limits.fairness_wait_seconds + drain_bound(workload) + model.load_seconds


def drain_bound(workload: Workload) -> float:
    """Until the leases of a closed instance have ended and its memory is back, at most."""
    return max((ask.service_seconds for ask in workload.asks), default=0.0) + max(
        (model.stop_seconds for model in workload.models), default=0.0
    )


def room_mb(limits: Limits) -> int | None:
    """What all devices together may hold. None = unlimited."""
    budgets = [budget for device, budget in limits.budget_mb.items() if device != HOST]
    return None if 0 in budgets or not budgets else sum(max(0, budget - limits.margin_mb) for budget in budgets)


def _puzzle(workload: Workload, models: list[SimModel], begun: list[Served]) -> Puzzle:
    bound = {model.id: wait_bound(model, workload) for model in models}
    asks: dict[ModelId, list[tuple[int, int, int]]] = {model.id: [] for model in models}
    for one in begun:
        ask = one.ask
        if ask.model in asks and one.granted is not None:
            at, latest = round(ask.at * MS), math.ceil(max(ask.at + bound[ask.model], one.granted) * MS)
            asks[ask.model].append((at, latest, int(ask.service_seconds * MS) // RUN_MS * RUN_MS))
    return Puzzle(
        need=tuple(need(model.spec).total_mb for model in models),
        load=tuple(round(model.load_seconds * MS) for model in models),
        lines=tuple(line(asks[model.id]) for model in models),
        room=room_mb(workload.limits),
    )


def _stays(models: list[SimModel], starts: tuple[Start, ...], until: float) -> tuple[Stay, ...]:
    """The starts as stays: each ends where it is named as a victim, or at the end."""
    found: list[Stay] = []
    for number, start in enumerate(starts):
        ends = [later.at for later in starts[number + 1 :] if start.model in later.victims]
        ready = start.at / MS + models[start.model].load_seconds
        gone = ends[0] / MS if ends else max(until, ready)
        found.append(Stay(models[start.model].id, start.at / MS, ready, gone, gone, "evicted" if ends else ""))
    return tuple(found)
