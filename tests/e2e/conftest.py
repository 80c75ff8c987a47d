# SPDX-License-Identifier: GPL-3.0-only
"""One daemon for all tests that only look, and the starter model for those that need their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.daemon import Daemon, link_models, running
from e2e.toolmodel import write_tool_model
from tinymodels import make_embedder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "e2e":
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def starter() -> Path:
    path = os.environ.get("MODELD_TEST_STARTER")
    if not path:
        pytest.skip("set MODELD_TEST_STARTER to the starter model's file; `make e2e-py` does")
    return Path(path)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Iterator[Daemon]:
    """Models a, b and c, no budget."""
    home = tmp_path_factory.mktemp("home")
    models = link_models(home / "models", starter, "a.gguf", "b.gguf", "c.gguf")
    with running(home, models) as one:
        yield one


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Path:
    """The starter with a chat template that knows tools."""
    return write_tool_model(starter, tmp_path_factory.mktemp("toolmodel") / "tools.gguf")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, starter: Path, tool_model: Path) -> Iterator[Daemon]:
    """What the tests of clients speak to. Bodies up to 512 KiB.

    The model a writes, tools can be made to call a function, embedder embeds.

    One thread computes: of several, each waits for all at every layer, which on a busy machine takes many times as long.
    """
    home = tmp_path_factory.mktemp("home")
    models = link_models(home / "models", starter, "a.gguf")
    link_models(models, tool_model, "tools.gguf")
    make_embedder(models / "embedder.gguf")
    with running(home, models, "--llama-threads", "1", "--max-api-body-bytes", "512KiB", "--max-body-bytes", "512KiB") as one:
        yield one
