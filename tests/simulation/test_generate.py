# SPDX-License-Identifier: GPL-3.0-only
"""A seed is a story, always the same; together the seeds have everything in them."""

from __future__ import annotations

from modeld.core.model import HOST, EvictionPolicy
from modeld.simulation.faults import Deed, LoadEnd
from modeld.simulation.generate import story

MANY = [story(seed) for seed in range(80)]


def test_a_seed_is_a_story() -> None:
    assert story(7) == story(7)
    assert story(7) != story(8)


def test_requests_come_in_order_and_for_models_that_exist() -> None:
    for one in MANY:
        times = [ask.at for ask in one.workload.asks]
        assert times == sorted(times)
        assert {ask.model for ask in one.workload.asks} <= {model.id for model in one.workload.models}


def test_every_kind_of_machine_and_every_kind_of_fault_is_drawn() -> None:
    limits = [one.workload.limits for one in MANY]
    assert {len([d for d in limit.budget_mb if d != HOST]) for limit in limits} >= {1, 2, 3}
    assert any(HOST in limit.budget_mb for limit in limits)
    assert {limit.eviction for limit in limits} == set(EvictionPolicy)
    assert {act.deed for one in MANY for act in one.faults.acts} == set(Deed)
    assert {fate.load for one in MANY for fate in one.faults.children} == set(LoadEnd)
    assert any(not len(one.faults) for one in MANY), "calm runs stand beside wild ones"
    assert any(model.spec.split for one in MANY for model in one.workload.models)
    assert any(ask.priority is not None for one in MANY for ask in one.workload.asks)
    assert any(ask.keep_seconds > 0 for one in MANY for ask in one.workload.asks)
