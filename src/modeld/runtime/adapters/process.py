# SPDX-License-Identifier: GPL-3.0-only
"""What the embedded engine and a llama-server binary share: a child on a private socket; rule: a load ends ready, failed or stalled.

Readiness comes as a line on the child's standard output, or is asked for at its health route while the child loads. A load has stalled
when for a long time neither output, memory nor bytes read have grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modeld.core.model import ModelSpec
from modeld.errors import Died, InstanceFault, LoadFailed, LoadStalled, ModeldError, ModelUnavailable, OutOfMemory, SpawnFailed
from modeld.runtime.adapters import shim
from modeld.runtime.adapters.interface import ExitReport, Served
from modeld.runtime.background import in_background
from modeld.runtime.child import Child, LineFilter
from modeld.runtime.loadlines import LoadLines, Reported
from modeld.runtime.upstream import Endpoint, Exchange

SOCKET_BYTES_MAX: Final = 107
"""sun_path of a Unix socket address, without its closing zero."""
STALL_SECONDS: Final = 60.0
STALL_SECONDS_PER_GIB: Final = 20.0
POLL_SECONDS: Final = 0.010
"""Readiness is to be seen within 20 ms."""
HEALTH_SECONDS_MAX: Final = 2.0
STRAY_SECONDS: Final = 60.0
"""A folder without a lock may be one that is being made: only an old one is a leftover."""
FOLDER_PREFIX: Final = "modeld-"
FOLDER_TRIES_MAX: Final = 10
FILES_SECONDS_MAX: Final = 10.0

STATE_PREFIX: Final = b"cmd_child_to_router:state:"
OUT_OF_MEMORY: Final = re.compile(
    r"failed to allocate|unable to allocate|cudaMalloc failed|out of memory|OutOfMemory|cannot allocate memory|bad_alloc", re.IGNORECASE
)
UNKNOWN_ARCHITECTURE: Final = re.compile(r"unknown model architecture", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Stall:
    """How long a load may show no progress: `seconds`, and more for each GiB of the model."""

    seconds: float = STALL_SECONDS
    seconds_per_gib: float = STALL_SECONDS_PER_GIB

    def limit(self, size_bytes: int) -> float:
        return self.seconds + self.seconds_per_gib * size_bytes / 2**30


class PrivateFolder:
    """A 0700 folder for the sockets of this daemon's children, made when first needed. It is also their HOME.

    Its lock is held as long as we live; folders of daemons that were killed are removed, and nothing else is.
    """

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir
        self._path: Path | None = None
        self._lock = -1
        self._made = 0

    @property
    def path(self) -> Path:
        """Raises SpawnFailed when it cannot be made."""
        if self._path is None or not self._path.is_dir():
            try:
                self.close()
                self._make()
            except OSError as error:
                reason = f"The folder for the model server's socket cannot be made: {error.strerror}. Check runtime_dir."
                raise SpawnFailed(reason, detail=str(error)) from error
        if self._path is None:
            raise SpawnFailed("The folder for the model server's socket cannot be made.")
        return self._path

    def socket(self) -> Path:
        """A new socket path. Raises SpawnFailed when it is too long for a socket address."""
        self._made += 1
        path = self.path / f"{self._made}.sock"
        if len(os.fsencode(path)) > SOCKET_BYTES_MAX:
            raise SpawnFailed(
                "The path of the model server's socket is too long: choose a shorter runtime_dir.",
                detail=f"{path} has more than {SOCKET_BYTES_MAX} bytes",
            )
        return path

    def close(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _make(self) -> None:
        parent = self._runtime_dir
        if len(os.fsencode(parent.absolute() / f"{FOLDER_PREFIX}12345678" / "123456.sock")) > SOCKET_BYTES_MAX:
            parent = Path(tempfile.gettempdir())
        else:
            parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _require_ours(parent)
        _remove_strays(parent)
        for _ in range(FOLDER_TRIES_MAX):
            path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent.absolute()))
            lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                os.close(lock)
                shutil.rmtree(path, ignore_errors=True)
                raise
            if os.fstat(lock).st_nlink:
                self._path, self._lock = path, lock
                return
            os.close(lock)  # before it was locked another daemon took it for a leftover


def _require_ours(folder: Path) -> None:
    """Who may rename entries of `folder` may put a socket of his own in our place. Raises SpawnFailed.

    A folder with the sticky bit (/tmp itself) is as good as one of our own. In a shared place whoever came first made the folder, or a
    link of that name: there it must be a folder, ours, and closed to others.
    """
    status = folder.stat()
    writers = 0 if status.st_mode & stat.S_ISVTX else status.st_mode & 0o022
    in_shared_place = folder.absolute().parent.stat().st_mode & 0o002
    foreign = folder.is_symlink() or status.st_uid not in (os.geteuid(), 0)
    if writers & 0o002 or (in_shared_place and (foreign or writers)):
        raise SpawnFailed(
            "runtime_dir is not this user's alone: choose another, or have it owned by this user with mode 0700.",
            detail=f"{folder}: owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}",
        )


def _remove_strays(parent: Path) -> None:
    """Remove folders of daemons that are gone: they hold our lock, and nobody has it. One that was never finished holds nothing at all."""
    for folder in parent.glob(f"{FOLDER_PREFIX}????????"):
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                _remove_stray(folder, age=time.time() - status.st_mtime)


def _remove_stray(folder: Path, age: float) -> None:
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        if age > STRAY_SECONDS:
            folder.rmdir()  # only when it is empty
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its daemon lives
        status = os.fstat(lock)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


class ServedProcess(Served):
    """One child from spawn to reap. `spawn` gets the filters for standard output and standard error, and returns the child.

    With `ready_lines` the child is believed when it says that it is ready; else its health route is asked while it loads.
    """

    def __init__(
        self,
        spawn: Callable[[LineFilter, LineFilter], Child],
        *,
        socket: Path,
        stall_seconds: float,
        ready_lines: bool,
        ready_line: bytes = b"",
        on_progress: Callable[[float], None],
    ) -> None:
        self.endpoint = Endpoint(socket=str(socket))
        self._socket = socket
        self._stall_seconds = stall_seconds
        self._polls = not ready_lines
        self._ready_line = ready_line
        self._on_progress = on_progress
        self._said_ready = asyncio.Event()
        self._is_ready = False
        self._fault: InstanceFault | None = None
        self._lines = LoadLines()
        self._child = spawn(self._on_stdout, self._on_stderr)
        self._child.exit.add_done_callback(lambda _: self._on_exit())

    @property
    def pid(self) -> int | None:
        return self._child.pid

    async def ready(self) -> None:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch_stall(), name=f"stall watch of {self._child.pid}")
            poll = group.create_task(self._poll(), name=f"readiness of {self._child.pid}") if self._polls else None
            await self._said_ready.wait()
            watch.cancel()
            if poll is not None:
                poll.cancel()
        if not self._child.exit.done() and self._fault is None:
            self._is_ready = True
            return
        self._fault = self._fault or self._load_fault(self._child.exit.result())
        raise self._fault

    def reported(self) -> Reported | None:
        return self._lines.reported()

    async def exited(self) -> ExitReport:
        code = await asyncio.shield(self._child.exit)
        return ExitReport(code, self._reason(code), self.log_tail(), not self._child.stop_asked and self._says_out_of_memory())

    def stop(self) -> None:
        self._child.stop()

    def kill(self) -> None:
        self._child.kill()

    async def health(self) -> bool:
        return await answers_health(self.endpoint)

    async def generate(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Exchange:
        return await Exchange.open(self.endpoint, method, path, headers, body)

    def log_tail(self) -> tuple[str, ...]:
        dropped = self._child.dropped_bytes
        return (*self._child.log_tail(), *([f"[{dropped} bytes of log dropped]"] if dropped else []))

    # --- the load -----------------------------------------------------------------------------------------------------

    def _on_stdout(self, line: bytes) -> bool:
        if line.startswith(STATE_PREFIX):
            state, fraction = read_state(line)
            if fraction is not None:
                self._on_progress(fraction)
            if state == "ready":
                self._said_ready.set()
            return True
        if self._ready_line and line == self._ready_line:
            self._said_ready.set()
            return True
        return False

    def _on_stderr(self, line: bytes) -> bool:
        """The log. What it says of memory is said while it loads."""
        if not self._is_ready:
            self._lines.feed(line)
        return False

    def _on_exit(self) -> None:
        self._said_ready.set()
        with contextlib.suppress(OSError):
            self._socket.unlink(missing_ok=True)

    async def _poll(self) -> None:
        """A server that cannot notify us is asked. Before its socket exists there is nobody to ask."""
        while True:
            if self._socket.exists() and await answers_health(self.endpoint):
                self._said_ready.set()
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _watch_stall(self) -> None:
        seen, since = self._signs_of_life(), time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, self._stall_seconds / 4))
            now = self._signs_of_life()
            if any(a > b for a, b in zip(now, seen, strict=True)):
                seen, since = tuple(map(max, now, seen)), time.monotonic()
            elif time.monotonic() - since >= self._stall_seconds:
                self._fault = LoadStalled(
                    f"The model server made no progress for {self._stall_seconds:.0f} s while it loaded the model, and was ended."
                )
                self._child.kill()
                self._said_ready.set()
                return

    def _signs_of_life(self) -> tuple[int, ...]:
        """What grows while a load goes on: log bytes, resident pages, bytes read. A process we may not look into shows its log only."""
        pages = read = 0
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{self._child.pid}/statm").read_text(encoding="ascii").split()[1])
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = Path(f"/proc/{self._child.pid}/io").read_text(encoding="ascii").splitlines()
            read = sum(int(line.split(":")[1]) for line in lines if line.startswith(("rchar", "read_bytes")))
        return self._child.bytes_seen, pages, read

    # --- the end ------------------------------------------------------------------------------------------------------

    def _load_fault(self, code: int) -> InstanceFault:
        tail = self._child.log_tail()
        detail = f"{_ending(code)}; last line: {tail[-1] if tail else 'none'}"
        if code in (shim.EXIT_CANNOT_RUN, shim.EXIT_NOT_FOUND) and any(line.startswith(shim.MARK) for line in tail):
            reason = next(line for line in tail if line.startswith(shim.MARK)).removeprefix(shim.MARK)
            return SpawnFailed(f"The model server could not be started: {reason}.", detail=detail)
        if self._child.stop_asked:
            return Died("The model server was stopped while it loaded the model.", detail=detail)
        if code == -9:
            return OutOfMemory(
                "The model server was killed while it loaded the model: most likely memory ran out. Use a smaller model or context.",
                detail=detail,
            )
        if any(OUT_OF_MEMORY.search(line) for line in tail):
            return OutOfMemory(
                "There is not enough memory for this model and its context. Use a smaller model or context.",
                detail=detail,
                asked_bytes=self._lines.asked_bytes,
            )
        if any(UNKNOWN_ARCHITECTURE.search(line) for line in tail):
            return LoadFailed("This build of llama.cpp does not know the model's architecture.", detail=detail)
        return LoadFailed("The model server could not load the model: the file or an argument is not right for it.", detail=detail)

    def _says_out_of_memory(self) -> bool:
        return any(OUT_OF_MEMORY.search(line) for line in self._child.log_tail())

    def _reason(self, code: int) -> str:
        if isinstance(self._fault, LoadStalled):
            return f"stalled while it loaded; {_ending(code)}"
        if self._child.stop_asked:
            return "killed" if self._child.kill_sent else "stopped"
        if self._says_out_of_memory():
            return f"ran out of memory; {_ending(code)}"
        if code == -9:
            return "killed (signal 9): by hand, or because memory ran out"
        return f"{'ended by itself' if self._is_ready else 'ended while it loaded'}; {_ending(code)}"


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def read_state(line: bytes) -> tuple[str, float | None]:
    """llama.cpp's state line: the state, and while it loads the fraction 0..1 over all stages. Nonsense is ("", None)."""
    text = line.removeprefix(STATE_PREFIX)
    if text.startswith(b'{"state":"ready"'):  # its payload is long and may have been cut
        return "ready", 1.0
    try:
        message = json.loads(text)
        payload = message["payload"]
        stages = payload["stages"]
        fraction = (stages.index(payload["current"]) + float(payload["value"])) / len(stages)
        return str(message["state"]), min(1.0, max(0.0, fraction))
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
        return "", None


