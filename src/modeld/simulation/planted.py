# SPDX-License-Identifier: GPL-3.0-only
"""Does the simulation catch bugs? Each mutant of core in a process of its own, seed by seed, until an invariant is violated.

rule: only seeds on which core as it is violates nothing count, and a mutant that is not caught fails the run.

python -m modeld.simulation.planted --workers 2
python -m modeld.simulation.planted --only turn_ignored

This module must not import core: it is loaded before the bug is planted.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Final

from modeld.simulation.mutants import Judge, Mutant
from modeld.simulation.mutants_lines import LINES
from modeld.simulation.mutants_memory import MEMORY
from modeld.simulation.mutants_room import ROOM

MUTANTS: Final = (*ROOM, *LINES, *MEMORY)
CORE: Final = Path(__file__).resolve().parent.parent / "core"
FIRST_SEEDS: Final = 16
RARE: Final = (33, 40, 51, 54, 67, 111, 122, 137, 198, 758, 1231, 1455)
"""Seeds in which something rare happens: tried early. In any other order the same is found, later."""
SEEDS: Final = 1000
SEED_SECONDS: Final = 60
"""A story that lasts longer than this hangs: it takes less than a second."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant (or, with no mutant, of core as it is): caught by an invariant at a seed after so many events.

    seeds    how many were run, the last one included
    """

    name: str
    caught_by: str = ""
    seed: int = -1
    events: int = 0
    seeds: int = 0
    detail: str = ""


# --- planting ---------------------------------------------------------------------------------------------------------


class _Loader(importlib.machinery.SourceFileLoader):
    """Gives the source of one module with the bug in it."""

    def __init__(self, mutant: Mutant, path: Path) -> None:
        super().__init__(mutant.module, str(path))
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        """Never from a cache: what is compiled here must not be found by anybody else."""
        source = self._mutant.planted(Path(self.path).read_text(encoding="utf-8"))
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        file = CORE / self._mutant.file
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(self._mutant, file))


def plant(mutant: Mutant) -> None:
    """From now on `mutant.module` is imported with the bug. Raises Misplaced, and RuntimeError when it is too late."""
    mutant.planted((CORE / mutant.file).read_text(encoding="utf-8"))
    if "modeld.core" in sys.modules:
        raise RuntimeError("core is imported already: a bug can be planted only before")
    sys.meta_path.insert(0, _Finder(mutant))


# --- one process ------------------------------------------------------------------------------------------------------


def catch(task: tuple[Mutant | None, Sequence[int]]) -> Verdict:
    """Run the seeds until one violates something. To be called in a process that has not imported core yet."""
    mutant, seeds = task
    if mutant is not None:
        plant(mutant)
    name, by = ("", Judge.WORLD) if mutant is None else (mutant.name, mutant.judge)
    count = 0
    for count, seed in enumerate(seeds, start=1):
        verdict = judge(seed, by)
        if verdict is not None:
            return replace(verdict, name=name, seeds=count)
    return Verdict(name, seeds=count)


def judge(seed: int, by: Judge = Judge.WORLD) -> Verdict | None:
    """The story of one seed: what it violated, or None."""
    generate, seen, worlds, pressure = (
        importlib.import_module(f"modeld.simulation.{name}") for name in ("generate", "seen", "world", "pressure")
    )
    if by is Judge.SQUEEZE:
        world = pressure.Pressure(seed)
    else:
        story = generate.story(seed)
        world = worlds.World(story.workload, faults=story.faults, seed=seed)
    gc.disable()
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SEED_SECONDS)
    try:
        world.run()
    except seen.Violation as violation:
        return Verdict("", violation.name, seed, world.events, detail=violation.detail)
    except Exception as error:  # noqa: BLE001 - a bug may raise anything
        return Verdict("", type(error).__name__, seed, world.events, detail=str(error))
    finally:
        signal.alarm(0)
        gc.enable()
        gc.collect()
    return None


def _hangs(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no end after {SEED_SECONDS} s")


def is_clean(seed: int, by: Judge) -> tuple[int, Verdict | None]:
    """Core as it is, on one seed."""
    return seed, judge(seed, by)


# --- all of them ------------------------------------------------------------------------------------------------------


def run(mutants: Sequence[Mutant], workers: int, seeds_max: int = SEEDS) -> Iterator[Verdict]:
    """The verdict on each mutant, in no order. Raises Misplaced when one does not apply, before anything runs."""
    for mutant in mutants:
        mutant.planted((CORE / mutant.file).read_text(encoding="utf-8"))
    for by in Judge:
        yield from _run([mutant for mutant in mutants if mutant.judge is by], by, workers, seeds_max)


def _run(left: list[Mutant], by: Judge, workers: int, seeds_max: int) -> Iterator[Verdict]:
    """Those that one judge is to catch."""
    tried: dict[str, int] = {}
    for seeds in rounds(seeds_max):
        if not left or not seeds:
            break
        clean = clean_seeds(seeds, workers, by)
        survivors: list[Mutant] = []
        by_name = {mutant.name: mutant for mutant in left}
        for verdict in _apart(((mutant, clean) for mutant in left), workers):
            verdict = replace(verdict, seeds=verdict.seeds + tried.get(verdict.name, 0))
            if verdict.caught_by:
                yield verdict
            else:
                tried[verdict.name] = verdict.seeds
                survivors.append(by_name[verdict.name])
        left = survivors
    for mutant in left:
        yield Verdict(mutant.name, seeds=tried[mutant.name])


def rounds(seeds_max: int) -> list[list[int]]:
    """The seeds that are tried first, by all; then the others, by those that are left."""
    rare = RARE if seeds_max > FIRST_SEEDS else ()
    order = list(dict.fromkeys([*range(min(FIRST_SEEDS, seeds_max)), *rare, *range(seeds_max)]))
    first, second = FIRST_SEEDS + len(RARE), 5 * FIRST_SEEDS
    return [order[:first], order[first:second], order[second:]]


def clean_seeds(seeds: Sequence[int], workers: int, by: Judge = Judge.WORLD) -> list[int]:
    """Those on which core as it is violates nothing; the others are named."""
    clean: list[int] = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for seed, verdict in pool.imap(partial(is_clean, by=by), seeds, chunksize=8):
            if verdict is None:
                clean.append(seed)
            else:
                print(f"seed {seed} is left out, core as it is violates {verdict.caught_by}: {verdict.detail}", flush=True)
    return clean


def _apart(tasks: Iterable[tuple[Mutant | None, Sequence[int]]], workers: int) -> Iterator[Verdict]:
    """Each in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(catch, tasks, chunksize=1)


