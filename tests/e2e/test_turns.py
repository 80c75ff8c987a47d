# SPDX-License-Identifier: GPL-3.0-only
"""Nobody starves on the real daemon: a due model gets its room, a busy one is not cut, a hung model server is seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from e2e.daemon import Daemon, eventually, link_models, running

FAKE = Path(__file__).parents[1] / "stub" / "fake_llama.py"
SCRIPTED = ("--adapter", "llama-server", "--llama-bin", str(FAKE))
ONE_MODEL = ("--vram-budget-mb", "500")
PATIENT = ("--max-wait", "5m", "--max-queue-depth", "1000")


@pytest.fixture
def models(tmp_path: Path, starter: Path) -> Path:
    return link_models(tmp_path / "models", starter, "a.gguf", "b.gguf")


class Crowd:
    """A steady stream of requests to one model: the next as soon as one has ended, in several threads, until it is told to stop."""

    def __init__(self, one: Daemon, model: str, threads: int) -> None:
        self.statuses: list[int] = []
        self._one, self._model = one, model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.statuses.append(
                self._one.ask("POST", "/infer", {"model": self._model, "prompt": "x", "max_tokens": 2}, timeout=120).status
            )


def test_a_steady_stream_to_one_model_does_not_starve_another(tmp_path: Path, models: Path):
    """Six clients keep four slots of a busy without a pause; b gets in because it is due, and a loses nothing."""
    (models / "a.gguf.script.json").write_text(json.dumps({"prompt_seconds": 0.3}))
    with running(tmp_path, models, *ONE_MODEL, *PATIENT, *SCRIPTED, "--fairness-wait", "500ms") as one:
        with Crowd(one, "a.gguf", 6) as crowd:
            eventually(lambda: len(crowd.statuses) > 10, "a is busy")
            before = len(crowd.statuses)
            answer = one.ask("POST", "/infer", {"model": "b.gguf", "prompt": "x", "max_tokens": 2}, timeout=120)
            assert answer.status == 200
            eventually(lambda: len(crowd.statuses) > before + 20, "a is served again")
        assert set(crowd.statuses) == {200}
        assert one.metric("modeld_fairness_closings_total") >= 1
        assert one.status()["loads_total"] >= 3


def test_before_anybody_is_due_nothing_is_closed(tmp_path: Path, models: Path):
    with running(tmp_path, models, *ONE_MODEL, *PATIENT, "--fairness-wait", "1h") as one, one.stream("a.gguf", tokens=60) as stream:
        assert "token" in stream.line()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(one.ask, "POST", "/infer", {"model": "b.gguf", "prompt": "x", "max_tokens": 2}, timeout=120)
            eventually(lambda: any(line["model_id"] == "b.gguf" for line in one.status()["queues"]), "b waits")
            assert one.infer("a.gguf").status == 200  # a newcomer is still served
            why = one.ask("GET", "/status?explain=1").json["why"]
            assert "due in" in why["b.gguf"]
            assert "a.gguf" in why["b.gguf"]
            assert stream.rest()[-1]["finish_reason"] == "length"
            assert other.result().status == 200
        assert one.metric("modeld_fairness_closings_total") == 0


def test_a_waiting_request_is_explained_by_its_id(tmp_path: Path, models: Path):
    with running(tmp_path, models, *ONE_MODEL, *PATIENT, "--fairness-wait", "1h") as one, one.stream("a.gguf", tokens=60) as stream:
        assert "token" in stream.line()
        with ThreadPoolExecutor(1) as pool:
            body = {"model": "b.gguf", "prompt": "x", "max_tokens": 2}
            headers = {"X-Request-Id": "who-am-i", "X-Modeld-Priority": "batch"}
            other = pool.submit(one.ask, "POST", "/infer", body, headers=headers, timeout=120)
            found: Any = eventually(lambda: one.ask("GET", "/status?explain=1").json["waiting"], "it waits")
            assert (found[0]["model_id"], found[0]["priority"], found[0]["position"]) == ("b.gguf", "batch", 1)
            assert found[0]["request_id"].startswith("who-am-i-")
            assert found[0]["why"].startswith(found[0]["request_id"])
            stream.close()
            assert other.result().status == 200


def test_what_cannot_make_its_own_deadline_is_refused_at_once(tmp_path: Path, models: Path):
    flags = (*ONE_MODEL, *PATIENT, "--fairness-wait", "1h")
    with running(tmp_path, models, *flags) as one:
        one.infer("b.gguf")
        one.infer("a.gguf")
        with one.stream("a.gguf") as stream:
            assert "token" in stream.line()
            body = {"model": "b.gguf", "prompt": "x", "max_tokens": 2}
            late = one.ask("POST", "/infer", body, headers={"X-Modeld-Timeout": "0.01"})
            assert (late.status, late.json["kind"]) == (429, "deadline_unreachable")
            assert int(late.headers["retry-after"]) >= 1


def test_a_halted_model_server_is_seen_and_its_request_asked_again(tmp_path: Path, models: Path):
    """It looks alive (its socket is open) and nothing comes: it is killed, and the client gets the next one's answer."""
    patience = ("--first-token-timeout", "2s", "--inter-token-timeout", "2s", "--stop-grace", "200ms")
    with running(tmp_path, models, *SCRIPTED, *patience) as one, ThreadPoolExecutor(1) as pool:
        one.infer("a.gguf")
        pid = one.instance("a.gguf")["pid"]
        os.kill(pid, signal.SIGSTOP)
        waiting = pool.submit(one.ask, "POST", "/infer", {"model": "a.gguf", "prompt": "x", "max_tokens": 2}, timeout=120)
        assert waiting.result().status == 200
        status = one.status()
        assert status["stuck_total"] == 1
        assert status["exits"][-1]["code"] == -signal.SIGKILL
        assert one.metric("modeld_stuck_total") == 1
        assert one.metric("modeld_requeued_total") == 1


def test_the_trace_of_a_daemon_can_be_played_again(tmp_path: Path, models: Path):
    trace = tmp_path / "day.trace"
    with running(tmp_path, models, *ONE_MODEL, *PATIENT, *SCRIPTED, "--trace-file", str(trace)) as one:
        for model in ("a.gguf", "b.gguf", "a.gguf"):
            assert one.infer(model).status == 200
        one.stop()
    assert "Once upon" not in trace.read_text()  # no text of anybody
    command = [sys.executable, "-m", "modeld", "simulate", "--trace", str(trace), "--json"]
    played = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert played["modeld"]["loads"] == 3
