# SPDX-License-Identifier: GPL-3.0-only
"""Seeded evenings with the real relay, driver and supervisor; and that a fault planted into them is found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from modeld.api.relay import Relay
from modeld.core.messages import Event, LeaseFailed, RequestWithdrawn
from modeld.core.model import InstanceId, Request, RequestId
from modeld.errors import ClientGone, ModeldError
from modeld.runtime import driver as driver_module
from modeld.runtime.driver import Driver, Lease, PendingLease
from modeld.runtime.upstream import Exchange
from modeld.simulation import house
from modeld.simulation.house import Report, plan_of, play
from modeld.simulation.loop import Order

SEEDS = 60
FOUND_WITHIN = 20


@pytest.fixture(scope="module")
def total() -> Report:
    """All seeds together; each of them went well."""
    total = Report(0)
    for seed in range(SEEDS):
        report = play(seed)
        assert (seed, report.failures) == (seed, [])
        total.add(report)
    return total


def test_every_guest_ends_once_and_nothing_is_left(total: Report):
    assert total.outcomes.total() >= SEEDS * 8
    assert total.events > SEEDS * 20


def test_the_seeds_reach_what_they_are_for(total: Report):
    """A net that nothing swims into catches nothing."""
    assert {"answered", "client_gone", "cancelled", "wait_timeout", "draining", "instance_died", "instance_stuck"} <= total.outcomes.keys()
    assert all(total.decisions[name] > 0 for name in ("requeued", "stuck", "evictions", "fairness_closings", "crashes"))
    assert {"died at a grant", "ignored the stop", "connection was reset", "answer hung", "load hung"} <= total.faults.keys()
    assert {plan_of(seed).order for seed in range(SEEDS)} == set(Order)


def test_a_seed_is_the_same_again_and_another_is_not():
    first, again, other = play(5), play(5), play(6)
    assert (first.digest, first.steps, first.outcomes) == (again.digest, again.steps, again.outcomes)
    assert first.digest != other.digest


def test_a_seed_is_the_same_in_any_process():
    """Neither addresses nor the order of sets may play a part."""
    told = []
    for number in ("1", "2"):
        command = [sys.executable, "-m", "modeld.simulation.house", "--seeds", "5"]
        told.append(subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": number}, check=True, capture_output=True).stdout)
    assert told[0] == told[1]
    assert b"digest: " in told[0]


# --- faults that were planted -----------------------------------------------------------------------------------------


def is_found(symptom: str) -> bool:
    return any(symptom in failure for seed in range(FOUND_WITHIN) for failure in play(seed).failures)


async def _keeps_a_grant_it_did_not_see(self: PendingLease) -> Lease:
    try:
        self._held = await self._granted
        return self._held
    except asyncio.CancelledError:
        if self._granted.cancelled():  # wrong: a grant that came meanwhile is given back by nobody
            self._driver.leave(self._request.id, RequestWithdrawn(self._request.id))
        raise


def _registers_too_late(self: Driver, request: Request, granted: asyncio.Future[Lease], instance: InstanceId, error: ModeldError) -> None:
    self._leases.pop(request.id, None)
    self.post(LeaseFailed(request.id, before_first_byte=True, error=error))
    self._pending[request.id] = driver_module._Waiting(request, granted, self.loop.time(), lost=instance)


async def _ends_two_leases(self: PendingLease, error: ModeldError) -> Lease:
    assert self._held is not None
    self._granted = self._driver.loop.create_future()
    self._driver.line_up_again(self._request, self._granted, self._held.instance, error)
    return await self._wait()


def _arms_no_earlier_timer(self: Driver) -> None:
    at = self._scheduler.next_wakeup()
    if self._timer is None and at is not None:
        self._timer_at = self._timer_due = at
        self._timer = self.loop.call_at(at, self._wake)


def _leaves_without_a_word(self: PendingLease, error: ModeldError | None = None) -> None:
    if not self._granted.done():
        self._granted.set_exception(error or ClientGone("left"))


def _forgets_who_left(self: Driver, request: RequestId, event: Event) -> None:
    self._leases.pop(request, None)
    self.post(event)


@pytest.mark.parametrize(
    ("owner", "name", "planted", "symptom"),
    [
        (PendingLease, "_wait", _keeps_a_grant_it_did_not_see, "is granted"),
        (Driver, "line_up_again", _registers_too_late, "was not sent home"),
        (PendingLease, "again", _ends_two_leases, "it is "),
        (Driver, "_arm", _arms_no_earlier_timer, "did not come"),
        (PendingLease, "withdraw", _leaves_without_a_word, "was granted after its end"),
        (Driver, "leave", _forgets_who_left, "something in the driver"),
    ],
)
def test_a_fault_in_the_driver_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, planted: Callable[..., object], symptom: str
):
    monkeypatch.setattr(owner, name, planted)
    assert is_found(symptom)


def test_an_exchange_that_outlives_its_lease_is_found(monkeypatch: pytest.MonkeyPatch):
    """The slot is given to the next one while the child still works for the last."""
    monkeypatch.setattr(Exchange, "abort", lambda self, error=None: asyncio.get_running_loop().call_later(0.01, Exchange._end, self, error))
    assert is_found("slots")


def test_a_request_that_waits_for_ever_is_found(monkeypatch: pytest.MonkeyPatch):
    async def serve(self: Relay, *_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Relay, "serve", serve)
    assert is_found("has not ended")


def test_the_first_seed_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(house.logging, "disable", lambda level: None)
    assert house.main(["--seed", "3"]) == 0
    assert "RequestArrived" in capsys.readouterr().out  # the journal
    monkeypatch.setattr(house, "play", lambda seed: Report(seed, failures=["bad"] if seed == 4 else []))
    assert house.main(["--start", "2", "--seeds", "5"]) == 1
    assert "FAILED seed 4\n  bad\n" in capsys.readouterr().out
