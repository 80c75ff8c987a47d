# SPDX-License-Identifier: GPL-3.0-only
"""What was measured, probed and remembered of memory: which figure is taken, what the ledger holds then, and what is told to the store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.play import Play, arrive, gone, i, loaded, r, sized, spec, took
from modeld.core.estimate import DEVICE_CONTEXT_MB, PROCESS_MB
from modeld.core.footprint import MIB, Footprint, Learned, Point, Probe, Source, When, in_short, launch_key, probe_key
from modeld.core.messages import (
    FootprintMeasured,
    FootprintProbed,
    FootprintsLearned,
    InstanceReady,
    LeaseReleased,
    LoadRequested,
    ModelTableReplaced,
    PinChanged,
    ProbeFailed,
    ProbeFootprint,
    Remember,
    UnloadRequested,
)
from modeld.core.model import HOST, LOCAL, AttentionLayers, Degrade, DeviceId, LaunchOptions, MemoryShape, ModelId, ModelSpec

A, B = ModelId("a"), ModelId("b")
GPU0, GPU1 = DeviceId("local/CUDA0"), DeviceId("local/CUDA1")
FORMULA_MB = 106
"""What the formula says of a file of 40 MB."""
PROBE = Probe(ctx=512, parallel=1, ubatch=512, weights_bytes=40 * MIB, context_bytes=0, compute_bytes=2 * MIB)


def remembered(spec: ModelSpec, mb: int, **more: object) -> FootprintsLearned:
    learned = replace(Learned(spec.id, Footprint({"CUDA0": mb * MIB})), **more)  # type: ignore[arg-type]
    return FootprintsLearned({launch_key(spec): learned})


def figure(play: Play, model: str = "a") -> tuple[int, Source]:
    cost = play.scheduler.need(ModelId(model))
    return cost.total_mb, cost.source


# --- which figure -----------------------------------------------------------------------------------------------------


def test_declared_before_learned_before_formula() -> None:
    plain = sized("a", 40)
    declared = replace(plain, vram_mb=90)
    assert figure(Play([plain], budget=500)) == (FORMULA_MB, Source.FORMULA)
    assert figure(Play([plain], budget=500).at(0, remembered(plain, 77))) == (77, Source.LEARNED)
    assert figure(Play([declared], budget=500).at(0, remembered(declared, 77))) == (90, Source.DECLARED)


def test_what_ran_out_of_memory_gets_at_least_what_follows_from_that() -> None:
    plain = sized("a", 40)
    declared = replace(plain, vram_mb=90)
    assert figure(Play([plain], budget=500).at(0, remembered(plain, 77, least_bytes=150 * MIB))) == (150, Source.LEARNED)
    assert figure(Play([declared], budget=500).at(0, remembered(declared, 77, least_bytes=150 * MIB))) == (150, Source.LEARNED)
    assert figure(Play([declared], budget=500).at(0, remembered(declared, 77, least_bytes=80 * MIB))) == (90, Source.DECLARED)


def test_what_it_ran_out_with_counts_a_declared_host_part_once() -> None:
    """The bound is about all that was kept for it, and host memory stays where it was."""
    declared = replace(sized("a", 40), vram_mb=90, host_mb=20)
    play = Play([declared], budget=500).at(0, remembered(declared, 77, least_bytes=150 * MIB))
    cost = play.scheduler.need(A)
    assert (cost.total_mb, cost.host_mb) == (130, 20)


def test_what_was_learned_of_a_file_holds_for_its_copy() -> None:
    play = Play([sized("a", 40, header="same"), sized("b", 40, header="same"), sized("c", 40)], budget=500)
    loaded(play, "a").at(1, took(1, "a", 60)).gives("remember same")
    assert [figure(play, model) for model in "abc"] == [(60, Source.LEARNED), (60, Source.LEARNED), (FORMULA_MB, Source.FORMULA)]


def test_this_run_knows_better_than_what_earlier_ones_remembered() -> None:
    plain = sized("a", 40)
    play = loaded(Play([plain], budget=500), "a").at(1, took(1, "a", 60))
    play.at(2, remembered(plain, 99)).gives()
    assert figure(play) == (60, Source.LEARNED)


# --- the dry pass -----------------------------------------------------------------------------------------------------


def asked(play: Play, model: str = "a") -> ProbeFootprint:
    """The question that was put in the last step."""
    [question] = [one for one in play.commands if isinstance(one, ProbeFootprint) and one.spec.id == model]
    return question


def test_llama_cpp_is_asked_once_and_only_for_the_model_that_needs_it() -> None:
    """`b` is declared, `c` is learned: they start while `a` waits for the answer."""
    learned = sized("c", 40)
    play = Play([sized("a", 40), spec("b", 50), learned], budget=500, probes=False)
    play.at(0, remembered(learned, 70)).gives()
    play.at(1, arrive("r1", "a")).gives("probe a")
    question = asked(play)
    assert question.key == probe_key(question.spec)
    play.at(1.1, arrive("r2", "b"), arrive("r3", "c"), arrive("r4", "a")).gives("start 1/b", "start 2/c")
    assert "memory to be measured" in play.scheduler.explain(1.2).models[A]
    play.at(1.3, FootprintProbed(A, question.key, PROBE)).gives("remember probe header of a", "start 3/a")
    play.at(2, InstanceReady(i(3, "a"))).gives("grant r1 3/a")
    play.at(3, LeaseReleased(r("r1"))).gives("grant r4 3/a").at(4, UnloadRequested(A), LeaseReleased(r("r4"))).gives("stop 3/a unload")
    play.at(5, *gone(3, "a"), arrive("r5", "a")).gives("start 4/a")  # known by now


def point(ctx: int, compute_mb: int) -> Probe:
    """An answer about one context."""
    points = (Point(ctx, 1, 512, 512, True, {"CPU": compute_mb * MIB}),)
    return Probe(ctx, 1, 512, 40 * MIB, 0, compute_mb * MIB, points=points)


def test_a_launch_that_was_not_asked_about_is_asked_about_alone() -> None:
    """Others are known from which it would follow; what is started is exact all the same."""
    small = sized("a", 40)
    large = replace(small, options=replace(small.options, ctx=2048))
    play = Play([small], budget=500, probes=False).at(0, arrive("r1", "a"))
    question = asked(play)
    assert question.around
    play.at(1, FootprintProbed(A, question.key, point(512, 2))).gives("remember probe header of a", "start 1/a")
    play.at(2, InstanceReady(i(1, "a"))).at(3, LeaseReleased(r("r1")), UnloadRequested(A)).at(4, *gone(1, "a"))
    again = asked(play.at(5, ModelTableReplaced({A: large})).at(6, arrive("r2", "a")))
    assert (again.key, again.around, again.spec.options.ctx) == (question.key, False, 2048)
    play.at(7, FootprintProbed(A, again.key, point(2048, 7))).gives("remember probe header of a", "start 2/a")
    assert {part.name: part.bytes // MIB for part in play.scheduler.need(A).parts}["compute"] == 7
    play.at(8, ModelTableReplaced({A: small}))
    assert {part.name: part.bytes // MIB for part in play.scheduler.need(A).parts}["compute"] == 2


def test_a_model_that_is_asked_about_keeps_no_room_from_others() -> None:
    """Both need the same room. `a` came first, and would have kept it while its file is checked: but a dry pass may take long."""
    play = Play([sized("a", 40), spec("b", 100)], budget=150, probes=False)
    play.at(0, arrive("r1", "a")).gives("probe a")
    question = asked(play)
    play.at(0.1, arrive("r2", "b")).gives("start 1/b")
    play.at(1, InstanceReady(i(1, "b"))).gives("grant r2 1/b")
    play.at(2, FootprintProbed(A, question.key, PROBE)).gives("remember probe header of a")
    play.at(3, LeaseReleased(r("r2"))).gives("stop 1/b evicted for a")


def test_a_due_model_keeps_its_room_even_while_it_is_asked_about() -> None:
    """Else one dry pass that hangs could be overtaken for ever."""
    play = Play([sized("a", 40), spec("b", 100)], budget=150, probes=False)
    play.at(0, arrive("r1", "a")).gives("probe a")
    play.at(11, arrive("r2", "b")).gives()
    assert play.scheduler.next_wakeup() is not None


def test_where_llama_cpp_does_not_answer_the_formula_stands() -> None:
    play = Play([sized("a", 40)], budget=500, probes=False).at(0, arrive("r1", "a"))
    play.at(1, ProbeFailed(A, asked(play).key, "it took too long")).gives("start 1/a")
    assert play.instance("a").devices_mb == {LOCAL: FORMULA_MB}
    play.at(2, InstanceReady(i(1, "a")), LeaseReleased(r("r1")), UnloadRequested(A), *gone(1, "a"))
    play.at(3, arrive("r2", "a")).gives("start 2/a")  # not asked again
    play.at(3, InstanceReady(i(2, "a")), LeaseReleased(r("r2")), UnloadRequested(A), *gone(2, "a"))
    again = {A: sized("a", 40, fingerprint="v2")}
    play.at(4, ModelTableReplaced(again), arrive("r3", "a")).gives("probe a")  # until the catalogue changes


def test_a_model_is_not_refused_for_the_formula_alone() -> None:
    """It bounds from above: llama.cpp is asked before anybody hears that it can never fit."""
    play = Play([sized("a", 40)], budget=100, probes=False).at(0, arrive("r1", "a")).gives("probe a")
    play.at(1, ProbeFailed(A, asked(play).key, "it crashed")).gives("refuse r1 cannot_ever_fit")
    assert f"needs {FORMULA_MB} MB (formula), at most 100 MB" in str(play.refused("r1"))
    play.at(2, arrive("r2", "a")).gives("refuse r2 cannot_ever_fit")


def test_a_wish_is_asked_about_too_and_dropped_with_the_numbers() -> None:
    play = Play([sized("a", 40)], budget=100, probes=False).at(0, LoadRequested(A)).gives("probe a")
    play.at(1, ProbeFailed(A, asked(play).key, "it crashed")).gives()
    assert play.snapshot.wished == frozenset()
    assert f"needs {FORMULA_MB} MB" in str(play.snapshot.last_error)


def test_an_answer_about_a_launch_that_is_wanted_no_more_lets_nobody_start() -> None:
    """The cache's type has changed meanwhile: another question is on its way, and that answer is waited for."""
    play = Play([sized("a", 40)], budget=500, probes=False).at(0, arrive("r1", "a"))
    first = asked(play)
    changed = sized("a", 40, options=replace(LaunchOptions(parallel=1, ctx=512), ngl=3), fingerprint="v2")
    play.at(1, ModelTableReplaced({A: changed})).gives("probe a")
    second = asked(play)
    play.at(2, FootprintProbed(A, first.key, PROBE)).gives("remember probe header of a")
    play.at(3, FootprintProbed(A, second.key, PROBE)).gives("remember probe header of a", "start 1/a")


