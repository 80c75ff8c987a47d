# SPDX-License-Identifier: GPL-3.0-only
"""One child process: spawn, log, TERM then KILL, reap; rule: it is signalled and watched by pidfd only, and it never outlives its `exit`.

A child leads its own session. Its standard input is a pipe that we keep open and never use again after the first line: a life line,
which breaks when we die. Both outputs are always read, so that a child never blocks on its log; what is too much is counted and dropped.
When the child has ended, the rest of its session (a wrapper script's own children) is killed, and only then the child is reaped:
until that moment the kernel cannot give its process id, which is also the id of its group and session, to anyone else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from modeld.errors import InvariantError, SpawnFailed

LOG_LINES_MAX: Final = 100
LINE_BYTES_MAX: Final = 2000
LOG_BURST_BYTES: Final = 512 * 1024
LOG_BYTES_PER_SECOND: Final = 64 * 1024
LINE_COST_BYTES: Final = 32
"""A line costs time even when it is empty: so many bytes are added to its length when the rate is counted."""
READ_BYTES: Final = 64 * 1024
FIRST_LINE_BYTES_MAX: Final = 32 * 1024
"""Half of what an empty pipe takes without blocking."""
REST_SECONDS_MAX: Final = 2.0
REST_ROUNDS_MAX: Final = 20
EXIT_CODE_UNKNOWN: Final = 255
"""Told when somebody else has reaped the child (an ignored SIGCHLD does). Never a signal: that would be read as a kill for memory."""

LineFilter = Callable[[bytes], bool]
"""Sees each line of standard output; True keeps it out of the log, because it was a message and not a log line."""

_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), *range(127, 160))}
_ALLOWED: Final = re.compile(
    r"PATH|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|LD_LIBRARY_PATH|(CUDA|NVIDIA|HIP|ROCR|HSA|GGML|OMP|GOMP)_\w+|ROCM_PATH"
)


def child_environment(source: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment of a child, built from nothing: only names that reach the loader, the locale or a GPU library are copied.

    An inherited LLAMA_ARG_* would reconfigure llama.cpp behind our back, PYTHON* our worker, and HF_TOKEN or MODELD_* are no child's
    business. `home` is a private folder. When llama.cpp aborts it would start a debugger for a backtrace, which takes seconds and pushes
    the cause out of the log: off.
    """
    chosen = {name: value for name, value in source.items() if _ALLOWED.fullmatch(name)}
    return {"PATH": os.defpath, "GGML_NO_BACKTRACE": "1", **chosen, "HOME": str(home)}


