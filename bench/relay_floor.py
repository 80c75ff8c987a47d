# SPDX-License-Identifier: GPL-3.0-only

"""The cheapest relay Python can be: bytes from one socket to another, nothing read in them; rule: this is the floor, never the product.

python bench/relay_floor.py UPSTREAM_PORT      prints the TCP port it listens on; the upstream is on this machine too
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One of the two connections; what it reads is written to the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self.early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Front(Side):
    """The client's connection: opens the other one."""

    def __init__(self, upstream: int) -> None:
        super().__init__()
        self.upstream = upstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.task = asyncio.get_running_loop().create_task(self.connect())

    async def connect(self) -> None:
        _, back = await asyncio.get_running_loop().create_connection(Side, "127.0.0.1", self.upstream)
        back.other, self.other = self, back
        for data in self.early:
            self.data_received(data)


async def main(upstream: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Front(upstream), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
