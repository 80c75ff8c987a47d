# SPDX-License-Identifier: GPL-3.0-only
"""Times `Scheduler.handle` in a full house; rule: the real core, a made-up runtime that answers every command, and nothing is judged.

200 models of which about ten fit, four slots each, 5,000 requests in line all the time: each that ends is followed by a new one for
a model drawn by popularity. Microseconds of CPU per call (`--wall`: of the clock on the wall, which on a busy machine also counts the
time for which somebody else had the core), also with `next_wakeup`, which the driver asks after each. The story's clock is virtual.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import math
import random
import time
from collections import Counter

from modeld.core.messages import (
    CheckLaunch,
    CheckProgress,
    Event,
    Grant,
    InstanceExited,
    InstanceReady,
    LaunchChecked,
    LeaseReleased,
    MemoryFreed,
    ProgressChecked,
    Refuse,
    RequestArrived,
    StartInstance,
    StopInstance,
    Wakeup,
)
from modeld.core.model import LOCAL, InstanceId, LaunchOptions, Limits, ModelId, ModelSpec, Request, RequestId
from modeld.core.scheduler import Scheduler


class House:
    """The made-up runtime: loads take 2 to 12 s, answers 1 to 9 s, stops 0.3 s."""

    def __init__(self, models: int, waiting: int, seed: int, *, wall: bool) -> None:
        self.clock = time.perf_counter_ns if wall else time.thread_time_ns
        self.dice = random.Random(seed)  # noqa: S311  a workload, not a secret
        self.specs = [
            ModelSpec(
                ModelId(f"m{n:03}"),
                f"/m{n}",
                fingerprint="1",
                vram_mb=self.dice.choice((1500, 4000, 8000)),
                options=LaunchOptions(parallel=4),
            )
            for n in range(models)
        ]
        self.weights = [1 / (n + 1) for n in range(models)]
        limits = Limits(budget_mb={LOCAL: 40_000}, queue_depth_max=10**6, wait_max_seconds=math.inf)
        self.scheduler = Scheduler(limits, {spec.id: spec for spec in self.specs})
        self.heap: list[tuple[float, int, Event]] = []
        self.now = 0.0
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self.nanoseconds: list[tuple[int, int, str]] = []
        for _ in range(waiting):
            self.later(0.0, self.newcomer())

    def later(self, seconds: float, event: Event) -> None:
        self.count += 1
        heapq.heappush(self.heap, (self.now + seconds, self.count, event))

    def newcomer(self) -> RequestArrived:
        self.count += 1
        spec = self.dice.choices(self.specs, self.weights)[0]
        return RequestArrived(Request(RequestId(f"r{self.count}"), spec.id, work=self.dice.uniform(50, 2000)))

    def step(self) -> None:
        """One event: the next that is due, or the wakeup if it comes first."""
        wakeup = self.scheduler.next_wakeup()
        if not self.heap or (wakeup is not None and wakeup <= self.heap[0][0]):
            assert wakeup is not None
            self.now, event = max(self.now, wakeup), Wakeup()
        else:
            at, _, event = heapq.heappop(self.heap)
            self.now = max(self.now, at)
        clock = self.clock
        begin = clock()
        commands = self.scheduler.handle(event, self.now)
        handled = clock()
        self.scheduler.next_wakeup()
        self.nanoseconds.append((handled - begin, clock() - begin, type(event).__name__))
        for command in commands:
            self.obey(command)

    def obey(self, command: object) -> None:
        self.kinds[type(command).__name__] += 1
        match command:
            case CheckLaunch(spec):
                self.later(0.001, LaunchChecked(spec.id, spec.fingerprint))
            case StartInstance(instance, _, _):
                self.later(self.dice.uniform(2, 12), InstanceReady(instance))
            case StopInstance(instance, _):
                self.later(0.3, InstanceExited(InstanceId(instance), 0))
                self.later(0.301, MemoryFreed(InstanceId(instance)))
            case Grant(request, _):
                self.later(self.dice.uniform(1, 9), LeaseReleased(request, 100))
                self.later(0.0, self.newcomer())
            case CheckProgress(instance):
                self.later(0.0, ProgressChecked(instance, {}, frozenset()))
            case Refuse():
                self.later(0.0, self.newcomer())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--waiting", type=int, default=5000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall clock instead of CPU time")
    args = parser.parse_args()
    house = House(args.models, args.waiting, args.seed, wall=args.wall)
    for _ in range(args.waiting):
        house.step()
    house.nanoseconds.clear()
    gc.collect()
    gc.freeze()
    for _ in range(args.events):
        house.step()
    waiting = sum(line.length for line in house.scheduler.snapshot(house.now).lines)
    print(f"{args.models} models, {waiting} requests waiting, {args.events} events, {house.now:.0f} s of virtual time")
    print("commands: " + ", ".join(f"{name} {count}" for name, count in sorted(house.kinds.items())))
    for name, column in (("handle", 0), ("handle + next_wakeup", 1)):
        micro = sorted(sample[column] / 1000 for sample in house.nanoseconds)
        cut = {share: micro[min(len(micro) - 1, int(len(micro) * share))] for share in (0.5, 0.9, 0.99, 0.999)}
        print(
            f"{name:<22} p50 {cut[0.5]:6.1f}  p90 {cut[0.9]:6.1f}  p99 {cut[0.99]:6.1f}  p99.9 {cut[0.999]:6.1f}  max {micro[-1]:8.1f}  µs"
        )
    by_kind: dict[str, list[float]] = {}
    for whole, _, kind in house.nanoseconds:
        by_kind.setdefault(kind, []).append(whole / 1000)
    for kind, samples in sorted(by_kind.items()):
        samples.sort()
        print(f"  {kind:<18} {len(samples):7}  p50 {samples[len(samples) // 2]:6.1f}  p99 {samples[int(len(samples) * 0.99)]:6.1f}")


if __name__ == "__main__":
    main()
