# SPDX-License-Identifier: GPL-3.0-only
"""`modeld plan [MODEL…]`: what fits together, and who would go for whom; rule: the daemon's own arithmetic, asked, or run here without one.

With no daemon the same scheduler is made of settings and models folder, as if nothing were loaded.
"""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from modeld.cli.operate import complete_model
from modeld.cli.options import client_options, daemon_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modeld.config import Settings

BAR_CELLS = 60
HEAD = ("MODEL", "MiB", "SOURCE", "CTX", "AT MOST", "BESIDE", "TRAINED", "VERDICT")
FREE, MORE = "·", "+"
"""Cells of a device's bar that belong to nobody, and to models past the alphabet."""


def _plan(config: str | None, addr: str | None, as_json: bool, offline: bool, models: tuple[str, ...]) -> None:
    from modeld.cli import client
    from modeld.config import load
    from modeld.errors import ModeldError

    if offline:
        answer = without_daemon(load({}, config=config).settings, models)
    else:
        address = daemon_address(addr, config)
        try:
            answer = client.get(address, "/plan" + (f"?{urlencode([('model', name) for name in models])}" if models else ""))
        except client.NoDaemon:
            click.echo(f"modeld: no daemon at {address}: as if nothing were loaded", err=True)
            answer = without_daemon(load({}, config=config).settings, models)
        if not isinstance(answer.get("models"), list) or not isinstance(answer.get("devices"), list):
            raise ModeldError(f"what answers at {address} is not modeld, or an older one that cannot plan")
    click.echo(json.dumps(answer, indent=2) if as_json else as_text(answer))


def without_daemon(settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """The answer of GET /plan of a daemon with these settings that has loaded nothing. Raises UnknownModel, ConfigError."""
    import asyncio

    import msgspec

    from modeld.api.plans import as_plan
    from modeld.app import find_limits
    from modeld.catalog.models import Catalog
    from modeld.core.scheduler import Scheduler

    found = Catalog(settings.models_dir, settings.override_for, None, settings.models).scan()
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    scheduler = Scheduler(asyncio.run(find_limits(settings)), found.models)
    answer: dict[str, Any] = msgspec.to_builtins(as_plan(scheduler.what_if([found.resolve(name) for name in names], 0.0)))
    return answer


def as_text(answer: dict[str, Any]) -> str:
    """The answer for people: a line for each model, what that means, and a bar for each device."""
    from modeld.cli import client

    models = [one for one in answer["models"] if isinstance(one, dict)]
    if not models:
        return "no models; `modeld pull starter` fetches a small one"
    lines = [client.table(HEAD, [_row(one) for one in models]), ""]
    lines += [client.plain(f"{one.get('model_id')}: {one.get('why')}") for one in models]
    lines += ["", client.plain(_together(answer, models))]
    for device in answer["devices"]:
        lines += ["", *device_lines(device)]
    return "\n".join(lines)


def device_lines(device: dict[str, Any]) -> list[str]:
    """One device: its name, a bar in which each model has a letter, and what the letters mean."""
    from modeld.cli import client

    held = {str(model): int(mb) for model, mb in dict(device.get("held_mb") or {}).items()}
    used, budget, room = sum(held.values()), int(device.get("budget_mb") or 0), device.get("room_mb")
    foreign = int(device.get("foreign_mb") or 0)
    if room is None:
        head = f"{device.get('id')}: {used} MiB, no budget"
    else:
        head = f"{device.get('id')}: {used} of {room} MiB" + (f" (budget {budget})" if budget != room else "")
        head += f", {used - room} MiB too much" if used > room else f", {room - used} MiB free"
    letters = [*string.ascii_uppercase, *[MORE] * len(held)]
    shown = list(zip(letters, held.items(), strict=False))
    lines = [client.plain(head)]
    if room is not None:
        whole = max(room, used)
        cells = "".join(letter * max(1, round(BAR_CELLS * mb / whole)) for letter, (_, mb) in shown)[:BAR_CELLS] if whole else ""
        lines.append(f"  [{cells.ljust(BAR_CELLS, FREE)}]")
    lines += [client.plain(f"  {letter} {model} {mb} MiB") for letter, (model, mb) in shown]
    return lines + ([f"  other programs hold {foreign} MiB of the device"] if foreign else [])


def _row(one: dict[str, Any]) -> list[object]:
    told = one.get("verdict") in ("unknown", "unavailable", "external")
    numbers = [None if told else int(one.get(key) or 0) for key in ("ctx", "ctx_alone", "ctx_beside", "ctx_train")]
    return [one.get("model_id"), None if told else one.get("need_mb"), one.get("source") or None, *numbers, one.get("verdict")]


def _together(answer: dict[str, Any], models: list[dict[str, Any]]) -> str:
    """One sentence about all of them."""
    together = [str(one) for one in answer.get("together") or ()]
    if answer.get("named"):
        if answer.get("fits"):
            return "they fit together" if len(models) > 1 else "it fits"
        rest = [str(one.get("model_id")) for one in models if one.get("model_id") not in together]
        return f"they do not fit together: no room for {', '.join(rest)}" if len(models) > 1 else "it does not fit"
    if len(together) == len(models):
        return "all of them fit together"
    return f"{len(together)} of {len(models)} fit together: {', '.join(together) or 'none'}"


command = click.Command(
    name="plan",
    callback=_plan,
    params=[
        *client_options(),
        click.Option(["--offline"], is_flag=True, help="Ask no daemon: as if nothing were loaded."),
        click.Argument(["models"], metavar="[MODEL...]", nargs=-1, shell_complete=complete_model),
    ],
    help="""\
Say what fits together in the budget, and what would be evicted for what. Loads and evicts nothing.

Named models are taken one after the other, as if they were asked for and all of them should stay. Without names each model is taken for
itself. AT MOST is the largest context that fits when everything that may be evicted is; BESIDE the largest without an eviction.
Without a daemon the answer is that of one that has loaded nothing.

\b
modeld plan
modeld plan assistant coder
modeld plan assistant --json | jq '.models[0].parts'

\b
Verdicts:
  loaded     it is there already
  fits       into what is free; soon: once memory that is on its way back is free
  evicts     idle models would go for it
  waits      it would wait for answers or loads of others
  no_room    not beside what is loaded or was named before it
  too_large  more than the devices have, or than pinned models leave""",
)
