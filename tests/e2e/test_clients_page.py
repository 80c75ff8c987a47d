# SPDX-License-Identifier: GPL-3.0-only
"""docs/clients.md: its curl examples are run against the real daemon."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from curls import ADDRESS, Example, blocks_of, check
from e2e.daemon import Daemon, link_models, running
from tinymodels import make_embedder

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
CURLS = [example for example in blocks_of(PAGE, "sh") if "curl" in example.command]
DIALECTS = {"/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/api/chat", "/completion"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Iterator[Daemon]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    home = tmp_path_factory.mktemp("home")
    models = link_models(home / "models", starter, "SmolLM2-135M-Instruct.Q4_1.gguf")
    make_embedder(models / "embedder.gguf")
    with running(home, models, "--llama-threads", "1") as one:
        yield one


@pytest.mark.parametrize("example", CURLS, ids=[one.command.partition(ADDRESS)[2].split()[0] for one in CURLS])
def test_a_curl_example_works_as_shown(daemon: Daemon, example: Example) -> None:
    check(example, daemon.port)


def test_each_dialect_has_an_example_with_its_answer() -> None:
    """Guards the test above."""
    assert {path for path in DIALECTS if any(f"{ADDRESS}{path} " in one.command for one in CURLS)} == DIALECTS
    assert [one.command for one in CURLS if not one.expected.strip("… \n")] == []
