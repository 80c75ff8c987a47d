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
LINE_HEAD = ("WAITING FOR", "REQUESTS", "CLASSES", "OLDEST", "ROOM", "ESTIMATE")


def _status(config: str | None, addr: str | None, as_json: bool, watch: bool, exits: bool) -> None:
    from modeld.cli import client
    from modeld.errors import ModeldError

    address = daemon_address(addr, config)
    while True:
        answer = client.get(address, "/status")
        if not isinstance(answer.get("instances"), list):
            raise ModeldError(f"what answers at {address} is not modeld")
        text = json.dumps(answer, indent=None if watch else 2) if as_json else summary(str(address), answer)
        if exits and not as_json:
            text = endings(answer)
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
    engine = answer.get("engine")
    if isinstance(engine, dict):
        lines.insert(1, f"engine: {client.plain(engine.get('adapter', '?'))}, {client.plain(engine.get('build', '?'))}")
    now = _number(answer, "server_time_unix")
    rows = [_row(item, now) for item in _objects(answer, "instances")]
    lines.append(client.table(HEAD, rows) if rows else "nothing is loaded")
    if waits := [_line(item) for item in _objects(answer, "queues")]:
        lines += ["", client.table(LINE_HEAD, waits)]
    return "\n".join(lines)


def endings(answer: dict[str, Any]) -> str:
    """How the last model servers ended, oldest first, each with the last lines of its log."""
    from modeld.cli import client

    now = _number(answer, "server_time_unix")
    lines: list[str] = []
    for item in _objects(answer, "exits"):
        code = item.get("code")
        ago = show_duration(float(max(0, now - _number(item, "unix"))))
        lines.append(f"{client.plain(item.get('model_id', '?'))}, {ago} ago: {client.plain(item.get('reason', ''))} (exit code {code})")
        tail = item.get("log_tail")
        lines += [f"    {client.plain(line)}" for line in (tail if isinstance(tail, list) else [])]
    return "\n".join(lines) or "no model server has ended yet"


def _objects(answer: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = answer.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _line(item: dict[str, Any]) -> list[object]:
    """Who waits for a model: how many, for how long, when room is made for it, and how long one more would wait."""
    by_class = item.get("by_class")
    classes = ", ".join(f"{count} {name}" for name, count in by_class.items()) if isinstance(by_class, dict) else None
    due = item.get("due_in_seconds")
    room = "-" if not isinstance(due, (int, float)) else f"due in {_seconds(due)}" if due > 0 else "due"
    told = [_seconds(item.get(key)) for key in ("oldest_wait_seconds", "estimate_seconds")]
    return [item.get("model_id"), _number(item, "length"), classes or None, told[0], room, told[1]]


def _seconds(value: object) -> str | None:
    return f"{value:.1f} s" if isinstance(value, (int, float)) else None


def _row(item: dict[str, Any], now: int) -> list[object]:
    used = _number(item, "last_used_unix")
    counts = [_number(item, key) for key in ("est_vram_mb", "inflight", "queue_len")]
    idle = show_duration(float(max(0, now - used))) if used and now else None
    closed_for = item.get("closed_for")
    state = f"{item.get('state')} for {closed_for}" if closed_for else item.get("state")
    return [item.get("model_id"), state, *counts, item.get("pid"), idle]


def _number(item: dict[str, Any], key: str) -> int:
    value = item.get(key)
    return int(value) if isinstance(value, (int, float)) else 0


command = click.Command(
    name="status",
    callback=_status,
    params=[
        *client_options(),
        click.Option(["--watch"], is_flag=True, help=f"Repeat every {WATCH_SECONDS:g} s, until interrupted."),
        click.Option(["--exits"], is_flag=True, help="Show instead how the last model servers ended, with the last lines of their logs."),
    ],
    help="Show what is loaded, who waits, and the memory.",
)
