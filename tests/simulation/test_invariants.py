# SPDX-License-Identifier: GPL-3.0-only
"""Each invariant can fail: a story with the one thing in it that must not be; and the same story without it passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modeld.core.breaker import STARTS_MAX
from modeld.core.messages import (
    LeaseFailed,
    Refuse,
    RequestWithdrawn,
    RevokeLease,
    StopInstance,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import DeviceId, InstanceId, ModelId, RequestId
from modeld.errors import Died, QueueFull
from modeld.simulation.invariants import ALL, NAMES
from modeld.simulation.seen import Violation
from simulation.tale import Tale, check, evict, grant, spec

A, B, C = spec("a"), spec("b"), spec("c")
FULL, BIG = spec("a", 200), spec("b", 200)


def violated(tell: Callable[[], object]) -> str:
    """The name of the invariant that the story breaks."""
    with pytest.raises(Violation) as caught:
        tell()
    return caught.value.name


# --- requests and instances -------------------------------------------------------------------------------------------


def test_a_grant_to_nobody() -> None:
    tale = Tale(A).serving("a", "r1")
    assert violated(lambda: tale.at(1, Wakeup(), grant("r1", "1/a"))) == "requests"
    assert violated(lambda: tale.at(1, Wakeup(), grant("r9", "1/a"))) == "requests"


def test_a_grant_on_an_instance_that_loads() -> None:
    tale = Tale(A).arrive(0, "r1", "a", check(A))
    assert violated(lambda: tale.checked(0, "a", tale.start("a"), grant("r1", "1/a"))) == "requests"


def test_a_refusal_of_who_runs_and_a_second_revocation() -> None:
    error = Died("gone")
    tale = Tale(A).serving("a", "r1")
    assert violated(lambda: tale.at(1, Wakeup(), Refuse(RequestId("r1"), error))) == "requests"
    tale.at(1, Wakeup(), RevokeLease(RequestId("r1"), error))
    assert violated(lambda: tale.at(2, Wakeup(), RevokeLease(RequestId("r1"), error))) == "requests"


def test_a_second_instance_of_a_model_and_a_second_stop() -> None:
    tale = Tale(A).serving("a", "r1")
    assert violated(lambda: tale.at(1, Wakeup(), tale.start("a", 2))) == "one_instance"
    tale = Tale(A).serving("a", "r1").released(1, "r1")
    stop = StopInstance(InstanceId("1/a"), "ttl")
    tale.at(2, Wakeup(), stop)
    assert violated(lambda: tale.at(3, Wakeup(), stop)) == "one_instance"


def test_core_says_itself_that_it_is_broken() -> None:
    tale = Tale(A)
    tale.mirror.broken = True
    assert violated(lambda: tale.at(0, Wakeup())) == "core"


def test_more_requests_than_slots() -> None:
    tale = Tale(A).serving("a", "r1")
    assert violated(lambda: tale.arrive(1, "r2", "a", grant("r2", "1/a"))) == "slots"


def test_a_newcomer_on_an_instance_that_was_closed() -> None:
    def story(*commands: object) -> Tale:
        tale = Tale(spec("a", 200, slots=2), BIG).serving("a", "r1")
        tale.arrive(0, "r2", "b", check(BIG)).checked(0, "b")
        tale.mirror.closed = {"1/a": "b"}
        return tale.at(5, Wakeup()).arrive(6, "r3", "a", *commands)  # type: ignore[arg-type]

    story()
    assert violated(lambda: story(grant("r3", "1/a"))) == "slots"


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_start_above_the_budget() -> None:
    def story(budget: int, margin: int) -> Tale:
        tale = Tale(A, B, budget=budget, margin_mb=margin).serving("a", "r1")
        tale.arrive(1, "r2", "b", check(B))
        return tale.checked(1, "b", tale.start("b"))

    story(220, 20)
    assert violated(lambda: story(220, 21)) == "memory"
    assert violated(lambda: story(199, 0)) == "memory"


def test_memory_counts_until_it_is_back() -> None:
    tale = Tale(A, B, budget=150).serving("a", "r1").released(1, "r1")
    tale.at(2, Wakeup(), StopInstance(InstanceId("1/a"), "ttl")).exited(3, "1/a")
    tale.arrive(3, "r2", "b", check(B))
    assert violated(lambda: tale.checked(3, "b", tale.start("b"))) == "memory"


def test_less_booked_than_needed_or_on_a_device_that_is_not_there() -> None:
    tale = Tale(A).arrive(0, "r1", "a", check(A))
    assert violated(lambda: tale.checked(0, "a", tale.start("a", need_mb=99))) == "memory"
    tale = Tale(A).arrive(0, "r1", "a", check(A))
    assert violated(lambda: tale.checked(0, "a", tale.start("a", device=DeviceId("local/gpu7")))) == "memory"


def test_a_model_spread_that_must_not_be() -> None:
    devices = {DeviceId("local/gpu0"): 80, DeviceId("local/gpu1"): 80}
    halves = dict.fromkeys(devices, 50)
    for split, name in ((True, None), (False, "memory")):
        one = spec("a", split=split)
        tale = Tale(one, budget_mb=devices).arrive(0, "r1", "a", check(one))
        start = replace(tale.start("a"), need_mb=halves)
        if name is None:
            tale.checked(0, "a", start)
        else:
            assert violated(lambda tale=tale, start=start: tale.checked(0, "a", start)) == name


# --- order ------------------------------------------------------------------------------------------------------------


def test_the_second_before_the_first() -> None:
    def story(first: str, who: str = "ann") -> Tale:
        tale = Tale(A).serving("a", "r1").arrive(1, "r2", "a").arrive(2, "r3", "a", who=who)
        return tale.released(3, "r1", grant(first, "1/a"))

    story("r2")
    story("r3", who="bob")
    assert violated(lambda: story("r3")) == "fifo"


def test_who_stands_in_line_again_has_its_old_place() -> None:
    tale = Tale(A).serving("a", "r1").arrive(1, "r2", "a")
    tale.at(2, LeaseFailed(RequestId("r1"), before_first_byte=True))
    assert violated(lambda: tale.at(3, Wakeup(), grant("r2", "1/a"))) == "fifo"


def test_the_oldest_aged_one_is_first_after_a_load() -> None:
    def story(first: str, ready: float) -> Tale:
        tale = Tale(A).arrive(0, "r1", "a", check(A), who="ann").arrive(1, "r2", "a", who="bob")
        return tale.checked(1, "a", tale.start("a")).ready(ready, "1/a", grant(first, "1/a"))

    story("r1", 9)
    story("r2", 4)
    assert violated(lambda: story("r2", 9)) == "fifo"


# --- who gives way ----------------------------------------------------------------------------------------------------


def rivals(now: float, **limits: object) -> Tale:
    """r1 has run on 1/a, which is idle since 1 s; r2 waits for b, which needs a's memory, since `now`."""
    tale = Tale(FULL, BIG, min_residency_seconds=0.0, **limits).serving("a", "r1").released(1, "r1")
    return tale.arrive(now, "r2", "b", check(BIG))


