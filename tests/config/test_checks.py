# SPDX-License-Identifier: GPL-3.0-only
"""Combinations that cannot work, and their neighbours that can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modeld.config import load
from modeld.errors import ConfigError


def go(tmp_path: Path, content: dict[str, Any], **flags: str) -> str | None:
    """The message, or None when the settings are fine."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    try:
        load(flags, {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, config=str(path))
    except ConfigError as error:
        assert "\n" not in error.message
        return error.message.replace(str(path), "FILE")
    return None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"vram_budget_mb": 10, "vram_margin_mb": 10}, 'key "vram_margin_mb": 10 leaves no room in vram_budget_mb = 10'),
        ({"vram_budget_mb": 10, "vram_margin_mb": 9}, None),
        ({"vram_budget_mb": "A=99,B=10", "vram_margin_mb": 10}, 'key "vram_margin_mb": 10 leaves no room in vram_budget_mb = A=99,B=10'),
        ({"vram_budget_mb": {"A": 99, "B": 0}, "vram_margin_mb": 98}, None),
        ({"vram_budget_mb": "auto", "vram_margin_mb": 10}, None),
        (
            {"llama_ctx": "max:16", "llama_parallel": 17},
            'key "llama_parallel": "17" has less than one token for each slot with llama_ctx =',
        ),
        ({"llama_ctx": "max", "llama_parallel": 17}, None),
        ({"vram_margin_mb": 9}, None),
        ({"stop_grace": 6}, 'key "stop_grace": "6s" is longer than shutdown_timeout = 5s'),
        ({"stop_grace": 5}, None),
        (
            {"max_waiting_body_bytes": "1MiB"},
            'key "max_waiting_body_bytes": "1MiB" is less than one body may have: max_api_body_bytes = 64MiB',
        ),
        ({"max_body_bytes": "1GiB"}, "max_body_bytes = 1GiB"),
        ({"max_api_body_bytes": "256MiB"}, None),
        ({"adapter": "external"}, 'key "adapter": "external" needs llama_url'),
        ({"adapter": "external", "llama_url": "http://a:1"}, None),
        ({"adapter": "llama-server", "llama_bin": "/nowhere/llama-server"}, "does not exist"),
        ({"llama_bin": "/nowhere/llama-server"}, "does not exist"),
        ({"llama_bin": "/usr"}, "is not a file"),
        ({"llama_bin": "/etc/passwd"}, "is not executable"),
        ({"llama_bin": "/bin/sh"}, None),
        ({"llama_bin": "/nowhere/llama-server", "adapter": "embedded"}, None),
        ({"llama_bin": "/nowhere/llama-server", "llama_url": "http://a:1"}, None),
        ({"llama_url": "gopher://a"}, "is not a URL"),
        ({"llama_ubatch": 512, "llama_batch": 256}, 'key "llama_ubatch": "512" is more than llama_batch = 256'),
        ({"llama_ubatch": 1024}, None),
        ({"llama_batch": 64}, None),
        ({"llama_ctx": 16, "llama_parallel": 17}, 'key "llama_parallel": "17" has less than one token for each slot with llama_ctx = 16'),
        ({"llama_kv_type": "q8_0", "llama_flash_attn": "off"}, 'key "llama_kv_type": "q8_0" does not work with llama_flash_attn = off'),
        ({"llama_kv_type": "q8_0", "llama_flash_attn": False}, "does not work with"),
        ({"llama_kv_type": "bf16", "llama_flash_attn": "off"}, None),
        ({"llama_kv_type": "q8_0"}, None),
        ({"llama_extra_args": ["--jinja", "-c", "9"]}, 'key "llama_extra_args": holds -c: use the setting llama_ctx'),
        ({"llama_extra_args": ["--jinja"]}, None),
        ({"cors_enabled": True}, "allows nobody"),
        ({"cors_enabled": True, "cors_allowed_origins": ["*"]}, None),
        ({"allow_remote": True, "addr": ":1"}, None),
        ({"trace_file": "/usr"}, 'key "trace_file": "/usr" is a folder; name a file in it'),
        ({"trace_file": "/usr/nowhere.jsonl"}, None),
        ({"fairness_wait": "1m", "max_wait": "1s"}, None),
        ({"turn_max": 0, "min_residency": 0, "preempt_after": "1s", "fairness_wait": 9}, None),
    ],
)
def test_settings_for_all(tmp_path: Path, content: dict[str, Any], message: str | None) -> None:
    said = go(tmp_path, content)
    assert said is None if message is None else message in str(said) and str(said).startswith("file FILE: key ")


