# SPDX-License-Identifier: GPL-3.0-only
"""One workload under modeld, strict first come first served and the clairvoyant; rule: the same figures for every policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from modeld.core.model import EvictionPolicy, ModelId, Priority
from modeld.simulation.clairvoyant import Clairvoyant, foresee
from modeld.simulation.fifo import FIFO, Fifo
from modeld.simulation.seen import Violation
from modeld.simulation.workload import Ask, History, Served, Workload
from modeld.simulation.world import World

DONE: Final = "done"
CLAIRVOYANT_BAR: Final = 1.3
FIFO_BAR: Final = 0.5
"""Swap seconds of modeld, at most so many times those of the other."""
BOUND: Final = frozenset({"bound"})


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds until the grant. Those who were never granted count with the time until they were refused or left."""

    requests: int
    p50: float
    p95: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run came to. `unserved` counts the requests that did not end well. `makespan_seconds` is until the last request ended."""

    policy: str
    loads: int
    swap_seconds: float
    waits: Waits
    by_model: dict[ModelId, Waits]
    by_class: dict[Priority, Waits]
    tokens_per_second: float
    makespan_seconds: float
    unserved: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """modeld beside the others. `bound_broken` tells of the first request of modeld that waited longer than promised, "" if none did.

    `foreseen` is None when no clairvoyant was asked for.
    """

    workload: Workload
    modeld: Figures
    fifo: Figures
    foreseen: Clairvoyant | None
    bound_broken: str
    history: History

    @property
    def against_fifo(self) -> float | None:
        return _ratio(self.modeld.swap_seconds, self.fifo.swap_seconds)

    @property
    def against_clairvoyant(self) -> tuple[float, float] | None:
        """At least and at most: the two differ when the clairvoyant's answer is not proved."""
        if self.foreseen is None or self.foreseen.swap_seconds <= 0:
            return None
        most = self.foreseen.swap_seconds if self.foreseen.exact else self.foreseen.at_least_seconds
        return self.modeld.swap_seconds / self.foreseen.swap_seconds, self.modeld.swap_seconds / most if most > 0 else math.inf


def compare(workload: Workload, *, seed: int = 0, clairvoyant: Callable[[History], Clairvoyant] | None = foresee) -> Comparison:
    """Run the workload under each policy. `seed` draws the load times, where the workload leaves them open."""
    broken = ""
    try:
        history = World(workload, seed=seed, checks=BOUND).run()
    except Violation as violation:
        broken = str(violation)
        history = World(workload, seed=seed, checks=frozenset()).run()
    fifo = World(workload, seed=seed, checks=frozenset(), policy=FIFO, make=Fifo, requeues=False).run()
    foreseen = None if clairvoyant is None else clairvoyant(history)
    return Comparison(workload, figures(history), figures(fifo), foreseen, broken, history)


def figures(history: History) -> Figures:
    served = history.served
    specs = {model.id: model.spec for model in history.workload.models}
    done = [one for one in served if one.outcome == DONE]
    begin = min((one.ask.at for one in served), default=0.0)
    makespan = max((one.ended for one in served), default=0.0) - begin

    def class_of(ask: Ask) -> Priority:
        own = specs[ask.model].priority if ask.model in specs else Priority.NORMAL
        return own if ask.priority is None or ask.priority.rank < own.rank else ask.priority

    return Figures(
        policy=history.policy,
        loads=history.loads,
        swap_seconds=history.swap_seconds,
        waits=_waits(served),
        by_model={model: _waits([one for one in served if one.ask.model == model]) for model in specs},
        by_class={rank: _waits(found) for rank in Priority if (found := [one for one in served if class_of(one.ask) is rank])},
        tokens_per_second=sum(one.ask.tokens for one in done) / makespan if makespan > 0 else 0.0,
        makespan_seconds=makespan,
        unserved=len(served) - len(done),
    )


def with_limits(
    workload: Workload,
    *,
    policy: EvictionPolicy | None = None,
    fairness_wait_seconds: float | None = None,
    min_residency_seconds: float | None = None,
) -> Workload:
    """The same requests under other settings."""
    limits = workload.limits
    limits = limits if policy is None else replace(limits, eviction=policy)
    limits = limits if fairness_wait_seconds is None else replace(limits, fairness_wait_seconds=fairness_wait_seconds)
    limits = limits if min_residency_seconds is None else replace(limits, min_residency_seconds=min_residency_seconds)
    return replace(workload, limits=limits)


def _waits(served: Iterable[Served]) -> Waits:
    seconds = sorted((one.ended if one.granted is None else one.granted) - one.ask.at for one in served)
    return Waits(len(seconds), *(percentile(seconds, share) for share in (0.50, 0.95, 0.99, 1.0)))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank); 0 of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _ratio(ours: float, theirs: float) -> float | None:
    return ours / theirs if theirs > 0 else None


# --- for people -------------------------------------------------------------------------------------------------------


