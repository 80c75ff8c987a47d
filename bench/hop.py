# SPDX-License-Identifier: GPL-3.0-only
"""The hop alone: the same engine direct, through the floor, through modeld, through peers; rule: columns take turns within each round.

The engine computes nothing, so all that is seen is what lies between. Added times are a column's less the direct ones of the same round.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import machine
from columns import Column, Loader, Measured, daemon, measure, models, script
from engine import MODEL
from table import Bar, Row, differences, medians, ratios

FIRST_BYTE_STREAMS: Final = (1, 16, 64)
CLIENT_SHARE_MAX: Final = 0.7
"""Of a core: a load generator that uses more may be what is measured."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is asked in one round."""

    rounds: int = 5
    firsts: int = 600
    chunks: int = 1000
    shorts: int = 2000
    many: int = 1000
    many_seconds: int = 10
    many_spread: float = 4.0


QUICK: Final = Amounts(rounds=1, firsts=60, chunks=100, shorts=200, many=100, many_seconds=1, many_spread=0.5)

Figures = dict[str, list[dict[str, float]]]
"""What was measured, by name: for each round the figure of each column."""


class Hop:
    """Runs the rounds and keeps the figures."""

    def __init__(self, columns: Sequence[Column], amounts: Amounts) -> None:
        self.columns = list(columns)
        self.amounts = amounts
        self.figures: Figures = defaultdict(list)
        self.notes: list[str] = []
        self._loader = Loader()

    def run(self) -> None:
        for number in range(self.amounts.rounds):
            order = self.columns if number % 2 == 0 else self.columns[::-1]
            for streams in FIRST_BYTE_STREAMS:
                self.first_byte(order, streams)
            self.streaming(order)
            self.short(order, keep=False)
            self.short(order, keep=True)
            print(f"  round {number + 1} of {self.amounts.rounds}", file=sys.stderr, flush=True)
        self.open_streams()
        self._loader.close()

    def first_byte(self, order: Sequence[Column], streams: int) -> None:
        """So many streams at 50 chunks a second each; as one ends the next begins, some 300 a second in all."""
        chunks = max(1, streams // 6)
        p50, p99 = {}, {}
        for column in order:
            job = column.job(
                model=MODEL, streams=streams, requests=max(self.amounts.firsts, streams), chunks=chunks, pace_us=20000, spread=0.02 * chunks
            )
            result = self._ask(f"first byte, {streams} streams", column, job).result
            p50[column.name], p99[column.name] = result.first_p50, result.first_p99
        self.figures[f"first p50 {streams}"].append(p50)
        self.figures[f"first p99 {streams}"].append(p99)

    def streaming(self, order: Sequence[Column]) -> None:
        """64 streams, a chunk each 4 ms: the processor time of the process between, and how late chunks are."""
        cost, delay = {}, {}
        for column in order:
            job = column.job(model=MODEL, streams=64, requests=64, chunks=self.amounts.chunks, pace_us=4000, spread=0.004)
            one = self._ask("64 streams", column, job)
            delay[column.name] = one.result.delay_p99
            if column.pid is not None and one.result.chunks:
                cost[column.name] = one.cpu / one.result.chunks * 1e6
        self.figures["chunk cpu"].append(cost)
        self.figures["chunk p99"].append(delay)

    def short(self, order: Sequence[Column], *, keep: bool) -> None:
        """Whole answers of 300 bytes, 16 asked at a time without a pause."""
        cost, rate = {}, {}
        for column in order:
            job = column.job(model=MODEL, streams=16, requests=self.amounts.shorts, stream=False, keep=keep)
            one = self._ask("short requests, kept" if keep else "short requests", column, job)
            rate[column.name] = one.result.requests / one.result.wall
            if column.pid is not None and one.result.requests:
                cost[column.name] = one.cpu / one.result.requests * 1e6
        kept = " kept" if keep else ""
        self.figures["short cpu" + kept].append(cost)
        self.figures["short rate" + kept].append(rate)

    def open_streams(self) -> None:
        """1,000 streams at 20 chunks a second, once for each column. They begin over a few seconds: how fast is another row."""
        lost, wrong, late, memory, share = {}, {}, {}, {}, {}
        for column in self.columns:
            chunks = 20 * self.amounts.many_seconds
            many, spread = self.amounts.many, self.amounts.many_spread
            job = column.job(model=MODEL, streams=many, requests=many, chunks=chunks, pace_us=50000, spread=spread)
            one = self._ask(f"{many:,} streams", column, job)
            missing = many * chunks - one.result.chunks
            lost[column.name] = float(max(missing, one.result.lost) + one.result.failed)
            wrong[column.name] = float(one.result.reordered)
            late[column.name] = one.result.delay_p99
            if column.pid is not None:
                memory[column.name] = machine.resident_mb(column.pid, peak=True)
                share[column.name] = one.cpu / one.result.wall * 100
        for name, figures in (("lost", lost), ("reordered", wrong), ("late", late), ("memory", memory), ("share", share)):
            self.figures[f"many {name}"].append(figures)

    def _ask(self, what: str, column: Column, job: object) -> Measured:
        one = measure(self._loader, column, job)  # type: ignore[arg-type]
        result = one.result
        if result.errors or result.failed:
            self.notes.append(f"{what}, {column.name}: {result.failed} failed; {'; '.join(result.errors)}")
        busy = result.cpu / result.wall
        if busy > CLIENT_SHARE_MAX:
            self.notes.append(f"{what}, {column.name}: the load generator used {busy * 100:.0f} % of a core and may be the limit")
        return one


def rows(figures: Figures, columns: Sequence[str], many: int) -> list[Row]:
    """The figures as rows with their bars."""
    found = []
    for streams in FIRST_BYTE_STREAMS:
        for share, limit in (("p50", 0.5), ("p99", 5.0)):
            rounds = figures[f"first {share} {streams}"]
            added = {column: differences(rounds, column, "direct") for column in columns if column != "direct"}
            values: dict[str, float | None] = {name: medians([{name: x} for x in one], [name])[name] for name, one in added.items()}
            values |= medians(rounds, ["direct"])
            held = Bar(limit, "ms") if streams == FIRST_BYTE_STREAMS[-1] else None
            label = f"added time to first byte {share}, {streams} stream{'s' if streams > 1 else ''}, ms (direct: all of it)"
            found.append(Row(label, values, 2, held, added.get("modeld", ())))
    cpu, short = figures["chunk cpu"], figures["short cpu"]
    kept = figures["short cpu kept"]
    found += [
        Row("CPU per chunk, 64 streams, us", medians(cpu, columns), 1, Bar(1.5, "x floor", stretch=1.1), ratios(cpu, "modeld", "floor")),
        Row("chunk latency p99, 64 streams at 250/s, ms", medians(figures["chunk p99"], columns)),
        Row("CPU per short request, us", medians(short, columns), 0, Bar(3.0, "x floor"), ratios(short, "modeld", "floor")),
        Row("requests/s, 16 at a time", medians(figures["short rate"], columns), 0),
        Row("CPU per short request, connections kept, us", medians(kept, columns), 0),
        Row("requests/s, 16 at a time, connections kept", medians(figures["short rate kept"], columns), 0),
    ]
    for name, label, limit in (
        ("lost", "chunks lost", 0.0),
        ("reordered", "chunks reordered", 0.0),
        ("memory", "peak RSS of the process between, MiB", 150.0),
    ):
        rounds = figures[f"many {name}"]
        judged = tuple(one["modeld"] for one in rounds if "modeld" in one)
        of = "MiB" if name == "memory" else name
        found.append(Row(f"{many:,} streams x 20/s: {label}", medians(rounds, columns), 0, Bar(limit, of), judged))
    found.append(Row(f"{many:,} streams x 20/s: chunk latency p99, ms", medians(figures["many late"], columns)))
    found.append(Row(f"{many:,} streams x 20/s: share of a core, %", medians(figures["many share"], columns), 0))
    return found


@contextlib.contextmanager
def all_columns(peers: Sequence[Column], engine_port: int) -> Iterator[list[Column]]:
    """Start the engine, the floor and the daemon; peers that serve the engine's model come along."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mb")))
        _, port = stack.enter_context(script("engine.py", str(engine_port)))
        floor_pid, floor_port = stack.enter_context(script("relay_floor.py", str(port)))
        ours = stack.enter_context(daemon(folder, "--llama-url", f"http://127.0.0.1:{port}"))
        able = [peer for peer in peers if MODEL in models(peer)]
        yield [Column("direct", port=port), Column("floor", port=floor_port, pid=floor_pid), ours, *able]
