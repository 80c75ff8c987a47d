# SPDX-License-Identifier: GPL-3.0-only
"""Blocking work that nobody has to wait for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest

from modeld.runtime.background import in_background


async def test_a_result_and_an_error_come_back() -> None:
    assert await in_background(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await in_background(lambda: 1 // 0)


async def test_what_comes_after_a_cancel_is_dropped() -> None:
    go, went = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(20)
        went.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await in_background(work)
    go.set()
    assert went.wait(20)
    await in_background(lambda: None)  # the loop has taken what the first one told


def test_the_process_ends_without_it() -> None:
    code = """
        import asyncio, threading
        from modeld.runtime.background import in_background
        async def main():
            started = threading.Event()
            in_background(lambda: (started.set(), threading.Event().wait()))
            await in_background(lambda: started.wait())
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=20, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
