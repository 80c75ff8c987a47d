# SPDX-License-Identifier: GPL-3.0-only
"""`modeld version`; rule: reads package metadata, loads no engine."""

from __future__ import annotations

import click

from modeld import __version__


def lines() -> list[str]:
    """modeld, Python and the embedded engine, one a line."""
    import platform
    from importlib import metadata

    try:
        engine = metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        engine = "not installed"
    return [f"modeld {__version__}", f"python {platform.python_version()}", f"xllamacpp {engine}"]


command = click.Command(name="version", callback=lambda: click.echo("\n".join(lines())), help="Print the versions.")
