# SPDX-License-Identifier: GPL-3.0-only
"""A request may ask that its model stays longer than its ttl; it cannot make it go earlier, and it protects nobody from eviction."""

from __future__ import annotations

import math

from core.play import Play, arrive, i, loaded, r, spec
from modeld.core.messages import LeaseFailed, LeaseReleased, RequestWithdrawn, Wakeup


def kept(**more: float) -> Play:
    play = loaded(Play([spec("a", 100, ttl_seconds=10, slots=2), spec("b", 100)], budget=150), "a")
    return play.at(1, arrive("r1", "a", **more)).gives("grant r1 1/a")


def test_the_ttl_is_lengthened_from_the_end_of_the_request():
    play = kept(keep_seconds=50)
    play.at(5, LeaseReleased(r("r1")))
    play.at(54, Wakeup()).gives()
    assert play.scheduler.next_wakeup() == 55
    play.at(55, Wakeup()).gives("stop 1/a ttl")


def test_the_ttl_is_not_shortened():
    play = kept(keep_seconds=2)
    play.at(5, LeaseReleased(r("r1")))
    assert play.scheduler.next_wakeup() == 15
    play.at(14, Wakeup()).gives()
    play.at(15, Wakeup()).gives("stop 1/a ttl")


def test_a_later_request_that_asks_for_less_does_not_take_it_back():
    play = kept(keep_seconds=50)
    play.at(2, arrive("r2", "a", keep_seconds=1)).gives("grant r2 1/a")
    play.at(5, LeaseReleased(r("r1")))
    play.at(6, LeaseReleased(r("r2")))
    play.at(54, Wakeup()).gives()
    play.at(55, Wakeup()).gives("stop 1/a ttl")


def test_a_ttl_that_begins_later_than_it_ends_holds():
    play = kept(keep_seconds=12)
    play.at(5, LeaseReleased(r("r1")), arrive("r2", "a"))
    play.at(16, LeaseReleased(r("r2")))
    play.at(25, Wakeup()).gives()
    play.at(26, Wakeup()).gives("stop 1/a ttl")


def test_for_ever_is_until_it_is_evicted():
    play = kept(keep_seconds=math.inf)
    play.at(5, LeaseReleased(r("r1")))
    play.at(10_000, Wakeup()).gives()
    assert play.scheduler.next_wakeup() is None
    play.at(10_001, arrive("r2", "b")).gives("stop 1/a evicted for b")


def test_it_holds_however_the_request_ends():
    for end in (RequestWithdrawn(r("r1")), LeaseFailed(r("r1"), before_first_byte=False)):
        play = kept(keep_seconds=50)
        play.at(5, end)
        play.at(16, Wakeup()).gives()
        assert play.instance("a").id == i(1, "a")


def test_without_a_ttl_there_is_nothing_to_lengthen():
    play = loaded(Play({"a": 100}), "a")
    play.at(1, arrive("r1", "a", keep_seconds=5)).gives("grant r1 1/a")
    play.at(2, LeaseReleased(r("r1")))
    assert play.scheduler.next_wakeup() is None
