# SPDX-License-Identifier: GPL-3.0-only
"""Random loads at the edge of the budget with figures that are wrong, by the thousand; rule: what must not be is counted.

python -m modeld.simulation.squeeze --sequences 1000 --workers 2
python -m modeld.simulation.squeeze --seed-start 17 --sequences 1
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from typing import Final

from modeld.simulation.pressure import Pressed, Pressure
from modeld.simulation.seen import Violation

SEQUENCES: Final = 1000
USED_SHARE_MIN: Final = 0.9
SHOWN_MAX: Final = 10


def play(seed: int) -> Pressed:
    """One sequence."""
    pressure = Pressure(seed)
    gc.disable()
    try:
        return pressure.run()
    except Violation as violation:
        return Pressed(sequences=1, violations=[str(violation)])
    except Exception as error:  # noqa: BLE001 - it is a finding like any other, and needs its seed
        return Pressed(sequences=1, violations=[f"seed {seed}, {pressure.now:.3f} s: {type(error).__name__}: {error}"])
    finally:
        gc.enable()


def told(total: Pressed) -> str:
    """In one line."""
    share = total.used_share / max(1, total.used_count)
    return (
        f"squeeze: {total.sequences} sequences, {total.events} events, {total.loads} loads, {total.served} served, "
        f"{total.refused} refused with the numbers, {total.out_of_memory} starts out of memory, {total.helped} second tries that helped, "
        f"{total.told} requests told after the second, {total.grown} grown, {total.evicted} evicted, {total.died} died of growth, "
        f"use of the budget {share:.3f}, {len(total.violations)} violations"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line. The exit code: 0, or 1 when something was violated or the budget was not used."""
    parser = argparse.ArgumentParser(prog="python -m modeld.simulation.squeeze", description="Loads at the edge of the budget.")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="so many seeds (%(default)s)")
    parser.add_argument("--seed-start", type=int, default=0, help="the first of them (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    options = parser.parse_args(arguments)
    seeds = range(options.seed_start, options.seed_start + options.sequences)
    began, total = time.monotonic(), Pressed()
    if options.workers > 1:
        with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
            for one in pool.imap(play, seeds, chunksize=8):
                total.add(one)
    else:
        for seed in seeds:
            total.add(play(seed))
    for violation in total.violations[:SHOWN_MAX]:
        print(violation)
    print(f"{time.monotonic() - began:.0f} s with {options.workers} processes")
    print(told(total))
    return 1 if total.violations or total.used_share < USED_SHARE_MIN * total.used_count else 0


if __name__ == "__main__":
    sys.exit(main())
