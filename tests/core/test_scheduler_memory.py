# SPDX-License-Identifier: GPL-3.0-only
"""When memory is not what was booked: something grew, others took some, a load ran out of it, the budget was lowered."""

from __future__ import annotations

from dataclasses import replace

from core.play import Play, arrive, gone, i, loaded, r, sized, spec, took
from modeld.core.estimate import DEVICE_CONTEXT_MB, PROCESS_MB
from modeld.core.footprint import MIB, DeviceMemory, Footprint, Source, When
from modeld.core.messages import (
    FootprintMeasured,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    LeaseFailed,
    LeaseReleased,
    LoadRequested,
    MemoryFreed,
    MemorySeen,
    ModelTableReplaced,
    PinChanged,
    RequestWithdrawn,
    SettingsReplaced,
    UnloadRequested,
)
from modeld.core.model import HOST, LOCAL, DeviceId, ModelId, ModelSpec
from modeld.errors import OutOfMemory, SpawnFailed

A, B = ModelId("a"), ModelId("b")
GPU0, GPU1 = DeviceId("local/CUDA0"), DeviceId("local/CUDA1")


def seen(foreign: int, total: int = 400, device: DeviceId = LOCAL) -> MemorySeen:
    """The machine: so much of it is held by others, nothing by us."""
    return MemorySeen({device: DeviceMemory(total, total - foreign, 0)})


def oom(number: int, model: str, asked: int = 0) -> tuple[InstanceFailed, InstanceExited, MemoryFreed]:
    """The load ran out of memory, and its child is gone."""
    error = OutOfMemory("the child could not allocate", asked_bytes=asked * MIB)
    exited, freed = gone(number, model)
    assert isinstance(exited, InstanceExited)
    assert isinstance(freed, MemoryFreed)
    return InstanceFailed(i(number, model), error), exited, freed


def idle(*names: str, mb: int = 50) -> list[ModelSpec]:
    """Models of which the operator said what they take."""
    return [spec(name, mb, header_hash=f"header of {name}") for name in names]


# --- something grew ---------------------------------------------------------------------------------------------------


def test_what_grew_stays_and_idle_others_go_the_deficit_only() -> None:
    play = loaded(Play(idle("a", "b", "c", "d"), budget=200), "a", "b", "c", "d")
    play.at(1, took(1, "a", 120)).gives("remember header of a", "stop 2/b evicted, memory is short", "stop 3/c evicted, memory is short")
    assert play.snapshot.used_mb == 270
    play.at(2, *gone(2, "b"), *gone(3, "c")).gives()
    assert (play.snapshot.used_mb, play.snapshot.evictions_total) == (170, 2)


def test_who_is_busy_wanted_or_pinned_stays_too() -> None:
    play = loaded(Play([*idle("a", "b"), *[replace(one, pinned=True) for one in idle("c")], *idle("d")], budget=200), "a", "b", "c", "d")
    play.at(1, arrive("r1", "b")).gives("grant r1 2/b")
    play.at(2, took(1, "a", 60)).gives("remember header of a", "stop 4/d evicted, memory is short")
    play.at(3, *gone(4, "d"), took(1, "a", 130)).gives("remember header of a")  # nobody is left who could go
    play.at(4, arrive("r2", "a")).gives("grant r2 1/a")
    play.at(5, LeaseReleased(r("r1"))).gives("stop 2/b evicted, memory is short")  # now somebody is


def test_a_load_in_progress_is_not_ended_for_what_grew() -> None:
    play = loaded(Play(idle("a", "b"), budget=100), "a").at(1, arrive("r1", "b")).gives("start 2/b")
    play.at(2, took(1, "a", 80)).gives("remember header of a")
    play.at(3, InstanceReady(i(2, "b"))).gives("grant r1 2/b")
    play.at(4, LeaseReleased(r("r1"))).gives("stop 2/b evicted, memory is short")


def test_what_is_on_its_way_back_counts() -> None:
    play = loaded(Play(idle("a", "b", "c"), budget=150), "a", "b", "c").at(1, UnloadRequested(B)).gives("stop 2/b unload")
    play.at(2, took(1, "a", 100)).gives("remember header of a")
    play.at(3, took(1, "a", 101)).gives("remember header of a", "stop 3/c evicted, memory is short")


