# SPDX-License-Identifier: GPL-3.0-only
"""Children and daemon killed, signals, shutdown: nothing hangs, nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.daemon import Daemon, clean_environment, eventually, is_alive, link_models, running


@pytest.fixture
def models(tmp_path: Path, starter: Path) -> Path:
    return link_models(tmp_path / "models", starter, "a.gguf", "b.gguf")


def test_a_killed_child_ends_its_streams_with_a_record_and_the_next_request_starts_it_again(tmp_path: Path, models: Path):
    """F2, F3, F8."""
    with running(tmp_path, models) as one:
        with one.stream("a.gguf") as native, one.stream("a.gguf", path="/v1/chat/completions") as openai:
            assert "token" in native.line()
            assert openai.line()
            os.kill(one.instance("a.gguf")["pid"], signal.SIGKILL)
            last = native.rest()[-1]
            assert (last["done"], last["code"]) == (True, 502)
            assert '"error"' in openai.rest()[-1]
        assert one.infer("a.gguf").status == 200
        status = one.status()
        assert (status["loads_total"], len(status["instances"])) == (2, 1)
        assert status["exits"][-1]["code"] == -signal.SIGKILL


def test_a_child_killed_while_it_loads_is_tried_once_more_and_backs_off(tmp_path: Path, models: Path):
    """F1. Whoever kills it, most likely memory ran out: the second time the client hears the numbers."""
    killed: set[int] = set()

    def loads(one: Daemon) -> int:
        found = one.instance("a.gguf")
        return found["pid"] if found and found["state"] == "loading" and found["pid"] not in killed else 0

    with running(tmp_path, models) as one, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(one.infer, "a.gguf")
        for attempt in ("a loads", "it is tried once more"):
            pid = eventually(lambda: loads(one), attempt)
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        failed = answer.result()
        assert failed.status == 507
        assert "twice" in str(failed.json)
        assert one.status()["out_of_memory_total"] == 2
        again = one.infer("a.gguf")
        assert again.status == 503
        assert int(again.headers["retry-after"]) >= 1
        eventually(lambda: one.infer("a.gguf").status == 200, "it starts again when the back-off is over")


def test_the_other_model_does_not_notice(tmp_path: Path, models: Path):
    with running(tmp_path, models) as one:
        one.infer("b.gguf")
        with one.stream("a.gguf", tokens=120) as stream:
            stream.line()
            os.kill(one.instance("b.gguf")["pid"], signal.SIGKILL)
            assert stream.rest()[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_request_with_a_record_and_every_child_and_exits_0(tmp_path: Path, models: Path, number: int):
    """F18."""
    with running(tmp_path, models, "--llama-parallel", "1") as one:
        with one.stream("a.gguf") as runs:
            assert "token" in runs.line()
            with ThreadPoolExecutor(1) as pool:
                waits = pool.submit(one.infer, "a.gguf")
                eventually(lambda: one.instance("a.gguf")["queue_len"] == 1, "one waits")
                children = one.children()
                assert one.stop(number) == 0
                refused = waits.result()
            last = runs.rest()[-1]
        assert (last["done"], last["code"]) == (True, 503)
        assert (refused.status, refused.json["kind"]) == (503, "draining")
        assert not any(is_alive(pid) for pid in children)
        assert list((tmp_path / "run").rglob("*.sock")) == []


def test_a_signal_during_a_load_exits_0(tmp_path: Path, models: Path):
    """F19."""
    with running(tmp_path, models) as one, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(one.infer, "a.gguf")
        child = eventually(lambda: (found := one.instance("a.gguf")) and found["pid"], "a loads")
        assert one.stop() == 0
        assert answer.result().status in (200, 503)
        assert not is_alive(child)


def test_a_second_signal_is_immediate(tmp_path: Path, models: Path):
    """F20: the child is stopped (it cannot take TERM while it is), so only KILL helps."""
    with running(tmp_path, models, "--stop-grace", "60s", "--shutdown-timeout", "60s") as one:
        one.infer("a.gguf")
        child = one.children()[0]
        os.kill(child, signal.SIGSTOP)
        one.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in one.log, "the daemon took the first signal")
        assert one.stop() == 0
        assert not is_alive(child)


def test_a_child_that_ignores_term_is_killed_within_the_shutdown_time(tmp_path: Path, models: Path):
    """F6."""
    with running(tmp_path, models, "--stop-grace", "200ms") as one:
        one.infer("a.gguf")
        child = one.children()[0]
        os.kill(child, signal.SIGSTOP)
        assert one.stop() == 0
        assert not is_alive(child)


def test_a_killed_daemon_leaves_no_orphan(tmp_path: Path, models: Path):
    """F21: loaded and loading children both."""
    with running(tmp_path, models) as one, ThreadPoolExecutor(1) as pool:
        one.infer("a.gguf")
        pool.submit(_ignoring_errors, one)
        eventually(lambda: len(one.children()) == 2, "two children")
        children = one.children()
        one.stop(signal.SIGKILL)
        eventually(lambda: not any(is_alive(pid) for pid in children), "no orphan is left", seconds=10)


def _ignoring_errors(one: Daemon) -> None:
    try:
        one.infer("b.gguf")
    except OSError:
        return


def test_a_taken_address_is_a_clear_line_and_exit_2(tmp_path: Path, models: Path):
    with running(tmp_path, models) as one:
        second = subprocess.run(
            [sys.executable, "-m", "modeld", "serve", "--addr", f"127.0.0.1:{one.port}", "--models-dir", str(models)],
            env=clean_environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert second.returncode == 2
    assert len(second.stderr.strip().splitlines()) == 1
    assert "listens there already" in second.stderr


def test_an_empty_folder_serves_and_says_what_to_do(tmp_path: Path):
    with running(tmp_path, tmp_path / "nothing-here") as one:
        assert one.ask("GET", "/healthz").body == b"ok"
        assert one.ask("GET", "/readyz").body == b"loading"
        assert one.ask("GET", "/models").json == {"models": []}
        assert one.infer("a.gguf").status == 404


def test_an_inherited_setting_of_llama_cpp_does_not_reach_the_child(tmp_path: Path, models: Path):
    with running(tmp_path, models, environment={"LLAMA_ARG_CTX_SIZE": "512", "LLAMA_ARG_HOST": "0.0.0.0"}) as one:
        one.infer("a.gguf")
        environment = Path(f"/proc/{one.children()[0]}/environ").read_bytes()
        assert b"LLAMA_ARG" not in environment
        assert b"MODELD" not in environment


@pytest.mark.parametrize("text", ["addr: 127.0.0.1:0\nmax_wiat: 3s\n"])
def test_a_mistake_in_the_settings_is_one_line_and_exit_2(tmp_path: Path, text: str):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    command = [sys.executable, "-m", "modeld", "--config", str(config)]
    done = subprocess.run(command, env=clean_environment(tmp_path), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "max_wait" in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--adapter", "llama-server"), "llama_bin"),
        (("--adapter", "embedded", "--llama-extra-args", "--no-perf"), "llama_extra_args"),
    ],
)
def test_an_engine_that_cannot_do_what_is_asked_stops_the_start(tmp_path: Path, models: Path, flags: tuple[str, ...], says: str):
    command = [sys.executable, "-m", "modeld", "--addr", "127.0.0.1:0", "--models-dir", str(models), "--log-level", "error", *flags]
    surroundings = clean_environment(tmp_path) | {"PATH": "/nowhere"}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_an_external_server_is_served_and_said_to_be_away_when_it_is(tmp_path: Path, models: Path):
    stub = Path(__file__).parents[1] / "stub" / "fake_llama.py"
    far_model = tmp_path / "far.gguf"
    far_model.touch()
    argv = [sys.executable, str(stub), "-m", str(far_model), "--host", "127.0.0.1", "--alias", "far.gguf", "-np", "3"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as far:
        assert far.stdout is not None
        url = f"http://127.0.0.1:{far.stdout.readline().split()[-1]}"
        with running(tmp_path / "near", models, "--llama-url", url, "--rescan-interval", "200ms") as near:
            assert [one["id"] for one in near.ask("GET", "/models").json["models"]] == ["far.gguf"]
            assert near.infer("far.gguf").lines[-1]["done"]
            one = near.wait_state("far.gguf", "ready")
            assert (one["est_vram_mb"], one["pid"]) == (0, None)
            far.kill()
            far.wait()
            assert near.infer("far.gguf").status == 502
    with running(tmp_path / "late", models, "--llama-url", url) as late:
        answer = late.infer("far.gguf")
        assert (answer.status, answer.json["kind"]) == (502, "upstream_unreachable")
        assert "llama_url" in answer.json["error"]


def test_requests_that_only_waited_for_a_child_that_was_killed_are_served_by_the_next(tmp_path: Path, models: Path):
    with running(tmp_path, models, "--llama-parallel", "1") as one, ThreadPoolExecutor(3) as pool, one.stream("a.gguf") as stream:
        assert "token" in stream.line()
        waiting = [pool.submit(one.infer, "a.gguf", max_tokens=1) for _ in range(3)]
        eventually(lambda: one.instance("a.gguf")["queue_len"] == 3, "three wait")
        os.kill(one.instance("a.gguf")["pid"], signal.SIGKILL)
        assert stream.rest()[-1]["code"] == 502
        assert [each.result().status for each in waiting] == [200, 200, 200]
        assert one.status()["loads_total"] == 2


def test_children_are_reaped_although_the_shell_ignored_their_signal(tmp_path: Path, models: Path):
    """`trap '' CHLD; modeld`: an ignored SIGCHLD is inherited, and would let the kernel reap behind our back."""
    with running(tmp_path, models, launcher=("bash", "-c", 'trap \'\' CHLD; exec "$0" "$@"')) as one:
        assert one.infer("a.gguf").status == 200
        os.kill(one.instance("a.gguf")["pid"], signal.SIGKILL)
        eventually(lambda: one.status()["instances"] == [], "the end is seen")
        assert one.status()["exits"][-1]["code"] == -signal.SIGKILL
