# SPDX-License-Identifier: GPL-3.0-only
"""What a daemon makes of the memory there is: auto, the most context that fits, and less where the operator lets it go."""

from __future__ import annotations

import json
import re
from pathlib import Path

from e2e.daemon import PATIENCE_SECONDS, Daemon, eventually, link_models, running
from modeld.core.budget import host_margin_mb
from modeld.runtime.hostmemory import read_host_memory


def test_without_a_word_the_budget_is_what_the_machine_has(tmp_path: Path, starter: Path):
    total_mb = read_host_memory().total_mb
    with running(tmp_path, link_models(tmp_path / "models", starter, "a.gguf"), "--llama-ctx", "max:2048") as one:
        assert one.infer("a.gguf", max_tokens=1).status == 200
        status = one.status()
        assert (status["budget_mb"], status["margin_mb"]) == (total_mb, host_margin_mb(total_mb))
        [device] = status["devices"]
        assert device["id"] == "local/all"
        assert 0 < device["used_mb"] == device["committed_mb"] < device["room_mb"] <= total_mb - status["margin_mb"]
        eventually(lambda: one.status()["devices"][0]["total_mb"] == total_mb, "the machine was looked at")
        assert one.metric('modeld_memory_budget_bytes{device="local/all"}') == total_mb << 20
        [instance] = status["instances"]
        assert (instance["ctx"], instance["degraded"]) == (2048, [])
        assert sum(part["bytes"] for part in instance["parts"]) == instance["predicted_bytes"]


def test_what_may_be_given_up_is_and_every_answer_says_so(tmp_path: Path, starter: Path):
    models = link_models(tmp_path / "models", starter, "a.gguf", "b.gguf", "c.gguf")
    config = tmp_path / "c.json"
    small = {"b": {"degrade": "none", "llama_ctx": "max"}, "c": {"degrade": []}}
    config.write_text(json.dumps({"vram_budget_mb": 240, "llama_ctx": 8192, "degrade": ["ctx"], "models": small}))
    with running(tmp_path, models, "--config", str(config)) as one:
        told = one.infer("a.gguf", max_tokens=1).headers["x-modeld-degraded"]
        found = re.fullmatch(r"llama_ctx 8192 -> (2048|4096)", told)
        assert found is not None, told
        for path in ("/infer", "/v1/completions"):
            answer = one.ask("POST", path, {"model": "a", "prompt": "x", "max_tokens": 1})
            assert (answer.status, answer.headers["x-modeld-degraded"]) == (200, told)
        [instance] = one.status()["instances"]
        assert (instance["ctx"], instance["degraded"]) == (int(found[1]), [told])
        assert one.metric('modeld_degraded{model="a.gguf"}') == 1
        fitted = one.infer("b.gguf", max_tokens=1)
        assert (fitted.status, "x-modeld-degraded" in fitted.headers) == (200, False)
        [instance] = one.status()["instances"]
        assert instance["model_id"] == "b.gguf"
        assert int(found[1]) <= instance["ctx"] < 8192
        assert one.infer("c.gguf", max_tokens=1).status == 507


def test_a_device_that_is_not_there_ends_the_start(tmp_path: Path, starter: Path):
    daemon = Daemon(tmp_path, link_models(tmp_path / "models", starter, "a.gguf"), "--vram-budget-mb", "NoSuch0=100")
    try:
        assert daemon.process.wait(PATIENCE_SECONDS) == 2
    finally:
        daemon.process.kill()
        daemon.process.wait(PATIENCE_SECONDS)
    assert daemon.log.splitlines()[-1].startswith("modeld: config error: vram_budget_mb names NoSuch0")
    assert "Traceback" not in daemon.log
