# SPDX-License-Identifier: GPL-3.0-only
"""The real daemon as a child of the test: started by its command line, spoken to over its socket, ended by its own pid."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 30.0
PATIENCE_SECONDS = 30.0
"""How long something that must happen may take on a busy machine. Never a figure that is measured."""

_LISTENING = re.compile(rb"listening on http://127\.0\.0\.1:(\d+)")


def link_models(folder: Path, starter: Path, *names: str) -> Path:
    """Hard links of the starter model under other names: several models for the price of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        target = folder / name
        try:
            os.link(starter, target)
        except OSError:  # another file system
            target.symlink_to(starter)
    return folder


def clean_environment(home: Path) -> dict[str, str]:
    """This process' environment without settings of modeld's, in a home of its own. (Coverage of children travels in it.)"""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MODELD_", "XDG_"))}
    return kept | {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}


def eventually(what: Callable[[], Any], because: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """The first true value of `what()`; fails with `because` when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        if value := what():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {seconds:g} s: {because}")
        time.sleep(0.02)  # the thing waited for is in another process


class Answer:
    """A whole answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The objects of an NDJSON answer."""
        assert self.body.endswith(b"\n")
        return [json.loads(line) for line in self.body.splitlines()]


class Daemon:
    """One run of `modeld serve` in a home of its own. Use `running`."""

    def __init__(
        self, home: Path, models: Path, *flags: str, environment: dict[str, str] | None = None, launcher: tuple[str, ...] = ()
    ) -> None:
        """`launcher` is a command that executes what follows it."""
        self.home = home
        self.log_path = home / "daemon.log"
        (home / "run").mkdir(parents=True, exist_ok=True)
        surroundings = clean_environment(home) | (environment or {})
        command = [*launcher, sys.executable, "-m", "modeld", "serve", "--addr", "127.0.0.1:0", "--models-dir", str(models), *flags]
        self.started_at = time.monotonic()
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, env=surroundings, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=home)
        self.port = 0

    def wait_listening(self) -> None:
        def port() -> int:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log}")
            found = _LISTENING.search(self.log_path.read_bytes())
            return int(found.group(1)) if found else 0

        self.port = eventually(port, "the daemon listens", START_SECONDS)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    # --- speaking to it -----------------------------------------------------------------------------------------------

    def ask(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, timeout: float = PATIENCE_SECONDS
    ) -> Answer:
        """One request. `body` is sent as JSON unless it is bytes already."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            head = ({"Content-Type": "application/json"} if raw is not None else {}) | (headers or {})
            connection.request(method, path, raw, head)
            reply = connection.getresponse()
            return Answer(reply.status, {key.lower(): value for key, value in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def infer(self, model: str | None = None, prompt: str = "Once upon a time", **more: Any) -> Answer:
        body = {"prompt": prompt, "max_tokens": 4, "temperature": 0} | ({"model": model} if model else {}) | more
        return self.ask("POST", "/infer", body)

    @contextmanager
    def stream(self, model: str, tokens: int = 2000, path: str = "/infer", **more: Any) -> Iterator[Stream]:
        """An open stream that generates until it is told to stop; at most `tokens`."""
        if path == "/infer":
            body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True}
        else:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": "Count."}],
                "max_tokens": tokens,
                "ignore_eos": True,
                "stream": True,
            }
        one = Stream(self.port, path, body | more)
        try:
            yield one
        finally:
            one.close()

    def status(self) -> Any:
        return self.ask("GET", "/status").json

    def instance(self, model: str) -> dict[str, Any] | None:
        return next((one for one in self.status()["instances"] if one["model_id"] == model), None)

    def wait_state(self, model: str, state: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            one = self.instance(model)
            return one if one is not None and one["state"] == state else None

        return eventually(found, f"{model} is {state}")

    def wait_idle(self) -> None:
        eventually(
            lambda: all(one["inflight"] == 0 and one["queue_len"] == 0 for one in self.status()["instances"]), "nobody runs or waits"
        )

    def metric(self, line: str) -> float:
        """The value of one sample, by its name and labels as /metrics prints them; 0 when there is none."""
        for row in self.ask("GET", "/metrics").body.decode().splitlines():
            name, _, value = row.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0

    def children(self) -> list[int]:
        """Process ids of the model servers."""
        return [one["pid"] for one in self.status()["instances"] if one["pid"]]

    # --- ending it ----------------------------------------------------------------------------------------------------

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


class Stream:
    """A streamed answer, read line by line off a raw socket, so that a test can leave in the middle."""

    def __init__(self, port: int, path: str, body: Any) -> None:
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self.socket.sendall(head.encode() + raw)
        self._reply: http.client.HTTPResponse | None = None

    @property
    def reply(self) -> http.client.HTTPResponse:
        if self._reply is None:
            self._reply = http.client.HTTPResponse(self.socket, method="POST")
            self._reply.begin()
        return self._reply

    def line(self) -> Any:
        """The next line of the answer: an object for NDJSON, text for server-sent events; None at the proper end of the message."""
        raw = self.reply.readline()
        if not raw:
            return None
        return json.loads(raw) if raw.startswith(b"{") else raw.decode()

    def rest(self) -> list[Any]:
        """All further lines up to the proper end of the message. Raises when it is cut."""
        return [self._parse(raw) for raw in self.reply.read().splitlines() if raw]

    @staticmethod
    def _parse(raw: bytes) -> Any:
        return json.loads(raw) if raw.startswith(b"{") else raw.decode()

    def close(self) -> None:
        if self._reply is not None:
            self._reply.close()
        self.socket.close()


@contextmanager
def running(
    home: Path, models: Path, *flags: str, environment: dict[str, str] | None = None, launcher: tuple[str, ...] = ()
) -> Iterator[Daemon]:
    """A daemon that listens. Whatever happens, it and its children are gone afterwards."""
    daemon = Daemon(home, models, *flags, environment=environment, launcher=launcher)
    try:
        daemon.wait_listening()
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.send_signal(signal.SIGTERM)
            try:
                daemon.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                daemon.process.wait(PATIENCE_SECONDS)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
