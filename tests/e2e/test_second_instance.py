# SPDX-License-Identifier: GPL-3.0-only
"""A model server that dies before the first byte of an answer: the client gets the answer of the next one, or one clear error."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from e2e.daemon import Daemon, eventually, link_models, running

FAKE = Path(__file__).parents[1] / "stub" / "fake_llama.py"
SCRIPTED = ("--adapter", "llama-server", "--llama-bin", str(FAKE))
TRIES = 5


@pytest.fixture
def models(tmp_path: Path, starter: Path) -> Path:
    return link_models(tmp_path / "models", starter, "a.gguf")


def script(models: Path, **orders: Any) -> None:
    """What the scripted model server does from its next start on."""
    (models / "a.gguf.script.json").write_text(json.dumps(orders))


def kill_when_it_has_the_request(one: Daemon) -> None:
    pid = eventually(lambda: (found := one.instance("a.gguf")) and found["inflight"] == 1 and found["pid"], "it has the request")
    os.kill(pid, signal.SIGKILL)


def test_a_long_prompt_survives_the_kill_of_its_model_server(tmp_path: Path, models: Path):
    """With llama.cpp itself. Reading the prompt takes seconds; a first token that comes before the kill all the same is tried again."""
    body = {"model": "a.gguf", "prompt": "word " * 800, "max_tokens": 4, "ignore_eos": True}
    with running(tmp_path, models) as one, ThreadPoolExecutor(1) as pool:
        for _ in range(TRIES):
            one.infer("a.gguf")
            before = one.status()["loads_total"]
            waiting = pool.submit(one.ask, "POST", "/infer", body, timeout=90)
            kill_when_it_has_the_request(one)
            answer = waiting.result()
            assert answer.status == 200
            *tokens, last = answer.lines
            if "error" not in last:
                break
            assert tokens  # too late
        else:
            raise AssertionError("the first token was always there before the kill")
        assert (len(tokens), last["done"], last["usage"]["completion_tokens"]) == (4, True, 4)
        status = one.status()
        assert status["loads_total"] == before + 1
        assert status["exits"][-1]["code"] == -signal.SIGKILL
        assert "waits again" in one.log


@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/v1/completions"])
def test_the_next_model_server_gets_the_same_request(tmp_path: Path, models: Path, path: str):
    asked = {"model": "a.gguf", "max_tokens": 3} | (
        {"messages": [{"role": "user", "content": "one two three"}]} if "chat" in path else {"prompt": "one two three"}
    )
    script(models, prompt_seconds=3600)
    with running(tmp_path, models, *SCRIPTED) as one, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.ask, "POST", path, asked)
        eventually(lambda: (found := one.instance("a.gguf")) and found["inflight"] == 1, "it has the request")
        script(models)
        kill_when_it_has_the_request(one)
        answer = waiting.result()
        assert answer.status == 200
        assert b" three" in answer.body
        assert one.status()["loads_total"] == 2


@pytest.mark.parametrize("path", ["/infer", "/v1/completions"])
def test_a_prompt_that_kills_every_model_server_is_one_error(tmp_path: Path, models: Path, path: str):
    script(models, crash_at_token=0)
    with running(tmp_path, models, *SCRIPTED) as one:
        answer = one.ask("POST", path, {"model": "a.gguf", "prompt": "one two", "stream": True})
        assert answer.status == 502
        assert b"instance_died" in answer.body
        eventually(lambda: len(one.status()["exits"]) == 2, "both are gone")
        assert one.status()["loads_total"] == 2


def test_after_the_first_byte_the_error_is_the_last_record(tmp_path: Path, models: Path):
    script(models, crash_at_token=1)
    with running(tmp_path, models, *SCRIPTED) as one:
        answer = one.infer("a.gguf", "one two")
        assert answer.status == 200
        assert answer.lines[0] == {"token": " one"}
        assert (answer.lines[-1]["done"], answer.lines[-1]["kind"]) == (True, "instance_died")
        assert one.status()["loads_total"] == 1


def test_who_leaves_while_it_waits_again_is_gone(tmp_path: Path, models: Path):
    script(models, prompt_seconds=3600)
    with running(tmp_path, models, *SCRIPTED) as one:
        with one.stream("a.gguf"):
            eventually(lambda: (found := one.instance("a.gguf")) and found["inflight"] == 1, "it has the request")
            script(models, load_seconds=3600)
            kill_when_it_has_the_request(one)
            eventually(lambda: (found := one.instance("a.gguf")) and found["queue_len"] == 1, "it waits again")
        eventually(lambda: (found := one.instance("a.gguf")) and found["queue_len"] == 0, "it is gone")
        assert one.metric('modeld_http_requests_total{method="POST",path="/infer",status="499"}') == 1


def test_a_shutdown_refuses_who_waits_again(tmp_path: Path, models: Path):
    script(models, prompt_seconds=3600)
    with running(tmp_path, models, *SCRIPTED) as one, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.infer, "a.gguf")
        eventually(lambda: (found := one.instance("a.gguf")) and found["inflight"] == 1, "it has the request")
        script(models, load_seconds=3600)
        kill_when_it_has_the_request(one)
        eventually(lambda: (found := one.instance("a.gguf")) and found["queue_len"] == 1, "it waits again")
        assert one.stop() == 0
        refused = waiting.result()
        assert (refused.status, refused.json["kind"]) == (503, "draining")