def test_of_two_that_grew_the_later_one_stays() -> None:
    """Else both would, though memory is short and nothing is asked of either."""
    play = loaded(Play(idle("a", "b", "c"), budget=160), "a", "b", "c")
    play.at(1, arrive("r1", "c")).gives("grant r1 3/c")
    play.at(2, took(1, "a", 70)).gives("remember header of a", "stop 2/b evicted, memory is short").at(3, *gone(2, "b"))
    play.at(4, arrive("r2", "a"), took(3, "c", 100)).gives("grant r2 1/a", "remember header of c")
    play.at(5, LeaseReleased(r("r2"))).gives("stop 1/a evicted, memory is short")


def test_who_grew_is_like_any_other_once_there_is_room_again() -> None:
    """It is not kept for ever for having been wrong once."""
    play = loaded(Play(idle("a", "b"), budget=200), "a", "b").at(1, took(1, "a", 60)).gives("remember header of a")
    play.at(2, arrive("r1", "b")).gives("grant r1 2/b").at(3, SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 100})))
    play.gives("stop 1/a evicted, memory is short")


def test_who_waits_is_not_started_before_what_grew_has_room() -> None:
    play = loaded(Play([*idle("a", "b"), *idle("c", mb=40)], budget=150), "a", "b")
    play.at(1, arrive("r1", "a")).gives("grant r1 1/a").at(1, took(1, "a", 120)).gives(
        "remember header of a", "stop 2/b evicted, memory is short"
    )
    play.at(2, arrive("r2", "c")).gives()
    play.at(3, *gone(2, "b")).gives()  # 30 MB are free
    play.at(4, LeaseReleased(r("r1"))).gives("stop 1/a evicted for c")


def test_host_memory_is_short_too() -> None:
    models = [sized("a", 40), replace(spec("b", 50), host_mb=30), replace(spec("c", 50), host_mb=5)]
    play = loaded(Play(models, budget_mb={GPU0: 500 + DEVICE_CONTEXT_MB, HOST: 100}, one_pool=False), "a", "b", "c")
    play.at(1, took(1, "a", 60, host=60)).gives("remember header of a")
    play.at(2, took(1, "a", 60, host=80)).gives("remember header of a", "stop 2/b evicted, memory is short")


def test_only_the_device_that_is_short_is_relieved() -> None:
    models = [*idle("a", "b", mb=80), *idle("c", mb=15)]
    play = loaded(Play(models, budget_mb={GPU0: 100, GPU1: 100}, one_pool=False), "a", "b", "c")
    where = {one.model: next(iter(one.devices_mb)) for one in play.snapshot.instances}
    assert where[A] != where[B]
    beside = "a" if where[ModelId("c")] == where[A] else "b"
    play.at(1, took(1 if beside == "a" else 2, beside, 90)).gives(f"remember header of {beside}", "stop 3/c evicted, memory is short")


def test_a_device_that_cannot_be_relieved_costs_nobody_on_another_one() -> None:
    """On CUDA0 nobody could go. On CUDA1 the deficit is covered by one of two."""
    models = [replace(spec("a", 160, header_hash="header of a"), split=True), *idle("b", "c", mb=12)]
    play = Play(models, budget_mb={GPU0: 50, GPU1: 150}, one_pool=False)
    loaded(play, "a").at(0, arrive("r1", "a"))
    assert set(play.instance("a").devices_mb) == {GPU0, GPU1}
    loaded(play, "b", "c")
    assert [set(play.instance(name).devices_mb) for name in "bc"] == [{GPU1}, {GPU1}]
    play.at(1, FootprintMeasured(i(1, "a"), Footprint({"CUDA0": 60 * MIB, "CUDA1": 130 * MIB}), When.READY))
    play.gives("remember header of a", "stop 2/b evicted, memory is short")


def test_a_lower_budget_ends_idle_ones_until_it_is_kept() -> None:
    play = loaded(Play(idle("a", "b", "c"), budget=150), "a", "b", "c")
    play.at(1, arrive("r1", "a")).at(2, SettingsReplaced(replace(play.limits, budget_mb={LOCAL: 110})))
    play.gives("stop 2/b evicted, memory is short").at(3, *gone(2, "b")).gives()


# --- others take some -------------------------------------------------------------------------------------------------


def test_what_others_hold_for_good_shrinks_the_room() -> None:
    play = loaded(Play(idle("a", "b", "c", mb=100), budget=350), "a", "b", "c").at(1, seen(0)).gives()
    for second in range(2, 12):
        play.at(second, seen(160)).gives()
    play.at(12, seen(160)).gives("stop 1/a evicted, memory is short")
    [device] = play.snapshot.devices
    assert (device.room_mb, device.total_mb, device.foreign_mb, device.budget_mb) == (240, 400, 160, 350)


