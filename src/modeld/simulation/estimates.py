# SPDX-License-Identifier: GPL-3.0-only
"""How good the expected waits are: `python -m modeld.simulation.estimates`; rule: what was told at the arrival against what came of it.

Each request of the shipped workloads that has to wait at least WAIT_SECONDS_MIN is asked about in the step after its arrival, by the
same forecast that Retry-After and /status give. The relative error is |told - waited| / waited.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

from modeld.core.model import RequestId
from modeld.core.scheduler import Scheduler
from modeld.simulation.seen import Asked
from modeld.simulation.shipped import names, shipped
from modeld.simulation.workload import Workload
from modeld.simulation.world import World

WAIT_SECONDS_MIN = 1.0
"""Shorter waits are told as 1 s, the least that Retry-After can say."""


@dataclass(frozen=True, slots=True)
class Told:
    """One wait, in seconds."""

    request: RequestId
    told: float
    waited: float

    @property
    def error(self) -> float:
        """Relative, 0 = exact."""
        return abs(self.told - self.waited) / self.waited


def estimates(workload: Workload, seed: int = 0) -> list[Told]:
    """Of all requests that waited long enough and were granted, in the order in which they ended."""
    told: dict[RequestId, float] = {}

    def listen(world: World, asked: Asked) -> None:
        scheduler = world.scheduler
        assert isinstance(scheduler, Scheduler)
        told[asked.request.id] = scheduler.expected_wait_of(asked.request.id, world.now)

    history = World(workload, seed=seed, checks=frozenset(), on_wait=listen).run()
    found: list[Told] = []
    for served in history.served:
        request = served.ask.request
        if served.granted is not None and request in told and served.granted - served.ask.at >= WAIT_SECONDS_MIN:
            found.append(Told(request, told[request], served.granted - served.ask.at))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="draws of each workload")
    parser.add_argument("--scale", type=float, default=1.0, help="longer workloads")
    arguments = parser.parse_args()
    everything: list[float] = []
    for name in names():
        errors: list[float] = []
        for seed in range(arguments.seeds):
            errors += [one.error for one in estimates(shipped(name, seed=seed, scale=arguments.scale), seed)]
        everything += errors
        if errors:
            quarters = statistics.quantiles(errors, n=4) if len(errors) > 1 else [errors[0]] * 3
            low, middle, high = quarters
            print(f"{name:<10} waits {len(errors):5}  relative error: median {middle:.2f}, quartiles {low:.2f} to {high:.2f}")
    print(f"{'all':<10} waits {len(everything):5}  relative error: median {statistics.median(everything):.2f}")


if __name__ == "__main__":
    main()
