# SPDX-License-Identifier: GPL-3.0-only
"""`modeld models`: what can be asked for; rule: asks the daemon, or (--offline) looks at the folder itself."""

from __future__ import annotations

import json
from typing import Any

import click

from modeld.cli.options import client_options, daemon_address


def _models(config: str | None, addr: str | None, as_json: bool, offline: bool) -> None:
    from modeld.cli import client
    from modeld.errors import ModeldError

    if offline:
        answer = _on_disk(config)
    else:
        address = daemon_address(addr, config)
        answer = client.get(address, "/models")
        if not isinstance(answer.get("models"), list):
            raise ModeldError(f"what answers at {address} is not modeld")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    if not answer["models"]:
        click.echo("no models; `modeld pull starter` fetches a small one")
        return
    reasons = any(item.get("unavailable") for item in answer["models"])
    head = ["ID", "FAMILY", "QUANT", "NAME", *(["UNAVAILABLE"] if reasons else [])]
    rows = [[item.get(key.lower()) or "" for key in head] for item in answer["models"]]
    click.echo(client.table(head, rows))


def _on_disk(config: str | None) -> dict[str, Any]:
    """The same shape as the daemon's answer, with the reason where a model cannot be served."""
    from modeld.catalog.models import Catalog
    from modeld.config import load

    settings = load({}, config=config).settings
    found = Catalog(settings.models_dir, settings.override_for, None, settings.models).scan()
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    return {
        "models": [
            {"id": spec.id, "name": spec.name, "path": spec.path, "quant": spec.quant, "family": spec.family}
            | ({"unavailable": spec.unavailable} if spec.unavailable else {})
            | ({"aliases": list(spec.aliases)} if spec.aliases else {})
            for spec in found.models.values()
        ]
    }


command = click.Command(
    name="models",
    callback=_models,
    params=[*client_options(), click.Option(["--offline"], is_flag=True, help="Look at the models folder itself; needs no daemon.")],
    help="List the models that can be asked for.",
)