def test_nobody_goes_for_a_short_spike() -> None:
    play = loaded(Play(idle("a", "b", "c", mb=100), budget=350), "a", "b", "c").at(1, seen(0)).gives()
    for second in range(2, 60):
        play.at(second, seen(300 if second % 8 else 0)).gives()


def test_the_room_comes_back_and_who_waits_starts() -> None:
    play = Play(idle("a", mb=300), budget=350).at(0, seen(200)).at(1, arrive("r1", "a")).gives()
    told = play.scheduler.explain(2).models[A]
    assert "memory that other programs hold: 200 MB of local/all" in told
    for second in range(2, 12):
        play.at(second, seen(50)).gives()
    play.at(12, seen(50)).gives("start 1/a")


def test_who_waits_for_what_others_hold_hears_so_at_the_end() -> None:
    play = Play(idle("a", mb=300), budget=350, wait_max_seconds=5.0).at(0, seen(200)).at(1, arrive("r1", "a")).gives()
    play.at(6, LoadRequested(B)).gives("refuse r1 wait_timeout")
    assert "for memory that other programs hold: 200 MB of local/all" in str(play.refused("r1"))


def test_a_model_that_waits_for_ours_is_not_told_of_others() -> None:
    play = loaded(Play(idle("a", "b", mb=150), budget=350), "a").at(1, seen(120), arrive("r1", "a")).at(2, arrive("r2", "b")).gives()
    assert "other programs" not in play.scheduler.explain(3).models[B]


def test_a_budget_below_what_is_left_does_not_feel_others() -> None:
    play = loaded(Play(idle("a", "b"), budget=100), "a", "b").at(1, seen(290)).gives()
    assert play.snapshot.devices[0].room_mb == 100


def test_the_margin_is_kept_beside_what_others_hold() -> None:
    play = loaded(Play(idle("a", "b"), budget=390, margin_mb=100), "a", "b").at(1, seen(200)).gives()
    assert play.snapshot.devices[0].room_mb == 100
    play.at(2, seen(201, total=390)).gives("stop 1/a evicted, memory is short")  # the total is believed at once


def test_others_on_one_device_leave_the_other_alone() -> None:
    models = idle("a", "b", mb=80)
    play = loaded(Play(models, budget_mb={GPU0: 100, GPU1: 100}, one_pool=False), "a", "b")
    where = {next(iter(one.devices_mb)): one for one in play.snapshot.instances}
    play.at(1, seen(50, total=100, device=GPU1)).gives(f"stop {where[GPU1].id} evicted, memory is short")


# --- a load ran out of memory -----------------------------------------------------------------------------------------


def test_it_is_tried_once_more_with_room_for_more_and_the_line_is_kept() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, arrive("r1", "a"), arrive("r2", "a")).gives("start 1/a")
    play.at(5, *oom(1, "a")).gives("remember header of a", "start 2/a")
    assert play.instance("a").devices_mb == {LOCAL: 133}  # 106 MB and a quarter
    play.at(9, InstanceReady(i(2, "a"))).gives("grant r1 2/a").at(9, took(2, "a", 120)).gives("remember header of a")
    assert (play.snapshot.out_of_memory_total, play.snapshot.load_failures_total, play.snapshot.loads_total) == (1, 0, 1)


def test_what_it_asked_for_says_more_than_a_guess() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, arrive("r1", "a"))
    play.at(1, FootprintMeasured(i(1, "a"), Footprint({}, 90 * MIB, complete=False), When.READY)).gives()
    play.at(2, *oom(1, "a", asked=160)).gives("remember header of a", "start 2/a")
    assert play.instance("a").devices_mb == {LOCAL: 313}  # and a quarter


def test_what_it_held_already_is_less_than_it_takes() -> None:
    """It had taken more than was kept for it when it ran out: the second try gets more than that."""
    play = Play([sized("a", 40)], budget=500).at(0, arrive("r1", "a"))
    play.at(1, FootprintMeasured(i(1, "a"), Footprint({}, 140 * MIB, complete=False), When.READY)).gives()
    play.at(2, *oom(1, "a")).gives("remember header of a", "start 2/a")
    assert play.instance("a").devices_mb == {LOCAL: 175}


def test_room_for_it_is_made_from_idle_others_the_deficit_only() -> None:
    play = loaded(Play([*idle("b", "c"), sized("a", 40)], budget=206), "b", "c").at(1, arrive("r1", "a")).gives("start 3/a")
    play.at(2, *oom(3, "a")).gives("remember header of a", "stop 1/b evicted for a")
    play.at(3, *gone(1, "b")).gives("start 4/a")


