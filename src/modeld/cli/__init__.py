# SPDX-License-Identifier: GPL-3.0-only
"""The command line: `modeld [VERB] [OPTIONS]`, `serve` by default; rule: each verb imports what it needs, and bad input costs one line.

Exit codes: 0 done, 1 it did not work, 2 wrong settings or arguments, 130 interrupted, 141 the reader of the output has gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from modeld.errors import ConfigError, ModeldError

COMPLETION_ENV = "_MODELD_COMPLETE"
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console entry point. Exits, always; without a traceback for whatever the user typed or wrote in a file."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Does what the words say and returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name that is no text must not end the program
    try:
        code = _dispatch(list(argv))
        if sys.stdout is not None:
            sys.stdout.flush()
    except ConfigError as error:
        return _say(f"config error: {error.message}", EXIT_USAGE)
    except ModeldError as error:
        return _say(error.message, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        return EXIT_PIPE
    except OSError as error:  # a full disk under stdout, an address in use, a folder that cannot be made
        _give_up_stdout()
        return _say(str(error), EXIT_FAILED)
    return code


def _give_up_stdout() -> None:
    """The interpreter flushes stdout once more at its end, and would complain (exit code 120) about what cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _dispatch(argv: list[str]) -> int:
    import click

    from modeld.cli.verbs import program, routed

    if instruction := os.environ.get(COMPLETION_ENV):
        from click.shell_completion import shell_complete

        return shell_complete(program, {}, "modeld", COMPLETION_ENV, instruction)
    try:
        with program.make_context("modeld", routed(argv)) as ctx:
            program.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.UsageError as error:
        return _say(_usage(error), EXIT_USAGE)
    except click.ClickException as error:
        return _say(error.format_message(), EXIT_FAILED)
    return 0


def _usage(error: object) -> str:
    """One line for what is wrong with the arguments, with the nearest thing that exists."""
    import click

    if isinstance(error, click.NoSuchOption):
        from modeld.config.values import nearest

        command = error.ctx.command if error.ctx else None
        known = [name for option in (command.params if command else []) for name in (*option.opts, *option.secondary_opts)]
        return f"config error: flag {error.option_name} is not known{nearest(error.option_name, known, '')}"
    if isinstance(error, click.BadOptionUsage):
        wrong = "needs a value" if "requires an argument" in error.message else "takes no value"
        return f"config error: flag {error.option_name} {wrong}"
    return error.format_message() if isinstance(error, click.UsageError) else str(error)


def _say(text: str, code: int) -> int:
    line = " ".join(text.split())
    print(f"modeld: {line}", file=sys.stderr)
    return code
