# SPDX-License-Identifier: GPL-3.0-only
"""Asks llama.cpp from the command line; rule: no answer is no error, the formula stands and a note says why."""

from __future__ import annotations

from modeld.core.footprint import Known
from modeld.core.model import ModelSpec


def ask(spec: ModelSpec) -> tuple[Known, str]:
    """What is known of such a launch once llama.cpp was asked, and a note when it gave no answer."""
    import asyncio
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    from modeld.core.footprint import probe_key
    from modeld.errors import ModeldError
    from modeld.runtime.probe import Prober

    known, key = Known(), probe_key(spec)
    if not key:
        return known, "llama.cpp was not asked: the header does not say enough; the formula stands"
    here = replace(spec, path=str(Path(spec.path).absolute()))  # the child works in a folder of its own
    with tempfile.TemporaryDirectory(prefix="modeld-probe-", ignore_cleanup_errors=True) as folder:
        try:
            known.probes[key] = asyncio.run(Prober(Path(folder)).ask(here))
        except ModeldError as error:
            return known, f"{error.message.rstrip('.')}; the formula stands"
    return known, ""