def test_an_idle_rival_may_go() -> None:
    rivals(1).checked(1, "b", evict("1/a", "b"))


@pytest.mark.parametrize(("model", "why"), [(spec("a", 200, pinned=True), "pinned"), (spec("a", 200), "fresh")])
def test_a_pinned_or_fresh_one_may_not(model: object, why: str) -> None:
    residency = 100.0 if why == "fresh" else 0.0
    tale = Tale(model, BIG, min_residency_seconds=residency, checks=ALL - {"hopeless"})  # type: ignore[arg-type]
    tale.arrive(0, "r1", "a", check(model)).checked(0, "a", tale.start("a"))  # type: ignore[arg-type]
    tale.ready(3, "1/a", grant("r1", "1/a")).released(4, "r1").arrive(5, "r2", "b", check(BIG))
    assert violated(lambda: tale.checked(5, "b", evict("1/a", "b"))) == "eviction"


def test_a_busy_one_may_not() -> None:
    tale = Tale(FULL, BIG, min_residency_seconds=0.0).serving("a", "r1").arrive(1, "r2", "b", check(BIG))
    assert violated(lambda: tale.checked(1, "b", evict("1/a", "b"))) == "eviction"


def test_a_load_that_somebody_waits_for_may_not() -> None:
    tale = Tale(FULL, BIG).arrive(0, "r1", "a", check(FULL))
    tale.checked(0, "a", tale.start("a")).arrive(0, "r2", "b", check(BIG))
    tale.checked(0, "b")
    assert violated(lambda: tale.at(5, Wakeup(), evict("1/a", "b"))) == "eviction"
    tale = Tale(FULL, BIG).arrive(0, "r1", "a", check(FULL))
    tale.checked(0, "a", tale.start("a")).arrive(0, "r2", "b", check(BIG))
    tale.checked(0, "b").at(1, RequestWithdrawn(RequestId("r1")), evict("1/a", "b"))


