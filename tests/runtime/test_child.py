# SPDX-License-Identifier: GPL-3.0-only
# ruff: noqa: ASYNC110, ASYNC222, ASYNC230 - what the child does is looked at from outside; nothing else runs on the loop

"""A child process on real pipes and signals, on both event loops. Rows F3, F4, F6, F12, F13, F15, F16, F17 and F21."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from modeld.errors import InvariantError, SpawnFailed
from modeld.runtime.adapters import shim
from modeld.runtime.child import EXIT_CODE_UNKNOWN, LINE_BYTES_MAX, LOG_LINES_MAX, Child, capture, child_environment

Run = Callable[[Coroutine[Any, Any, None]], None]
ENV = {"PATH": os.defpath}
UP = "print('up', flush=True)\n"
FOR_EVER = "import signal\nwhile True: signal.pause()\n"


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


class Talk:
    """A child that runs Python code; its standard output is awaited line by line."""

    def __init__(self, code: str, **options: Any) -> None:
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.child = Child([sys.executable, "-I", "-S", "-c", code], env=ENV, cwd=Path("/"), on_stdout=self._on_line, **options)

    def _on_line(self, line: bytes) -> bool:
        self.lines.put_nowait(line)
        return True

    async def hears(self) -> bytes:
        async with asyncio.timeout(20):
            return await self.lines.get()

    async def ends(self) -> int:
        async with asyncio.timeout(20):
            return await asyncio.shield(self.child.exit)

    async def __aenter__(self) -> Talk:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.child.kill()
        await self.ends()


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def test_the_exit_code_is_told_and_the_child_is_reaped(run: Run) -> None:
    """F3: no zombie stays."""

    async def story() -> None:
        async with Talk("import sys; sys.exit(7)") as talk:
            assert await talk.ends() == 7
            with pytest.raises(ChildProcessError):
                os.waitpid(talk.child.pid, os.WNOHANG)

    run(story())


def test_a_signal_is_a_negative_code(run: Run) -> None:
    async def story() -> None:
        async with Talk("import os; os.kill(os.getpid(), 11)") as talk:
            assert await talk.ends() == -signal.SIGSEGV

    run(story())


def test_stop_is_term(run: Run) -> None:
    async def story() -> None:
        async with Talk(UP + FOR_EVER) as talk:
            await talk.hears()
            talk.child.stop()
            talk.child.stop()
            assert await talk.ends() == -signal.SIGTERM
            assert not talk.child.kill_sent

    run(story())


def test_a_child_that_refuses_term_is_killed(run: Run) -> None:
    """F6."""

    async def story() -> None:
        async with Talk("import signal; signal.signal(15, signal.SIG_IGN)\n" + UP + FOR_EVER, stop_grace=0.05) as talk:
            await talk.hears()
            talk.child.stop()
            assert await talk.ends() == -signal.SIGKILL

    run(story())


def test_no_signal_after_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """F4: the number may mean somebody else by then."""

    async def story() -> None:
        async with Talk("pass") as talk:
            await talk.ends()
            sent: list[object] = []
            monkeypatch.setattr(signal, "pidfd_send_signal", lambda *args: sent.append(args))
            monkeypatch.setattr(os, "kill", lambda *args: sent.append(args))
            monkeypatch.setattr(os, "killpg", lambda *args: sent.append(args))
            talk.child.stop()
            talk.child.kill()
            assert sent == []
            monkeypatch.undo()

    run(story())


@pytest.mark.parametrize("group", [None, 0], ids=["same group", "own group"])
def test_what_the_child_leaves_behind_is_ended(run: Run, group: int | None) -> None:
    """F12: grandchildren that refuse TERM are gone before the exit is told."""
    code = f"""
        import subprocess, sys
        sleeper = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"
        p = subprocess.Popen([sys.executable, "-I", "-c", sleeper], stdout=subprocess.PIPE, process_group={group})
        p.stdout.readline()
        print(p.pid, flush=True)
        sys.stdin.read()
    """

    async def story() -> None:
        async with Talk(textwrap.dedent(code)) as talk:
            grandchild = int(await talk.hears())
            assert not gone(grandchild)
            talk.child.stop()
            await talk.ends()
            assert gone(grandchild)

    run(story())


def test_a_flood_without_a_line_break_neither_blocks_nor_fills_memory(run: Run) -> None:
    """F15."""

    async def story() -> None:
        async with Talk("import os\nfor _ in range(200): os.write(2, b'x' * 65536)\nos._exit(0)") as talk:
            assert await talk.ends() == 0
            assert talk.child.dropped_bytes > 10 * 2**20  # of 12.5 MiB
            assert sum(map(len, talk.child.log_tail())) <= LINE_BYTES_MAX

    run(story())


def test_a_flood_of_lines_is_a_bounded_ring(run: Run) -> None:
    """F15: of the first burst the last lines are kept, beyond the rate all is counted and dropped."""

    async def story() -> None:
        async with Talk("import os\nos.write(2, b''.join(b'line %d\\n' % n for n in range(1000)))\nos._exit(0)") as talk:
            await talk.ends()
            tail = talk.child.log_tail()
            assert len(tail) == LOG_LINES_MAX
            assert tail[-1] == "line 999"
            assert talk.child.dropped_bytes == 0
        async with Talk("import os\nfor _ in range(100): os.write(2, b'\\n' * 65536)\nos._exit(0)") as talk:
            await talk.ends()
            assert talk.child.dropped_bytes > 0

    run(story())


def test_closed_outputs_are_not_an_end(run: Run) -> None:
    """F16: the child lives on, and can still be stopped."""

    async def story() -> None:
        async with Talk(UP + "import os; os.close(1); os.close(2)\n" + FOR_EVER) as talk:
            await talk.hears()
            while not all(output.closed for output in talk.child._outputs):
                await asyncio.sleep(0.001)
            assert not talk.child.exit.done()
            talk.child.stop()
            assert await talk.ends() == -signal.SIGTERM

    run(story())


def test_the_log_is_shown_safely(run: Run) -> None:
    """F16: what is not UTF-8 is replaced, control characters are written out, an unfinished last line counts."""

    async def story() -> None:
        async with Talk("import os; os.write(2, b'a\\xff\\x1b[2Jb\\r\\nlong' + b'y' * 5000 + b'\\nend'); os._exit(0)") as talk:
            await talk.ends()
            first, second, third = talk.child.log_tail()
            assert first == "a\N{REPLACEMENT CHARACTER}\\x1b[2Jb"
            assert len(second) == LINE_BYTES_MAX
            assert third == "end"

    run(story())


def test_what_cannot_be_started_is_a_typed_error() -> None:
    """F17."""

    async def story() -> None:
        with pytest.raises(SpawnFailed, match="No such file"):
            Child(["/does/not/exist"], env=ENV, cwd=Path("/"))
        with pytest.raises(SpawnFailed, match="too long"):
            Child(["/bin/true"], env=ENV, cwd=Path("/"), first_line=b"x" * 100_000)

    asyncio.run(story())


def test_running_out_of_descriptors_is_a_typed_error_and_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """F17: EMFILE before the process exists, and after (no pidfd: the child must not stay)."""

    def no_pidfd(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def story() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, hard))
        try:
            with pytest.raises(SpawnFailed, match="Too many open files"):
                Child(["/bin/true"], env=ENV, cwd=Path("/"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        before = set(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", no_pidfd)
            with pytest.raises(SpawnFailed, match="Too many open files"):
                Child([sys.executable, "-c", FOR_EVER], env=ENV, cwd=Path("/"))
        assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(story())


def test_children_come_from_the_main_thread_only() -> None:
    """F21: the kernel would end the child with the thread."""
    errors: list[BaseException] = []

    async def story() -> None:
        try:
            Child(["/bin/true"], env=ENV, cwd=Path("/"))
        except InvariantError as error:
            errors.append(error)

    thread = threading.Thread(target=asyncio.run, args=(story(),))
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_a_child_has_its_own_session_few_descriptors_and_the_environment_it_was_given(run: Run) -> None:
    code = "import os; print(os.getsid(0) == os.getpid(), sorted(os.listdir('/proc/self/fd'))[:4], sorted(os.environ), flush=True)"

    async def story() -> None:
        with open(os.devnull) as other:
            os.set_inheritable(other.fileno(), True)
            async with Talk(code) as talk:
                # 3 is the folder that is being listed
                assert await talk.hears() in (b"True ['0', '1', '2', '3'] ['LC_CTYPE', 'PATH']", b"True ['0', '1', '2', '3'] ['PATH']")

    run(story())


def test_the_first_line_arrives_and_the_life_line_stays_open(run: Run) -> None:
    code = "import sys, select; print(sys.stdin.readline().strip(), select.select([0], [], [], 0)[0], flush=True)\n" + FOR_EVER

    async def story() -> None:
        async with Talk(code, first_line=b"hello\n") as talk:
            assert await talk.hears() == b"hello []"

    run(story())


def test_the_environment_is_built_from_an_allow_list() -> None:
    source = {
        "PATH": "/bin",
        "LANG": "C",
        "LC_ALL": "C",
        "TMPDIR": "/t",
        "LD_LIBRARY_PATH": "/l",
        "CUDA_VISIBLE_DEVICES": "0",
        "HSA_OVERRIDE_GFX_VERSION": "11",
        "GGML_X": "1",
        "OMP_NUM_THREADS": "2",
        "HOME": "/root",
        "LLAMA_ARG_HOST": "0.0.0.0",
        "HF_TOKEN": "s",
        "MODELD_ADDR": ":1",
        "PYTHONPATH": "/p",
        "LD_PRELOAD": "x.so",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    assert child_environment(source, Path("/h")) == {
        "PATH": "/bin",
        "LANG": "C",
        "LC_ALL": "C",
        "TMPDIR": "/t",
        "LD_LIBRARY_PATH": "/l",
        "CUDA_VISIBLE_DEVICES": "0",
        "HSA_OVERRIDE_GFX_VERSION": "11",
        "GGML_X": "1",
        "GGML_NO_BACKTRACE": "1",
        "OMP_NUM_THREADS": "2",
        "HOME": "/h",
    }
    assert child_environment({}, Path("/h")) == {"PATH": os.defpath, "GGML_NO_BACKTRACE": "1", "HOME": "/h"}


async def test_a_command_that_is_silent_is_given_up() -> None:
    code, lines = await capture([sys.executable, "-c", FOR_EVER], env=ENV, cwd=Path("/"), seconds_max=0.05)
    assert (code, lines) == (None, [])


async def test_a_short_command_is_read() -> None:
    code, lines = await capture(["/bin/sh", "-c", "echo one; echo two >&2; exit 3"], env=ENV, cwd=Path("/"), seconds_max=20)
    assert (code, lines) == (3, ["one", "two"])


# --- the shim ---------------------------------------------------------------------------------------------------------


def shim_argv(parent: int, *command: str) -> list[str]:
    return [sys.executable, "-I", "-S", shim.__file__, str(parent), "--", *command]


async def test_the_shim_becomes_the_program_without_core_files() -> None:
    """F13: no core files. SIGPIPE has its default action again."""
    argv = shim_argv(os.getpid(), "/bin/sh", "-c", "ulimit -Hc; ulimit -Sc; grep SigIgn /proc/self/status")
    exit_code, lines = await capture(argv, env=ENV, cwd=Path("/"), seconds_max=20)
    assert exit_code == 0
    assert lines[:2] == ["0", "0"]
    assert int(lines[2].split()[-1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


@pytest.mark.parametrize(("program", "code"), [("/does/not/exist", shim.EXIT_NOT_FOUND), ("/etc/passwd", shim.EXIT_CANNOT_RUN)])
async def test_the_shim_says_what_it_could_not_run(program: str, code: int) -> None:
    got, lines = await capture(shim_argv(os.getpid(), program), env=ENV, cwd=Path("/"), seconds_max=20)
    assert got == code
    assert lines[0].startswith(shim.MARK)


async def test_the_shim_starts_nothing_for_a_parent_that_is_gone() -> None:
    """F21: the parent died between the fork and the request to die with it."""
    assert await capture(shim_argv(1, "/bin/echo", "alive"), env=ENV, cwd=Path("/"), seconds_max=20) == (shim.EXIT_CANNOT_RUN, [])


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    """F21: also by SIGKILL, where nothing of ours can run any more."""
    code = f"""
        import os, subprocess, sys, time
        argv = [sys.executable, "-I", "-S", {shim.__file__!r}, str(os.getpid()), "--", "/bin/sh", "-c", "echo $$; exec sleep 600"]
        child = subprocess.Popen(argv, start_new_session=True)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        pidfd = os.pidfd_open(pid)
        try:
            parent.kill()
            assert has_ended(pidfd)
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(10_000))


def test_an_end_that_somebody_else_reaped_is_told_too(run: Run) -> None:
    """An ignored SIGCHLD, which a careless parent leaves to us, makes the kernel reap: the code is lost, the end is not."""

    async def story() -> None:
        # It lives for a moment: one that is reaped before its spawn has returned cannot be held at all.
        async with Talk("import sys, time; time.sleep(0.5); sys.exit(7)") as talk:
            assert await talk.ends() == EXIT_CODE_UNKNOWN
            assert "the exit code is lost" in talk.child.log_tail()[-1]

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        run(story())
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_an_end_is_told_although_proc_cannot_be_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_path: str) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def story() -> None:
        async with Talk("import sys; sys.exit(7)") as talk:
            with monkeypatch.context() as patch:
                patch.setattr(os, "listdir", none_left)
                assert await talk.ends() == 7

    run(story())
