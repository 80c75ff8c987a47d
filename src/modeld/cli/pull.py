# SPDX-License-Identifier: GPL-3.0-only
"""`modeld pull`: fetch a model file into the models folder; rule: only files we know by checksum."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from modeld.cli.options import config_option
from modeld.config.load import load, parse_flag


def _pull(name: str, config: str | None, models_dir: str | None, force: bool) -> None:
    from modeld.catalog.progress import ConsoleProgress
    from modeld.catalog.starter import STARTERS, fetch_starter

    if name.lower() not in STARTERS:
        from modeld.config.values import nearest, quoted

        known = tuple(STARTERS)
        raise click.UsageError(f"{quoted(name)} is not a model modeld can fetch{nearest(name, known)}; it knows {', '.join(known)}")
    folder: Path = parse_flag("models_dir", models_dir) if models_dir is not None else load({}, config=config).settings.models_dir
    display = ConsoleProgress(sys.stderr)
    try:
        path = fetch_starter(folder, name=name, force=force, progress=display)
    finally:
        display.close()
    click.echo(path)


command = click.Command(
    name="pull",
    callback=_pull,
    params=[
        click.Argument(["name"], default="starter"),
        config_option(),
        click.Option(["--models-dir"], metavar="PATH", help="Where to put it.  [default: the setting models_dir]"),
        click.Option(["--force"], is_flag=True, help="Fetch it even when it is there."),
    ],
    help="Fetch a model file: shows progress, checks it, leaves no half file.\n\nNAME is `starter`: SmolLM2-135M-Instruct, 98 MB.",
)
