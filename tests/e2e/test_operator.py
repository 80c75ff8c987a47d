# SPDX-License-Identifier: GPL-3.0-only
"""The operator's verbs and the events, over the wire and on the command line, with real loads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from e2e.daemon import PATIENCE_SECONDS, Daemon, clean_environment, eventually, link_models, running


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Iterator[Daemon]:
    """Models a and b; there is room for one of them."""
    home = tmp_path_factory.mktemp("home")
    models = link_models(home / "models", starter, "a.gguf", "b.gguf")
    with running(
        home, models, "--vram-budget-mb", "400", "--llama-threads", "1", "--fairness-wait", "1s", "--min-residency", "0s"
    ) as daemon:
        yield daemon


def verb(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modeld", *words, "--addr", f"127.0.0.1:{daemon.port}"]
    return subprocess.run(
        command, env=clean_environment(daemon.home), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def events(daemon: Daemon, since: str = "") -> list[dict[str, Any]]:
    """What a follower who came back with `since` is told first, read off a WebSocket."""
    told: list[dict[str, Any]] = []
    query = f"?since={since}" if since else ""
    with connect(f"ws://127.0.0.1:{daemon.port}/events{query}", proxy=None) as socket:
        try:
            while True:
                told.append(json.loads(socket.recv(timeout=0.5)))
        except TimeoutError:
            return told


def test_load_unload_and_what_is_told_of_it(one: Daemon) -> None:
    hello = events(one)[0]
    assert (hello["type"], hello["instances"]) == ("hello", [])
    loaded = one.ask("POST", "/models/a/load")
    assert (loaded.status, loaded.json["state"], loaded.json["pinned"]) == (200, "ready", False)
    assert one.ask("POST", "/models/a.gguf/load").json["instance_id"] == loaded.json["instance_id"]
    gone = one.ask("POST", "/models/a/unload")
    assert (gone.status, gone.json["state"]) == (200, "unloaded")
    assert one.children() == []
    told = events(one, hello["last_id"])
    states = [event["state"] for event in told if event["type"] == "state" and event["model_id"] == "a.gguf"]
    assert states[:2] == ["loading", "ready"]
    assert states[-1] == "gone"
    numbers = [event["seq"] for event in told if "seq" in event]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert [event["type"] for event in events(one, "another-1")][:2] == ["hello", "lost"]


def test_a_load_makes_room_of_what_is_idle_and_a_pin_keeps_it(one: Daemon) -> None:
    assert one.ask("POST", "/models/a/load").status == 200
    assert one.ask("POST", "/models/b/load").json["state"] == "ready"
    assert one.instance("a.gguf") is None
    pinned = one.ask("POST", "/models/b/pin")
    assert (pinned.status, pinned.json["pinned"]) == (200, True)
    assert (one.instance("b.gguf") or {})["pinned"] is True
    both = one.ask("POST", "/models/a/pin")
    assert (both.status, both.json["kind"]) == (507, "cannot_ever_fit")
    assert one.infer("a").status == 507
    assert one.ask("POST", "/models/b/unpin").json["pinned"] is False
    assert one.infer("a").status == 200


def test_the_verbs_of_the_command_line(one: Daemon) -> None:
    assert verb(one, "load", "b").stdout == "b.gguf is ready\n"
    assert verb(one, "pin", "b").stdout == "b.gguf is pinned (ready)\n"
    assert verb(one, "unpin", "b").stdout == "b.gguf is not pinned (ready)\n"
    assert verb(one, "unload", "b").stdout == "b.gguf is unloaded\n"
    wrong = verb(one, "load", "nobody")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "nobody" in wrong.stderr


def test_events_are_followed_on_the_command_line(one: Daemon) -> None:
    command = [sys.executable, "-u", "-m", "modeld", "events", "--json", "--type", "pin", "--addr", f"127.0.0.1:{one.port}"]
    with subprocess.Popen(command, env=clean_environment(one.home), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["type"] == "hello"
            one.ask("POST", "/models/a/pin")
            told = json.loads(process.stdout.readline())
            assert (told["type"], told["model_id"], told["pinned"]) == ("pin", "a.gguf", True)
            one.ask("POST", "/models/a/unpin")
        finally:
            process.terminate()


def test_a_foreign_page_follows_nothing(one: Daemon) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{one.port}/events", proxy=None, origin="https://evil.example"):  # type: ignore[arg-type]
        pass
    assert refused.value.response.status_code == 403
    assert one.ask("POST", "/models/a/load", headers={"Origin": "https://evil.example"}).status == 403


@pytest.mark.parametrize(("path", "status"), [("/models/nobody/load", 404), ("/models/a/load?wait=2", 400), ("/models/a/burn", 404)])
def test_what_is_wrong_is_told(one: Daemon, path: str, status: int) -> None:
    assert one.ask("POST", path).status == status
    assert one.ask("GET", "/models/a/load").status == 405


def test_followers_do_not_keep_the_daemon_from_ending(tmp_path: Path, starter: Path) -> None:
    with running(tmp_path, link_models(tmp_path / "models", starter, "a.gguf")) as daemon:
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.extend(daemon.ask("GET", "/events").body.splitlines()))
        with connect(f"ws://127.0.0.1:{daemon.port}/events", proxy=None) as follow:
            assert json.loads(follow.recv(timeout=PATIENCE_SECONDS))["type"] == "hello"
            reader.start()
            eventually(_follows(daemon, 2), "both follow")
            assert daemon.stop() == 0
            reader.join(PATIENCE_SECONDS)
            assert b"event: bye" in lines
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    follow.recv(timeout=PATIENCE_SECONDS)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


def _follows(daemon: Daemon, count: int) -> Callable[[], bool]:
    return lambda: daemon.metric('modeld_http_inflight_requests{path="/events"}') == count
