# SPDX-License-Identifier: GPL-3.0-only
"""Measures the daemon from outside, as a user meets it; rule: black box, it reports and never judges.

Start to /healthz, first /infer cold and warm, the former also over the same engine started by hand in the same round, a switch between
two models that do not fit together, resident memory, and how two models that compute at once share the cores. Each figure is the
median of `--rounds` fresh daemons; seconds are wall clock, MB means MiB.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from modeld.catalog.models import Catalog, ModelOverride
from modeld.core.model import ModelId
from modeld.runtime.adapters import worker
from modeld.runtime.adapters.embedded import find_engine, parameters

START_SECONDS_MAX = 30.0
ANSWER_SECONDS_MAX = 120.0
TOKENS = 48
"""Length of the answers whose speed is told."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the daemon's Unix socket, so that a bench never meets a port that somebody else uses."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS_MAX)
        self.path = path

    def connect(self) -> None:
        """Opens the socket; OSError while nobody listens."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon: its process and its socket."""

    process: subprocess.Popen[bytes]
    path: str

    def call(self, method: str, route: str, body: object = None) -> tuple[int, bytes]:
        """One request; status and whole body."""
        connection = UnixConnection(self.path)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, route, payload, {"content-type": "application/json"} if payload else {})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def infer(self, model: str, tokens: int = 8) -> float:
        """Seconds of one completion of so many tokens; SystemExit when it fails."""
        begin = time.perf_counter()
        status, body = self.call(
            "POST", "/infer", {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True, "stream": False}
        )
        if status != 200:
            raise SystemExit(f"/infer answered {status}: {body[:300]!r}")
        return time.perf_counter() - begin

    def resident_mb(self) -> float:
        """Resident memory of the daemon alone, without its children."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


@contextlib.contextmanager
def daemon(folder: Path, *flags: str) -> Iterator[tuple[Daemon, float]]:
    """Starts a daemon on `folder`/models; yields it with the seconds to its first /healthz, and ends it with SIGTERM."""
    path = str(folder / "d.sock")
    places = ["--models-dir", str(folder / "models"), "--state-dir", str(folder / "state"), "--runtime-dir", str(folder / "run")]
    command = [sys.executable, "-m", "modeld", "serve", "--addr", f"unix:{path}", *places, *flags]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODELD_")}
    log = (folder / "daemon.log").open("ab")
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    running = Daemon(process, path)
    try:
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if running.call("GET", "/healthz") == (200, b"ok"):
                    break
            if process.poll() is not None or time.perf_counter() - begin > START_SECONDS_MAX:
                raise SystemExit(f"the daemon did not start:\n{(folder / 'daemon.log').read_text(errors='replace')[-3000:]}")
            time.sleep(0.005)
        yield running, time.perf_counter() - begin
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def place(source: Path, target: Path) -> None:
    """Gives the model a second name without a second copy where the file system allows it."""
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source)


@contextlib.contextmanager
def engine(folder: Path, model: Path) -> Iterator[tuple[Path, float]]:
    """The engine, started by hand with the daemon's own arguments and ready: its socket, and when its start began. Killed at the end."""
    found = find_engine()
    if found is None:
        raise SystemExit("the embedded engine is not installed")
    spec = Catalog(model.parent, lambda _: ModelOverride(), folder / "state" / "headers.json").scan().models[ModelId(model.name)]
    path = folder / "hand.sock"
    line = json.dumps(parameters(spec, path, found)).encode() + b"\n"
    begin = time.perf_counter()
    command = [sys.executable, "-I", "-S", worker.__file__, str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line)
            process.stdin.flush()
            while worker.READY.encode() not in process.stdout.readline():
                if process.poll() is not None:
                    raise SystemExit("the engine did not start")
            yield path, begin
        finally:
            process.kill()
            path.unlink(missing_ok=True)


def engine_by_hand(folder: Path, model: Path) -> float:
    """Seconds from starting the engine with the daemon's own arguments to the end of the same short answer."""
    asked = {"prompt": "Once upon a time", "n_predict": 8, "ignore_eos": True, "stream": True}
    with engine(folder, model) as (path, begin):
        connection = UnixConnection(str(path))
        connection.request("POST", "/completion", json.dumps(asked), {"content-type": "application/json"})
        connection.getresponse().read()
        return time.perf_counter() - begin


def one_round(model: Path, many: int) -> dict[str, float]:
    """One fresh folder, one daemon for the answers and one more whose header cache is filled."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mb") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        for index in range(many):
            place(model, folder / "models" / f"m{index:03}.gguf")
        one_model = ["--vram-budget-mb", "1000", "--config", str(folder / "modeld.json")]
        declared = {"models": {f"m{index:03}.gguf": {"vram_mb": 600} for index in range(2)}}
        (folder / "modeld.json").write_text(json.dumps(declared))
        with daemon(folder, *one_model) as (running, seconds):
            figures["start to /healthz, headers not cached, s"] = seconds
            begin = time.perf_counter()
            running.call("GET", "/models")
            figures["the folder read, headers not cached, s"] = time.perf_counter() - begin
            figures["resident memory after the start, MB"] = running.resident_mb()
            by_hand = engine_by_hand(folder, folder / "models" / "m000.gguf")
            figures["first /infer, cold, s"] = cold = running.infer("m000.gguf")
            figures["the same engine started by hand, and its answer, s"] = by_hand
            figures["first /infer, cold, over by hand"] = cold / by_hand
            figures["second /infer, warm, s"] = running.infer("m000.gguf")
            figures["switch to a model that does not fit beside it, s"] = running.infer("m001.gguf")
            figures["resident memory after three answers, MB"] = running.resident_mb()
        with daemon(folder, *one_model) as (_, seconds):
            figures["start to /healthz, headers cached, s"] = seconds
        with daemon(folder) as (running, _):
            for name in ("m000.gguf", "m001.gguf"):
                running.infer(name)
            figures["one model alone, tokens/s"] = TOKENS / running.infer("m000.gguf", TOKENS)
            with ThreadPoolExecutor(2) as pool:
                both = list(pool.map(lambda name: running.infer(name, TOKENS), ("m000.gguf", "m001.gguf")))
            figures["each of two models at once, tokens/s"] = TOKENS / max(both)
    return figures


def main() -> None:
    """Prints one line per figure: median (least to most)."""
    parser = argparse.ArgumentParser(description="Measure modeld on this machine.")
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file to serve")
    parser.add_argument("--rounds", type=int, default=3, help="fresh daemons to take the median of")
    parser.add_argument("--files", type=int, default=200, help="GGUF files in the folder (links to the model)")
    arguments = parser.parse_args()
    if not arguments.model.is_file() or arguments.rounds < 1 or arguments.files < 2:
        parser.error("needs an existing --model, --rounds of 1 or more and --files of 2 or more")
    rounds = [one_round(arguments.model.resolve(), arguments.files) for _ in range(arguments.rounds)]
    print(f"{arguments.rounds} rounds, {arguments.files} files in the folder, {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    for name in rounds[0]:
        values = [figures[name] for figures in rounds]
        print(f"  {name:<52} {statistics.median(values):8.3f}   ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
