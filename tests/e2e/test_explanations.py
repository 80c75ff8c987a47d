# SPDX-License-Identifier: GPL-3.0-only
"""The words a client may say about its request, and what the daemon says back about it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from e2e.daemon import PATIENCE_SECONDS, Daemon, clean_environment


def why(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modeld", "why", "--addr", f"127.0.0.1:{daemon.port}", *words]
    surroundings = clean_environment(daemon.home)
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


@pytest.mark.parametrize("path", ["/infer", "/v1/completions", "/v1/chat/completions"])
def test_class_and_patience_are_headers(daemon: Daemon, path: str):
    body = {"model": "a.gguf", "prompt": "Once", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    assert daemon.ask("POST", path, body, headers={"X-Modeld-Priority": "Batch", "X-Modeld-Timeout": "600"}).status == 200
    for name, value in (("X-Modeld-Priority", "urgent"), ("X-Modeld-Timeout", "soon")):
        answer = daemon.ask("POST", path, body, headers={name: value})
        assert answer.status == 400
        assert f"{name}: " in answer.body.decode()


def test_what_the_engine_takes_is_not_refused_for_an_estimate(daemon: Daemon):
    """llama.cpp reads -1 as no limit."""
    body = {"model": "a.gguf", "prompt": "The capital of France is", "max_tokens": -1, "n_predict": 2}
    assert daemon.ask("POST", "/v1/completions", body).status == 200


def test_the_status_explains_itself(daemon: Daemon):
    told = daemon.ask("GET", "/status?explain=1").json
    assert isinstance(told["why"], dict)
    assert told["waiting"] == []
    assert [one["id"] for one in told["devices"]] == ["local/all"]
    assert daemon.ask("GET", "/status?explain=maybe").status == 400


def test_the_verb_tells_of_a_model(daemon: Daemon):
    assert daemon.infer("a.gguf", max_tokens=1).status == 200
    for name in ("a.gguf", "a", "A"):
        done = why(daemon, name)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("a.gguf is ready")
    assert set(json.loads(why(daemon, "a", "--json").stdout)) == {"why", "waiting"}
    assert why(daemon).returncode == 0


def test_the_verb_does_not_know_everybody(daemon: Daemon):
    done = why(daemon, "aa.gguf")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith('modeld: "aa.gguf" is neither a model here nor a request that waits; did you mean "a.gguf"')
