# SPDX-License-Identifier: GPL-3.0-only
"""`modeld footprints`: what was predicted beside what was measured; rule: prints what GET /footprints says."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from modeld.cli.options import client_options, daemon_address
from modeld.config.values import show_duration

HEAD = ("MODEL", "LAUNCH", "PREDICTED", "SOURCE", "MEASURED", "ERROR", "LOADS", "SEEN")


def _footprints(config: str | None, addr: str | None, as_json: bool, model: str | None) -> None:
    from modeld.cli import client
    from modeld.errors import ModeldError

    address = daemon_address(addr, config)
    answer = client.get(address, "/footprints")
    if not isinstance(answer.get("footprints"), list):
        raise ModeldError(f"what answers at {address} is not modeld, or an older one that learns nothing")
    found = [one for one in answer["footprints"] if isinstance(one, dict) and model in (None, one.get("model_id"))]
    click.echo(json.dumps({"footprints": found}, indent=2) if as_json else as_text(found, time.time()))


def as_text(found: list[dict[str, Any]], unix: float) -> str:
    """A table of what was learned; `unix` is now."""
    from modeld.cli import client

    if not found:
        return "nothing was measured yet: load a model"
    lines = [client.table(HEAD, [_row(one, unix) for one in found])]
    lines += [
        client.plain(f"{one.get('model_id')} ({one.get('launch')}) ran out of memory with less than {client.mib(least)} MiB")
        for one in found
        if (least := _bytes(one, "least_bytes"))
    ]
    return "\n".join(lines)


def _row(one: dict[str, Any], unix: float) -> list[object]:
    from modeld.cli import client

    sizes = [client.mib(size) if (size := _bytes(one, key)) else None for key in ("predicted_bytes", "measured_bytes")]
    error, seen = one.get("error"), _bytes(one, "last_seen_unix")
    off = f"{error:+.1%}" if isinstance(error, (int, float)) else None
    ago = f"{show_duration(float(max(0, int(unix) - seen)))} ago" if seen else "this run"
    return [one.get("model_id"), one.get("launch"), sizes[0], one.get("source"), sizes[1], off, _bytes(one, "loads"), ago]


def _bytes(one: dict[str, Any], key: str) -> int:
    value = one.get(key)
    return int(value) if isinstance(value, (int, float)) else 0


command = click.Command(
    name="footprints",
    callback=_footprints,
    params=[*client_options(), click.Argument(["model"], metavar="[MODEL]", required=False)],
    help="""\
Show what model servers really took beside what was predicted for them, in MiB.

Each line is one way in which a model was launched. The next launch of the same kind is booked with what was MEASURED: the most that was
seen at ready, after the first answer, and later. ERROR is the prediction against the truth: +2.0% means that too much was booked.

\b
modeld footprints
modeld footprints assistant.gguf --json""",
)
