# SPDX-License-Identifier: GPL-3.0-only
"""Fixtures for what listens on a Unix socket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: below pytest's own, a socket path may be too long for an address, and the children's folder then lies elsewhere."""
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        yield Path(name)