def test_the_second_time_everybody_hears_the_numbers() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, arrive("r1", "a"), arrive("r2", "a"))
    play.at(1, *oom(1, "a")).gives("remember header of a", "start 2/a")
    play.at(2, *oom(2, "a", asked=30)).gives("remember header of a", "refuse r1 out_of_memory", "refuse r2 out_of_memory")
    text = str(play.refused("r1"))
    assert "twice: 133 MB (learned) were kept for it, it asked for 30 MB at once, 367 MB of local/all are free beside that" in text
    assert play.snapshot.load_failures_total == 1
    assert play.snapshot.out_of_memory_total == 2
    play.at(2.1, arrive("r3", "a")).gives("refuse r3 backing_off")
    assert "ran out of memory" in str(play.refused("r3"))


def test_the_next_attempt_after_that_knows_more() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, arrive("r1", "a")).at(1, *oom(1, "a")).at(2, *oom(2, "a"))
    play.at(100, arrive("r2", "a")).gives("start 3/a")
    assert play.instance("a").devices_mb == {LOCAL: 166}
    play.at(101, *oom(3, "a")).gives("remember header of a", "start 4/a")  # and has two tries again


def test_a_guess_alone_does_not_refuse_it_for_good() -> None:
    """It is tried with all that it could have."""
    play = Play([sized("a", 40)], budget=120).at(0, arrive("r1", "a")).at(1, *oom(1, "a")).gives("remember header of a", "start 2/a")
    assert play.instance("a").devices_mb == {LOCAL: 120}
    play.at(2, *oom(2, "a")).gives("refuse r1 out_of_memory")
    play.at(100, arrive("r2", "a")).gives("start 3/a")
    play.at(101, InstanceReady(i(3, "a"))).gives("grant r2 3/a")


def test_a_guess_leaves_room_for_what_is_pinned() -> None:
    play = loaded(Play([*[replace(one, pinned=True) for one in idle("b")], sized("a", 40)], budget=170), "b")
    play.at(0, arrive("r1", "a")).gives("start 2/a").at(1, *oom(2, "a")).gives("remember header of a", "start 3/a")
    assert play.instance("a").devices_mb == {LOCAL: 120}


def test_a_guess_takes_all_devices_of_a_split_model() -> None:
    play = Play([replace(sized("a", 400), split=True)], budget_mb={GPU0: 560, GPU1: 560}, one_pool=False).at(0, arrive("r1", "a"))
    play.at(1, *oom(1, "a")).gives("remember header of a", "start 2/a")
    assert play.instance("a").devices_mb == {GPU0: 560, GPU1: 560, HOST: PROCESS_MB}


def test_what_it_asked_for_is_more_than_there_could_be() -> None:
    play = Play([sized("a", 40)], budget=120).at(0, arrive("r1", "a"))
    play.at(1, *oom(1, "a", asked=200)).gives("remember header of a", "refuse r1 cannot_ever_fit")
    assert "needs 200 MB (learned), at most 120 MB" in str(play.refused("r1"))
    play.at(2, arrive("r2", "a")).gives("refuse r2 cannot_ever_fit")


def test_a_wish_is_kept_for_the_second_try_and_hears_the_numbers() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, LoadRequested(A)).gives("start 1/a")
    play.scheduler.take_changes()
    play.at(1, *oom(1, "a")).gives("remember header of a", "start 2/a")
    assert play.snapshot.wished == {A}
    play.scheduler.take_changes()
    play.at(2, *oom(2, "a")).gives("remember header of a")
    assert play.snapshot.wished == frozenset()
    told = [str(one.error) for one in play.scheduler.take_changes() if getattr(one, "error", None) is not None]
    assert len(told) == 1
    assert "ran out of memory while it loaded, twice" in told[0]


def test_nobody_wants_it_any_more() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, arrive("r1", "a")).at(1, RequestWithdrawn(r("r1")))
    play.at(2, *oom(1, "a")).gives("remember header of a")


def test_a_model_that_can_never_be_known_is_not_tried_again() -> None:
    """Without a header nothing is remembered of it: the second start would be the first one again."""
    Play({"a": 50}, budget=500).at(0, arrive("r1", "a")).at(1, *oom(1, "a")).gives("refuse r1 out_of_memory")


