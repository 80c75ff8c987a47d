# SPDX-License-Identifier: GPL-3.0-only
"""`modeld load`, `unload`, `pin` and `unpin`: the operator's verbs; rule: one request to the daemon, which decides all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote

import click
from click.shell_completion import CompletionItem

from modeld.cli.options import client_options, daemon_address

_DONE = {
    "load": "{model} is {state}",
    "unload": "{model} is {state}",
    "pin": "{model} is pinned ({state})",
    "unpin": "{model} is not pinned ({state})",
}
_HELP = {
    "load": """\
Load a model before anybody asks for it, and wait until it is ready.

It takes room from idle models only, and waits for it like any request. Ctrl-C stops the waiting, not the load.

\b
modeld load assistant
modeld load assistant --no-wait""",
    "unload": """\
Unload a model, and wait until its memory is free.

Running answers end first, for at most drain_timeout. Requests that wait for it load it again.

\b
modeld unload assistant""",
    "pin": """\
Keep a model from eviction until it is unpinned or the daemon ends; a pin in the settings file lasts.

It is not loaded by that, and refused where the pinned models would not fit together.

\b
modeld pin assistant && modeld load assistant""",
    "unpin": """\
Let a model be evicted again, also one that the settings file pins, until the daemon ends.

\b
modeld unpin assistant""",
}


def _does(verb: str) -> Callable[..., None]:
    def run(config: str | None, addr: str | None, as_json: bool, model: str, wait: bool = True) -> None:
        from modeld.cli import client

        address = daemon_address(addr, config)
        path = f"/models/{quote(model, safe='')}/{verb}" + ("" if wait else "?wait=0")
        answer = client.post(address, path)
        if as_json:
            click.echo(json.dumps(answer, indent=2))
        else:
            click.echo(_DONE[verb].format(model=client.plain(answer.get("model_id", model)), state=client.plain(answer.get("state", "?"))))

    return run


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names that the running daemon knows; none when there is no daemon."""
    from modeld.cli import client
    from modeld.errors import ModeldError

    try:
        listed = client.get(daemon_address(ctx.params.get("addr"), ctx.params.get("config")), "/models")
    except ModeldError:
        return []
    models = [item for item in listed.get("models", []) if isinstance(item, dict)]
    names = [str(name) for item in models for name in (item.get("id"), *item.get("aliases", []))]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _command(verb: str) -> click.Command:
    waits = [click.Option(["--wait/--no-wait"], default=True, help="Wait until it is done (default), or only ask for it.")]
    return click.Command(
        name=verb,
        callback=_does(verb),
        params=[
            click.Argument(["model"], shell_complete=complete_model),
            *client_options(),
            *(waits if verb in ("load", "unload") else []),
        ],
        help=_HELP[verb],
    )


commands = {verb: _command(verb) for verb in _DONE}
