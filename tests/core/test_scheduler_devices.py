# SPDX-License-Identifier: GPL-3.0-only
"""Several devices, host memory, splits, and loads nobody waits for."""

from __future__ import annotations

from core.play import Play, arrive, gone, i, loaded, r, spec
from modeld.core.messages import InstanceReady, LeaseReleased, RequestWithdrawn, StartInstance, Wakeup
from modeld.core.model import HOST, DeviceId, ModelId, ModelSpec

GPU0, GPU1 = DeviceId("local/gpu0"), DeviceId("local/gpu1")


def play_of(*specs: ModelSpec, gpu0: int = 100, gpu1: int = 100, host: int | None = None, **limits: object) -> Play:
    budget = {GPU0: gpu0, GPU1: gpu1, **({HOST: host} if host is not None else {})}
    return Play(list(specs), budget_mb=budget, wait_max_seconds=1000, **limits)


def test_each_goes_where_it_fits_best_and_the_command_says_where():
    play = play_of(spec("a", 60), spec("b", 90), spec("c", 30), gpu0=100, gpu1=60)
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    assert [c.need_mb for c in play.commands if isinstance(c, StartInstance)] == [{GPU1: 60}]
    play.at(0, arrive("r2", "b")).gives("start 2/b")
    assert play.instance("b").devices_mb == {GPU0: 90}
    play.at(1, arrive("r3", "c")).gives()  # 10 MB are free on one device, none on the other: they do not add up


def test_the_victim_is_on_the_device_where_it_helps():
    play = loaded(play_of(spec("a", 90), spec("b", 90), spec("c", 60)), "a", "b")
    where = {view.model: next(iter(view.devices_mb)) for view in play.snapshot.instances}
    assert where == {"a": GPU0, "b": GPU1}
    play.at(1, arrive("r1", "a"), arrive("r2", "c")).gives("grant r1 1/a", "stop 2/b evicted for c")
    play.at(2, *gone(2, "b")).gives("start 3/c")
    assert play.instance("c").devices_mb == {GPU1: 60}


def test_a_due_model_closes_the_fewest_busy_ones():
    play = loaded(play_of(spec("a", 50), spec("b", 50), spec("c", 90), spec("d", 80)), "a", "b", "c")
    play.at(1, arrive("r1", "a"), arrive("r2", "b"), arrive("r3", "c"), arrive("r4", "d"))
    play.at(11, Wakeup()).gives()
    assert [view.model for view in play.snapshot.instances if view.closed_for == "d"] == ["c"]


def test_a_model_too_large_for_one_device_is_refused_unless_it_may_be_split():
    play = play_of(spec("big", 150))
    play.at(0, arrive("r1", "big")).gives("refuse r1 cannot_ever_fit")
    assert "at most 100 MB" in str(play.refused("r1"))
    play = loaded(play_of(spec("big", 150, split=True), spec("a", 90), spec("b", 90)), "a", "b")
    play.at(1, arrive("r2", "big")).gives("stop 1/a evicted for big", "stop 2/b evicted for big")
    play.at(2, *gone(1, "a")).gives()
    play.at(3, *gone(2, "b")).gives("start 3/big")
    assert play.instance("big").devices_mb == {GPU0: 75, GPU1: 75}


def test_a_due_split_waits_for_both_devices_and_nobody_slips_in():
    play = loaded(play_of(spec("big", 200, split=True), spec("a", 90), spec("b", 90), spec("s", 10)), "a", "b")
    play.at(1, arrive("r1", "a"), arrive("r2", "b"), arrive("r3", "big"))
    play.at(11, Wakeup(), arrive("r4", "s")).gives()
    play.at(12, LeaseReleased(r("r1"))).gives("stop 1/a evicted for big")
    play.at(13, *gone(1, "a")).gives()
    play.at(14, LeaseReleased(r("r2"))).gives("stop 2/b evicted for big")
    play.at(15, *gone(2, "b")).gives("start 3/big")


def test_host_memory_evicts_who_holds_it():
    play = loaded(play_of(spec("a", 10, host_mb=50), spec("b", 10, host_mb=20), spec("c", 10, host_mb=45), host=80), "a", "b")
    play.at(1, arrive("r1", "c")).gives("stop 1/a evicted for c")


def test_host_memory_without_a_budget_keeps_nobody_out():
    play = play_of(spec("a", 10, host_mb=10**6))
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    assert play.instance("a").devices_mb[HOST] == 10**6


def test_more_host_memory_than_there_is_can_never_fit():
    play = play_of(spec("a", 10, host_mb=81), host=80)
    play.at(0, arrive("r1", "a")).gives("refuse r1 cannot_ever_fit")


# --- loads nobody waits for -------------------------------------------------------------------------------------------


def test_an_unwanted_load_goes_on_unless_somebody_needs_its_memory():
    play = Play({"a": 100, "b": 40, "c": 100}, budget=150)
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(1, RequestWithdrawn(r("r1")), arrive("r2", "b")).gives("start 2/b")  # there is room beside it
    play.at(2, arrive("r3", "c")).gives("stop 1/a evicted for c")
    play.at(3, *gone(1, "a")).gives("start 3/c")


def test_an_unwanted_load_that_is_wanted_again_is_kept():
    play = Play({"a": 100, "b": 100}, budget=150)
    play.at(0, arrive("r1", "a")).gives("start 1/a")
    play.at(1, RequestWithdrawn(r("r1")), arrive("r2", "a"), arrive("r3", "b")).gives()
    play.at(2, InstanceReady(i(1, "a"))).gives("grant r2 1/a")


def test_a_load_becomes_unwanted_when_its_last_waiter_gives_up():
    play = Play({"a": 100, "b": 100}, budget=150)
    play.at(0, arrive("r1", "a", timeout_seconds=5)).gives("start 1/a")
    play.at(1, arrive("r2", "b")).gives()
    play.at(5, Wakeup()).gives("refuse r1 wait_timeout", "stop 1/a evicted for b")
    assert ModelId("a") in play.scheduler.explain(5).models
