# SPDX-License-Identifier: GPL-3.0-only
"""Flags made from the table of settings; rule: no flag is written down twice, and values stay text until the settings parse them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from modeld.config.declaration import Setting
from modeld.config.describe import default_text
from modeld.config.load import Loaded, flag_values, load, parse_flag
from modeld.config.settings import GROUPS, TABLE
from modeld.config.values import ListenAddress


class SettingsCommand(click.Command):
    """A command whose --help shows the settings by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                rows = groups[TABLE[param.name].group] if param.name in TABLE else own
                rows.append(record)
        for title, rows in {"Options": own, **groups}.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=34)


def config_option() -> click.Option:
    """--config"""
    text = "Settings file, .yaml, .toml or .json; `none` reads none.  [default: MODELD_CONFIG, else $XDG_CONFIG_HOME/modeld/config.yaml]"
    return click.Option(["--config"], metavar="FILE", help=text, shell_complete=_files)


def settings_options() -> list[click.Parameter]:
    """--config, and a flag for each setting."""
    return [config_option(), *(_option(declared) for declared in TABLE.values())]


def _option(declared: Setting) -> click.Option:
    text = f"{declared.help[0].upper()}{declared.help[1:]}.  [default: {default_text(declared)}]"
    if declared.kind.is_bool:
        off = "--no-" + declared.flag[2:]
        return click.Option([declared.key, f"{declared.flag}/{off}"], default=None, help=text)
    metavar = "|".join(declared.kind.choices) or declared.kind.name.split(" or ")[0].upper()
    if len(metavar) > 24:
        metavar = "TYPE"
        if not all(word in declared.help for word in declared.kind.choices):
            text = text.replace(".  [", f": {', '.join(declared.kind.choices)}.  [", 1)
    return click.Option(
        [declared.key, declared.flag], metavar=metavar, multiple=True, type=click.STRING, help=text, shell_complete=_completer(declared)
    )


def _files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def _completer(declared: Setting) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if declared.kind.is_path:
            return _files(ctx, param, incomplete)
        return [CompletionItem(word) for word in declared.kind.choices if word.startswith(incomplete)]

    return complete


def load_from(given: Mapping[str, Any]) -> Loaded:
    """The settings, with the flags that click collected. Raises ConfigError."""
    flags = {key: (value if TABLE[key].kind.is_bool else flag_values(key, value)) for key, value in given.items() if key in TABLE}
    return load(flags, config=given.get("config"))


def client_options() -> list[click.Parameter]:
    """What the clients of the daemon take: its address, and the file to find it in."""
    return [
        config_option(),
        click.Option(["--addr"], metavar="ADDRESS", help="Where the daemon listens.  [default: the setting addr]"),
        click.Option(["as_json", "--json"], is_flag=True, help="Print the daemon's answer as JSON."),
    ]


def daemon_address(addr: str | None, config: str | None) -> ListenAddress:
    """Where the daemon is: --addr alone, so that a broken file does not hide it, else the settings. Raises ConfigError."""
    if addr is not None:
        parsed: ListenAddress = parse_flag("addr", addr)
        return parsed
    return load({}, config=config).settings.addr
