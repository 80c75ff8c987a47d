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
HEAD = ("MODEL", "STATE", "MIB", "SOURCE", "RUNNING", "WAITING", "PID", "IDLE")
DEVICE_HEAD = ("DEVICE", "MEMORY", "USED", "FREE", "OTHERS", "BUDGET")
CELLS = 32
FILLS = (
    ("committed_mb", "█", "loaded"),
    ("reserved_mb", "▓", "loading"),
    ("releasing_mb", "▒", "coming back"),
    ("barred_mb", "░", "margin and others"),
)
"""What fills the bar of a device, from left to right."""
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
    instances = _objects(answer, "instances")
    rows = [_row(item, now) for item in instances]
    lines.append(client.table(HEAD, rows) if rows else "nothing is loaded")
    lines += [f"{client.plain(item.get('model_id'))} is degraded: {told}" for item in instances if (told := _degraded(item))]
    if devices := [_device(item) for item in _objects(answer, "devices") if "free_mb" in item]:
        legend = ", ".join(f"{fill} {word}" for _, fill, word in FILLS)
        lines += ["", client.table(DEVICE_HEAD, devices), f"({legend}; MiB)"]
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
    counts = [_number(item, key) for key in ("inflight", "queue_len")]
    idle = show_duration(float(max(0, now - used))) if used and now else None
    closed_for = item.get("closed_for")
    state = f"{item.get('state')} for {closed_for}" if closed_for else item.get("state")
    return [item.get("model_id"), state, _number(item, "est_vram_mb"), _source(item), *counts, item.get("pid"), idle]


def _source(item: dict[str, Any]) -> str | None:
    """Where the figure comes from; once it was measured, by how much it was wrong."""
    source, predicted, measured = item.get("source"), _number(item, "predicted_bytes"), item.get("measured_bytes")
    if not isinstance(source, str):
        return None
    return f"{source}, {100 * (measured / predicted - 1):+.1f} %" if isinstance(measured, int) and predicted else source


def _degraded(item: dict[str, Any]) -> str:
    from modeld.cli import client

    found = item.get("degraded")
    return ", ".join(client.plain(one) for one in found) if isinstance(found, list) else ""


def _device(item: dict[str, Any]) -> list[object]:
    budget, free = _number(item, "budget_mb"), item.get("free_mb")
    numbers = [_number(item, "used_mb"), free if isinstance(free, int) else "-", _number(item, "foreign_mb"), budget or "none"]
    room = item.get("room_mb")
    barred = {"barred_mb": max(0, budget - room) if isinstance(room, int) and budget else 0}
    return [item.get("id"), bar(item | barred, budget or _number(item, "total_mb")), *numbers]


def bar(item: dict[str, Any], whole_mb: int) -> str:
    """Who has how much of a device: CELLS characters. What is not nothing shows, as far as there is space."""
    if whole_mb <= 0:
        return "-"
    filled = "".join(fill * max(1, round(CELLS * mb / whole_mb)) for key, fill, _ in FILLS if (mb := _number(item, key)) > 0)
    return filled[:CELLS].ljust(CELLS, "·")


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
