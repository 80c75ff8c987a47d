# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import pytest

from modeld.core.ledger import Ledger
from modeld.core.model import LOCAL, DeviceId, InstanceId
from modeld.errors import InvariantError

ONE, TWO = InstanceId("1/a"), InstanceId("2/b")
OTHER = DeviceId("local/gpu1")


def test_all_but_free_counts_in_full_on_each_device():
    ledger = Ledger()
    ledger.reserve(ONE, {LOCAL: 100, OTHER: 7})
    ledger.reserve(TWO, {LOCAL: 50})
    ledger.commit(ONE)
    ledger.release(ONE)
    ledger.check()
    assert (ledger.used_mb(LOCAL), ledger.used_mb(OTHER), ledger.held_mb(ONE, OTHER)) == (150, 7, 7)
    ledger.free(ONE)
    ledger.check()
    assert (ledger.used_mb(LOCAL), ledger.used_mb(OTHER), ledger.held_mb(ONE, LOCAL)) == (50, 0, 0)
    assert list(ledger) == [TWO]


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
