# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

from dataclasses import replace

import pytest

from core.play import Play, arrive, i, loaded, r, spec
from modeld.core.book import Alarm, Book
from modeld.core.messages import InstanceReady, LeaseReleased, LoadRequested
from modeld.core.model import HOST, LOCAL, DeviceId, Limits, ModelId, ModelKind, ModelSpec
from modeld.errors import InvariantError

A, B = ModelId("a"), ModelId("b")
GPU0, GPU1 = DeviceId("local/gpu0"), DeviceId("local/gpu1")


def book_of(specs: list[ModelSpec], **limits: object) -> Book:
    return Play(specs, **limits).scheduler._book


# --- what can be had --------------------------------------------------------------------------------------------------


def test_a_budget_less_its_margin_is_the_limit_and_host_memory_has_none():
    book = book_of([], budget_mb={GPU0: 100, GPU1: 0, HOST: 64}, margin_mb=10)
    assert {device: book.limit_mb(device) for device in book.devices} == {GPU0: 90, GPU1: None, HOST: 64}
    assert book.free_mb() == {GPU0: 90, HOST: 64}
    assert Book(Limits(budget_mb={}), {}).devices == [LOCAL]


def test_other_models_pins_are_not_to_be_had_on_the_one_device_there_is():
    pins = [spec("p", 30, pinned=True), spec("q", 80, pinned=True), spec("gone", 50, pinned=True, unavailable="no file")]
    book = book_of([spec("a", 10), *pins], budget=100)
    assert book.capacity(A) == {LOCAL: 70}  # q does not fit beside p: it must not refuse everybody
    assert book.capacity(ModelId("p")) == {LOCAL: 20}


def test_on_several_devices_a_pin_counts_where_it_is_once_it_is_there():
    play = Play([spec("a", 90), spec("p", 30, pinned=True)], budget_mb={GPU0: 100, GPU1: 50})
    book = play.scheduler._book
    assert book.places(A) == ({GPU0: 90},)
    play.at(0, LoadRequested(ModelId("p"))).gives("start 1/p")
    assert book.capacity(A) == {GPU0: 100, GPU1: 20}
    play.at(1, InstanceReady(i(1, "p")), arrive("r1", "a")).gives("start 2/a")


def test_the_least_that_any_model_takes():
    assert book_of([spec("a", 50), spec("b", 70)], budget=100).least_mb() == 50
    assert book_of([spec("a", 50), spec("b", 60, split=True)], budget_mb={GPU0: 50, GPU1: 50}).least_mb() == 30
    assert book_of([spec("a", 50), spec("far", 0, external=True)], budget=100).least_mb() == 0
    assert book_of([spec("a", 50)], budget_mb={GPU0: 50, GPU1: 0}).least_mb() == 0
    assert book_of([spec("a", 50, unavailable="no file")], budget=100).least_mb() == 0


def test_a_launch_is_another_one_when_anything_that_the_engine_is_told_differs():
    play = loaded(Play({"a": 10}), "a")
    instance = next(iter(play.scheduler._book.instances.values()))
    same = instance.spec
    assert instance.same_launch(replace(same, aliases=("x",), pinned=True, ttl_seconds=5.0, takes_tools=True))
    for change in (
        {"fingerprint": "v2"},
        {"options": replace(same.options, ubatch=64)},
        {"mmproj": "/p"},
        {"kind": ModelKind.EMBED},
        {"pooling": "cls"},
    ):
        assert not instance.same_launch(replace(same, **change)), change


# --- alarms -----------------------------------------------------------------------------------------------------------


def test_alarms_ring_in_order_each_once_and_what_means_nothing_is_forgotten():
    book = book_of([spec("a", 1)])
    book.alarm(5, Alarm.PLAN)
    book.alarm(3, Alarm.WAITING, "nobody")
    book.alarm(float("inf"), Alarm.PLAN)
    assert book.next_alarm() is None
    book.alarm(5, Alarm.PLAN)
    book.alarm(4, Alarm.PLAN, "first")
    book.wishes[A] = True
    assert book.next_alarm() == 4
    assert list(book.ring(3.9)) == []
    assert list(book.ring(5)) == [(Alarm.PLAN, "first"), (Alarm.PLAN, "")]
    assert list(book.ring(99)) == []


# --- invariants -------------------------------------------------------------------------------------------------------


def busy() -> Play:
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a")
    return play.at(1, arrive("r1", "a"), arrive("r2", "b"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda book: book.ledger.free(i(1, "a")), "memory is held by"),
        (lambda book: book.by_model.clear(), "two instances of one model"),
        (lambda book: book.lines.restore(book.leases[r("r1")].waiting, 1, 5), "waits and runs"),
        (lambda book: book.instances[i(1, "a")].leases.clear(), "is not known to"),
        (lambda book: book.instances[i(1, "a")].leases.update({r("old"): None}), "holds leases that ended"),
        (lambda book: book.demands.clear(), "demands are"),
        (lambda book: book._listed.clear(), "demands are"),
    ],
)
def test_a_book_that_does_not_add_up_is_found(spoil, words: str):  # type: ignore[no-untyped-def]
    play = busy()
    play.scheduler.check_invariants()
    spoil(play.scheduler._book)
    with pytest.raises(InvariantError, match=words):
        play.scheduler.check_invariants()


def test_an_instance_with_more_requests_than_slots_is_found():
    play = busy()
    book = play.scheduler._book
    lease = book.leases[r("r1")]
    book.leases[r("r9")] = lease
    book.instances[i(1, "a")].leases[r("r9")] = None
    with pytest.raises(InvariantError, match="more requests than it has slots"):
        book.check()


def test_a_lease_of_an_instance_that_is_gone_is_found_unless_it_was_told_to_end():
    play = busy()
    book = play.scheduler._book
    book.drop(book.instances[i(1, "a")])
    with pytest.raises(InvariantError, match="which is gone"):
        book.check()
    book.leases[r("r1")].revoked = InvariantError("told")
    book.check()


def test_a_request_that_arrives_twice_is_our_bug():
    play = busy()
    for name, model in (("r1", "a"), ("r2", "b")):
        with pytest.raises(InvariantError, match="arrived twice"):
            play.at(2, arrive(name, model))
    play.at(3, LeaseReleased(r("r1"))).gives("stop 1/a evicted for b")
