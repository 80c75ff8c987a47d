# SPDX-License-Identifier: GPL-3.0-only
"""Shows on the real daemon, with the real engine, that nobody starves and nothing thrashes; rule: black box, ratios come from one run.

Room for one of two models (both are the same file under two names). Three scenes, each with a fresh daemon:

stream     a request to A each 0.2 s, one request to B: how long B waits for its first byte, with --fairness-wait 3s, beside what the
           bound allows (fairness_wait + what was running + the load, both as measured); A must lose nothing
rotation   24 requests in strict A/B rotation, 50 ms apart: loads, and the time to the last answer; the same against llama-server's own
           router where --router names a llama-server binary
crowd      1,000 requests at once to one cold model: loads, and how each request ended
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from service import Daemon, UnixConnection, daemon, place

NEED_MB, BUDGET_MB = 600, 1000
MODELS = ("a.gguf", "b.gguf")
ANSWER_SECONDS_MAX = 180.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: seconds since the scene began of its asking, its first byte and its end. `status` 0 = no answer came."""

    model: str
    asked: float
    first: float
    ended: float
    status: int


class Scene:
    """Asks in threads and keeps the answers."""

    def __init__(self, connect: Callable[[], http.client.HTTPConnection], route: str) -> None:
        self.answers: list[Answer] = []
        self._connect = connect
        self._route = route
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.began

    def ask(self, model: str, tokens: int) -> threading.Thread:
        """One streamed request, in a thread of its own."""
        thread = threading.Thread(target=self._one, args=(model, tokens))
        thread.start()
        self._threads.append(thread)
        return thread

    def wait(self) -> list[Answer]:
        for thread in self._threads:
            thread.join()
        return self.answers

    def _one(self, model: str, tokens: int) -> None:
        asked = first = self.now()
        status = 0
        connection = self._connect()
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "stream": True, "ignore_eos": True}
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", self._route, json.dumps(body), {"content-type": "application/json"})
            reply = connection.getresponse()
            reply.read(1)
            first = self.now()
            text = reply.read()
            status = reply.status if reply.status != 200 or b'"error"' not in text else 599
        connection.close()
        with self._lock:
            self.answers.append(Answer(model, asked, first, self.now(), status))


@contextlib.contextmanager
def fresh(model: Path, *flags: str) -> Iterator[Daemon]:
    """A daemon with room for one of two models."""
    with tempfile.TemporaryDirectory(prefix="mf") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        for one in MODELS:
            place(model, folder / "models" / one)
        (folder / "modeld.json").write_text(json.dumps({"models": {one: {"vram_mb": NEED_MB} for one in MODELS}}))
        with daemon(folder, "--vram-budget-mb", str(BUDGET_MB), "--config", str(folder / "modeld.json"), *flags) as (running, _):
            yield running


def loads(running: Daemon) -> int:
    """Loads so far, by the daemon's own count."""
    return int(json.loads(running.call("GET", "/status")[1])["loads_total"])


def load_seconds(running: Daemon) -> float:
    """The mean load, by the daemon's own histogram."""
    page = running.call("GET", "/metrics")[1].decode()
    total, count = (float(re.search(rf"^modeld_load_seconds_{part} (\S+)", page, re.MULTILINE)[1]) for part in ("sum", "count"))  # type: ignore[index]
    return total / count if count else 0.0


def stream(model: Path, fairness_wait: float, seconds: float) -> None:
    """B beside a steady stream to A."""
    with fresh(model, "--fairness-wait", f"{fairness_wait:g}s", "--max-wait", "5m") as running:
        running.infer(MODELS[0])
        scene = Scene(lambda: UnixConnection(running.path), "/infer")
        asked_b = False
        while scene.now() < seconds:
            scene.ask(MODELS[0], 8)
            if not asked_b and scene.now() > 1.0:
                asked_b = True
                scene.ask(MODELS[1], 8)
            time.sleep(0.2)
        answers = scene.wait()
        loading = load_seconds(running)
        swaps = loads(running)
    b = next(one for one in answers if one.model == MODELS[1])
    others = [one for one in answers if one.model == MODELS[0]]
    due = b.asked + fairness_wait
    running_then = [one.ended - due for one in others if one.asked < due and one.ended > due and one.first < due + 1]
    drain = max(running_then, default=0.0)
    bound = fairness_wait + drain + loading
    print(f"stream: one request to B beside one to A each 0.2 s for {seconds:g} s, --fairness-wait {fairness_wait:g}s")
    print(f"  B's first byte after {b.first - b.asked:.2f} s")
    print(f"  fairness_wait {fairness_wait:.2f} + running then {drain:.2f} + load {loading:.2f} = {bound:.2f} s")
    print(f"  that is {(b.first - b.asked) / bound:5.2f} of the bound (the child's own stop and first token are not in it)")
    ends = collections.Counter(one.status for one in others)
    waits = sorted(one.first - one.asked for one in others)
    print(f"  A: {len(others)} requests, ended {dict(ends)}; loads in all {swaps}")
    print(f"  A's first byte: median {statistics.median(waits):.2f} s, longest {waits[-1]:.2f} s")


