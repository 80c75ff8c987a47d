# SPDX-License-Identifier: GPL-3.0-only
"""`modeld completion`; rule: prints a script, installs nothing."""

from __future__ import annotations

import os
from pathlib import PurePath

import click

from modeld.cli import COMPLETION_ENV

SHELLS = ("bash", "zsh", "fish")


def _completion(shell: str | None) -> None:
    from click.shell_completion import ShellComplete, get_completion_class

    from modeld.cli.verbs import program

    wanted = shell or PurePath(os.environ.get("SHELL", "")).name
    kind = get_completion_class(wanted) if wanted in SHELLS else None
    if kind is None:
        raise click.UsageError(f"name a shell: modeld completion {'|'.join(SHELLS)}")
    # The plain method: bash's own would start a bash first, only to look at its version.
    click.echo(ShellComplete.source(kind(program, {}, "modeld", COMPLETION_ENV)))


command = click.Command(
    name="completion",
    callback=_completion,
    params=[click.Argument(["shell"], required=False)],
    help=(
        "Print the completion script of bash, zsh or fish (default: your $SHELL).\n\n\b\n"
        'bash:  eval "$(modeld completion bash)"    in ~/.bashrc\n'
        'zsh:   eval "$(modeld completion zsh)"     in ~/.zshrc\n'
        "fish:  modeld completion fish > ~/.config/fish/completions/modeld.fish"
    ),
)
