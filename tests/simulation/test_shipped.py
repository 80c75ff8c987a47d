# SPDX-License-Identifier: GPL-3.0-only
"""The workloads that come with modeld: what they promise of themselves, and how modeld does on them."""

from __future__ import annotations

import pytest

from modeld.core.estimate import need
from modeld.core.model import LOCAL, EvictionPolicy, Limits
from modeld.errors import ConfigError
from modeld.simulation.report import FIFO_BAR, compare, with_limits
from modeld.simulation.shipped import REQUESTS_MAX, names, shipped, summary


@pytest.mark.parametrize("name", names())
def test_a_workload_is_small_in_order_and_the_same_every_time(name: str):
    one = shipped(name)
    assert 100 <= len(one.asks) <= REQUESTS_MAX
    assert one == shipped(name) != shipped(name, seed=1)
    assert [ask.at for ask in one.asks] == sorted(ask.at for ask in one.asks)
    assert len({ask.request for ask in one.asks}) == len(one.asks)
    assert summary(name) == one.note
    assert 1.8 < len(shipped(name, scale=2).asks) / len(one.asks) < 2.2


@pytest.mark.parametrize("name", names())
def test_each_model_fits_and_all_together_do_not(name: str):
    one = shipped(name)
    sizes = [need(model.spec).total_mb for model in one.models]
    assert max(sizes) <= one.budget_mb[LOCAL] < sum(sizes)
    assert {ask.model for ask in one.asks} <= {model.id for model in one.models}


@pytest.mark.parametrize("name", names())
def test_waits_are_those_of_the_defaults(name: str):
    """What is measured on them is what a new user gets."""
    ours, usual = shipped(name).limits, Limits()
    assert (ours.fairness_wait_seconds, ours.min_residency_seconds) == (usual.fairness_wait_seconds, usual.min_residency_seconds)


def test_an_unknown_name_is_said():
    with pytest.raises(ConfigError, match='no workload "crowds"; there are rotation, agents, crowd, batch, whale'):
        shipped("crowds")


@pytest.mark.parametrize("policy", EvictionPolicy)
@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_modeld_loads_for_half_the_seconds_of_strict_fifo_and_keeps_its_bound(name: str, policy: EvictionPolicy, seed: int):
    found = compare(with_limits(shipped(name, seed=seed), policy=policy), clairvoyant=None)
    assert found.bound_broken == ""
    assert found.modeld.unserved == found.fifo.unserved == 0
    assert found.against_fifo is not None
    assert found.against_fifo <= FIFO_BAR
