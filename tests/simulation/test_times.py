# SPDX-License-Identifier: GPL-3.0-only
"""The invariant times can fail: each limit with a story that ends too early, one that ends too late, and one that is right."""

from __future__ import annotations

from collections.abc import Callable

from modeld.core.messages import (
    LeaseFailed,
    Refuse,
    RequestArrived,
    RevokeLease,
    StopInstance,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import InstanceId, ModelId, Request, RequestId
from modeld.errors import DeadlineExceeded, Unloaded, WaitTimeout
from modeld.simulation.seen import Violation
from simulation.tale import Tale, check, grant, spec

A, B = spec("a"), spec("b", 200)
TIMES = frozenset({"times"})
R1, R2 = RequestId("r1"), RequestId("r2")


def breaks(tell: Callable[[], object]) -> bool:
    """Does the story break the invariant?"""
    try:
        tell()
    except Violation as violation:
        assert violation.name == "times"
        return True
    return False


def test_max_wait() -> None:
    def story() -> Tale:
        return Tale(A, checks=TIMES, wait_max_seconds=10.0).serving("a", "r1").arrive(1, "r2", "a")

    refuse = Refuse(R2, WaitTimeout("too long"))
    assert not breaks(lambda: story().at(11, Wakeup(), refuse))
    assert breaks(lambda: story().at(10.9, Wakeup(), refuse))
    assert breaks(lambda: story().at(11.1, Wakeup()))


def test_max_wait_stands_still_in_the_own_load() -> None:
    def story() -> Tale:
        tale = Tale(A, checks=TIMES, wait_max_seconds=10.0).arrive(0, "r1", "a", check(A)).arrive(0, "r2", "a")
        return tale.checked(2, "a", tale.start("a")).at(30, Wakeup()).ready(32, "1/a", grant("r1", "1/a"))

    refuse = Refuse(R2, WaitTimeout("too long"))
    assert not breaks(lambda: story().at(39.9, Wakeup()).at(40, Wakeup(), refuse))
    assert breaks(lambda: story().at(39.9, Wakeup(), refuse))
    assert breaks(lambda: story().at(40.1, Wakeup()))


def test_max_wait_goes_on_for_who_stands_in_line_again() -> None:
    def story() -> Tale:
        tale = Tale(A, checks=TIMES, wait_max_seconds=10.0).serving("a", "r1").arrive(1, "r2", "a")
        return tale.released(5, "r1", grant("r2", "1/a")).at(50, LeaseFailed(R2, before_first_byte=True))

    assert not breaks(lambda: story().at(56, Wakeup(), Refuse(R2, WaitTimeout("too long"))))
    assert breaks(lambda: story().at(55, Wakeup(), Refuse(R2, WaitTimeout("too long"))))
    assert breaks(lambda: story().at(56.1, Wakeup()))


def test_the_limit_of_the_client() -> None:
    request = Request(R2, ModelId("a"), timeout_seconds=4.0)

    def story() -> Tale:
        return Tale(A, checks=TIMES, wait_max_seconds=10.0).serving("a", "r1").at(1, RequestArrived(request))

    assert not breaks(lambda: story().at(5, Wakeup(), Refuse(R2, WaitTimeout("too long"))))
    assert breaks(lambda: story().at(5.1, Wakeup()))


def test_infer_timeout() -> None:
    def story() -> Tale:
        return Tale(A, checks=TIMES, infer_timeout_seconds=3.0).serving("a", "r1")

    revoke = RevokeLease(R1, DeadlineExceeded("too long"))
    assert not breaks(lambda: story().at(3, Wakeup(), revoke).at(9, Wakeup()))
    assert breaks(lambda: story().at(2.9, Wakeup(), revoke))
    assert breaks(lambda: story().at(3.1, Wakeup()))


def test_an_ordered_drain() -> None:
    def story() -> Tale:
        tale = Tale(A, checks=TIMES, drain_timeout_seconds=3.0).serving("a", "r1")
        tale.mirror.closed = {"1/a": ""}
        return tale.at(1, UnloadRequested(ModelId("a")))

    assert not breaks(lambda: story().at(4, Wakeup(), RevokeLease(R1, Unloaded("unloaded"))).at(9, Wakeup()))
    assert breaks(lambda: story().at(4.1, Wakeup()))


def test_preempt_after() -> None:
    def story(after: float | None) -> Tale:
        tale = Tale(spec("a", 200), B, checks=TIMES, preempt_after_seconds=after, wait_max_seconds=1000.0).serving("a", "r1")
        tale.arrive(0, "r2", "b", check(B)).checked(0, "b")
        tale.mirror.closed = {"1/a": "b"}
        return tale.at(5, Wakeup())

    assert not breaks(lambda: story(None).at(99, Wakeup()))
    assert not breaks(lambda: story(2.0).at(7, Wakeup(), RevokeLease(R1, Unloaded("cut"))).at(9, Wakeup()))
    assert breaks(lambda: story(2.0).at(7.1, Wakeup()))


def test_ttl() -> None:
    def story() -> Tale:
        return Tale(spec("a", ttl_seconds=3.0), checks=TIMES).serving("a", "r1").at(9, Wakeup()).released(10, "r1")

    stop = StopInstance(InstanceId("1/a"), "ttl")
    assert not breaks(lambda: story().at(13, Wakeup(), stop).at(20, Wakeup()))
    assert breaks(lambda: story().at(12.9, Wakeup(), stop))
    assert breaks(lambda: story().at(13.1, Wakeup()))


def test_a_ttl_that_a_request_lengthened() -> None:
    def story(keep_seconds: float) -> Tale:
        tale = Tale(spec("a", ttl_seconds=3.0, slots=2), checks=TIMES).serving("a", "r1")
        asked = Request(R2, ModelId("a"), keep_seconds=keep_seconds)
        return tale.at(1, RequestArrived(asked), grant("r2", "1/a")).released(2, "r2").released(3, "r1")

    stop = StopInstance(InstanceId("1/a"), "ttl")
    assert not breaks(lambda: story(10.0).at(11.9, Wakeup()).at(12, Wakeup(), stop))
    assert breaks(lambda: story(10.0).at(6, Wakeup(), stop))
    assert breaks(lambda: story(10.0).at(12.1, Wakeup()))
    assert not breaks(lambda: story(0.5).at(6, Wakeup(), stop))
    assert breaks(lambda: story(0.5).at(2.5, Wakeup(), stop))