def test_an_answer_about_a_model_that_is_gone() -> None:
    play = Play([sized("a", 40), spec("b", 50)], budget=500, probes=False).at(0, arrive("r1", "a"))
    question = asked(play)
    play.at(1, ModelTableReplaced({B: spec("b", 50)})).gives("refuse r1 unknown_model")
    play.at(2, FootprintProbed(A, question.key, PROBE)).gives()


# --- measured ---------------------------------------------------------------------------------------------------------


def test_at_ready_the_ledger_falls_to_what_it_takes_and_others_have_the_rest() -> None:
    play = loaded(Play([sized("a", 40), spec("b", 80)], budget=150, probes=True), "a")
    play.at(1, arrive("r0", "a")).gives("grant r0 1/a")
    play.at(1, arrive("r1", "b")).gives()
    play.at(2, took(1, "a", 60)).gives("remember header of a", "start 2/b")
    assert play.instance("a").devices_mb == {LOCAL: 60}
    assert play.snapshot.used_mb == 140
    assert play.snapshot.grown_total == 0


def test_at_ready_the_ledger_rises_to_what_it_takes() -> None:
    play = loaded(Play([sized("a", 40), spec("b", 60)], budget=200), "a").at(1, took(1, "a", 150)).gives("remember header of a")
    assert play.instance("a").devices_mb == {LOCAL: 150}
    assert play.snapshot.grown_total == 1
    play.at(2, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")


def test_the_next_launch_is_booked_with_what_was_measured() -> None:
    play = loaded(Play([sized("a", 40)], budget=500), "a").at(1, took(1, "a", 60), took(1, "a", 66, when=When.FIRST))
    play.at(2, UnloadRequested(A), *gone(1, "a"), arrive("r1", "a")).gives("stop 1/a unload", "start 2/a")
    assert play.instance("a").devices_mb == {LOCAL: 66}
    assert play.instance("a").cost == play.scheduler.need(A)


def test_only_what_changed_is_kept() -> None:
    play = loaded(Play([sized("a", 40)], budget=500), "a").at(1, took(1, "a", 60)).gives("remember header of a")
    play.at(2, took(1, "a", 60, when=When.FIRST)).gives()
    play.at(3, took(1, "a", 50, when=When.LATER)).gives()  # a mark does not fall
    assert play.instance("a").devices_mb == {LOCAL: 60}
    play.at(4, took(1, "a", 61, when=When.LATER)).gives("remember header of a")


def test_what_is_kept_says_what_was_predicted_and_from_what() -> None:
    play = loaded(Play([sized("a", 40)], budget=500), "a").at(1, took(1, "a", 60))
    [kept] = [one for one in play.commands if isinstance(one, Remember)]
    launch = in_short(sized("a", 40).options)
    assert kept.learned == Learned(A, Footprint({"CUDA0": 60 * MIB}), 0, FORMULA_MB * MIB, Source.FORMULA, 1, launch)
    assert kept.key == launch_key(sized("a", 40))


def test_a_declared_figure_only_rises_and_what_was_measured_is_kept_all_the_same() -> None:
    declared = replace(sized("a", 40), vram_mb=90)
    play = loaded(Play([declared], budget=500), "a").at(1, took(1, "a", 60)).gives("remember header of a")
    assert play.instance("a").devices_mb == {LOCAL: 90}
    play.at(2, took(1, "a", 120)).gives("remember header of a")
    assert play.instance("a").devices_mb == {LOCAL: 120}


def test_a_declared_figure_that_ran_out_of_memory_still_only_rises() -> None:
    declared = replace(sized("a", 40), vram_mb=90)
    play = loaded(Play([declared], budget=500).at(0, remembered(declared, 77, least_bytes=150 * MIB)), "a")
    assert play.at(1, took(1, "a", 60)).instance("a").devices_mb == {LOCAL: 150}


def test_what_is_incomplete_only_raises_and_is_not_learned() -> None:
    play = loaded(Play([sized("a", 40)], budget=500), "a").at(1, took(1, "a", 60, complete=False)).gives()
    assert (play.instance("a").devices_mb, figure(play)) == ({LOCAL: FORMULA_MB}, (FORMULA_MB, Source.FORMULA))
    play.at(2, took(1, "a", 120, complete=False)).gives()
    assert (play.instance("a").devices_mb, figure(play)) == ({LOCAL: 120}, (FORMULA_MB, Source.FORMULA))


def test_what_is_read_while_it_loads_is_never_all() -> None:
    play = Play([sized("a", 40)], budget=500).at(0, arrive("r1", "a")).at(1, took(1, "a", 30)).gives()
    assert (play.instance("a").devices_mb, figure(play)) == ({LOCAL: FORMULA_MB}, (FORMULA_MB, Source.FORMULA))
    play.at(2, took(1, "a", 130)).gives()
    assert play.instance("a").devices_mb == {LOCAL: 130}


def test_a_launch_that_took_less_than_an_earlier_one_is_still_booked_with_the_mark() -> None:
    plain = sized("a", 40)
    play = loaded(Play([plain], budget=500).at(0, remembered(plain, 80)), "a").at(1, took(1, "a", 60))
    assert play.instance("a").devices_mb == {LOCAL: 80}
    assert figure(play) == (80, Source.LEARNED)


def test_a_launch_that_came_through_settles_what_it_ran_out_with() -> None:
    """The bound was a guess: what was measured after a request is what it takes. Else each bad moment would raise it for good."""
    plain = sized("a", 40)
    play = loaded(Play([plain], budget=500).at(0, remembered(plain, 77, least_bytes=150 * MIB)), "a")
    play.at(1, took(1, "a", 77))
    assert (play.instance("a").devices_mb, figure(play)) == ({LOCAL: 150}, (150, Source.LEARNED))  # it may have run out later than this
    play.at(2, took(1, "a", 77, when=When.FIRST))
    assert (play.instance("a").devices_mb, figure(play)) == ({LOCAL: 77}, (77, Source.LEARNED))


def test_what_could_not_be_read_in_full_settles_nothing() -> None:
    plain = sized("a", 40)
    play = loaded(Play([plain], budget=500).at(0, remembered(plain, 77, least_bytes=150 * MIB)), "a").at(1, took(1, "a", 77))
    play.at(2, took(1, "a", 60, when=When.FIRST, complete=False))
    assert figure(play) == (150, Source.LEARNED)


def test_a_declared_figure_that_was_too_low_is_not_believed_again() -> None:
    """It ran out of memory with that, and came through with more: what it took then is the least from now on."""
    declared = replace(sized("a", 40), vram_mb=90)
    play = loaded(Play([declared], budget=500).at(0, remembered(declared, 77, least_bytes=150 * MIB)), "a")
    play.at(1, took(1, "a", 130, when=When.FIRST))
    assert figure(play) == (130, Source.LEARNED)


def test_the_same_model_on_another_device_is_not_learned_twice() -> None:
    plain = sized("a", 40)
    play = Play([plain], budget_mb={GPU0: 300, GPU1: 300}, one_pool=False)
    play.at(0, FootprintsLearned({launch_key(plain): Learned(A, Footprint({"CUDA1": 70 * MIB}, 5 * MIB))}))
    loaded(play, "a").at(1, took(1, "a", 71, host=4))
    cost = play.scheduler.need(A)
    assert (cost.total_mb, cost.host_mb) == (71, 5)
    assert play.instance("a").devices_mb == {GPU0: 71, HOST: 5}


def test_a_split_model_is_booked_where_its_parts_are() -> None:
    split = replace(sized("a", 400), split=True)
    play = loaded(Play([split], budget_mb={GPU0: 800, GPU1: 800}, one_pool=False), "a")
    assert sum(play.instance("a").devices_mb.values()) == 420 + DEVICE_CONTEXT_MB + PROCESS_MB
    play.at(1, FootprintMeasured(i(1, "a"), Footprint({"CUDA0": 250 * MIB, "CUDA1": 200 * MIB}, 9 * MIB), When.READY))
    assert play.instance("a").devices_mb == {GPU0: 250, GPU1: 200, HOST: 9}


def test_a_split_model_that_took_more_before_is_not_lowered_on_any_device() -> None:
    """Where the rest of the mark would go nobody knows."""
    split = replace(sized("a", 400), split=True)
    play = Play([split], budget_mb={GPU0: 300, GPU1: 300}, one_pool=False)
    play.at(0, FootprintsLearned({launch_key(split): Learned(A, Footprint({"CUDA0": 280 * MIB, "CUDA1": 280 * MIB}))}))
    loaded(play, "a")
    play.at(1, FootprintMeasured(i(1, "a"), Footprint({"CUDA0": 290 * MIB, "CUDA1": 200 * MIB}), When.READY))
    assert play.instance("a").devices_mb == {GPU0: 290, GPU1: 280, HOST: 0}


def test_one_that_ends_or_is_gone_is_not_corrected() -> None:
    play = loaded(Play([sized("a", 40)], budget=500), "a").at(1, UnloadRequested(A)).gives("stop 1/a unload")
    play.at(2, took(1, "a", 300)).gives()
    assert play.snapshot.used_mb == FORMULA_MB
    play.at(3, *gone(1, "a"), took(1, "a", 300), took(7, "nobody", 1)).gives()
    assert play.snapshot.used_mb == 0


def test_one_that_drains_is_corrected() -> None:
    play = loaded(Play([sized("a", 40)], budget=500), "a").at(1, arrive("r1", "a"), UnloadRequested(A))
    assert play.at(2, took(1, "a", 200)).snapshot.used_mb == 200
    play.at(3, LeaseReleased(r("r1"))).gives("stop 1/a unload").at(4, *gone(1, "a"))
    assert play.snapshot.used_mb == 0


def test_a_pinned_model_that_grew_leaves_less_to_others_and_they_hear_so() -> None:
    pinned = sized("a", 40, pinned=True)
    play = loaded(Play([pinned, spec("b", 80), spec("c", 60)], budget=200), "a")
    play.at(1, arrive("r1", "c")).gives("start 2/c").at(1, InstanceReady(i(2, "c"))).gives("grant r1 2/c")
    play.at(1, arrive("r2", "b")).gives()
    play.at(2, took(1, "a", 130)).gives("remember header of a", "refuse r2 cannot_ever_fit")
    assert "at most 70 MB" in str(play.refused("r2"))


def test_a_copy_that_waits_hears_when_more_is_known_than_could_ever_fit() -> None:
    """Its twin grew past the budget; nobody would ever make room for the copy."""
    play = loaded(Play([sized("a", 40, header="same"), sized("b", 40, header="same")], budget=150), "a")
    play.at(1, arrive("r1", "a"), arrive("r2", "b")).gives("grant r1 1/a")
    play.at(2, took(1, "a", 180)).gives("remember same", "refuse r2 cannot_ever_fit")
    assert "needs 180 MB (learned), at most 150 MB" in str(play.refused("r2"))


def test_who_grew_past_the_budget_serves_on_and_is_refused_once_it_is_gone() -> None:
    play = loaded(Play([sized("a", 40)], budget=150), "a").at(1, took(1, "a", 180))
    play.at(2, arrive("r1", "a"), arrive("r2", "a")).gives("grant r1 1/a")
    play.at(3, LeaseReleased(r("r1"))).gives("grant r2 1/a")
    play.at(4, LeaseReleased(r("r2")), UnloadRequested(A), *gone(1, "a")).gives("stop 1/a unload")
    play.at(5, arrive("r3", "a")).gives("refuse r3 cannot_ever_fit")


def test_learning_leaves_the_figures_of_other_models_alone() -> None:
    """What was computed for 200 models is not computed again for one report."""
    play = loaded(Play([sized("a", 40), sized("b", 40)], budget=500), "a")
    book = play.scheduler._book
    before, places = book.need(B), book.places(B)
    play.scheduler.handle(took(1, "a", 60), 1.5)
    assert book.need(B) is before
    assert book.places(B) is places


# --- what a launch becomes --------------------------------------------------------------------------------------------


def layered(name: str, *degrade: Degrade, ctx: int, ctx_max: bool = False) -> ModelSpec:
    """64 MB + 1 MB for each 64 tokens of context (2 layers of 2048 elements, keys and values, F16)."""
    shape = MemoryShape(weights_bytes=40 * MIB, attention=(AttentionLayers(2, 2048, 2048),), layers=2)
    options = LaunchOptions(ctx=ctx, parallel=1, threads=1, ctx_max=ctx_max)
    return replace(sized(name, 40), memory=shape, options=options, degrade=degrade)


@pytest.mark.parametrize(("budget", "ctx"), [(1000, 32768), (500, 25088), (200, 5888), (123, 1024)])
def test_the_largest_context_that_fits_the_budget_is_taken_and_shown(budget: int, ctx: int) -> None:
    play = Play([layered("a", ctx=32768, ctx_max=True)], budget=budget).at(0, arrive("r1", "a")).gives("start 1/a")
    view = play.instance("a")
    assert view.options is not None
    assert (view.options.ctx, view.degraded) == (ctx, ())
    assert budget - 5 < view.need_mb <= budget or ctx == 32768


def test_what_the_operator_lets_go_goes_and_is_shown() -> None:
    play = Play([layered("a", Degrade.CTX, ctx=32768)], budget=300).at(0, arrive("r1", "a")).gives("start 1/a")
    assert play.instance("a").degraded == ("llama_ctx 32768 -> 8192",)
    Play([layered("a", ctx=32768)], budget=300).at(0, arrive("r1", "a")).gives("refuse r1 cannot_ever_fit")


def test_an_instance_with_less_is_still_the_launch_that_the_catalogue_says() -> None:
    """Reading the catalogue again must not end it."""
    wanted = layered("a", Degrade.CTX, ctx=32768)
    play = loaded(Play([wanted], budget=300), "a")
    play.at(1, ModelTableReplaced({A: replace(wanted, name="another name")})).gives()
    play.at(2, ModelTableReplaced({A: replace(wanted, degrade=())})).gives("stop 1/a replaced")


def test_what_is_learned_decides_what_fits() -> None:
    """The context that was taken turned out to need more: the next launch takes a smaller one."""
    wanted = layered("a", Degrade.CTX, ctx=16384)
    play = loaded(Play([wanted], budget=400), "a")
    assert play.instance("a").degraded == ()
    play.at(1, took(1, "a", 450)).at(2, UnloadRequested(A), *gone(1, "a"), arrive("r1", "a")).gives("stop 1/a unload", "start 2/a")
    assert play.instance("a").degraded == ("llama_ctx 16384 -> 8192",)


def test_pins_count_host_memory() -> None:
    """Two pinned models whose devices have room and whose host memory has not."""
    pinned = [replace(spec(name, 50), host_mb=40) for name in "ab"]
    play = Play(pinned, budget_mb={GPU0: 200, HOST: 70}, one_pool=False).at(0, PinChanged(A, True))
    assert play.scheduler.pin_refusal(B) is not None
    play.at(1, PinChanged(B, True))
    assert play.snapshot.pinned == {A}


def test_a_prompt_cache_that_has_not_grown_yet_is_held_for_it() -> None:
    cached = sized("a", 40)
    cached = replace(cached, options=replace(cached.options, cache_ram_mb=50))
    play = loaded(Play([cached], budget=500), "a")
    play.at(1, FootprintMeasured(i(1, "a"), Footprint({}, 60 * MIB, reported_bytes=45 * MIB), When.READY))
    assert play.instance("a").devices_mb == {LOCAL: 95}
    play.at(2, FootprintMeasured(i(1, "a"), Footprint({}, 110 * MIB, reported_bytes=45 * MIB), When.LATER))
    assert play.instance("a").devices_mb == {LOCAL: 110}
