# SPDX-License-Identifier: GPL-3.0-only
"""Looks at the machine's memory again and again, as nobody tells us what other programs take; rule: a look that fails costs only itself.

One look at a time: a driver that hangs holds one thread, not one more every other second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Never

from modeld.core.footprint import DeviceMemory
from modeld.core.messages import Event, MemorySeen
from modeld.core.model import DeviceId

log = logging.getLogger("modeld.memory")

SECONDS: Final = 2.0
LATE_SECONDS: Final = 30.0
"""A look that takes longer is told of: until it ends, what other programs take is not seen."""
_LATE: Final = "a look at memory takes more than %g s: what other programs take is not seen"
_FAILED: Final = "memory cannot be looked at: what other programs take is not seen"

Look = Callable[[], Awaitable[Mapping[DeviceId, DeviceMemory]]]
"""What each device of the ledger has, what is free of it and what of it is ours. What blocks in it belongs in a thread."""


async def watch_memory(look: Look, post: Callable[[Event], None], *, seconds: float = SECONDS, late_seconds: float = LATE_SECONDS) -> Never:
    """Post what `look` finds, until cancelled. What keeps it from seeing is said once, and said again after it could see."""
    told = False
    loop = asyncio.get_running_loop()
    while True:
        late = loop.call_later(late_seconds, log.warning, _LATE, late_seconds)
        try:
            devices = await look()
        except Exception:  # no thread to be had, a driver that ends badly: the next look may do better
            if not told:
                log.exception(_FAILED)
            told = True
        else:
            told = False
            post(MemorySeen(devices))
        finally:
            late.cancel()
        await asyncio.sleep(seconds)