def as_text(comparison: Comparison) -> str:
    """The whole comparison, lines of at most 110 characters."""
    ours, fifo, foreseen = comparison.modeld, comparison.fifo, comparison.foreseen
    limits = comparison.workload.limits
    asks = comparison.workload.asks
    span = asks[-1].at - asks[0].at
    head = f"{len(asks)} requests in {span:.0f} s, {len(comparison.workload.models)} models, {_budget(comparison.workload)}"
    rows: list[list[str]] = [
        ["", f"modeld ({limits.eviction})", FIFO, "clairvoyant"],
        ["loads", str(ours.loads), str(fifo.loads), "-" if foreseen is None else str(foreseen.loads)],
        [
            "swap seconds",
            f"{ours.swap_seconds:.1f}",
            f"{fifo.swap_seconds:.1f}",
            "-" if foreseen is None else f"{foreseen.swap_seconds:.1f}",
        ],
        ["modeld's, times those", "", _times(comparison.against_fifo), _span(comparison.against_clairvoyant)],
        ["tokens/s", f"{ours.tokens_per_second:.1f}", f"{fifo.tokens_per_second:.1f}", "-"],
        ["makespan s", f"{ours.makespan_seconds:.1f}", f"{fifo.makespan_seconds:.1f}", "-"],
        ["not served", str(ours.unserved), str(fifo.unserved), "-"],
    ]
    waits = [["wait in seconds", "requests", "p50", "p95", "p99", "max", "fifo: p50", "p95", "p99", "max"]]
    waits.append(_wait_row("all", ours.waits, fifo.waits))
    waits += [_wait_row(rank, one, fifo.by_class[rank]) for rank, one in ours.by_class.items() if len(ours.by_class) > 1]
    waits += [_wait_row(model, one, fifo.by_model[model]) for model, one in ours.by_model.items() if one.requests]
    notes = [] if foreseen is None else [f"clairvoyant: {foreseen.label}"]
    notes.append(f"wait bound: {f'BROKEN, {comparison.bound_broken}' if comparison.bound_broken else 'kept'}")
    parts = [
        f"{comparison.workload.name}: {comparison.workload.note}",
        f"{head}; fairness_wait {limits.fairness_wait_seconds:g} s, min_residency {limits.min_residency_seconds:g} s",
        "",
        *_columns(rows),
        "",
        *_columns(waits),
        "",
        *notes,
    ]
    return "\n".join(parts)


def summary_text(found: Sequence[Comparison]) -> str:
    """One line each, against the two bars."""
    rows = [
        [
            "workload",
            "policy",
            "loads",
            "swap s",
            "x clairvoyant",
            f"<= {CLAIRVOYANT_BAR}",
            "x fifo",
            f"<= {FIFO_BAR}",
            "bound",
            "clairvoyant",
        ]
    ]
    for one in found:
        label = "-" if one.foreseen is None else f"{one.foreseen.swap_seconds:.1f} s, {one.foreseen.label}"
        span, fifo = one.against_clairvoyant, one.against_fifo
        rows.append(
            [
                one.workload.name,
                str(one.workload.limits.eviction),
                str(one.modeld.loads),
                f"{one.modeld.swap_seconds:.1f}",
                _span(span),
                "-" if span is None else "yes" if span[1] <= CLAIRVOYANT_BAR else "NO" if span[0] > CLAIRVOYANT_BAR else "?",
                _times(fifo),
                "-" if fifo is None else "yes" if fifo <= FIFO_BAR else "NO",
                "BROKEN" if one.bound_broken else "kept",
                label,
            ]
        )
    return "\n".join(_columns(rows, left=(0, 1, 9)))


def as_data(comparison: Comparison) -> dict[str, Any]:
    """For --json: the same figures."""
    foreseen, workload = comparison.foreseen, comparison.workload
    return {
        "workload": workload.name,
        "note": workload.note,
        "requests": len(workload.asks),
        "budget_mb": {str(device): budget for device, budget in workload.budget_mb.items()},
        "eviction": str(workload.limits.eviction),
        "fairness_wait_seconds": workload.limits.fairness_wait_seconds,
        "min_residency_seconds": workload.limits.min_residency_seconds,
        "modeld": _figures_data(comparison.modeld),
        "fifo": _figures_data(comparison.fifo),
        "clairvoyant": None
        if foreseen is None
        else {
            "loads": foreseen.loads,
            "swap_seconds": foreseen.swap_seconds,
            "exact": foreseen.exact,
            "at_least_seconds": foreseen.at_least_seconds,
        },
        "times_fifo": comparison.against_fifo,
        "times_clairvoyant": None if comparison.against_clairvoyant is None else list(comparison.against_clairvoyant),
        "bound_broken": comparison.bound_broken or None,
    }


def _figures_data(one: Figures) -> dict[str, Any]:
    return {
        "loads": one.loads,
        "swap_seconds": round(one.swap_seconds, 3),
        "tokens_per_second": round(one.tokens_per_second, 3),
        "makespan_seconds": round(one.makespan_seconds, 3),
        "unserved": one.unserved,
        "wait_seconds": _waits_data(one.waits),
        "wait_seconds_by_model": {str(model): _waits_data(waits) for model, waits in one.by_model.items()},
        "wait_seconds_by_class": {str(rank): _waits_data(waits) for rank, waits in one.by_class.items()},
    }


def _waits_data(waits: Waits) -> dict[str, float]:
    named = {"p50": waits.p50, "p95": waits.p95, "p99": waits.p99, "max": waits.longest}
    return {"requests": waits.requests} | {name: round(seconds, 3) for name, seconds in named.items()}


def _wait_row(name: str, ours: Waits, fifo: Waits) -> list[str]:
    cells = [f"{seconds:.1f}" for one in (ours, fifo) for seconds in (one.p50, one.p95, one.p99, one.longest)]
    return [name, str(ours.requests), *cells]


def _budget(workload: Workload) -> str:
    shown = [f"{budget} MB" if budget else "no limit" for budget in workload.budget_mb.values()]
    return " + ".join(shown)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _span(ratio: tuple[float, float] | None) -> str:
    if ratio is None:
        return "-"
    least, most = (f"{one:.2f}" for one in ratio)
    return least if least == most else f"{least} to {most}"


def _columns(rows: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> list[str]:
    """Aligned: the columns in `left` to the left, all others to the right."""
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(wide[i]) if i in left else cell.rjust(wide[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