def test_nothing_is_closed_before_somebody_is_due() -> None:
    def story(now: float) -> Tale:
        tale = Tale(FULL, BIG).serving("a", "r1").arrive(1, "r2", "b", check(BIG))
        tale.checked(1, "b")
        tale.mirror.closed = {"1/a": "b"}
        return tale.at(now, UnloadRequested(ModelId("c")))

    story(6)
    assert violated(lambda: story(5.5)) == "closing"


def test_a_turn_is_kept() -> None:
    def story(closed_at: float) -> Tale:
        tale = Tale(FULL, BIG).arrive(0, "r1", "a", check(FULL)).arrive(0, "r2", "a")
        tale.checked(0, "a", tale.start("a")).arrive(1, "r3", "b", check(BIG))
        tale.checked(1, "b").ready(6, "1/a", grant("r1", "1/a"))
        tale.at(closed_at - 0.1, Wakeup())
        tale.mirror.closed = {"1/a": "b"}
        return tale.at(closed_at, Wakeup())

    story(11)
    assert violated(lambda: story(10.5)) == "closing"


def test_a_victim_that_was_not_needed() -> None:
    tale = Tale(A, B, spec("c", 150), min_residency_seconds=0.0).serving("a", "r1").released(1, "r1").serving("b", "r2", 1)
    tale.released(2, "r2").arrive(3, "r3", "c", check(tale.models[ModelId("c")]))
    assert violated(lambda: tale.checked(3, "c", evict("1/a", "c"), evict("1/b", "c"))) == "needless"


def test_a_victim_in_vain() -> None:
    tale = Tale(A, B, spec("c", 200), min_residency_seconds=0.0).serving("a", "r1").released(1, "r1").serving("b", "r2", 1)
    tale.arrive(3, "r3", "c", check(tale.models[ModelId("c")]))
    assert violated(lambda: tale.checked(3, "c", evict("1/a", "c"))) == "needless"


def test_a_victim_before_the_check() -> None:
    assert violated(lambda: rivals(1).at(2, Wakeup(), evict("1/a", "b"))) == "needless"


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_line_that_is_too_long() -> None:
    tale = Tale(A, queue_depth_max=1).serving("a", "r1").arrive(1, "r2", "a")
    assert violated(lambda: tale.arrive(2, "r3", "a")) == "queues"


def test_too_many_bytes_wait() -> None:
    tale = Tale(A, waiting_bytes_max=100).serving("a", "r1").arrive(1, "r2", "a", body_bytes=100)
    assert violated(lambda: tale.arrive(2, "r3", "a", body_bytes=1)) == "queues"


