# SPDX-License-Identifier: GPL-3.0-only
"""seed -> story: machines, models, clients and faults of every kind; rule: all dice are random.Random(seed), the result is plain data.

Each seed draws a character first (how rough, how crowded, which settings), so that calm runs stand beside wild ones: in a calm run the
bound on waiting is judged without excuses.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from modeld.core.model import (
    HOST,
    LOCAL,
    DeviceId,
    EvictionPolicy,
    LaunchOptions,
    Limits,
    ModelId,
    ModelSpec,
    Principal,
    Priority,
    RequestId,
)
from modeld.simulation.faults import Act, CheckFate, ChildFate, Deed, Faults, LeaseFate, LoadEnd
from modeld.simulation.story import Story
from modeld.simulation.workload import Ask, SimModel, Workload

ASKS_MIN, ASKS_MAX = 200, 700
PRINCIPALS = tuple(Principal(name) for name in ("ann", "bob", "cy"))
CALM_SHARE = 0.2
WORDS_SHARE = 0.3
"""Of the stories that are not calm: those with pins at run time and models to be kept."""
WORDS = (Deed.HOLD, Deed.LET_GO)
STARTS_FATED = 120
"""Of how many starts of each model the fate is drawn."""


def story(seed: int) -> Story:
    """The story of a seed."""
    dice = random.Random(seed)
    limits = _limits(dice)
    models = _models(dice, limits)
    rough = 0.0 if dice.random() < CALM_SHARE else dice.choice((0.4, 1.0, 2.0, 2.0))
    asks = _asks(dice, models, rough)
    workload = Workload(f"seed-{seed}", models, asks, limits)
    faults = _faults(dice, workload, rough) if rough else Faults()
    return _with_words(Story(seed, workload, faults), rough)


def _with_words(plain: Story, rough: float) -> Story:
    """In some stories the operator pins at run time and clients ask for their model to be kept: by dice of their own, so that all others
    are what they were before there were such words.
    """
    words = random.Random(f"words-{plain.seed}")
    if not rough or words.random() > WORDS_SHARE:
        return plain
    workload, until = plain.workload, plain.workload.asks[-1].at
    deeds = [words.choice((Deed.HOLD, Deed.HOLD, Deed.LET_GO)) for _ in range(words.choice((2, 6, 20)))]
    more = [Act(words.uniform(0.0, until), deed, words.choice(workload.models).id) for deed in deeds]
    keep = words.choice((0.0, 0.1, 0.5))
    asks = tuple(replace(ask, keep_seconds=words.choice((1.0, 30.0, math.inf))) if words.random() < keep else ask for ask in workload.asks)
    acts = tuple(sorted([*plain.faults.acts, *more], key=lambda act: act.at))
    return replace(plain, workload=replace(workload, asks=asks), faults=replace(plain.faults, acts=acts))


# --- the machine ------------------------------------------------------------------------------------------------------


def _limits(dice: random.Random) -> Limits:
    budget: dict[DeviceId, int] = {LOCAL: dice.choice((250, 300, 500))}
    if dice.random() < 0.35:
        count = dice.randint(1, 3)
        budget = {DeviceId(f"local/gpu{number}"): dice.choice((200, 300, 400)) for number in range(count)}
        if dice.random() < 0.6:
            budget[HOST] = dice.choice((100, 200, 400))
    if dice.random() < 0.03:
        budget = {LOCAL: 0}
    patient = dice.random() < 0.7
    return Limits(
        budget_mb=budget,
        margin_mb=dice.choice((0, 20)),
        queue_depth_max=dice.choice((2, 8, 32, 1000)),
        wait_max_seconds=100_000.0 if patient else dice.choice((5.0, 30.0, 120.0)),
        infer_timeout_seconds=dice.choice((0.0, 0.0, 15.0)),
        drain_timeout_seconds=dice.choice((2.0, 30.0)),
        waiting_bytes_max=dice.choice((2_000, 50_000, 1 << 28)),
        fairness_wait_seconds=dice.choice((0.0, 0.5, 2.0, 5.0, 10.0)),
        turn_max_seconds=dice.choice((None, None, 0.0, 0.5, 3.0)),
        min_residency_seconds=dice.choice((0.0, 1.0, 5.0)),
        preempt_after_seconds=dice.choice((None, None, 1.0, 5.0)),
        eviction=dice.choice((EvictionPolicy.LRU, EvictionPolicy.COST)),
        first_token_seconds=20.0,
        inter_token_seconds=8.0,
    )


def _models(dice: random.Random, limits: Limits) -> tuple[SimModel, ...]:
    most = max(mb for device, mb in limits.budget_mb.items() if device != HOST) or 300
    count = dice.randint(2, 8)
    return tuple(_model(dice, number, most, limits) for number in range(count))


def _model(dice: random.Random, number: int, most_mb: int, limits: Limits) -> SimModel:
    share = dice.choice((0.1, 0.15, 0.3, 0.45, 0.6, 0.9))
    vram_mb = int((most_mb - limits.margin_mb) * share)
    split = len(limits.budget_mb) > 1 and dice.random() < 0.2
    if split and dice.random() < 0.5:
        vram_mb = int(most_mb * 1.3)
    host_mb = dice.choice((0, 30, 60)) if HOST in limits.budget_mb and dice.random() < 0.6 else 0
    if dice.random() < 0.03:
        vram_mb = most_mb * 5
    name = f"m{number}"
    spec = ModelSpec(
        id=ModelId(name),
        path=f"/{name}",
        fingerprint="v1",
        vram_mb=vram_mb,
        host_mb=host_mb,
        split=split,
        options=LaunchOptions(ctx=512, parallel=dice.choice((1, 1, 2, 4)), threads=1),
        pinned=dice.random() < 0.05,
        ttl_seconds=dice.choice((None, None, None, 3.0, 20.0)),
        priority=dice.choice((Priority.NORMAL, Priority.NORMAL, Priority.INTERACTIVE, Priority.BATCH)),
    )
    return SimModel(
        spec, load_seconds=dice.choice((0.3, 1.0, 3.0, 8.0)), load_sigma=dice.choice((0.0, 0.3, 0.6)), stop_seconds=dice.choice((0.05, 0.5))
    )


# --- the clients ------------------------------------------------------------------------------------------------------


def _asks(dice: random.Random, models: tuple[SimModel, ...], rough: float) -> tuple[Ask, ...]:
    """Arrivals one by one and in bursts; some models are asked for far more often than others."""
    count = dice.randint(ASKS_MIN, ASKS_MAX)
    service = dice.choice((0.2, 1.0, 4.0))
    slots = sum(model.spec.options.parallel for model in models)
    gap = service / max(1.0, slots * 0.4) * dice.choice((0.5, 1.0, 2.0, 6.0))
    weights = [1.0 / (rank + 1) ** dice.choice((0.0, 1.0, 1.5)) for rank in range(len(models))]
    bursts = dice.choice((0.0, 0.1, 0.4))
    leaving = dice.choice((0.0, 0.05, 0.2)) * rough
    hurried = dice.choice((0.0, 0.0, 0.1))
    classes = dice.choice(((None,), (None, Priority.BATCH, Priority.INTERACTIVE)))
    people = PRINCIPALS[: dice.randint(1, 3)]
    asks: list[Ask] = []
    now = 0.0
    for number in range(count):
        now += 0.0 if dice.random() < bursts else dice.expovariate(1.0 / gap)
        seconds = service * math.exp(0.5 * dice.gauss(0.0, 1.0))
        asks.append(
            Ask(
                at=now,
                request=RequestId(f"r{number}"),
                model=dice.choices(models, weights)[0].id,
                service_seconds=seconds,
                tokens=1 + int(seconds * 30),
                principal=dice.choice(people),
                priority=dice.choice(classes),
                work=1.0 + seconds * 30,
                timeout_seconds=dice.uniform(0.5, 20.0) if dice.random() < hurried else math.inf,
                leaves_at=now + dice.expovariate(1.0 / (service * 3)) if dice.random() < leaving else math.inf,
                body_bytes=dice.choice((100, 500, 2000)),
            )
        )
    return tuple(asks)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def _faults(dice: random.Random, workload: Workload, rough: float) -> Faults:
    children = [fate for model in workload.models for fate in _children(dice, model, rough * dice.choice((0.2, 1.0)))]
    leases = [fate for ask in workload.asks if (fate := _lease(dice, ask.request, rough)) is not None]
    checks = [
        CheckFate(model.id, number, dice.choice((0.05, 0.5, 4.0)), rejected=dice.random() < 0.2)
        for model in workload.models
        for number in range(1, STARTS_FATED)
        if dice.random() < 0.05 * rough
    ]
    until = workload.asks[-1].at
    acts = [_act(dice, workload, dice.uniform(0.0, until)) for _ in range(int(dice.choice((0, 0, 4, 20)) * rough))]
    if dice.random() < 0.1:
        acts.append(Act(dice.uniform(until / 2, until), Deed.SHUTDOWN, workload.models[0].id))
    acts.sort(key=lambda act: act.at)
    return Faults(tuple(children), tuple(leases), tuple(checks), tuple(acts))


def _children(dice: random.Random, model: SimModel, rough: float) -> list[ChildFate]:
    fates: list[ChildFate] = []
    for start in range(1, STARTS_FATED):
        fate = ChildFate(model.id, start)
        if dice.random() < 0.06 * rough:
            fate = replace(
                fate, load=dice.choice((LoadEnd.FAILS, LoadEnd.CRASHES, LoadEnd.OUT_OF_MEMORY, LoadEnd.STALLS)), share=dice.random()
            )
        if dice.random() < 0.08 * rough:
            fate = replace(fate, dies_after=dice.expovariate(0.2))
        if dice.random() < 0.04 * rough:
            fate = replace(fate, hangs_after=dice.expovariate(0.2))
        if dice.random() < 0.08 * rough:
            fate = replace(fate, deaf_seconds=dice.choice((0.5, 5.0)))
        if dice.random() < 0.15 * rough:
            fate = replace(fate, freed_seconds=dice.choice((0.1, 2.0)))
        if fate != ChildFate(model.id, start):
            fates.append(fate)
    return fates


def _lease(dice: random.Random, request: RequestId, rough: float) -> LeaseFate | None:
    if dice.random() > 0.05 * rough:
        return None
    fate = LeaseFate(request, share=dice.random())
    match dice.randrange(5):
        case 0:
            return replace(fate, fails_before=1)
        case 1:
            return replace(fate, fails_before=2)
        case 2:
            return replace(fate, fails_after=True)
        case 3:
            return replace(fate, leaves_granted=True)
        case _:
            return replace(fate, fails_before=1, leaves_requeued=True)


def _act(dice: random.Random, workload: Workload, at: float) -> Act:
    deed = dice.choice([deed for deed in Deed if deed not in (Deed.SHUTDOWN, *WORDS)])
    numbers = {
        Deed.SLOTS: (1, 2, 4),
        Deed.BUDGET_SHARE: (0.6, 0.8, 1.0, 1.0),
        Deed.FAIRNESS_WAIT: (0.0, 1.0, 5.0),
        Deed.MIN_RESIDENCY: (0.0, 2.0),
        Deed.PREEMPT_AFTER: (-1.0, 2.0),
        Deed.EVICTION_COST: (0.0, 1.0),
    }
    return Act(at, deed, dice.choice(workload.models).id, float(dice.choice(numbers.get(deed, (0.0,)))))
