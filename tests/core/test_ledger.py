# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.core.ledger import Ledger
from modeld.core.model import HOST, LOCAL, DeviceId, InstanceId
from modeld.errors import InvariantError

ONE, TWO = InstanceId("1/a"), InstanceId("2/b")
OTHER = DeviceId("local/gpu1")


def used(ledger: Ledger) -> dict[DeviceId, int]:
    return {device: ledger.used_mb(device) for device in (LOCAL, OTHER, HOST)}


def test_all_but_free_counts_in_full_on_each_device():
    ledger = Ledger()
    ledger.reserve(ONE, {LOCAL: 100, OTHER: 7})
    ledger.reserve(TWO, {LOCAL: 50, HOST: 3})
    assert (used(ledger), ledger.releasing_mb(LOCAL)) == ({LOCAL: 150, OTHER: 7, HOST: 3}, 0)
    ledger.commit(ONE)
    ledger.release(ONE)
    ledger.release(ONE)  # told twice, counted once
    ledger.check()
    assert used(ledger) == {LOCAL: 150, OTHER: 7, HOST: 3}
    assert (ledger.releasing_mb(LOCAL), ledger.releasing_mb(OTHER), ledger.releasing_mb(HOST)) == (100, 7, 0)
    assert ledger.held(ONE) == {LOCAL: 100, OTHER: 7}
    ledger.free(ONE)
    ledger.check()
    assert (used(ledger), ledger.releasing_mb(LOCAL)) == ({LOCAL: 50, OTHER: 0, HOST: 3}, 0)
    assert (ledger.held(ONE), list(ledger), len(ledger)) == ({}, [TWO], 1)
    assert ledger.devices() == [LOCAL, OTHER, HOST]


def test_what_is_booked_does_not_change_with_the_vector_it_was_booked_from():
    ledger = Ledger()
    vector = {LOCAL: 100}
    ledger.reserve(ONE, vector)
    vector[LOCAL] = 1
    ledger.check()
    assert ledger.held(ONE) == {LOCAL: 100}


def test_who_holds_nothing_cannot_give_back_and_nobody_reserves_twice():
    ledger = Ledger()
    for verb in (ledger.commit, ledger.release, ledger.free):
        with pytest.raises(InvariantError, match="holds no memory"):
            verb(ONE)
    ledger.reserve(ONE, {LOCAL: 1})
    with pytest.raises(InvariantError, match="already"):
        ledger.reserve(ONE, {LOCAL: 1})


def test_a_sum_that_is_off_is_found():
    ledger = Ledger()
    ledger.reserve(ONE, {LOCAL: 100})
    ledger._used_mb[LOCAL] = 99
    with pytest.raises(InvariantError, match="99 MB booked"):
        ledger.check()
    ledger._used_mb[LOCAL] = 100
    ledger._releasing_mb[LOCAL] = 5
    with pytest.raises(InvariantError, match="5 MB on their way back"):
        ledger.check()


@given(st.lists(st.tuples(st.sampled_from(["release", "free"]), st.integers(0, 3)), max_size=30))
def test_the_totals_are_right_in_any_order(steps: list[tuple[str, int]]):
    ledger, held = Ledger(), {InstanceId(str(n)): {LOCAL: n, OTHER: 10 * n} for n in range(4)}
    for instance, vector in held.items():
        ledger.reserve(instance, vector)
    for verb, n in steps:
        instance = InstanceId(str(n))
        if instance in held:
            getattr(ledger, verb)(instance)
            if verb == "free":
                del held[instance]
        ledger.check()
    assert used(ledger) == {LOCAL: sum(v[LOCAL] for v in held.values()), OTHER: sum(v[OTHER] for v in held.values()), HOST: 0}