def test_a_refusal_while_there_is_room_in_line() -> None:
    full = Refuse(RequestId("r2"), QueueFull("no"))
    tale = Tale(A, queue_depth_max=1).serving("a", "r1")
    assert violated(lambda: tale.arrive(1, "r2", "a", full)) == "queues"
    Tale(A, queue_depth_max=1).serving("a", "r1").arrive(1, "r0", "a").arrive(1, "r2", "a", full)


def test_started_again_and_again() -> None:
    tale = Tale(A, checks=frozenset({"restarts"})).arrive(0, "r0", "a", check(A))

    def start_and_die(number: int) -> None:
        now = float(number)
        tale.checked(now, "a", tale.start("a", number)).exited(now, f"{number}/a").freed(now, f"{number}/a", check(A))

    for number in range(1, STARTS_MAX + 2):  # the first start of all follows no death
        start_and_die(number)
    assert violated(lambda: start_and_die(STARTS_MAX + 2)) == "restarts"


# --- nothing lies idle ------------------------------------------------------------------------------------------------


def test_somebody_waits_beside_a_free_slot() -> None:
    tale = Tale(A).serving("a", "r1")
    tale.arrive(1, "r2", "a")
    assert violated(lambda: tale.released(2, "r1")) == "idle_slot"


def test_room_that_is_not_used() -> None:
    tale = Tale(A).arrive(0, "r1", "a", check(A))
    assert violated(lambda: tale.checked(0, "a")) == "room_unused"
    tale = Tale(A).arrive(0, "r1", "a", check(A))
    tale.mirror.failed = ["a"]
    tale.checked(0, "a")


def test_somebody_waits_for_what_can_never_be_started() -> None:
    tale = Tale(spec("a", 200, pinned=True), BIG)
    assert violated(lambda: tale.arrive(0, "r1", "b", check(BIG))) == "hopeless"


def test_a_due_demand_for_which_nothing_is_done() -> None:
    tale = Tale(FULL, BIG).serving("a", "r1").arrive(1, "r2", "b", check(BIG))
    tale.checked(1, "b")
    tale.at(5.9, Wakeup())
    tale.at(6, Wakeup())
    assert violated(lambda: tale.at(6.1, Wakeup())) == "due_stands"


def test_books_that_differ() -> None:
    tale = Tale(A).serving("a", "r1").arrive(1, "r2", "a")
    tale.mirror.hidden_lines = True
    assert violated(lambda: tale.at(2, UnloadRequested(ModelId("c")))) == "books"


def test_what_is_left_at_the_end() -> None:
    tale = Tale(A).serving("a", "r1")
    assert violated(lambda: tale.watch.quiet(1)) == "baseline"
    tale.released(2, "r1")
    tale.watch.quiet(2)
    assert violated(lambda: tale.watch.over(2)) == "baseline"
    tale.at(3, Wakeup(), StopInstance(InstanceId("1/a"), "ttl")).exited(3, "1/a").freed(3, "1/a")
    tale.watch.over(3)
    tale.mirror.wakeup = 9.0
    assert violated(lambda: tale.watch.over(3)) == "baseline"


def test_an_invariant_can_be_left_out() -> None:
    tale = Tale(A, checks=ALL - {"slots"}).serving("a", "r1")
    tale.arrive(1, "r2", "a", grant("r2", "1/a"))


def test_every_invariant_is_explained() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", text.partition("## Under pressure")[0], re.MULTILINE))
    assert rows == {*NAMES, "requests", "one_instance", "clock", "core"}


def test_every_rule_of_the_referee_is_explained() -> None:
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "simulation.md").read_text(encoding="utf-8").partition("## Under pressure")[2].partition("## When")[0]
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    sources = [
        (root / "src" / "modeld" / "simulation" / f"{name}.py").read_text(encoding="utf-8") for name in ("referee", "pressure", "machine")
    ]
    told = {name for source in sources for name in re.findall(r"fail\(\s*\"(\w+)\"", source)}
    assert told <= rows
    assert len(rows) >= len(told) >= 9
