# SPDX-License-Identifier: GPL-3.0-only
"""An adapter and a draft model beside a real model: they are loaded, they are counted, and what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from e2e.daemon import link_models, running

RANK = 4
WIDTH = 576
"""Embedding length of the starter model."""


def make_adapter(path: Path) -> Path:
    """An adapter of the starter model that changes nothing: its second matrix is zero."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((RANK, WIDTH), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.zeros((WIDTH, RANK), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def parts_of(status: Any) -> dict[str, int]:
    [instance] = status["instances"]
    return {part["name"]: part["bytes"] for part in instance["parts"]}


def test_an_adapter_and_a_draft_model_are_loaded_and_counted(tmp_path: Path, starter: Path):
    models = link_models(tmp_path / "models", starter, "a.gguf", "b.gguf")
    adapter = make_adapter(tmp_path / "style.gguf")
    own = {"lora": ["style.gguf"], "draft": str(starter), "llama_ctx": 1024}
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"models": {"a": own, "b": {"llama_ctx": 1024}}}))
    with running(tmp_path, models, "--config", str(config)) as one:
        drafted = one.infer("a.gguf", max_tokens=8)
        assert drafted.status == 200
        parts = parts_of(one.status())
        assert parts["lora"] == adapter.stat().st_size
        assert parts["draft model"] > parts["context"] + starter.stat().st_size
        assert [lora["path"] for lora in one.ask("GET", "/upstream/a/lora-adapters").json] == [str(adapter)]
        timings = one.ask("POST", "/completion", {"model": "a", "prompt": "Once upon a time", "n_predict": 24, "temperature": 0}).json
        assert timings["timings"]["draft_n"] > 0
        plain = one.infer("b.gguf", max_tokens=8)
        assert plain.lines[-1]["content"] == drafted.lines[-1]["content"]  # neither changes what is written


def test_a_draft_model_that_is_missing_is_said_and_nothing_else_suffers(tmp_path: Path, starter: Path):
    models = link_models(tmp_path / "models", starter, "a.gguf", "b.gguf")
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"models": {"a": {"draft": "gone.gguf"}}}))
    with running(tmp_path, models, "--config", str(config)) as one:
        refused = one.infer("a.gguf")
        assert refused.status == 503
        assert "its draft model gone.gguf cannot be read" in refused.json["error"]
        assert one.infer("b.gguf", max_tokens=1).status == 200