class Child:
    """A running process. `exit` gives its code (negative = the signal) once it is reaped and nothing of its session is left.

    A code that nobody can tell any more is EXIT_CODE_UNKNOWN, with a line in the log: `exit` always comes.

    All methods belong to the event loop's thread.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        first_line: bytes = b"",
        on_stdout: LineFilter | None = None,
        on_stderr: LineFilter | None = None,
        stop_grace: float = 3.0,
    ) -> None:
        """Spawn. `first_line` is written to standard input; `stop_grace` is the seconds from TERM to KILL. Raises SpawnFailed."""
        if threading.current_thread() is not threading.main_thread():
            # The kernel takes the end of the spawning thread for the end of the parent (PR_SET_PDEATHSIG).
            raise InvariantError("children are spawned from the main thread only")
        if len(first_line) > FIRST_LINE_BYTES_MAX:
            raise SpawnFailed("The model server's parameters are too long.")
        self._loop = asyncio.get_running_loop()
        self._process, self._pidfd = _spawn(argv, env, cwd)
        self.pid: Final = self._process.pid
        self.exit: Final[asyncio.Future[int]] = self._loop.create_future()
        self.stop_asked = False
        self.kill_sent = False
        self.bytes_seen = 0
        """Bytes of both outputs so far: grows while the child says anything."""
        self._stop_grace = stop_grace
        self._kill_timer: asyncio.TimerHandle | None = None
        self._rest: set[int] = set()
        self._rest_timer: asyncio.TimerHandle | None = None
        self._rest_rounds = 0
        self._log: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self._outputs: list[_Output] = []
        for pipe, line_filter in ((self._process.stdout, on_stdout), (self._process.stderr, on_stderr)):
            if pipe is not None:
                output = _Output(pipe.fileno(), self._log, line_filter, self._loop.time())
                self._outputs.append(output)
                os.set_blocking(output.fd, False)
                self._loop.add_reader(output.fd, self._on_output, output)
        self._loop.add_reader(self._pidfd, self._on_end)
        if first_line and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended already: the exit tells
                os.write(self._process.stdin.fileno(), first_line)

    def stop(self) -> None:
        """TERM now, KILL after `stop_grace`. May be called again; no effect after the end."""
        if self.stop_asked or self._pidfd < 0:
            return
        self.stop_asked = True
        self._signal(signal.SIGTERM)
        self._kill_timer = self._loop.call_later(self._stop_grace, self.kill)

    def kill(self) -> None:
        """KILL now. May be called again; no effect after the end."""
        self.stop_asked = self.kill_sent = True
        self._signal(signal.SIGKILL)

    def log_tail(self) -> tuple[str, ...]:
        """The last lines of both outputs as they came, oldest first; the unfinished ones at the end. Control characters are escaped."""
        unfinished = [_show(bytes(output.partial)) for output in self._outputs if output.partial]
        return (*self._log, *unfinished)[-LOG_LINES_MAX:]

    @property
    def dropped_bytes(self) -> int:
        """How much of the outputs was thrown away because a line was too long or the log came too fast."""
        return sum(output.dropped for output in self._outputs)

    # --- called by the event loop -------------------------------------------------------------------------------------

    def _on_output(self, output: _Output) -> None:
        try:
            data = os.read(output.fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self.bytes_seen += len(data)
            output.feed(data, self._loop.time())
        else:  # closed its output, which says nothing about its life
            self._loop.remove_reader(output.fd)
            output.closed = True

    def _on_end(self) -> None:
        """The child is a zombie. End what it left behind, then reap it."""
        self._loop.remove_reader(self._pidfd)
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        if _is_zombie(self._pidfd):
            self._end_rest()
        else:  # reaped by somebody else: the number may be a stranger's by now, so nothing more is signalled
            self._reap()

    def _end_rest(self) -> None:
        self._rest_rounds += 1
        # Not reaped yet, so the number still names our own group and nobody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        found: list[int] = []
        with contextlib.suppress(OSError):  # no descriptor is left to look into /proc: the group has been killed at least
            found = _open_session(self.pid)
        for pidfd in found:
            self._rest.add(pidfd)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._loop.add_reader(pidfd, self._on_rest_gone, pidfd)
        if self._rest:
            self._rest_timer = self._loop.call_later(REST_SECONDS_MAX, self._reap)
        else:
            self._reap()

    def _on_rest_gone(self, pidfd: int) -> None:
        self._drop_rest(pidfd)
        if self._rest:
            return
        if self._rest_timer is not None:
            self._rest_timer.cancel()
        # One of them may have forked between our look and its end.
        if self._rest_rounds < REST_ROUNDS_MAX:
            self._end_rest()
        else:
            self._reap()

    def _drop_rest(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        self._rest.discard(pidfd)
        os.close(pidfd)

    def _reap(self) -> None:
        for pidfd in tuple(self._rest):
            self._drop_rest(pidfd)
        try:
            code = _wait(self._pidfd)
        except OSError as error:  # raised here it would be the loop's, and `exit` would never come
            code = EXIT_CODE_UNKNOWN
            self._log.append(f"[the exit code is lost: {error.strerror}]")
        self._process.returncode = code
        os.close(self._pidfd)
        self._pidfd = -1
        for output in self._outputs:
            self._loop.remove_reader(output.fd)
            with contextlib.suppress(OSError):
                # A bounded rest: somebody outside the session may hold the other end and write for ever.
                while output.read_after_end < LOG_BURST_BYTES and (data := os.read(output.fd, READ_BYTES)):
                    output.read_after_end += len(data)
                    output.feed(data, self._loop.time())
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        if not self.exit.done():
            self.exit.set_result(code)

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


async def capture(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, seconds_max: float) -> tuple[int | None, list[str]]:
    """Run a short command; its exit code (None when it was killed for being slow) and what it said on standard output, then the log.

    Raises SpawnFailed.
    """
    said: list[str] = []

    def keep(line: bytes) -> bool:
        said.append(_show(line))
        return True

    child = Child(argv, env=env, cwd=cwd, on_stdout=keep)
    try:
        async with asyncio.timeout(seconds_max):
            code: int | None = await asyncio.shield(child.exit)
    except TimeoutError:
        code = None
    finally:
        child.kill()
        await asyncio.shield(child.exit)
    return code, [*said, *child.log_tail()]


class _Output:
    """One output pipe: bytes in, whole lines into the log."""

    __slots__ = ("_allowance", "_at", "_filter", "_log", "_skipping", "closed", "dropped", "fd", "partial", "read_after_end")

    def __init__(self, fd: int, log: deque[str], line_filter: LineFilter | None, now: float) -> None:
        self.fd = fd
        self.closed = False
        self.partial = bytearray()
        self.dropped = 0
        self.read_after_end = 0
        self._log = log
        self._filter = line_filter
        self._allowance = float(LOG_BURST_BYTES)
        self._at = now
        self._skipping = False

    def feed(self, data: bytes, now: float) -> None:
        self._allowance = min(LOG_BURST_BYTES, self._allowance + (now - self._at) * LOG_BYTES_PER_SECOND)
        self._at = now
        cost = len(data) + LINE_COST_BYTES * data.count(b"\n")
        if cost > self._allowance:
            self.dropped += len(data)
            self._skipping = True  # the rest of a line whose begin is gone is no line
            return
        self._allowance -= cost
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._add(part)
            self._end_line()
        self._add(rest)

    def _add(self, part: bytes) -> None:
        room = 0 if self._skipping else LINE_BYTES_MAX - len(self.partial)
        self.partial += part[:room]
        self.dropped += max(0, len(part) - room)

    def _end_line(self) -> None:
        line = bytes(self.partial)
        self.partial.clear()
        cut, self._skipping = self._skipping, False
        if (cut and not line) or (self._filter is not None and self._filter(line)):
            return
        self._log.append(_show(line))


def _show(line: bytes) -> str:
    """Decoded with replacement, control characters written out."""
    return line.rstrip(b"\r").decode("utf-8", errors="replace").translate(_CONTROL)


def _spawn(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> tuple[subprocess.Popen[bytes], int]:
    try:
        process = subprocess.Popen(  # noqa: S603 - argv is ours; there is no shell
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=env,
            cwd=cwd,
            close_fds=True,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise _spawn_failed(error) from error
    try:
        return process, os.pidfd_open(process.pid)
    except OSError as error:
        process.kill()  # not reaped, so the number is still its own
        with process:
            raise _spawn_failed(error) from error


def _spawn_failed(error: OSError | ValueError) -> SpawnFailed:
    reason = error.strerror if isinstance(error, OSError) else None
    return SpawnFailed(f"The model server could not be started: {reason or 'bad argument'}.", detail=f"{type(error).__name__}: {error}")


def _is_zombie(pidfd: int) -> bool:
    """It has ended and waits to be reaped by us."""
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except OSError:
        return False


def _wait(pidfd: int) -> int:
    """Reap; the exit code, or minus the signal. Raises OSError (ECHILD: reaped by somebody else)."""
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    if result is None:  # only without an end to wait for, which is not what was asked
        raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _open_session(leader: int) -> list[int]:
    """A pidfd of each living process of the session, without the leader."""
    found: list[int] = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - names only, for each process of the machine
        if name.isdecimal() and int(name) != leader and _lives_in(name, leader):
            try:
                pidfd = os.pidfd_open(int(name))
            except OSError:
                continue
            if _lives_in(name, leader):  # the number still means the same process, now that we hold it
                found.append(pidfd)
            else:
                os.close(pidfd)
    return found


def _lives_in(pid: str, session: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - read for each process of the machine
            state, _parent, _group, its_session = file.read().rpartition(b")")[2].split()[:4]
    except (OSError, ValueError):
        return False
    return int(its_session) == session and state not in (b"Z", b"X")
