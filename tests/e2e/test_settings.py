# SPDX-License-Identifier: GPL-3.0-only
"""What only the models on disk can tell of the settings: it ends the start like any other mistake in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from e2e.daemon import PATIENCE_SECONDS, Daemon, link_models, running


def write(folder: Path, budget_mb: int, models: dict[str, Any], **more: Any) -> str:
    path = folder / "c.json"
    path.write_text(json.dumps({"vram_budget_mb": budget_mb, "models": models} | more))
    return str(path)


def test_pins_that_do_not_fit_together_end_the_start_with_their_sum(tmp_path: Path, starter: Path):
    models = link_models(tmp_path / "models", starter, "a.gguf", "b.gguf", "c.gguf")
    pins = {"a": {"pinned": True, "llama_ctx": 2048}, "b.gguf": {"pinned": True, "vram_mb": 300}, "c": {"vram_mb": 100}}
    daemon = Daemon(tmp_path, models, "--config", write(tmp_path, 510, pins, vram_margin_mb=10))
    try:
        assert daemon.process.wait(PATIENCE_SECONDS) == 2
    finally:
        daemon.process.kill()
        daemon.process.wait(PATIENCE_SECONDS)
    found = re.fullmatch(
        r"modeld: config error: the pinned models need (\d+) MiB together \(a\.gguf (\d+) MiB, b\.gguf 300 MiB\), "
        r"more than vram_budget_mb - vram_margin_mb = 500; unpin one or raise the budget",
        daemon.log.splitlines()[-1],
    )
    assert found is not None, daemon.log
    assert int(found[1]) == int(found[2]) + 300 > 500
    assert "Traceback" not in daemon.log


def test_pins_that_fit_are_no_mistake_and_unavailable_ones_take_nothing(tmp_path: Path, starter: Path):
    models = link_models(tmp_path / "models", starter, "a.gguf", "b.gguf")
    (models / "broken.gguf").write_bytes(b"GGUF")
    pins = {"a": {"pinned": True, "vram_mb": 400}, "b": {"pinned": True, "vram_mb": 500}, "broken": {"pinned": True}}
    with running(tmp_path, models, "--config", write(tmp_path, 900, pins)) as one:
        assert one.infer("a.gguf").status == 200
        assert one.infer("b.gguf").status == 200