@pytest.mark.parametrize(
    ("shared", "models", "message"),
    [
        ({}, {"a": {"pinned": True, "ttl": 5}}, 'key "models.a.ttl": "5s" contradicts pinned'),
        ({}, {"a": {"pinned": True}, "b": {"ttl": 5}}, None),
        ({}, {"a": {"llama_batch": 64, "llama_ubatch": 65}}, 'key "models.a.llama_ubatch": "65" is more than models.a.llama_batch = 64'),
        ({"llama_batch": 64}, {"a": {"llama_ubatch": 65}}, 'key "models.a.llama_ubatch": "65" is more than llama_batch = 64'),
        ({"llama_ubatch": 65}, {"a": {"llama_batch": 64}}, 'key "models.a.llama_batch": "64" is less than llama_ubatch = 65'),
        ({"llama_ubatch": 65}, {"a": {"llama_batch": 65}}, None),
        (
            {"llama_kv_type": "q4_0"},
            {"a": {"llama_flash_attn": "off"}},
            'key "models.a.llama_flash_attn": "off" does not work with llama_kv_type',
        ),
        ({"llama_kv_type": "q4_0"}, {"a": {"llama_flash_attn": "off", "llama_kv_type": "f16"}}, None),
        ({"llama_kv_type": "q4_0"}, {"a": {"llama_flash_attn": "off", "llama_kv_type": "auto"}}, None),
        ({}, {"a": {"llama_extra_args": ["-np", "9"]}}, 'key "models.a.llama_extra_args": holds -np: use the setting llama_parallel'),
        ({}, {"a": {"aliases": ["x"]}, "b": {"aliases": ["x"]}}, 'key "models.b.aliases": "x" is an alias of the model a already'),
        ({}, {"a": {"aliases": ["b"]}, "b": {}}, 'key "models.a.aliases": "b" is the name of the model b'),
        ({}, {"a": {"aliases": ["a.gguf"]}}, "is the model's own name"),
        ({}, {"a": {"aliases": ["x", "x"]}}, "stands there twice"),
        ({"vram_budget_mb": 10}, {"a": {"pinned": True, "vram_mb": 6}, "b": {"pinned": True, "vram_mb": 5}}, "need 11 MiB, more than"),
        ({"vram_budget_mb": 10, "vram_margin_mb": 1}, {"a": {"pinned": True, "vram_mb": 10}}, "vram_margin_mb = 9"),
        ({"vram_budget_mb": 10}, {"a": {"pinned": True, "vram_mb": 10}, "b": {"vram_mb": 5}}, None),
        ({"vram_budget_mb": "A=5,B=4"}, {"a": {"pinned": True, "vram_mb": 10}}, "vram_margin_mb = 9"),
        ({"vram_budget_mb": "A=5,B=0"}, {"a": {"pinned": True, "vram_mb": 10}}, None),
        ({"vram_budget_mb": "auto"}, {"a": {"pinned": True, "vram_mb": 10}}, None),
        ({}, {"a": {"pinned": True, "vram_mb": 10}}, None),
        ({}, {"a": {"vram_mb": -1}}, "is not a whole number"),
    ],
)
def test_settings_of_one_model(tmp_path: Path, shared: dict[str, Any], models: dict[str, Any], message: str | None) -> None:
    said = go(tmp_path, {**shared, "models": models})
    assert said is None if message is None else message in str(said) and str(said).startswith('file FILE: key "models.')


def test_the_source_that_made_it_impossible_is_named(tmp_path: Path) -> None:
    """The margin is in the file, the budget is a flag: the margin is named, with the budget beside it."""
    assert str(go(tmp_path, {"vram_margin_mb": 50}, vram_budget_mb="40")).startswith('file FILE: key "vram_margin_mb": 50 leaves no room')
    assert str(go(tmp_path, {}, shutdown_timeout="1s")).startswith('flag --shutdown-timeout: key "stop_grace": "3s" is longer than')


def test_what_extra_args_carry_is_not_told(tmp_path: Path) -> None:
    assert "hunter2" not in str(go(tmp_path, {"llama_extra_args": ["--api-key", "hunter2"]}))
