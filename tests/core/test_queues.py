# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.core.model import ModelId, Principal, Priority, Request, RequestId
from modeld.core.queues import QUANTUM, Lines, Share, Waiting
from modeld.errors import InvariantError

A, B = ModelId("a"), ModelId("b")
URGENT, NORMAL, BATCH = (priority.rank for priority in (Priority.INTERACTIVE, Priority.NORMAL, Priority.BATCH))
NEVER = math.inf


def request(name: str, model: ModelId = A, *, size: int = 0, by: str = "p", work: float = 1.0, timeout: float = math.inf) -> Request:
    return Request(RequestId(name), model, Principal(by), body_bytes=size, work=work, timeout_seconds=timeout)


def enter(lines: Lines, name: str, rank: int = NORMAL, *, now: float = 0.0, by: str = "p", work: float = 1.0) -> Waiting:
    return lines.append(request(name, by=by, work=work), rank, now, 1000)


def take(lines: Lines, count: int = 10**6, *, now: float = 0.0, fairness_wait: float = NEVER) -> list[str]:
    """The next `count` in their order."""
    taken: list[str] = []
    while len(taken) < count and (waiting := lines.next(A, now, fairness_wait)) is not None:
        taken.append(waiting.request.id)
    return taken


# --- bookkeeping ------------------------------------------------------------------------------------------------------


def test_withdrawal_leaves_no_trace():
    lines = Lines()
    for name in "xyz":
        lines.append(request(name, size=10), NORMAL, 0, 5)
    assert (len(lines), lines.length(A), lines.waiting_bytes, [w.request.id for w in lines.all()]) == (3, 3, 30, ["x", "y", "z"])
    assert lines.remove(RequestId("x")) is not None
    assert lines.remove(RequestId("x")) is None
    assert lines.get(RequestId("x")) is None
    assert [w.request.id for w in lines.take(A)] == ["y", "z"]
    assert (len(lines), lines.waiting_bytes, lines.models(), lines.of(A), lines.next(A, 0, NEVER)) == (0, 0, [], None, None)


def test_nobody_stands_in_two_places():
    lines = Lines()
    waiting = lines.append(request("x"), NORMAL, 0, 5)
    with pytest.raises(InvariantError):
        lines.append(request("x", B), NORMAL, 0, 5)
    with pytest.raises(InvariantError):
        lines.restore(waiting, 0, 5)


def test_what_was_granted_stands_in_its_old_place_again():
    lines = Lines()
    waiting = {name: enter(lines, name, by=by) for name, by in (("v", "p"), ("w", "q"), ("x", "p"), ("y", "p"), ("z", "q"))}
    for name in ("w", "x", "v"):
        lines.remove(RequestId(name))
        assert waiting[name].ticket == "vwxyz".index(name) + 1
    for name in ("x", "v", "w"):
        lines.restore(waiting[name], 0, 5)
    assert [w.request.id for w in lines.all()] == ["v", "w", "x", "y", "z"]
    assert sorted(take(lines)[:3]) == ["v", "w", "x"]  # their first grant was paid for


def test_a_line_that_emptied_is_made_anew_by_who_comes_back():
    lines = Lines()
    waiting = enter(lines, "x")
    assert take(lines) == ["x"]
    lines.restore(waiting, 0, 5)
    assert lines.length(A) == 1


# --- classes and age --------------------------------------------------------------------------------------------------


def test_the_most_urgent_class_goes_first_and_within_it_who_came_first():
    lines = Lines()
    for name, rank in (("b1", BATCH), ("n1", NORMAL), ("i1", URGENT), ("n2", NORMAL), ("i2", URGENT)):
        enter(lines, name, rank)
    line = lines.of(A)
    assert line is not None
    assert [line.ahead_of(rank) for rank in (URGENT, NORMAL, BATCH)] == [2, 4, 5]
    assert [line.count(rank) for rank in (URGENT, NORMAL, BATCH)] == [2, 2, 1]
    assert (line.best_rank(), line.oldest().request.id) == (URGENT, "b1")
    assert take(lines) == ["i1", "i2", "n1", "n2", "b1"]