async def answers_health(endpoint: Endpoint) -> bool:
    """True when the server answers 200 at its health route within 2 s."""
    try:
        async with asyncio.timeout(HEALTH_SECONDS_MAX):
            exchange = await Exchange.open(endpoint, "GET", "/health", [], b"")
    except (ModeldError, TimeoutError):
        return False
    exchange.abort()
    return exchange.status == 200


class FileCheck:
    """Looks whether the files of a model are there, one look at a time for each: a mount that hangs holds one thread for each model."""

    def __init__(self) -> None:
        self._looks: dict[str, asyncio.Future[None]] = {}

    async def check(self, spec: ModelSpec) -> None:
        """All files of the model are there and readable. Raises ModelUnavailable, also when the look takes more than 10 s."""
        key = f"{spec.id} {spec.fingerprint}"
        look = self._looks.get(key)
        if look is None:
            look = self._looks[key] = in_background(functools.partial(_look_at_files, spec))
            look.add_done_callback(functools.partial(self._on_look, key))
        try:
            async with asyncio.timeout(FILES_SECONDS_MAX):
                await asyncio.shield(look)
        except TimeoutError as error:
            raise ModelUnavailable("The model's files do not answer: check the disk or the mount that holds them.") from error

    def _on_look(self, key: str, look: asyncio.Future[None]) -> None:
        del self._looks[key]
        if not look.cancelled():
            look.exception()  # seen, also when nobody waits for it any more


def _look_at_files(spec: ModelSpec) -> None:
    if spec.unavailable is not None:
        raise ModelUnavailable(spec.unavailable)
    for name in spec.files:
        path = Path(name)
        if not path.is_file():
            raise ModelUnavailable(f"A file of the model is gone: {path.name}.")
        if not os.access(path, os.R_OK):
            raise ModelUnavailable(f"A file of the model may not be read: {path.name}.")
