# SPDX-License-Identifier: GPL-3.0-only
"""The workloads that come with modeld; rule: arrivals are open-loop and follow from the seed alone, whatever the policy does with them.

Figures are those of one GPU and models of 4-bit weights: MiB by size, a load at READ_MB_PER_SECOND after START_SECONDS, answers of
TOKENS_PER_SECOND. In its plain form (`scale` 1) each has at most 200 requests and runs for some minutes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modeld.core.model import LOCAL, LaunchOptions, Limits, ModelId, ModelSpec, Principal, Priority, RequestId
from modeld.errors import ConfigError
from modeld.simulation.workload import Ask, SimModel, Workload

READ_MB_PER_SECOND: Final = 1500.0
START_SECONDS: Final = 1.2
TOKENS_PER_SECOND: Final = 40.0
WAIT_MAX_SECONDS: Final = 3600.0
"""Nobody is refused for waiting: the wait is what is measured."""
REQUESTS_MAX: Final = 200

MB: Final = {"1b": 1100, "8b": 5600, "14b": 9800, "32b": 20500}


def names() -> tuple[str, ...]:
    return tuple(_MAKERS)


def summary(name: str) -> str:
    """One line: what it is."""
    return _MAKERS[name].note


def shipped(name: str, *, seed: int = 0, scale: float = 1.0) -> Workload:
    """The workload of that name. `scale` 2 = twice the time and twice the requests. Raises ConfigError when there is none of that name."""
    if name not in _MAKERS:
        raise ConfigError(f'there is no workload "{name}"; there are {", ".join(_MAKERS)}')
    maker = _MAKERS[name]
    dice = random.Random(f"{name}/{seed}")
    crowd = _Crowd(dice)
    maker.fill(crowd, scale)
    asks = tuple(sorted(crowd.asks, key=lambda ask: (ask.at, ask.request)))
    limits = Limits(budget_mb={LOCAL: maker.budget_mb}, queue_depth_max=10_000, wait_max_seconds=WAIT_MAX_SECONDS)
    return Workload(name, maker.models, asks, limits, maker.note)


@dataclass(frozen=True, slots=True)
class _Maker:
    note: str
    budget_mb: int
    models: tuple[SimModel, ...]
    fill: Callable[[_Crowd, float], None]


@dataclass(slots=True)
class _Crowd:
    """Collects requests."""

    dice: random.Random
    asks: list[Ask]

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.asks = []

    def ask(self, at: float, model: str, seconds: tuple[float, float], *, who: str = "anonymous", priority: Priority | None = None) -> None:
        """One request that runs for a time drawn evenly from `seconds`."""
        service = round(self.dice.uniform(*seconds), 2)
        tokens = max(1, round(service * TOKENS_PER_SECOND))
        request = RequestId(f"{len(self.asks):05}")
        self.asks.append(Ask(round(at, 2), request, ModelId(model), service, tokens, Principal(who), priority, work=float(tokens)))

    def spaced(self, mean_seconds: float, count: int) -> list[float]:
        """So many times, half to one and a half of the mean apart."""
        times, now = [], 0.0
        for _ in range(count):
            times.append(now)
            now += mean_seconds * self.dice.uniform(0.5, 1.5)
        return times


def _model(name: str, mb: int, *, slots: int = 2, priority: Priority = Priority.NORMAL) -> SimModel:
    spec = ModelSpec(
        ModelId(name),
        f"{name}.gguf",
        size_bytes=mb << 20,
        vram_mb=mb,
        fingerprint=name,
        options=LaunchOptions(parallel=slots),
        priority=priority,
    )
    return SimModel(spec, round(START_SECONDS + mb / READ_MB_PER_SECOND, 1))


# --- strict rotation --------------------------------------------------------------------------------------------------


def _rotation(crowd: _Crowd, scale: float) -> None:
    for turn in range(round(200 * scale)):
        crowd.ask(turn * 3.0 + crowd.dice.uniform(0, 0.2), ("left", "right")[turn % 2], (1.0, 3.0))


# --- bursty agents ----------------------------------------------------------------------------------------------------


def _agents(crowd: _Crowd, scale: float) -> None:
    """A burst: the orchestrator plans, two sub-agents read and code in turn, the orchestrator sums up. Bursts overlap now and then."""
    for number, start in enumerate(crowd.spaced(20.0, round(32 * scale))):
        now = start
        for model in ("planner", "reader", "coder", "reader", "coder", "planner"):
            crowd.ask(now, model, (2.0, 6.0), who=f"agent-{number % 4}")
            now += crowd.dice.uniform(3.0, 7.0)


# --- a chat crowd -----------------------------------------------------------------------------------------------------

_CROWD: Final = 20


def _chat(crowd: _Crowd, scale: float) -> None:
    """Conversations of ten questions, each with one model; the next question comes some seconds after the one before."""
    weights = [1 / (rank + 1) for rank in range(_CROWD)]
    for number, start in enumerate(crowd.spaced(9.0, round(20 * scale))):
        now, model = start, crowd.dice.choices(range(_CROWD), weights)[0]
        for _ in range(10):
            crowd.ask(now, f"chat-{model:02}", (2.0, 5.0), who=f"user-{number % 12}")
            now += crowd.dice.uniform(5.0, 9.0)


# --- a batch job beside interactive users -----------------------------------------------------------------------------


def _batch(crowd: _Crowd, scale: float) -> None:
    count = round(100 * scale)
    for number in range(count):
        crowd.ask(number * 6.0, "bulk", (2.0, 4.0), who="job", priority=Priority.BATCH)
    for number, at in enumerate(crowd.spaced(6.0, count)):
        crowd.ask(at, crowd.dice.choice(("chat", "code")), (1.0, 3.0), who=f"user-{number % 5}", priority=Priority.INTERACTIVE)


# --- a whale and twenty minnows ---------------------------------------------------------------------------------------

_MINNOWS: Final = 20


def _whale(crowd: _Crowd, scale: float) -> None:
    """Each minute somebody asks the whale six times; meanwhile the minnows are asked all the time."""
    for start in crowd.spaced(60.0, round(7 * scale)):
        for turn in range(6):
            crowd.ask(start + turn * crowd.dice.uniform(3.0, 5.0), "whale", (3.0, 6.0), who="whaler")
    for at in crowd.spaced(2.7, round(158 * scale)):
        crowd.ask(at, f"minnow-{crowd.dice.randrange(_MINNOWS):02}", (4.0, 10.0))


_MAKERS: Final = {
    "rotation": _Maker(
        "strict rotation A B A B over two models, room for one", 12_000, (_model("left", MB["14b"]), _model("right", MB["14b"])), _rotation
    ),
    "agents": _Maker(
        "agents whose bursts call a planner, a reader and a coder in turn, room for two of the three",
        26_500,
        (_model("planner", MB["32b"], slots=2), _model("reader", MB["8b"], slots=4), _model("coder", MB["14b"], slots=2)),
        _agents,
    ),
    "crowd": _Maker(
        "conversations with 20 models of Zipf popularity, room for three",
        17_000,
        tuple(_model(f"chat-{rank:02}", MB["8b"], slots=4) for rank in range(_CROWD)),
        _chat,
    ),
    "batch": _Maker(
        "a batch job beside interactive users of two other models, room for one large and one small",
        16_000,
        (
            _model("bulk", MB["14b"], slots=4, priority=Priority.BATCH),
            _model("chat", MB["8b"], slots=4, priority=Priority.INTERACTIVE),
            _model("code", MB["14b"], slots=2, priority=Priority.INTERACTIVE),
        ),
        _batch,
    ),
    "whale": _Maker(
        "one whale that fills the machine, and twenty minnows that all fit beside each other",
        23_000,
        (_model("whale", 22_500, slots=2), *(_model(f"minnow-{number:02}", MB["1b"], slots=2) for number in range(_MINNOWS))),
        _whale,
    ),
}