def test_another_failure_between_two_that_ran_out_starts_the_count_anew() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, arrive("r1", "a")).at(1, *oom(1, "a")).gives("remember header of a", "start 2/a")
    play.at(2, InstanceFailed(i(2, "a"), SpawnFailed("no such file")), *gone(2, "a")).gives("refuse r1 spawn_failed")
    play.at(100, arrive("r2", "a")).gives("start 3/a").at(101, *oom(3, "a")).gives("remember header of a", "start 4/a")


def test_a_replaced_file_has_its_own_two_tries() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, arrive("r1", "a")).at(1, *oom(1, "a")).gives("remember header of a", "start 2/a")
    play.at(2, ModelTableReplaced({A: sized("a", 44, header="new", fingerprint="v2")})).gives("stop 2/a replaced")
    play.at(3, *gone(2, "a")).gives("start 3/a").at(4, *oom(3, "a")).gives("remember new", "start 4/a")


def test_one_that_was_stopped_while_it_ran_out_is_not_tried_again() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, LoadRequested(A)).at(1, UnloadRequested(A)).gives("stop 1/a unload")
    play.at(2, *oom(1, "a")).gives()
    assert play.snapshot.out_of_memory_total == 0


def test_when_others_took_what_was_booked_nothing_is_said_about_the_model() -> None:
    """By the last look at the machine there was no such room: that is believed at once, and the figure stands."""
    play = Play([sized("a", 40)], budget=400).at(0, seen(0)).at(1, arrive("r1", "a")).gives("start 1/a").at(2, seen(350))
    play.at(3, *oom(1, "a")).gives()
    assert play.scheduler.need(A).source is Source.FORMULA
    assert "memory that other programs hold: 350 MB of local/all" in play.scheduler.explain(4).models[A]
    for second in range(4, 14):
        play.at(second, seen(100))
    play.at(14, seen(100)).gives("start 2/a")
    assert play.instance("a").devices_mb == {LOCAL: 106}
    play.at(15, *oom(2, "a")).gives("remember header of a", "refuse r1 out_of_memory")  # the second time it counts


def test_others_that_took_it_are_made_room_for() -> None:
    """What they hold counts at once after a load ran out of memory: idle ones of ours go for the deficit."""
    play = loaded(Play([*idle("b", "c"), sized("a", 40)], budget=400), "b", "c").at(0, seen(0))
    play.at(1, arrive("r1", "a")).gives("start 3/a").at(2, seen(200)).gives()
    play.at(3, *oom(3, "a")).gives("stop 1/b evicted for a").at(4, *gone(1, "b")).gives("start 4/a")


def test_pinned_models_are_never_in_the_way_of_their_own_second_try() -> None:
    play = Play([sized("a", 40)], budget=130).at(0, PinChanged(A, True), LoadRequested(A)).gives("start 1/a")
    play.at(1, *oom(1, "a")).gives("remember header of a", "start 2/a")
    assert play.instance("a").devices_mb == {LOCAL: 130}


# --- it ran out of memory while it served -----------------------------------------------------------------------------


def test_one_that_dies_of_its_first_request_gets_more_the_next_time() -> None:
    """Nothing of what it wanted was ever measured: else it would be started with too little again and again, beside idle others."""
    play = loaded(Play([*idle("b"), sized("a", 40)], budget=170), "b", "a")
    play.at(1, took(2, "a", 100)).gives("remember header of a").at(2, arrive("r1", "a")).gives("grant r1 2/a")
    play.at(3, LeaseFailed(r("r1"), True), InstanceExited(i(2, "a"), code=-6, ran_out=True), MemoryFreed(i(2, "a")))
    play.gives("remember header of a", "stop 1/b evicted for a").at(4, *gone(1, "b")).gives("start 3/a")
    assert play.instance("a").devices_mb == {LOCAL: 125}
    play.at(5, InstanceReady(i(3, "a")), took(3, "a", 100)).gives("grant r1 3/a", "remember header of a")
    assert play.instance("a").devices_mb == {LOCAL: 125}  # what it wants with a request is still to come
    play.at(6, took(3, "a", 110, when=When.FIRST)).gives("remember header of a")
    assert play.instance("a").devices_mb == {LOCAL: 110}


def test_one_that_dies_of_something_else_is_booked_as_before() -> None:
    play = loaded(Play([sized("a", 40)], budget=500), "a").at(1, took(1, "a", 100))
    play.at(2, InstanceExited(i(1, "a"), code=-11), MemoryFreed(i(1, "a"))).at(9, arrive("r1", "a")).gives("start 2/a")
    assert play.instance("a").devices_mb == {LOCAL: 100}