def test_every_other_grant_goes_by_age_once_the_oldest_has_waited_long_enough():
    lines = Lines()
    for n in range(3):
        enter(lines, f"b{n}", BATCH, now=0)
    for n in range(4):
        enter(lines, f"i{n}", URGENT, now=n)
    assert take(lines, 2, now=9.9, fairness_wait=10) == ["i0", "i1"]
    assert take(lines, now=10, fairness_wait=10) == ["b0", "i2", "b1", "i3", "b2"]


def test_the_grant_after_one_by_age_may_be_to_the_oldest_all_the_same():
    """Nobody more urgent waits: first in, first out."""
    lines = Lines()
    for n in range(4):
        enter(lines, f"b{n}", BATCH)
    assert take(lines, now=100, fairness_wait=10) == ["b0", "b1", "b2", "b3"]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30), st.integers(0, 40))
def test_an_aged_request_is_passed_over_at_most_once_for_each_that_came_before_it(rows: list[tuple[int, int]], newcomers: int):
    """However many urgent ones keep coming, the one at place n of an aged line is served within 2n grants."""
    lines = Lines()
    for n, (rank, principal) in enumerate(rows):
        enter(lines, f"old{n}", rank, by=str(principal))
    for n in range(newcomers):
        enter(lines, f"new{n}", URGENT, now=100)
    order = take(lines, now=100, fairness_wait=10)
    for n in range(len(rows)):
        assert order.index(f"old{n}") < 2 * (n + 1)


# --- shares -----------------------------------------------------------------------------------------------------------


def shares(works: dict[str, list[float]], rounds: int) -> Counter[str]:
    """Work granted to each principal while all of them always have somebody in line."""
    lines, granted, count = Lines(), Counter[str](), 0
    for by, list_of_work in works.items():
        for work in list_of_work:
            count += 1
            enter(lines, f"{by}{count}", by=by, work=work)
    for _ in range(rounds):
        waiting = lines.next(A, 0, NEVER)
        assert waiting is not None
        by, work = waiting.request.principal, waiting.request.work
        granted[by] += int(work)
        count += 1
        enter(lines, f"{by}{count}", by=by, work=work)
    return granted


@pytest.mark.parametrize(
    "works",
    [
        {"many": [100] * 20, "one": [100]},
        {"small": [10] * 3, "large": [5000] * 3},
        {"x": [1] * 5, "y": [700, 3, 2000], "z": [512]},
    ],
)
def test_principals_share_the_work_evenly_however_many_and_large_their_requests(works: dict[str, list[float]]):
    granted = shares(works, 5000)
    largest = max(work for list_of_work in works.values() for work in list_of_work)
    assert set(granted) == set(works)
    assert max(granted.values()) - min(granted.values()) <= QUANTUM + 2 * largest


def test_who_was_away_gains_nothing():
    lines = Lines()
    for n in range(100):
        enter(lines, f"p{n}", by="p", work=512)
    enter(lines, "q", by="q", work=512)
    take(lines, 40)
    for n in range(30):
        enter(lines, f"q{n}", by="q", work=512)
    granted = Counter(name[0] for name in take(lines, 20))
    assert granted == {"p": 10, "q": 10}


def test_what_was_granted_by_age_is_paid_for():
    """It counts as any other: who got two large ones by age stands back until the other has had as much."""
    lines = Lines()
    for n in range(2):
        enter(lines, f"p{n}", by="p", work=1024, now=0)
    for n in range(8):
        enter(lines, f"q{n}", by="q", work=512, now=100)
    for n in range(2, 6):
        enter(lines, f"p{n}", by="p", work=512, now=100)
    first = take(lines, 1, now=100, fairness_wait=10)
    assert first == ["p0"]
    rest = take(lines, 5, now=100, fairness_wait=NEVER)
    assert Counter(name[0] for name in rest) == {"q": 4, "p": 1}