def table(mutants: Iterable[Mutant], verdicts: dict[str, Verdict]) -> str:
    """As Markdown: what was planted, who caught it, where."""
    lines = ["| planted bug | what it means | caught by | seed | after events |", "| --- | --- | --- | --- | --- |"]
    for mutant in mutants:
        verdict = verdicts[mutant.name]
        means = mutant.means + (f" ({mutant.peer})" if mutant.peer else "")
        caught = f"{verdict.caught_by} | {verdict.seed} | {verdict.events}" if verdict.caught_by else "**nobody** | |"
        lines.append(f"| {mutant.name} | {means} | {caught} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line. The exit code: 0, or 1 when a mutant survives."""
    parser = argparse.ArgumentParser(prog="python -m modeld.simulation.planted", description="Bugs planted in core, to be caught.")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="so many are tried at most (%(default)s)")
    parser.add_argument(
        "--only", action="append", choices=[mutant.name for mutant in MUTANTS], metavar="NAME", help="this one (may be repeated)"
    )
    options = parser.parse_args(arguments)
    mutants = [mutant for mutant in MUTANTS if options.only is None or mutant.name in options.only]
    began, verdicts = time.monotonic(), {}
    for verdict in run(mutants, options.workers, options.seeds):
        verdicts[verdict.name] = verdict
        if options.only is not None:
            print(verdict)
    print(table(mutants, verdicts))
    caught = sum(bool(verdict.caught_by) for verdict in verdicts.values())
    print(f"planted: {len(mutants)} bugs, {caught} caught, {len(mutants) - caught} survived, {time.monotonic() - began:.0f} s")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
