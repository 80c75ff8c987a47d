# SPDX-License-Identifier: GPL-3.0-only
"""Blocking work in a thread that ends with the process; rule: nobody waits for the thread, only for what it finds.

The loop's own executor is joined at the end of the program: one look at a file on a dead mount would hold up the shutdown for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


def in_background(work: Callable[[], T], *, name: str = "folder") -> asyncio.Future[T]:
    """Start `work` in a daemon thread of that name; the future has its result or its error. Cancelling it leaves the thread behind."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - whatever it was, it is raised again where it is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done
