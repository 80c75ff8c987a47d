# SPDX-License-Identifier: GPL-3.0-only
"""The yardstick: what somebody who knows every arrival would load; rule: it is told what it may ignore, and whether its answer is proved.

The clairvoyant minimises the sum of load seconds under the wait bound of the scheduler, in a world that is kinder than the real one, so
that no policy that keeps the bound can do better:
  * each request must find its model ready at some moment of [at, at + W], with W = fairness_wait + drain + load of its model, where
    drain = the longest request plus the longest stop of all models: the bound of a request whose model is the only one due;
  * slots and service times do not exist: a ready model serves all who wait at once, and an idle model is gone at once;
  * a load takes load_seconds and holds its memory from its start; loads do not slow each other down;
  * all devices are one, with the sum of their budgets (host memory is not looked at); external models cost nothing; pins do not exist.
Where even that cannot be kept (loads longer than the wait allows), W is widened by a quarter at a time, and `widened` says how far.
What is searched and what "exact" means: simulation.swapsearch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from modeld.core.estimate import need
from modeld.core.model import HOST, Limits, ModelId
from modeld.errors import ConfigError
from modeld.simulation.swapsearch import POINTS_MAX, Puzzle, Start, solve
from modeld.simulation.workload import SimModel, Stay, Workload

WIDER: Final = 1.25
WIDER_MAX: Final = 12
"""Times the bound may be widened: beyond (14 times the wait) the machine is hopelessly overloaded."""
MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Clairvoyant:
    """Load seconds and loads. Not `exact`: the best that was found, while the optimum may be as low as `at_least_seconds`."""

    swap_seconds: float
    loads: int
    exact: bool
    at_least_seconds: float
    wait_seconds: Mapping[ModelId, float]
    widened: float
    stays: tuple[Stay, ...]

    @property
    def label(self) -> str:
        """What stands beside every figure of it."""
        how = "exact" if self.exact else f"heuristic: best found, at least {self.at_least_seconds:.1f} s"
        return how if self.widened == 1.0 else f"{how}; its waits are {self.widened:.2f} times the bound"


def foresee(workload: Workload, *, points_max: int = POINTS_MAX) -> Clairvoyant:
    """The clairvoyant's loads for this workload. Raises ConfigError when a model that is asked for can never fit."""
    models = [model for model in workload.models if not model.spec.external and any(ask.model == model.id for ask in workload.asks)]
    room = room_mb(workload.limits)
    if room is not None and (large := [model.id for model in models if need(model.spec).total_mb > room]):
        raise ConfigError(f"{large[0]} does not fit into {room} MB")
    widened = 1.0
    for _ in range(WIDER_MAX):
        puzzle, waits = _puzzle(workload, models, room, widened)
        answer = solve(puzzle, points_max=points_max)
        if answer is not None:
            stays = _stays(models, puzzle, answer.starts, _until(workload))
            return Clairvoyant(answer.cost / MS, len(stays), answer.exact, answer.at_least / MS, waits, widened, stays)
        widened *= WIDER
    raise ConfigError("the clairvoyant finds no way to serve this workload: it asks for far more loads than there is time")


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


def _puzzle(workload: Workload, models: list[SimModel], room: int | None, widened: float) -> tuple[Puzzle, Mapping[ModelId, float]]:
    waits = {model.id: wait_bound(model, workload) * widened for model in models}
    asks: dict[ModelId, list[int]] = {model.id: [] for model in models}
    for ask in workload.asks:
        if ask.model in asks:
            asks[ask.model].append(round(ask.at * MS))
    puzzle = Puzzle(
        need=tuple(need(model.spec).total_mb for model in models),
        load=tuple(round(model.load_seconds * MS) for model in models),
        window=tuple(max(round(waits[model.id] * MS), round(model.load_seconds * MS)) for model in models),
        asks=tuple(tuple(asks[model.id]) for model in models),
        room=room,
    )
    return puzzle, waits


def _until(workload: Workload) -> float:
    return max((ask.at + ask.service_seconds for ask in workload.asks), default=0.0)


def _stays(models: list[SimModel], puzzle: Puzzle, starts: tuple[Start, ...], until: float) -> tuple[Stay, ...]:
    """The starts as stays: each ends where it is named as a victim, or at the end."""
    found: list[Stay] = []
    for number, start in enumerate(starts):
        ends = [later.at for later in starts[number + 1 :] if start.model in later.victims]
        ready = (start.at + puzzle.load[start.model]) / MS
        gone = ends[0] / MS if ends else max(until, ready)
        found.append(Stay(models[start.model].id, start.at / MS, ready, gone, gone, "evicted" if ends else ""))
    return tuple(found)
