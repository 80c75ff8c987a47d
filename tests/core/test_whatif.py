# SPDX-License-Identifier: GPL-3.0-only
"""What would happen: told in the words of the plan, and then done, to see whether it was true."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace

import pytest

from core.play import Play, arrive, gone, i, loaded, r, spec
from modeld.core.footprint import MIB
from modeld.core.messages import (
    InstanceExited,
    InstanceReady,
    LeaseReleased,
    LoadRequested,
    MemoryFreed,
    Refuse,
    StartInstance,
    StopInstance,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import HOST, LOCAL, AttentionLayers, DeviceId, LaunchOptions, MemoryShape, ModelId, ModelSpec
from modeld.core.whatif import ModelPlan, WhatIf

ONE, TWO = DeviceId("local/one"), DeviceId("local/two")


def ask(play: Play, *models: str) -> WhatIf:
    """The answer, after which the scheduler decides as if it had never been asked."""
    before = deepcopy(play.scheduler)
    seen = play.scheduler.what_if([ModelId(model) for model in models], play.now)
    play.scheduler.check_invariants()
    for request in ("x", "y"):  # the same decision with and without the question
        probe = arrive(request, models[0] if models and ModelId(models[0]) in play.models else next(iter(play.models)))
        assert repr(deepcopy(play.scheduler).handle(probe, play.now)) == repr(deepcopy(before).handle(probe, play.now))
    return seen


def one(play: Play, *models: str) -> ModelPlan:
    """What is said of the last of them."""
    return ask(play, *models).models[-1]


def told(seen: WhatIf) -> list[str]:
    return [str(plan.verdict) for plan in seen.models]


def test_what_fits_beside_all_is_started_without_anybody_going():
    play = loaded(Play({"a": 100, "b": 40}, budget=150), "a")
    plan = one(play, "b")
    assert (plan.verdict, dict(plan.place_mb), plan.evicts) == ("fits", {"local/all": 40}, ())
    play.at(1, arrive("r1", "b")).gives("start 2/b")


def test_who_is_evicted_is_said_and_then_done():
    play = loaded(Play({"a": 100, "b": 40, "c": 60, "d": 50}, budget=210), "a", "b", "c")
    plan = one(play, "d")
    assert (plan.verdict, plan.evicts) == ("evicts", ("a",))
    assert plan.why == "fits when a, which is idle, is evicted"
    play.at(1, arrive("r1", "d")).gives("stop 1/a evicted for d")


def test_named_models_are_to_stay_together():
    play = loaded(Play({"a": 100, "b": 40, "c": 60}, budget=150), "a")
    assert told(ask(play, "b", "c")) == ["fits", "evicts"]
    seen = ask(play, "a", "b", "c")
    assert told(seen) == ["loaded", "fits", "no_room"]
    assert seen.models[-1].why == "has no room beside a and b"
    assert (seen.fits, seen.together) == (False, ("a", "b"))
    assert dict(seen.devices[0].held_mb) == {"a": 100, "b": 40}


def test_a_victim_is_not_counted_twice():
    play = loaded(Play({"a": 100, "b": 100, "c": 100}, budget=100), "a")
    seen = ask(play, "b", "c")
    assert told(seen) == ["evicts", "no_room"]
    assert dict(seen.devices[0].held_mb) == {"b": 100}


def test_a_busy_model_is_waited_for():
    play = loaded(Play({"a": 100, "b": 40, "c": 120}, budget=150), "a", "b").at(1, arrive("r1", "a"))
    plan = one(play, "c")
    assert (plan.verdict, plan.waits_for, plan.evicts) == ("waits", ("a",), ("b",))
    assert plan.why == "has to wait for a; b would be evicted"
    assert told(ask(play, "c")) == ["waits"] and ask(play, "c").fits


def test_a_model_that_loads_for_somebody_is_waited_for():
    play = Play({"a": 100, "b": 100}, budget=150).at(0, arrive("r1", "a")).gives("start 1/a")
    plan = one(play, "b")
    assert (plan.verdict, plan.waits_for) == ("waits", ("a",))


def test_what_is_protected_for_its_own_next_request_goes_when_the_time_comes():
    play = Play({"a": 100, "b": 100}, budget=150, min_residency_seconds=5.0).at(0, LoadRequested(ModelId("a")))
    play.at(4, InstanceReady(i(1, "a"), pid=1))
    plan = one(play, "b")
    assert (plan.verdict, plan.evicts, plan.waits_for) == ("waits", ("a",), ())
    assert plan.why == "has to wait until it is due; a would be evicted"


def test_memory_on_its_way_back_is_waited_for():
    play = loaded(Play({"a": 100, "b": 100}, budget=150), "a").at(1, UnloadRequested(ModelId("a"))).gives("stop 1/a unload")
    plan = one(play, "b")
    assert (plan.verdict, dict(plan.place_mb)) == ("soon", {"local/all": 100})
    play.at(2, *gone(1, "a"))
    assert one(play, "b").verdict == "fits"


def test_a_pinned_model_never_goes():
    models = [spec("a", 100, pinned=True), spec("b", 100), spec("c", 40)]
    play = loaded(Play(models, budget=150), "a", "c")
    plan = one(play, "b")
    assert plan.verdict == "too_large"
    assert "at most 50 MB can be had beside the pinned a" in plan.why


def sized(name: str, *, ctx: int = 4096, ctx_train: int = 131_072, **more: object) -> ModelSpec:
    """A model of 10 MiB and about 64 of overhead, with 1 MiB of context for each 256 tokens."""
    shape = MemoryShape(weights_bytes=10 * MIB, attention=(AttentionLayers(8, 128, 128),), value_elements_max=128, certain=True)
    base = spec(name, 0, vram_mb=None, memory=shape, size_bytes=10 * MIB, ctx_train=ctx_train, header_hash=name)
    return replace(base, options=LaunchOptions(ctx=ctx, parallel=1), **more)  # type: ignore[arg-type]


def test_what_is_too_large_is_told_with_the_context_that_would_fit():
    play = Play([sized("big", ctx=131_072)], budget=400)
    plan = one(play, "big")
    assert plan.verdict == "too_large"
    assert plan.need is not None and f"needs {plan.need.total_mb} MB (formula), at most 400 MB can be had" in plan.why
    assert f"with {plan.ctx_alone} tokens of context it would fit" in plan.why
    fitting = Play([sized("big", ctx=plan.ctx_alone)], budget=400)
    assert one(fitting, "big").verdict == "fits"
    beyond = Play([sized("big", ctx=plan.ctx_alone + 256)], budget=400)
    assert one(beyond, "big").verdict == "too_large"


def test_where_not_even_the_smallest_context_fits_it_is_said():
    plan = one(Play([sized("big")], budget=20), "big")
    assert (plan.verdict, plan.ctx_alone) == ("too_large", 0)
    assert "not even the smallest context would fit" in plan.why


def test_the_largest_context_beside_what_is_held():
    play = loaded(Play([sized("a"), spec("b", 200)], budget=500), "b")
    plan = one(play, "a")
    assert 0 < plan.ctx_beside < plan.ctx_alone < 131_072
    beside = loaded(Play([sized("a", ctx=plan.ctx_beside), spec("b", 200)], budget=500), "b")
    assert one(beside, "a").verdict == "fits"
    beyond = loaded(Play([sized("a", ctx=plan.ctx_beside + 256), spec("b", 200)], budget=500), "b")
    assert one(beyond, "a").verdict == "evicts"


def test_no_context_is_larger_than_what_the_model_was_trained_for():
    plan = one(Play([sized("a", ctx_train=8192)], budget=100_000), "a")
    assert (plan.ctx_alone, plan.ctx_beside, plan.ctx) == (8192, 8192, 4096)


def test_an_unlimited_budget_holds_everything():
    seen = ask(Play({"a": 100, "b": 5000}), "a", "b")
    assert (told(seen), seen.fits, seen.devices[0].room_mb) == (["fits", "fits"], True, None)


def test_what_cannot_be_served_is_said():
    models = [spec("a", 10), spec("torn", 10, unavailable="the file is cut short"), spec("far", 0, external=True)]
    seen = ask(Play(models, budget=100), "nobody", "torn", "far", "a")
    assert told(seen) == ["unknown", "unavailable", "external", "fits"]
    assert "the file is cut short" in seen.models[1].why
    assert not seen.fits


def test_without_names_each_is_taken_for_itself():
    play = loaded(Play({"a": 100, "b": 40, "c": 60}, budget=150), "a")
    seen = ask(play)
    assert told(seen) == ["loaded", "fits", "evicts"]
    assert (seen.named, seen.together) == (False, ("a", "b"))
    assert dict(seen.devices[0].held_mb) == {"a": 100}


def test_on_several_devices_the_place_is_named():
    play = Play({"a": 100, "b": 100, "c": 100}, budget_mb={ONE: 150, TWO: 120}, one_pool=False)
    seen = ask(play, "a", "b", "c")
    assert told(seen) == ["fits", "fits", "no_room"]
    assert [dict(plan.place_mb) for plan in seen.models[:2]] == [{TWO: 100}, {ONE: 100}]
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("start 1/a", "start 2/b")
    assert [play.instance(name).devices_mb for name in "ab"] == [dict(plan.place_mb) for plan in seen.models[:2]]


def test_victims_go_on_the_device_that_is_said():
    play = Play({"a": 100, "b": 110, "c": 105}, budget_mb={ONE: 120, TWO: 120}, one_pool=False)
    play = loaded(play, "a", "b")
    held = {name: dict(play.instance(name).devices_mb) for name in "ab"}
    plan = one(play, "c")
    assert plan.verdict == "evicts" and len(plan.evicts) == 1
    assert plan.place_mb.keys() == held[plan.evicts[0]].keys()


def test_host_memory_counts_beside_the_device():
    models = [spec("a", 100, host_mb=80), spec("b", 100, host_mb=80)]
    play = Play(models, budget_mb={ONE: 500, HOST: 100}, one_pool=False)
    seen = ask(play, "a", "b")
    assert told(seen) == ["fits", "no_room"]
    assert dict(seen.models[0].place_mb) == {ONE: 100, HOST: 80}


@pytest.mark.parametrize("models", [("a", "b"), ("b", "a"), ()])
def test_asking_again_gives_the_same(models: tuple[str, ...]):
    play = loaded(Play({"a": 100, "b": 40}, budget=150), "a").at(1, arrive("r1", "a")).at(2, LeaseReleased(arrive("r1", "a").request.id))
    assert ask(play, *models) == ask(play, *models)


def test_a_wish_that_loads_counts_as_loaded():
    play = Play({"a": 100}, budget=150).at(0, LoadRequested(ModelId("a"))).gives("start 1/a")
    assert one(play, "a").why == "loads, and holds 100 MB"
    play.at(1, InstanceReady(i(1, "a"), pid=1))
    assert one(play, "a").why == "is loaded, and holds 100 MB"


def test_who_waits_already_has_its_room_first():
    play = loaded(Play({"a": 100, "b": 100, "c": 40}, budget=150), "a").at(1, arrive("r1", "a"))
    assert one(play, "c").verdict == "fits"
    play.at(2, arrive("r2", "b")).at(12, Wakeup())  # b is due by now, and a is closed for it
    assert play.instance("a").closed_for == "b"
    plan = one(play, "c")
    assert (plan.verdict, plan.why) == ("soon", "fits once memory that is on its way back is free")  # b has what is free now
    small = loaded(Play({"a": 100, "b": 140, "c": 40}, budget=150), "a").at(1, arrive("r1", "a")).at(2, arrive("r2", "b")).at(12, Wakeup())
    assert one(small, "c").verdict == "no_room"


def outcome(play: Play, model: str) -> tuple[str, object]:
    """What a request that came now would lead to at once, in the words of a verdict."""
    copy = deepcopy(play)
    copy.commands = []
    copy._feed(arrive("question", model))
    for command in copy.commands:
        match command:
            case StartInstance(instance, _, need_mb) if instance.endswith(f"/{model}"):
                return "fits", dict(need_mb)
            case Refuse("question", error):
                return error.kind, None
    stopped = [c.instance.partition("/")[2] for c in copy.commands if isinstance(c, StopInstance) and c.why == f"evicted for {model}"]
    return ("evicts", sorted(stopped)) if stopped else ("later", None)


class Loose(Play):
    """A play that asks only for the invariants."""

    def _nothing_to_add(self, now: float) -> None:
        pass


def wander(seed: int) -> Play:
    """A daemon in the middle of some day."""
    draw = random.Random(seed)
    sizes = {name: draw.randint(20, 120) for name in "abcdefgh"}
    budgets = {LOCAL: draw.randint(120, 320)} if seed % 2 else {ONE: draw.randint(100, 200), TWO: draw.randint(100, 200)}
    play = Loose(sizes, budget_mb=budgets, one_pool=len(budgets) == 1, slots=2, min_residency_seconds=draw.choice([0.0, 4.0]))
    open_requests: list[str] = []
    for step in range(draw.randint(5, 40)):
        play.at(play.now + draw.choice([0.0, 0.5, 3.0, 8.0]), Wakeup())
        views = [view for view in play.snapshot.instances if view.state != "failed"]
        loading = [view for view in views if view.state == "loading"]
        stopping = [view for view in views if view.state == "stopping"]
        running = [name for name in open_requests if r(name) in play.scheduler._book.leases]
        kind = draw.random()
        if kind < 0.45:
            play.at(play.now, arrive(f"r{step}", draw.choice("abcdefgh")))
            open_requests.append(f"r{step}")
        elif kind < 0.65 and loading:
            play.at(play.now, InstanceReady(draw.choice(loading).id, pid=step + 1))
        elif kind < 0.8 and stopping:
            done = draw.choice(stopping).id
            play.at(play.now, InstanceExited(done, code=0), MemoryFreed(done))
        elif kind < 0.95 and running:
            play.at(play.now, LeaseReleased(r(draw.choice(running)), tokens=1))
        elif kind > 0.97 and views:
            play.at(play.now, UnloadRequested(draw.choice(views).model))
    return play


@pytest.mark.parametrize("seed", range(60))
def test_what_is_said_is_what_would_be_done(seed: int):
    """On a random day each model that is neither there nor waits is asked for: the answer is what a request leads to."""
    play = wander(seed)
    book = play.scheduler._book
    for name in [name for name in sorted(play.models) if name not in book.by_model and not book.lines.length(name)]:
        plan, (done, fact) = one(play, name), outcome(play, name)
        said = {"fits": ("fits", dict(plan.place_mb)), "evicts": ("evicts", sorted(plan.evicts)), "too_large": ("cannot_ever_fit", None)}
        assert said.get(str(plan.verdict), ("later", None)) == (done, fact), (seed, name, plan)
