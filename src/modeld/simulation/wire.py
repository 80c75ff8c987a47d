# SPDX-License-Identifier: GPL-3.0-only
"""Connections without sockets, for the deterministic loop; rule: bytes keep their order and come in pieces of their own, as from a kernel.

A server listens at a port number and gets each Wire when it is made. The client's side of a Wire is a transport like any other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from modeld.simulation.loop import VirtualLoop


class Wire(asyncio.Transport):
    """One connection. The client writes, pauses and aborts; the server sends and loses."""

    def __init__(self, loop: VirtualLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.sent = b""
        """What the client has sent."""
        self.paused = False
        self.on_request: Callable[[], None] = _nothing
        """Called, soon after, for each write of the client."""
        self.on_closed: Callable[[], None] = _nothing
        """Called at once when the connection ends, whoever ended it."""
        self._loop = loop
        self._protocol = protocol
        self._closed = False
        self._inbound: deque[Callable[[], None]] = deque()
        self._pumping = False

    # --- the client's side --------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closed:
            self.sent += bytes(data)
            self._loop.call_soon(self._tell)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(bytes(data) for data in list_of_data))

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        self._pump_soon()

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self._closed:
            self._inbound.clear()
            self._end(None)

    # --- the server's side --------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Bytes for the client: one call of its `data_received`."""
        self._inbound.append(lambda: self._protocol.data_received(data))
        self._pump_soon()

    def lose(self, error: OSError | None) -> None:
        """Close (None) or reset, after what was sent before. A client that does not read sees neither until it reads again."""
        self._inbound.append(lambda: self._end(error))
        self._pump_soon()

    # --- in between ---------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        if not self._closed:
            self.on_request()

    def _pump_soon(self) -> None:
        if not self._pumping and not self._closed:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """One piece at a time: others may run in between."""
        self._pumping = False
        if self._closed or self.paused or not self._inbound:
            return
        self._inbound.popleft()()
        if self._inbound:
            self._pump_soon()

    def _end(self, error: OSError | None) -> None:
        self._closed = True
        self.on_closed()
        self._loop.call_soon(self._protocol.connection_lost, error)


class WiredLoop(VirtualLoop):
    """A deterministic loop with an inside network: `create_connection` finds who listens there, by port alone."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self._listening: dict[int, Callable[[Wire], None]] = {}

    def listen(self, port: int, accept: Callable[[Wire], None]) -> None:
        self._listening[port] = accept

    def silence(self, port: int) -> None:
        """Nobody listens there any more."""
        self._listening.pop(port, None)

    async def create_connection(  # type: ignore[override]  # the one form that is used here, of the many there are
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int, *, ssl: None = None
    ) -> tuple[Wire, asyncio.Protocol]:
        """Connect to who listens at `port` when the connection is made. Raises ConnectionRefusedError."""
        await asyncio.sleep(0)
        accept = self._listening.get(port)
        if accept is None:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        protocol = protocol_factory()
        wire = Wire(self, protocol)
        protocol.connection_made(wire)
        accept(wire)
        await asyncio.sleep(0)
        return wire, protocol


def _nothing() -> None:
    """Nobody wants to know."""
