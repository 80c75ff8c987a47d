# SPDX-License-Identifier: GPL-3.0-only
"""Random histories through the real scheduler: whatever happens in whatever order, nothing is lost, stuck or over budget.

A seed that fails is printed by the parametrised test's name; it replays exactly.
"""

from __future__ import annotations

import random

import pytest

from core.play import spec
from modeld.core.messages import (
    CheckLaunch,
    Command,
    Event,
    Grant,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    LaunchChecked,
    LaunchRejected,
    LeaseFailed,
    LeaseReleased,
    LoadRequested,
    MemoryFreed,
    Refuse,
    RequestArrived,
    RequestWithdrawn,
    RevokeLease,
    ShutdownRequested,
    StartInstance,
    StopInstance,
    UnloadRequested,
    Wakeup,
)
from modeld.core.model import LOCAL, InstanceId, Limits, ModelId, Request, RequestId
from modeld.core.scheduler import Scheduler
from modeld.errors import LoadFailed

BUDGET, MARGIN = 300, 20


class World:
    """What the runtime would do, with faults: each command is answered some time later, in any order across instances."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.models = [spec(f"m{n}", self.dice.choice([40, 90, 140, 250]), slots=self.dice.randint(1, 3)) for n in range(6)]
        limits = Limits(budget_mb={LOCAL: BUDGET}, margin_mb=MARGIN, queue_depth_max=8, wait_max_seconds=40, infer_timeout_seconds=30)
        self.scheduler = Scheduler(limits, {one.id: one for one in self.models})
        self.now = 0.0
        self.later: list[tuple[float, int, Event]] = []
        self.asked: set[RequestId] = set()
        self.ended: set[RequestId] = set()
        self.running: set[RequestId] = set()
        self.alive: dict[InstanceId, str] = {}
        self.count = 0

    def soon(self, event: Event, most: float) -> None:
        self.count += 1
        self.later.append((self.now + self.dice.random() * most, self.count, event))

    def feed(self, event: Event) -> None:
        for command in self.scheduler.handle(event, self.now):
            self.obey(command)
        self.scheduler.check_invariants()
        snapshot = self.scheduler.snapshot(self.now)
        assert snapshot.used_mb + MARGIN <= BUDGET

    def obey(self, command: Command) -> None:
        match command:
            case CheckLaunch(one):
                if self.dice.random() < 0.02:
                    self.soon(LaunchRejected(one.id, one.fingerprint, LoadFailed("no")), 0.1)
                else:
                    self.soon(LaunchChecked(one.id, one.fingerprint), 0.1)
            case StartInstance(instance, _):
                self.alive[instance] = "loading"
                if self.dice.random() < 0.1:
                    self.soon(InstanceFailed(instance, LoadFailed("no")), 5)
                else:
                    self.soon(InstanceReady(instance), 5)
            case StopInstance(instance, _):
                assert self.alive[instance] in ("loading", "ready")
                self.alive[instance] = "stopping"
                self.soon(InstanceExited(instance, code=0), 3)
            case Grant(request, _):
                assert request not in self.ended
                self.running.add(request)
                failed = self.dice.random() < 0.1
                self.soon(LeaseFailed(request, before_first_byte=False) if failed else LeaseReleased(request), 20)
            case Refuse(request, _):
                assert request not in self.running
                self.end(request)
            case RevokeLease(request, _):
                self.soon(LeaseReleased(request), 0.5)

    def end(self, request: RequestId) -> None:
        assert request not in self.ended, f"{request} ended twice"
        self.ended.add(request)

    def deliver(self, event: Event) -> None:
        match event:
            case LeaseReleased(request) | LeaseFailed(request, _):
                if request in self.ended:
                    return
                self.end(request)
                self.running.discard(request)
            case InstanceReady(instance):
                if self.alive.get(instance) != "loading":
                    return
                self.alive[instance] = "ready"
            case InstanceFailed(instance, _):
                if self.alive.get(instance) != "loading":
                    return
                self.alive[instance] = "failed"
                self.soon(InstanceExited(instance, code=1), 1)
            case InstanceExited(instance, _, _):
                if self.alive.get(instance) in (None, "exited"):
                    return
                self.alive[instance] = "exited"
                self.soon(MemoryFreed(instance), 1)
            case MemoryFreed(instance):
                del self.alive[instance]
            case _:
                pass
        self.feed(event)

    def advance(self, to: float) -> None:
        while True:
            wakeup = self.scheduler.next_wakeup()
            first = min(self.later, default=None)
            times = [at for at in (wakeup, first[0] if first else None) if at is not None and at <= to]
            if not times:
                break
            self.now = max(self.now, min(times))
            if first is not None and first[0] <= self.now:
                self.later.remove(first)
                self.deliver(first[2])
            else:
                self.feed(Wakeup())
        self.now = to

    def misfortune(self) -> None:
        kind = self.dice.random()
        if kind < 0.2 and self.alive:
            self.deliver(InstanceExited(self.dice.choice(sorted(self.alive)), code=-9))
        elif kind < 0.6 and self.asked - self.ended:
            request = self.dice.choice(sorted(self.asked - self.ended))
            self.end(request)
            self.running.discard(request)
            self.feed(RequestWithdrawn(request))
        elif kind < 0.8:
            self.feed(UnloadRequested(self.dice.choice(self.models).id))
        else:
            self.feed(LoadRequested(self.dice.choice(self.models).id, may_evict=self.dice.random() < 0.5))

    def ask(self, model: ModelId) -> None:
        request = RequestId(f"r{len(self.asked):05}")
        self.asked.add(request)
        self.feed(RequestArrived(Request(request, model)))


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_stuck_or_over_budget(seed: int):
    world = World(seed)
    for _ in range(150):
        world.advance(world.now + world.dice.random() * 2)
        if world.dice.random() < 0.15:
            world.misfortune()
        else:
            world.ask(world.dice.choice(world.models).id)
    world.advance(world.now + 2000)
    assert world.asked == world.ended
    snapshot = world.scheduler.snapshot(world.now)
    assert snapshot.lines == ()
    assert all(view.inflight == 0 for view in snapshot.instances)
    world.feed(ShutdownRequested())
    world.advance(world.now + 100)
    assert world.scheduler.snapshot(world.now).used_mb == 0
    assert world.alive == {}