def rotate(scene: Scene, count: int, tokens: int) -> list[Answer]:
    for number in range(count):
        scene.ask(MODELS[number % 2], tokens)
        time.sleep(0.05)
    return scene.wait()


def rotation(model: Path, router: Path | None, rounds: int) -> None:
    """24 requests A B A B, in turns with the router so that both meet the same machine."""
    ours, theirs = [], []
    for _ in range(rounds):
        with fresh(model) as running:
            answers = rotate(Scene(lambda: UnixConnection(running.path), "/v1/completions"), 24, 16)
            ours.append((max(one.ended for one in answers), loads(running), collections.Counter(one.status for one in answers)))
        if router is not None:
            theirs.append(router_rotation(model, router))
    print(f"rotation: 24 requests A B A B ..., 50 ms apart, {rounds} rounds")
    for name, rows in (("modeld", ours), ("llama-server's router", theirs)):
        for seconds, count, ends in rows:
            print(f"  {name:<22} makespan {seconds:6.2f} s, loads {count}, ended {dict(ends)}")
    if theirs:
        ratio = statistics.median(row[0] for row in ours) / statistics.median(row[0] for row in theirs)
        print(f"  modeld over the router, median of each: {ratio:.2f}")
    else:
        print("  no router: name a llama-server binary with --router to compare")


def router_rotation(model: Path, router: Path) -> tuple[float, int, collections.Counter[int]]:
    """The same by llama-server itself, with one model at a time and the settings that modeld gives its children."""
    with tempfile.TemporaryDirectory(prefix="mr") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        for one in MODELS:
            place(model, folder / "models" / one)
        port = free_port()
        command = [str(router), "--models-dir", str(folder / "models"), "--models-max", "1", "--host", "127.0.0.1", "--port", str(port)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*command, "-c", "8192", "-np", "4"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                while True:
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        probe = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
                        probe.request("GET", "/health")
                        if probe.getresponse().status == 200:
                            break
                    time.sleep(0.05)
                scene = RouterScene(lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAX), "/v1/completions")
                answers = rotate(scene, 24, 16)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=30)
        spawned = (folder / "log").read_bytes().count(b"spawning server instance with name")
    return max(one.ended for one in answers), spawned, collections.Counter(one.status for one in answers)


class RouterScene(Scene):
    """The router names a model without `.gguf`."""

    def ask(self, model: str, tokens: int) -> threading.Thread:
        return super().ask(model.removesuffix(".gguf"), tokens)


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def crowd(model: Path, count: int) -> None:
    """Many requests at once to one cold model."""
    with fresh(model, "--max-wait", "2m", "--max-queue-depth", "400") as running:
        scene = Scene(lambda: UnixConnection(running.path), "/infer")
        for _ in range(count):
            scene.ask(MODELS[0], 1)
        answers = scene.wait()
        swaps = loads(running)
    ends = collections.Counter(one.status for one in answers)
    print(f"crowd: {count} requests at once to one cold model, --max-queue-depth 400: loads {swaps}, ended {dict(ends)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file to serve")
    parser.add_argument("--router", type=Path, help="a llama-server binary to compare with")
    parser.add_argument("--scene", choices=("stream", "rotation", "crowd"), help="only this one")
    parser.add_argument("--rounds", type=int, default=3, help="rotations")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long the stream to A lasts")
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        parser.error(f"{arguments.model} is not a file")
    model = arguments.model.resolve()
    if arguments.scene in (None, "stream"):
        stream(model, 3.0, arguments.seconds)
    if arguments.scene in (None, "rotation"):
        rotation(model, arguments.router, arguments.rounds)
    if arguments.scene in (None, "crowd"):
        crowd(model, 1000)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
