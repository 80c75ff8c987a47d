# SPDX-License-Identifier: GPL-3.0-only
"""What modeld costs, side by side in one run; rule: it reports what it saw, met or missed, and names the machine.

    python bench/bench.py --model FILE [--peer NAME=URL ...] [--only hop|real] [--quick]

Prints the table, writes bench.json and bench.png. A peer that lists the model `bench-hop` stands in the rows of the hop: let it pass that
name to the engine of this bench (`--engine-port` makes its port one that can be written down). One that lists the model's file, with or
without .gguf, stands in the rows of the real model. Exit code 1 with `--judge` when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import hop
import machine
import picture
import real
from columns import Column, peer
from table import Row, as_data, render


def run(options: argparse.Namespace, peers: list[Column]) -> tuple[list[Row], list[str], list[str]]:
    """Rows, columns, notes."""
    rows: list[Row] = []
    columns = ["direct", "floor", "modeld", *(one.name for one in peers)]
    notes = [f"{one.name}: its process cannot be seen, so its processor time is not told" for one in peers if one.pid is None]
    if options.only != "real":
        amounts = hop.QUICK if options.quick else hop.Amounts()
        if options.rounds:
            amounts = replace(amounts, rounds=options.rounds)
        with hop.all_columns(peers, options.engine_port) as found:
            hops = hop.Hop(found, amounts)
            hops.run()
        rows += hop.rows(hops.figures, columns, amounts.many)
        notes += hops.notes
        notes += [f"{one.name} does not serve {hop.MODEL}: not in the rows of the hop" for one in peers if one not in found]
    if options.only != "hop":
        lengths = real.QUICK if options.quick else real.Lengths()
        if options.rounds:
            lengths = replace(lengths, rounds=options.rounds)
        reals = real.Real(options.model.resolve(), peers, lengths)
        reals.run()
        rows += real.rows(reals.figures, columns)
        notes += reals.notes
        notes += [f"{one.name} does not serve {options.model.name}: not in the rows of it" for one in peers if one.name not in reals.peers]
    return rows, columns, list(dict.fromkeys(notes))


def main() -> None:
    parser = argparse.ArgumentParser(description="What modeld costs, beside direct, a bare relay and whom you name.")
    parser.add_argument("--model", type=Path, help="the GGUF file of the real rows")
    parser.add_argument("--peer", type=str, action="append", default=[], metavar="NAME=URL", help="one more column, running already")
    parser.add_argument("--engine-port", type=int, default=0, help="TCP port of the engine of the hop, for a peer's configuration")
    parser.add_argument("--only", choices=("hop", "real"), help="one half")
    parser.add_argument("--rounds", type=int, default=0, help="rounds to take the median of")
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it works, not how fast")
    parser.add_argument("--judge", action="store_true", help="exit code 1 when a bar is missed")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder of bench.json and bench.png")
    options = parser.parse_args()
    if options.only != "hop" and (options.model is None or not options.model.is_file()):
        parser.error("needs an existing --model, or --only hop")
    try:
        peers = [peer(text) for text in options.peer]
    except ValueError as error:
        parser.error(str(error))
    about = machine.describe()
    rows, columns, notes = run(options, peers)
    print("\n".join(f"{name}: {value}" for name, value in about.items()), end="\n\n")
    print(render(rows, columns))
    print("".join(f"\nnote: {note}" for note in notes))
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"machine": about, "quick": options.quick, "columns": columns, "rows": as_data(rows), "notes": notes}
    (options.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if picture.missing():
        print(picture.missing(), file=sys.stderr)
    else:
        picture.draw(rows, columns, about, options.out / "bench.png")
    missed = [row.name for row in rows if row.met is False]
    print(f"{len(missed)} of {sum(row.met is not None for row in rows)} bars missed{': ' if missed else ''}{'; '.join(missed)}")
    raise SystemExit(1 if missed and options.judge else 0)


if __name__ == "__main__":
    main()
