# SPDX-License-Identifier: GPL-3.0-only
"""`modeld config`: show, check, schema, reference; rule: talks to no daemon and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import click

from modeld.cli.options import SettingsCommand, load_from, settings_options
from modeld.config import describe


def _show(as_json: bool, **given: Any) -> None:
    loaded = load_from(given)
    click.echo(json.dumps(describe.show_data(loaded), indent=2) + "\n" if as_json else describe.show_text(loaded), nl=False)


def _check(**given: Any) -> None:
    loaded = load_from(given)
    click.echo(f"settings are fine ({f'file {loaded.file}' if loaded.file else 'no file'})")


class Verbs(click.Group):
    """Says in one line which verb was meant; without one, shows the help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            from modeld.config.values import nearest, quoted

            raise click.UsageError(
                f"config {quoted(args[0])} is not a verb{nearest(args[0], list(self.commands))}  (modeld config --help lists all)"
            )
        return super().resolve_command(ctx, args)


show = SettingsCommand(
    name="show",
    callback=_show,
    params=[*settings_options(), click.Option(["as_json", "--json"], is_flag=True, help="Print JSON.")],
    help="Print each effective setting and where it came from: flag, environment variable, file or default. Secrets are masked.",
)
check = SettingsCommand(
    name="check",
    callback=_check,
    params=settings_options(),
    help="Check flags, variables and file without starting anything. Exit code 2 and one line when something is wrong.",
)
schema = click.Command(
    name="schema",
    callback=lambda: click.echo(json.dumps(describe.schema(), indent=2)),
    help="Print a JSON Schema of the settings file, for editors.",
)
reference = click.Command(
    name="reference", callback=lambda: click.echo(describe.reference(), nl=False), help="Print all settings as Markdown tables."
)

command = Verbs(name="config", commands=[show, check, schema, reference], help="Show, check and describe the settings.")
