# SPDX-License-Identifier: GPL-3.0-only
"""Connections inside the deterministic loop, read by the real exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from modeld.errors import ClientGone, Died, UpstreamUnreachable
from modeld.runtime.upstream import Endpoint, Exchange
from modeld.simulation.wire import Wire, WiredLoop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n"


def run(script: Callable[[Wire], None], main: Callable[[Exchange], Awaitable[object]], port: int = 7) -> Wire:
    """A server at port 7 that answers each request by `script`."""
    wires: list[Wire] = []

    def accept(wire: Wire) -> None:
        wires.append(wire)
        wire.on_request = lambda: script(wire)

    async def ask() -> None:
        loop.listen(7, accept)
        await main(await Exchange.open(Endpoint(host="child", port=port), "POST", "/x", [], b"body"))

    loop = WiredLoop(3)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(ask())
    assert loop.faults == []
    return wires[0]


def test_pieces_arrive_in_their_order():
    async def main(exchange: Exchange) -> None:
        assert await exchange.read(10) == b"abcdef"

    wire = run(lambda wire: [wire.send(piece) for piece in (HEAD, b"ab", b"cd", b"ef")], main)
    assert wire.sent.endswith(b"\r\n\r\nbody")
    assert wire.is_closing()


def test_a_reset_comes_after_what_was_sent_before():
    seen: list[bytes] = []

    class Sink:
        def data(self, chunk: bytes) -> None:
            seen.append(chunk)

    async def main(exchange: Exchange) -> None:
        exchange.attach(Sink())
        with pytest.raises(Died):
            await exchange.finished()

    run(lambda wire: (wire.send(HEAD + b"ab"), wire.lose(ConnectionResetError("reset")), wire.send(b"cdef")), main)
    assert seen == [b"ab"]


def test_who_does_not_read_sees_no_end():
    async def main(exchange: Exchange) -> None:
        exchange.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await exchange.finished()
        exchange.resume()
        with pytest.raises(Died):
            await exchange.finished()

    run(lambda wire: (wire.send(HEAD), wire.lose(None)), main)


def test_an_abort_is_seen_by_the_server_at_once():
    closed: list[str] = []

    def script(wire: Wire) -> None:
        wire.on_closed = lambda: closed.append("closed")
        wire.send(HEAD)

    async def main(exchange: Exchange) -> None:
        exchange.abort()
        assert closed == ["closed"]
        with pytest.raises(ClientGone):
            await exchange.finished()

    run(script, main)


def test_nobody_listens():
    with pytest.raises(UpstreamUnreachable):
        run(lambda wire: None, lambda exchange: asyncio.sleep(0), port=8)
