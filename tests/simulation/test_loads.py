# SPDX-License-Identifier: GPL-3.0-only
"""The invariant loads can fail: a start for nobody, unchecked or too soon, a failure not told, an old file, memory that lies idle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from modeld.core.messages import (
    InstanceFailed,
    LeaseFailed,
    LoadRequested,
    ModelTableReplaced,
    Refuse,
    RequestWithdrawn,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import InstanceId, ModelId, RequestId
from modeld.errors import LoadFailed, UnknownModel
from modeld.simulation.seen import Violation
from simulation.tale import Tale, check, evict, grant, spec

A, B = spec("a"), spec("b", 200)
LOADS = frozenset({"loads"})
R1 = RequestId("r1")
ERROR = LoadFailed("the file is damaged")


def breaks(tell: Callable[[], object]) -> bool:
    """Does the story break the invariant?"""
    try:
        tell()
    except Violation as violation:
        assert violation.name == "loads"
        return True
    return False


def test_a_start_for_nobody() -> None:
    tale = Tale(A, checks=LOADS).arrive(0, "r1", "a", check(A)).at(1, RequestWithdrawn(R1))
    assert breaks(lambda: tale.checked(1, "a", tale.start("a")))
    tale = Tale(A, checks=LOADS).at(0, LoadRequested(ModelId("a")), check(A))
    assert not breaks(lambda: tale.checked(1, "a", tale.start("a")))
    tale = Tale(A, checks=LOADS).at(0, LoadRequested(ModelId("a")), check(A)).at(1, UnloadRequested(ModelId("a")))
    assert breaks(lambda: tale.checked(1, "a", tale.start("a")))


def test_a_wish_for_what_gives_way_just_now() -> None:
    tale = Tale(spec("a", 200), B, checks=LOADS).serving("a", "r1").arrive(0, "r2", "b", check(B)).checked(0, "b")
    tale.mirror.closed = {"1/a": "b"}
    tale.at(5, Wakeup()).at(6, LoadRequested(ModelId("a"))).released(7, "r1", evict("1/a", "b")).exited(7, "1/a")
    tale.freed(7, "1/a", tale.start("b", 2), check(tale.models[ModelId("a")])).checked(7, "a")
    tale.ready(8, "2/b", grant("r2", "2/b")).released(9, "r2", evict("2/b", "a")).exited(9, "2/b")
    assert not breaks(lambda: tale.freed(9, "2/b", tale.start("a", 3)))


def test_a_check_of_a_model_that_was_away_meanwhile() -> None:
    tale = Tale(A, checks=LOADS).arrive(0, "r1", "a", check(A)).at(1, ModelTableReplaced({}), Refuse(R1, UnknownModel("gone")))
    tale.checked(2, "a").at(3, ModelTableReplaced({A.id: A}))
    assert not breaks(lambda: tale.arrive(4, "r2", "a", tale.start("a")))


def test_a_start_without_its_check() -> None:
    tale = Tale(A, checks=LOADS)
    assert breaks(lambda: tale.arrive(0, "r1", "a", check(A), tale.start("a")))


def failed_load() -> Tale:
    tale = Tale(A, checks=LOADS).arrive(0, "r1", "a", check(A))
    tale.checked(0, "a", tale.start("a"))
    return tale.at(1, InstanceFailed(InstanceId("1/a"), ERROR), Refuse(R1, ERROR)).exited(1, "1/a").freed(1, "1/a")


def test_a_start_too_soon_after_a_failure() -> None:
    def again(now: float) -> Tale:
        tale = failed_load().arrive(now, "r2", "a", check(A))
        return tale.checked(now, "a", tale.start("a", 2))

    assert breaks(lambda: again(1.7))
    assert not breaks(lambda: again(1.8))


def test_a_start_too_soon_after_the_fifth_death() -> None:
    def again(pause: float) -> Tale:
        tale, now = Tale(A, checks=LOADS), 0.0
        for number in range(1, 7):
            now += pause if number == 6 else 10.0
            request = RequestId(f"r{number}")
            tale.arrive(now, request, "a", check(A)).checked(now, "a", tale.start("a", number))
            tale.ready(now, f"{number}/a", grant(request, f"{number}/a")).released(now, request)
            tale.exited(now, f"{number}/a").freed(now, f"{number}/a")
        return tale

    assert breaks(lambda: again(47.0))
    assert not breaks(lambda: again(48.0))


def test_a_failed_load_that_nobody_hears_of() -> None:
    tale = Tale(A, checks=LOADS).arrive(0, "r1", "a", check(A))
    tale.checked(0, "a", tale.start("a"))
    assert breaks(lambda: tale.at(1, InstanceFailed(InstanceId("1/a"), ERROR)))
    assert not breaks(failed_load)


def test_who_fails_twice_before_the_first_byte() -> None:
    failed = LeaseFailed(R1, before_first_byte=True)

    def story() -> Tale:
        return Tale(A, checks=LOADS).serving("a", "r1").at(1, failed).at(2, Wakeup(), grant("r1", "1/a"))

    assert breaks(lambda: story().at(3, failed))
    assert not breaks(lambda: story().at(3, failed, Refuse(R1, ERROR)))


def test_a_grant_from_a_file_that_was_replaced() -> None:
    new = replace(A, fingerprint="v2")
    tale = Tale(A, checks=LOADS).serving("a", "r1").released(1, "r1").at(2, ModelTableReplaced({A.id: new}))
    assert breaks(lambda: tale.arrive(3, "r2", "a", grant("r2", "1/a")))


def test_what_was_resident_is_loaded_anew() -> None:
    new = replace(A, fingerprint="v1", options=replace(A.options, parallel=2))
    tale = Tale(A, checks=LOADS).serving("a", "r1").released(1, "r1").at(2, ModelTableReplaced({A.id: new}), check(new))
    tale.exited(2, "1/a").freed(2, "1/a")
    tale.models = {A.id: new}
    assert not breaks(lambda: tale.checked(3, "a", tale.start("a", 2)))


def test_an_idle_instance_that_nothing_protects() -> None:
    def story(residency: float) -> Tale:
        tale = Tale(spec("a", 200), B, checks=LOADS, fairness_wait_seconds=50.0, min_residency_seconds=residency)
        return tale.serving("a", "r1").released(1, "r1").arrive(4, "r2", "b", check(B)).checked(4.1, "b")

    assert breaks(lambda: story(3.0))
    assert not breaks(lambda: story(3.2))
