# SPDX-License-Identifier: GPL-3.0-only
"""`modeld status`: what is loaded, who waits, how much memory; rule: prints what GET /status says, and decides nothing."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from modeld.cli.options import client_options, daemon_address
from modeld.config.values import show_duration

WATCH_SECONDS = 2.0
HEAD = ("MODEL", "STATE", "MIB", "RUNNING", "WAITING", "PID", "IDLE")


def _status(config: str | None, addr: str | None, as_json: bool, watch: bool) -> None:
    from modeld.cli import client
    from modeld.errors import ModeldError

    address = daemon_address(addr, config)
    while True:
        answer = client.get(address, "/status")
        if not isinstance(answer.get("instances"), list):
            raise ModeldError(f"what answers at {address} is not modeld")
        text = json.dumps(answer, indent=None if watch else 2) if as_json else summary(str(address), answer)
        if watch and not as_json:
            click.clear()
        click.echo(text)
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def summary(address: str, answer: dict[str, Any]) -> str:
    """The daemon's answer for people."""
    from modeld.cli import client

    budget, margin = _number(answer, "budget_mb"), _number(answer, "margin_mb")
    room = f"of {budget} MiB" + (f", {margin} of them kept free" if margin else "") if budget else "MiB, no budget"
    state, uptime = client.plain(answer.get("state", "unknown")), show_duration(float(_number(answer, "uptime_seconds")))
    loads, evictions = _number(answer, "loads_total"), _number(answer, "evictions_total")
    lines = [
        f"modeld at {address}: {state}, up {uptime}",
        f"memory: {_number(answer, 'used_est_mb')} {room}; loads: {loads}; evictions: {evictions}",
    ]
    lines += [f"{key.replace('_', ' ')}: {client.plain(answer[key])}" for key in ("error", "last_error") if answer.get(key)]
    now = _number(answer, "server_time_unix")
    rows = [_row(item, now) for item in answer["instances"] if isinstance(item, dict)]
    return "\n".join([*lines, client.table(HEAD, rows) if rows else "nothing is loaded"])


def _row(item: dict[str, Any], now: int) -> list[object]:
    used = _number(item, "last_used_unix")
    counts = [_number(item, key) for key in ("est_vram_mb", "inflight", "queue_len")]
    idle = show_duration(float(max(0, now - used))) if used and now else None
    return [item.get("model_id"), item.get("state"), *counts, item.get("pid"), idle]


def _number(item: dict[str, Any], key: str) -> int:
    value = item.get(key)
    return int(value) if isinstance(value, (int, float)) else 0


command = click.Command(
    name="status",
    callback=_status,
    params=[*client_options(), click.Option(["--watch"], is_flag=True, help=f"Repeat every {WATCH_SECONDS:g} s, until interrupted.")],
    help="Show what is loaded, who waits, and the memory.",
)
