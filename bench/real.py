# SPDX-License-Identifier: GPL-3.0-only
"""The real model through the real daemon; rule: direct is the very engine that the daemon asks, at its own socket, in the same round.

Two names of one model, and room for one of them: so a request to the other one is a switch. It is held against the same engine that is
started by hand, with the same arguments, beside the idle daemon.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from columns import Column, Loader, daemon, measure, models
from hop import Figures
from service import engine, place
from table import Bar, Row, medians, ratios

NAMES: Final = ("a.gguf", "b.gguf")
NEED_MB, BUDGET_MB = 600, 1000
STREAMS: Final = 4


@dataclass(frozen=True, slots=True)
class Lengths:
    """How much is asked in one round: tokens of each of the 4 streams, and how often."""

    rounds: int = 5
    tokens: int = 128


QUICK: Final = Lengths(rounds=1, tokens=16)


class Real:
    """Runs the rounds and keeps the figures."""

    def __init__(self, model: Path, peers: Sequence[Column], lengths: Lengths) -> None:
        self.figures: Figures = defaultdict(list)
        self.notes: list[str] = []
        self._model = model
        self._lengths = lengths
        self._loader = Loader()
        self._peers = [(peer, name) for peer in peers if (name := spelled(models(peer), model.name)) is not None]

    @property
    def peers(self) -> list[str]:
        """Names of the peers that serve the model."""
        return [peer.name for peer, _ in self._peers]

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="mb") as name:
            folder = Path(name)
            (folder / "models").mkdir()
            for one in NAMES:
                place(self._model, folder / "models" / one)
            (folder / "modeld.json").write_text(json.dumps({"models": {one: {"vram_mb": NEED_MB} for one in NAMES}}))
            with daemon(folder, "--vram-budget-mb", str(BUDGET_MB), "--config", str(folder / "modeld.json")) as ours:
                self._loader.run(ours.job(model=NAMES[0], streams=1, requests=1, numbered=False))
                for number in range(self._lengths.rounds):
                    loaded, other = NAMES if number % 2 == 0 else NAMES[::-1]
                    self._speed(folder, ours, loaded, first=number % 2 == 0)
                    self._switch(folder, ours, other)
                    print(f"  round {number + 1} of {self._lengths.rounds}, real model", file=sys.stderr, flush=True)
        self._loader.close()

    def _speed(self, folder: Path, ours: Column, model: str, *, first: bool) -> None:
        """Tokens a second of 4 streams together, and what the process between took for each."""
        (socket,) = (folder / "run").rglob("*.sock")
        columns = [(Column("direct", unix=str(socket)), model), (ours, model), *self._peers]
        rate, cost = {}, {}
        for column, name in columns:  # what the first batch after a load costs is nobody's
            self._loader.run(column.job(model=name, streams=STREAMS, requests=STREAMS, chunks=4, numbered=False))
        for column, name in columns if first else columns[::-1]:
            tokens = self._lengths.tokens
            job = column.job(model=name, streams=STREAMS, requests=STREAMS, chunks=tokens, numbered=False)
            one = measure(self._loader, column, job)
            if one.result.failed or one.result.chunks < tokens * STREAMS * 0.9:  # a token that is half a letter comes with the next
                said = "; ".join(one.result.errors)
                self.notes.append(f"real model, {column.name}: {one.result.failed} failed, {one.result.chunks} chunks; {said}")
                continue
            rate[column.name] = tokens * STREAMS / one.result.wall
            if column.pid is not None:
                cost[column.name] = one.cpu / (tokens * STREAMS) * 1e6
        self.figures["rate"].append(rate)
        self.figures["cost"].append(cost)

    def _switch(self, folder: Path, ours: Column, model: str) -> None:
        """The first byte of a model that is not loaded while another one is."""
        with engine(folder, folder / "models" / model) as (path, begin):
            ready = time.perf_counter() - begin
            hand = Column("by hand", unix=str(path))
            first = self._loader.run(hand.job(model=model, streams=1, requests=1, chunks=8, numbered=False))
        through = self._loader.run(ours.job(model=model, streams=1, requests=1, chunks=8, numbered=False))
        if first.failed or through.failed:
            self.notes.append(f"switch: {'; '.join(first.errors + through.errors)}")
            return
        self.figures["cold"].append({"direct": ready + first.first_p50 / 1000, "modeld": through.first_p50 / 1000})


def spelled(listed: frozenset[str], model: str) -> str | None:
    """How a peer writes the name of a file: with or without its ending."""
    return next((one for one in (model, model.removesuffix(".gguf")) if one in listed), None)


def rows(figures: Figures, columns: Sequence[str]) -> list[Row]:
    """The figures as rows with their bars."""
    rate, cold = figures["rate"], figures["cold"]
    return [
        Row(
            "real model, 4 streams: tokens/s",
            medians(rate, columns),
            1,
            Bar(0.98, "of direct", at_most=False),
            ratios(rate, "modeld", "direct"),
        ),
        Row("real model, 4 streams: CPU per token, us", medians(figures["cost"], columns), 0),
        Row(
            "first byte of a switch A to B, s (direct: the engine started by hand)",
            medians(cold, columns),
            3,
            Bar(1.15, "x by hand"),
            ratios(cold, "modeld", "direct"),
        ),
    ]
