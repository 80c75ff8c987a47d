# SPDX-License-Identifier: GPL-3.0-only
"""The figures of a run, and how they are shown."""

from __future__ import annotations

import json

import pytest

from core.play import spec
from modeld.core.model import LOCAL, EvictionPolicy, Limits, ModelId, Priority, RequestId
from modeld.simulation import report
from modeld.simulation.clairvoyant import Clairvoyant
from modeld.simulation.report import as_data, as_text, compare, figures, percentile, summary_text, with_limits
from modeld.simulation.shipped import shipped
from modeld.simulation.workload import Ask, History, Served, SimModel, Stay, Workload


def ask(at: float, model: str, tokens: int = 10, priority: Priority | None = None) -> Ask:
    return Ask(at, RequestId(f"{at}{model}"), ModelId(model), 1.0, tokens, priority=priority)


def history() -> History:
    models = (SimModel(spec("a", 100, priority=Priority.BATCH), 5.0), SimModel(spec("b", 100), 5.0), SimModel(spec("never", 1), 1.0))
    asks = (ask(1, "a"), ask(2, "a", priority=Priority.INTERACTIVE), ask(3, "b", 50, Priority.INTERACTIVE), ask(4, "b", 99))
    served = (
        Served(asks[0], 6.0, 8.0, "done"),
        Served(asks[1], 6.0, 9.0, "done"),
        Served(asks[2], 13.0, 21.0, "done"),
        Served(asks[3], None, 20.0, "wait_timeout"),
    )
    stays = (
        Stay(ModelId("a"), 1.0, 6.0, 9.0, 9.2, "evicted for b"),
        Stay(ModelId("b"), 9.2, 14.2, 30.0, 30.2),
        Stay(ModelId("a"), 9.3, None, 10.0, 10.1),
    )
    return History(Workload("w", models, asks, Limits(budget_mb={LOCAL: 100})), "modeld", served, stays, 30.0)


def test_what_is_counted():
    found = figures(history())
    assert (found.loads, found.unserved, found.makespan_seconds) == (3, 1, 20.0)
    assert found.swap_seconds == pytest.approx(5 + 5 + 0.7)  # a load that was stopped counts for as long as it took
    assert found.tokens_per_second == pytest.approx((10 + 10 + 50) / 20)
    assert found.by_model["a"] == report.Waits(2, 4.0, 5.0, 5.0, 5.0)
    assert found.by_model["b"] == report.Waits(2, 10.0, 16.0, 16.0, 16.0)  # who never ran waited until it was refused
    assert found.by_model["never"].requests == 0
    # a class cannot be more urgent than the model's own
    assert {rank: waits.requests for rank, waits in found.by_class.items()} == {"normal": 2, "batch": 2}


def test_a_percentile_is_a_value_that_was_there():
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) == 0.0


def test_settings_are_changed_one_by_one():
    one = shipped("rotation")
    changed = with_limits(one, policy=EvictionPolicy.COST, fairness_wait_seconds=3.0).limits
    assert (changed.eviction, changed.fairness_wait_seconds) == (EvictionPolicy.COST, 3.0)
    assert changed.min_residency_seconds == one.limits.min_residency_seconds


def foreseen(seconds: float, *, exact: bool = True, at_least: float = 1.0) -> Clairvoyant:
    return Clairvoyant(seconds, 7, exact, at_least, ())


def test_text_and_data_say_the_same():
    found = compare(shipped("rotation"), clairvoyant=lambda _: foreseen(300.0))
    text, data = as_text(found), json.loads(json.dumps(as_data(found)))
    assert f"{data['modeld']['swap_seconds']:.1f}" in text
    assert data["times_fifo"] == pytest.approx(data["modeld"]["swap_seconds"] / data["fifo"]["swap_seconds"])
    assert data["clairvoyant"] == {"loads": 7, "swap_seconds": 300.0, "exact": True, "at_least_seconds": 1.0}
    assert "clairvoyant: exact" in text and "wait bound: kept" in text
    for name in ("left", "right"):
        longest = data["modeld"]["wait_seconds_by_model"][name]["max"]
        assert f"{longest:.1f}" in next(row for row in text.splitlines() if row.startswith(name))
    assert data["bound_broken"] is None


def test_an_answer_that_is_not_proved_is_a_span_and_no_verdict():
    ours = compare(shipped("rotation"), clairvoyant=None).modeld.swap_seconds
    told = [
        compare(shipped("rotation"), clairvoyant=lambda _, one=one: one)
        for one in (
            foreseen(ours),
            foreseen(ours / 2),
            foreseen(ours, exact=False, at_least=ours / 2),
            foreseen(ours / 2, exact=False, at_least=ours / 4),
            foreseen(ours, exact=False, at_least=0.0),
        )
    ]
    lines = summary_text(told).splitlines()[1:]
    assert [line.split("  ")[0] for line in lines] == ["rotation"] * 5
    spans = ["1.00 ", "2.00 ", "1.00 to 2.00 ", "2.00 to 4.00 ", "1.00 to inf "]
    assert [span in line for span, line in zip(spans, lines, strict=True)] == [True] * 5
    cells = [line.split(str(Limits().eviction))[1].split() for line in lines]
    assert [cell[3 if number < 2 else 5] for number, cell in enumerate(cells)] == ["yes", "NO", "?", "NO", "?"]
    assert "heuristic: best found, at least 0.0 s" in lines[4]


def test_a_broken_bound_is_told(monkeypatch: pytest.MonkeyPatch):
    """The scheduler keeps it, so the check is made to fail: the figures are there all the same."""
    from modeld.simulation.bound import Bound

    monkeypatch.setattr(Bound, "granted", lambda self, asked, now: self._fail("bound", f"{asked.request.id} waited too long"))
    found = compare(shipped("rotation"), clairvoyant=None)
    assert "waited too long" in found.bound_broken
    assert found.modeld.loads > 2
    assert "wait bound: BROKEN, seed 0" in as_text(found)
    assert "BROKEN" in summary_text([found])