def test_classes_do_not_share_one_account():
    lines = Lines()
    for n in range(3):
        enter(lines, f"p{n}", URGENT, by="p", work=5120)
    enter(lines, "q0", BATCH, by="q", work=1)
    enter(lines, "p9", BATCH, by="p", work=1)
    assert take(lines)[3:] == ["q0", "p9"]


def test_fractions_of_work_whose_sums_miss_by_a_digit_hang_nobody():
    """After so many rounds as seem to be enough neither of them can pay, by 6e-14 of a token."""
    share = Share()
    for n, by in enumerate("pq"):
        share.append(Waiting(request(by, by=by), n, NORMAL, 0, 9, 0, 9))
    share._deficit = {Principal(by): math.nextafter(-511, -math.inf) for by in "pq"}
    assert share.next().request.id == "p"


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e5)), min_size=1, max_size=40))
def test_whatever_the_work_each_is_granted_once_and_each_principal_in_its_order(rows: list[tuple[int, float]]):
    lines = Lines()
    for n, (by, work) in enumerate(rows):
        enter(lines, f"{by}:{n}", by=str(by), work=work)
    taken = [name.split(":") for name in take(lines)]
    assert sorted(int(n) for _, n in taken) == list(range(len(rows)))
    for principal in {by for by, _ in taken}:
        own = [int(n) for by, n in taken if by == principal]
        assert own == sorted(own)


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_a_request_is_late_when_its_time_is_up_and_not_before():
    lines = Lines()
    waiting = lines.append(request("x"), NORMAL, 2, 5)
    assert not lines.is_late(waiting, 6.9)
    assert lines.is_late(waiting, 7)


def test_a_stopped_clock_keeps_what_was_left_also_for_who_comes_meanwhile():
    lines = Lines()
    early = lines.append(request("x"), NORMAL, 0, 5)
    lines.stop_clock(A, 3)
    lines.stop_clock(A, 4)  # it stands still already
    late = lines.append(request("y"), NORMAL, 50, 5)
    other = lines.append(request("z", B), NORMAL, 50, 5)
    assert (lines.is_late(early, 99), lines.is_late(other, 99)) == (False, True)
    assert [lines.left_seconds(waiting, 99) for waiting in (early, late, other)] == [2, 5, 0]
    lines.start_clock(A, 100)
    assert lines.start_clock(A, 101) == []  # it runs already
    assert [lines.next_look(waiting, 101) for waiting in (early, late)] == [102, 105]
    assert [lines.is_late(early, now) for now in (101.9, 102)] == [False, True]


def test_who_was_looked_at_in_vain_while_the_clock_stood_is_looked_at_again_when_it_goes_on():
    lines = Lines()
    asked = lines.append(request("x"), NORMAL, 0, 5)
    gone = lines.append(request("y"), NORMAL, 0, 5)
    not_yet = lines.append(request("z"), NORMAL, 2, 5)
    lines.stop_clock(A, 3)
    assert [lines.next_look(waiting, 5) for waiting in (asked, gone, not_yet)] == [math.inf, math.inf, 7]
    lines.remove(RequestId("y"))
    assert lines.start_clock(A, 6) == [asked]
    assert lines.next_look(asked, 6) == 8


def test_who_came_back_has_what_was_left_of_its_time_also_when_the_load_runs_already():
    lines = Lines()
    waiting = lines.append(request("x"), NORMAL, 0, 5)
    left = lines.left_seconds(waiting, 2)
    lines.remove(RequestId("x"))
    lines.stop_clock(A, 10)
    lines.restore(waiting, 20, left)
    lines.start_clock(A, 30)
    assert (waiting.requeued, lines.next_look(waiting, 30)) == (True, 33)


def test_the_clients_own_limit_never_stops():
    lines = Lines()
    waiting = lines.append(request("x", timeout=4), NORMAL, 0, 5)
    lines.stop_clock(A, 1)
    assert not lines.is_late(waiting, 3.9)
    assert lines.is_late(waiting, 4)
