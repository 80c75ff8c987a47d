# SPDX-License-Identifier: GPL-3.0-only
"""`modeld events`: follow what happens; rule: prints what GET /events sends, each event as it comes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlencode

import click

from modeld.cli.operate import complete_model
from modeld.cli.options import client_options, daemon_address


def _events(config: str | None, addr: str | None, as_json: bool, model: str | None, kinds: tuple[str, ...], since: str | None) -> None:
    from modeld.cli import client

    asked = {"model": model, "type": ",".join(kinds) or None, "since": since}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    for data in payloads(client.follow(daemon_address(addr, config), "/events" + (f"?{query}" if query else ""))):
        click.echo(json.dumps(data) if as_json else told(data))


def payloads(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON object of each event. The daemon writes one `data` line for each; comments and other fields are passed over."""
    for line in lines:
        if line.startswith(b"data: "):
            try:
                data = json.loads(line[6:])
            except ValueError:
                continue
            if isinstance(data, dict):
                yield data


def told(data: dict[str, Any]) -> str:
    """One event for people."""
    from modeld.cli import client

    at = time.strftime("%H:%M:%S", time.localtime(data["unix_ms"] / 1000)) if isinstance(data.get("unix_ms"), int) else "        "
    name = data.get("model_id", "")
    match data.get("type"):
        case "hello":
            loaded = [f"{one.get('model_id')} {one.get('state')}" for one in data.get("instances", []) if isinstance(one, dict)]
            what = f"loaded: {', '.join(loaded) or 'nothing'}"
        case "state":
            what = f"{name} {data.get('state')}" + (f": {data['why']}" if data.get("why") else "")
        case "load":
            what = f"{name} loading, {round(100 * float(data.get('progress') or 0))} %"
        case "line":
            what = f"{name}: {data.get('length')} wait"
        case "pin":
            what = f"{name} {'pinned' if data.get('pinned') else 'not pinned'}"
        case "models":
            what = f"{data.get('models')} models in the folder"
        case _:
            what = " ".join(str(part) for part in (data.get("type"), name, data.get("why")) if part)
    return client.plain(f"{at}  {what}")


command = click.Command(
    name="events",
    callback=_events,
    params=[
        *client_options(),
        click.Option(["--model"], shell_complete=complete_model, help="Only events of this model."),
        click.Option(["--type", "kinds"], multiple=True, help="Only this type (state, load, line, pin, dropped, models); repeatable."),
        click.Option(["--since"], metavar="ID", help="Begin with what came after this event."),
    ],
    help="Follow what happens: loads, states, lines, pins.\n\n\b\nmodeld events --type state\nmodeld events --json | jq .",
)
