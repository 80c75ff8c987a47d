# SPDX-License-Identifier: GPL-3.0-only
"""Who is measured: each column an address, and the process whose time counts; rule: what is started here is ended here, a peer is not ours.

All columns of the hop are reached by TCP on the loopback interface, and each reaches the same engine so. The daemon is the real one, with
its settings as shipped but for the places: its log goes to a file, as under a service manager.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import machine
import msgspec
from load import Job, Result

HERE = Path(__file__).resolve().parent
START_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Column:
    """One way to the engine. `pid` is the process between, None for none or one that cannot be seen."""

    name: str
    port: int = 0
    host: str = "127.0.0.1"
    unix: str = ""
    prefix: str = ""
    pid: int | None = None

    def job(self, **fields: object) -> Job:
        """A job for the load generator, against this column."""
        return msgspec.convert({"host": self.host, "port": self.port, "unix": self.unix, "prefix": self.prefix, **fields}, Job)


class Loader:
    """The load generator's process."""

    def __init__(self) -> None:
        argv = [sys.executable, str(HERE / "load.py")]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, job: Job) -> Result:
        """One job, to its end. SystemExit when the generator failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the load generator ended")
        return msgspec.json.decode(line, type=Result)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)


@dataclass(frozen=True, slots=True)
class Measured:
    """A result, with the processor seconds that the column's process spent on it."""

    result: Result
    cpu: float


def measure(loader: Loader, column: Column, job: Job) -> Measured:
    """Run a job; the process has a moment before and after to do what it put off."""
    time.sleep(0.05)
    before = 0.0 if column.pid is None else machine.cpu_seconds(column.pid)
    result = loader.run(job)
    time.sleep(0.05)
    return Measured(result, 0.0 if column.pid is None else machine.cpu_seconds(column.pid) - before)


@contextlib.contextmanager
def script(name: str, *argv: str) -> Iterator[tuple[int, int]]:
    """A script of this folder: its process and the port it prints. Killed at the end."""
    with subprocess.Popen([sys.executable, str(HERE / name), *argv], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def daemon(folder: Path, *flags: str) -> Iterator[Column]:
    """The real daemon on a TCP port, with `folder`/models; ended with SIGTERM."""
    port = free_port()
    (folder / "models").mkdir(exist_ok=True)
    places = ["--models-dir", str(folder / "models"), "--state-dir", str(folder / "state"), "--runtime-dir", str(folder / "run")]
    argv = [sys.executable, "-m", "modeld", "serve", "--addr", f"127.0.0.1:{port}", *places, *flags]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODELD_")}
    with (folder / "daemon.log").open("ab") as log:
        process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        column = Column("modeld", port=port, pid=process.pid)
        try:
            _wait(column, process, folder / "daemon.log")
            yield column
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(column: Column, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS_MAX
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if get(column, "/healthz")[0] == 200 and models(column):
                return
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"the daemon did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.02)


def get(column: Column, path: str) -> tuple[int, bytes]:
    """One GET."""
    connection = http.client.HTTPConnection(column.host, column.port, timeout=10)
    try:
        connection.request("GET", column.prefix + path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def models(column: Column) -> frozenset[str]:
    """The ids that a column lists; none when it does not say."""
    try:
        status, body = get(column, "/v1/models")
        listed = json.loads(body)["data"] if status == 200 else []
        return frozenset(str(one["id"]) for one in listed)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return frozenset()


def peer(text: str) -> Column:
    """NAME=URL as a column. Raises ValueError."""
    name, equals, url = text.partition("=")
    parts = urlsplit(url)
    if not equals or not name or parts.scheme != "http" or not parts.hostname or name in ("direct", "floor", "modeld"):
        raise ValueError(f"{text}: write --peer NAME=http://host:port, with a name of its own")
    port = parts.port or 80
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Column(name, host=parts.hostname, port=port, prefix=prefix, pid=machine.listener(port) if local else None)
