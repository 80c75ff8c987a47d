# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import math
from dataclasses import replace

import pytest

from core.play import spec
from modeld.core.admission import DOUBT, RETRY_SECONDS_MAX, Door, Outlook, gone, never_fits, refusal, whole_seconds
from modeld.core.estimate import Need
from modeld.core.model import Limits, ModelId, Request, RequestId
from modeld.errors import BackingOff, CannotEverFit, DeadlineUnreachable, Died, Draining, ModelUnavailable, QueueFull, UnknownModel

A = ModelId("a")
LIMITS = Limits(queue_depth_max=4, wait_max_seconds=30, waiting_bytes_max=1000)


def door(*, seconds: float = 7, measured: float = 7, **more: object) -> Door:
    """An open door to a model that loads, with nobody in line."""
    base = Door(
        open=True,
        spec=spec("a", 100),
        need=None,
        fits=True,
        available_mb=0,
        failure=None,
        retry_in_seconds=0,
        line_length=0,
        waiting_bytes=0,
        goes_straight_through=False,
        line_seconds=0,
        outlook=lambda: Outlook(seconds, measured),
    )
    return replace(base, **more)  # type: ignore[arg-type]


def ask(at: Door, *, body: int = 0, timeout: float = math.inf) -> object:
    return refusal(Request(RequestId("r"), A, body_bytes=body, timeout_seconds=timeout), at, LIMITS)


def test_who_may_wait_is_not_refused():
    assert ask(door()) is None
    assert ask(door(line_length=3, waiting_bytes=900), body=100) is None


@pytest.mark.parametrize(
    ("at", "error", "words"),
    [
        (door(open=False), Draining, "shutting down"),
        (door(spec=None), UnknownModel, "GET /models"),
        (door(spec=spec("a", 100, unavailable="the file is truncated")), ModelUnavailable, "truncated"),
        (door(fits=False, need=Need(100, "declared"), available_mb=90), CannotEverFit, "needs 100 MB (declared), at most 90 MB"),
        (door(failure=Died("it died."), retry_in_seconds=2.1), BackingOff, "did not start: it died; next try in 3 s"),
        (door(line_length=4), QueueFull, "4 requests wait"),
        (door(waiting_bytes=1001), QueueFull, "1001 bytes"),
        (door(line_seconds=DOUBT * 30 + 1), DeadlineUnreachable, "max_wait (30 s)"),
    ],
)
def test_the_first_thing_in_the_way_is_the_reason(at: Door, error: type[Exception], words: str):
    found = ask(at)
    assert isinstance(found, error)
    assert words in str(found)


def test_who_goes_straight_through_meets_no_limit_of_the_line():
    crowded = door(line_length=99, waiting_bytes=5000, line_seconds=1e9, goes_straight_through=True)
    assert ask(crowded, timeout=0.001) is None


def test_a_failure_whose_pause_is_over_keeps_nobody_out():
    assert ask(door(failure=Died("it died"), retry_in_seconds=0)) is None


@pytest.mark.parametrize(
    ("timeout", "measured", "refused"),
    [(6.9, 7, True), (7, 7, False), (6.9, 2, False), (1.9, 2, True), (math.inf, 7, False)],
)
def test_a_limit_of_the_client_that_cannot_be_kept_is_said_at_once(timeout: float, measured: float, refused: bool):
    """What was never measured refuses nobody: then only what is known counts."""
    found = ask(door(measured=measured), timeout=timeout)
    assert isinstance(found, DeadlineUnreachable) == refused
    if isinstance(found, DeadlineUnreachable):
        assert found.retry_after_seconds == 7
        assert "X-Modeld-Timeout" in str(found)


def test_the_outlook_is_asked_for_only_when_the_answer_depends_on_it():
    def never() -> Outlook:
        raise AssertionError

    assert ask(door(outlook=never)) is None
    assert ask(door(outlook=never, goes_straight_through=True), timeout=1) is None


def test_whole_seconds_are_rounded_up_and_bounded():
    assert [whole_seconds(s) for s in (0, 0.1, 1, 1.1, 599.5, 1e9, math.inf)] == [1, 1, 1, 2, 600, RETRY_SECONDS_MAX, RETRY_SECONDS_MAX]


def test_what_is_gone_is_told_from_what_is_there():
    assert gone(A, spec("a", 100)) is None
    assert "GET /models" in str(gone(A, None))
    assert never_fits(spec("a", 100), Need(100, "formula"), 7).http_status == 507
