# SPDX-License-Identifier: GPL-3.0-only
"""The tree of verbs; rule: a verb's module is imported when the verb is used, and words that are no verb mean `serve` or a mistake."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import click

# verb -> (module, one line of help); the module holds a click command called `command`, or several in `commands`
VERBS = {
    "serve": ("modeld.cli.serve", "Run the daemon. What modeld does without a verb."),
    "pull": ("modeld.cli.pull", "Fetch a model file: `modeld pull starter`."),
    "models": ("modeld.cli.models", "List the models of the running daemon, or (--offline) of the folder."),
    "status": ("modeld.cli.status", "Show what is loaded, who waits, and the memory."),
    "why": ("modeld.cli.why", "Say why a model is loaded or not, and why requests wait."),
    "load": ("modeld.cli.operate", "Load a model before anybody asks for it."),
    "unload": ("modeld.cli.operate", "Unload a model."),
    "pin": ("modeld.cli.operate", "Keep a model from eviction."),
    "unpin": ("modeld.cli.operate", "Let a pinned model be evicted again."),
    "events": ("modeld.cli.events", "Follow what happens: loads, states, lines."),
    "inspect": ("modeld.cli.inspect", "Say what a model file is and what it costs, part by part."),
    "plan": ("modeld.cli.plan", "Say what fits together, and what would be evicted for what."),
    "footprints": ("modeld.cli.footprints", "Show what models really took, beside what was predicted."),
    "config": ("modeld.cli.config", "Show, check and describe the settings."),
    "simulate": ("modeld.cli.simulate", "Compare scheduling policies on a recorded or shipped workload."),
    "completion": ("modeld.cli.completion", "Print the completion script of a shell."),
    "version": ("modeld.cli.version", "Print the versions of modeld, Python and the engine."),
}

EXAMPLES = """\
\b
Examples:
  modeld pull starter            fetch a small model into ~/models/llm
  modeld                         serve every model there at :8080
  modeld --addr 127.0.0.1:9000 --vram-budget-mb 16000
  modeld status                  what is loaded right now
  modeld why                     why things wait
  modeld inspect model.gguf      what a file is, and what it would cost
  modeld plan                    what fits together in the budget
  modeld config show             every setting, and where it came from
"""

SETTINGS_HINT = """\
\b
Settings are flags (--max-wait 1m), variables (MODELD_MAX_WAIT=1m) or keys of a
YAML, JSON or TOML file (max_wait: 1m); the first of these wins. The file is the
one --config or MODELD_CONFIG names, else ~/.config/modeld/config.yaml.
`modeld serve --help` explains every setting.
"""


class Program(click.Group):
    """The verbs, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = import_module(VERBS[cmd_name][0])
        command = module.commands[cmd_name] if hasattr(module, "commands") else module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


def routed(argv: Sequence[str]) -> list[str]:
    """The words with the verb in front: `--addr :9000` is `serve --addr :9000`. Raises UsageError for a word that is no verb."""
    if argv and argv[0] in ("-h", "--help", "--version"):
        return list(argv)
    if not argv or argv[0].startswith("-"):
        return ["serve", *argv]
    if argv[0] not in VERBS:
        from modeld.config.values import nearest, quoted

        raise click.UsageError(f"{quoted(argv[0])} is not a verb{nearest(argv[0], list(VERBS))}  (modeld --help lists all)")
    return list(argv)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from modeld.cli.version import lines

        click.echo("\n".join(lines()))
        ctx.exit()


program = Program(
    name="modeld",
    help=f"Serve every GGUF model of a folder at one address, inside a memory budget.\n\n{EXAMPLES}\n{SETTINGS_HINT}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    params=[click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the versions.")],
    subcommand_metavar="[VERB] [OPTIONS]",
)
