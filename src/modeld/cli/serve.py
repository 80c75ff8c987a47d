# SPDX-License-Identifier: GPL-3.0-only
"""`modeld serve`, the default verb; rule: settings first, so that a mistake in them costs no engine start."""

from __future__ import annotations

from typing import Any

import click

from modeld.cli.options import SettingsCommand, load_from, settings_options


def _serve(fetch_starter: bool, **given: Any) -> None:
    loaded = load_from(given)
    from modeld.app import serve

    raise click.exceptions.Exit(serve(loaded, fetch_starter=fetch_starter))


command = SettingsCommand(
    name="serve",
    callback=_serve,
    params=[
        *settings_options(),
        click.Option(["--fetch-starter"], is_flag=True, help="First fetch the starter model when the models folder holds no GGUF file."),
    ],
    short_help="Run the daemon.",
    help=(
        "Run the daemon until SIGINT or SIGTERM.\n\nEach setting is a flag, a variable (--max-wait is MODELD_MAX_WAIT) and a key of the "
        "settings file (max_wait); flags win over variables, variables over the file. Lists are comma separated, or the flag repeated. "
        "MB means MiB, and all sizes are binary. Settings of single models (`models`) stand in the file only."
    ),
)
