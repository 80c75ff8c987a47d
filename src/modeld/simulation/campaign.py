# SPDX-License-Identifier: GPL-3.0-only
"""Seeds through the world by the hundred, over several processes; rule: the same seeds give the same figures, whatever the processes do.

python -m modeld.simulation.campaign --events 1500000 --workers 2
python -m modeld.simulation.campaign --replay reports/sim-seed-17.json
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from modeld.simulation import generate, shrink
from modeld.simulation.faults import KINDS
from modeld.simulation.invariants import ALL, NAMES
from modeld.simulation.seen import Violation
from modeld.simulation.story import Story, as_json, from_json
from modeld.simulation.trace import tell
from modeld.simulation.world import World

EVENTS = 1_500_000
WHOLE_EVENTS = 1_000_000
"""From so many events on a kind of fault that never happened fails the campaign: the generator would have gone blind."""
PRINT_BYTES_MAX = 20_000


@dataclass
class Tally:
    """What one seed, or many together, came to."""

    seeds: int = 0
    events: int = 0
    judged: int = 0
    excused: int = 0
    used_share: float = 0.0
    looks: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    violation: Violation | None = None

    def add(self, other: Tally) -> None:
        self.seeds += other.seeds
        self.events += other.events
        self.judged += other.judged
        self.excused += other.excused
        self.used_share += other.used_share
        self.looks += other.looks
        self.counts.update(other.counts)
        self.happened.update(other.happened)

    @property
    def faults(self) -> int:
        return sum(self.happened.values())


def run_seed(seed: int, checks: frozenset[str] = ALL) -> Tally:
    """One story, to its end or its first violation."""
    return run_story(generate.story(seed), checks)


def run_story(story: Story, checks: frozenset[str] = ALL) -> Tally:
    """Without garbage collections in between: a run is short, and all of it goes at once."""
    tally = Tally(seeds=1)
    gc.disable()
    try:
        world = World(story.workload, faults=story.faults, seed=story.seed, checks=checks)
        try:
            world.run()
        except Violation as violation:
            tally.violation = violation
        tally.events, tally.counts, tally.happened = world.events, world.counts, world.happened
        if world.watch is not None:
            bound = world.watch.bound
            tally.judged, tally.excused, tally.used_share, tally.looks = bound.judged, bound.excused, bound.used_share, world.watch.looks
    finally:
        gc.enable()
        gc.collect()
    return tally


def tallies(seed_start: int, workers: int, checks: frozenset[str]) -> Iterator[Tally]:
    """One for each seed from `seed_start` on, in order, for ever; `workers` processes run ahead."""
    if workers <= 1:
        seed = seed_start
        while True:
            yield run_seed(seed, checks)
            seed += 1
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        running: dict[int, Future[Tally]] = {}
        following, wanted = seed_start, seed_start
        while True:
            while len([future for future in running.values() if not future.done()]) < 2 * workers:
                running[following] = executor.submit(run_seed, following, checks)
                following += 1
            while wanted in running and running[wanted].done():
                yield running.pop(wanted).result()
                wanted += 1
            wait([future for future in running.values() if not future.done()], return_when=FIRST_COMPLETED)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def campaign(options: argparse.Namespace) -> int:
    """Run until enough events have been seen. The exit code: 0, or 1 after a violation."""
    began, total = time.monotonic(), Tally()
    checks = ALL - frozenset(options.without)
    bad: dict[str, list[Violation]] = {}
    for tally in tallies(options.seed_start, options.workers, checks):
        total.add(tally)
        if tally.violation is not None:
            bad.setdefault(tally.violation.name, []).append(tally.violation)
            if not options.keep_going:
                break
        if total.events >= options.events or time.monotonic() - began > options.seconds_max:
            break
    _report(total, time.monotonic() - began, options.workers)
    for name, violations in sorted(bad.items()):
        print(f"VIOLATED {name}: {len(violations)} seeds, first: {violations[0]}")
        if violations[1:]:
            print("  also seeds " + ", ".join(str(one.seed) for one in violations[1:21]))
    if bad and not options.keep_going:
        _explain(next(iter(bad.values()))[0], options)
    blind = [kind for kind in KINDS if not total.happened[kind]] if total.events >= WHOLE_EVENTS else []
    if blind:
        print(f"never happened: {', '.join(blind)}")
    count = sum(len(violations) for violations in bad.values())
    print(f"sim: {total.events} events, {total.faults} faults, {count} violations, {total.seeds} seeds from {options.seed_start}")
    return 1 if bad or blind else 0


def _report(total: Tally, seconds: float, workers: int) -> None:
    for name in ("requests", "loads", "evictions"):
        print(f"{name:<38}{total.counts[name]:>10}")
    for kind, count in sorted(total.happened.items()):
        print(f"  {kind:<36}{count:>10}")
    used = total.used_share / max(1, total.judged)
    print(f"waits judged by the bound {total.judged}, excused {total.excused}, share of the bound used {used:.2f}")
    print(f"{total.events / max(seconds, 1e-9):.0f} events/s with {workers} processes, {seconds:.0f} s")


def _explain(violation: Violation, options: argparse.Namespace) -> None:
    """Shrink it, write it down, say how to see it again."""
    story = shrink.shrink(generate.story(violation.seed), violation, options.shrink_seconds)
    text = as_json(story)
    path = Path(options.out) / f"sim-seed-{violation.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"shrunk to {len(story.workload.asks)} requests, {len(story.workload.models)} models, {len(story.faults)} faults; replay with:")
    print(f"  python -m modeld.simulation.campaign --replay {path}")
    print(text if len(text) <= PRINT_BYTES_MAX else f"({len(text)} bytes, see the file)")


def replay(path: Path) -> int:
    """Tell the last steps of a story and what it violates."""
    story = from_json(path.read_bytes())
    world = World(story.workload, faults=story.faults, seed=story.seed)
    violation: Violation | None = None
    try:
        world.run()
    except Violation as found:
        violation = found
    for now, event, commands in world.story:
        sys.stdout.write(tell(now, event, commands))
    print(f"VIOLATED {violation}" if violation else f"sim: {world.events} events, no violation")
    return 1 if violation else 0


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m modeld.simulation.campaign", description="The real scheduler on a virtual clock.")
    parser.add_argument("--events", type=int, default=EVENTS, help="stop after so many (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--seed-start", type=int, default=0, help="first seed (%(default)s)")
    parser.add_argument("--seconds-max", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--shrink-seconds", type=float, default=60.0, help="longest search for a smaller story (%(default)s)")
    parser.add_argument("--out", default="reports", help="where a failing story is written (%(default)s)")
    parser.add_argument("--without", action="append", default=[], choices=NAMES, help="leave an invariant out (may be repeated)")
    parser.add_argument("--keep-going", action="store_true", help="count violations instead of stopping at the first")
    parser.add_argument("--replay", type=Path, help="run a story that was written down, and tell its last steps")
    options = parser.parse_args(arguments)
    return replay(options.replay) if options.replay is not None else campaign(options)


if __name__ == "__main__":
    sys.exit(main())
