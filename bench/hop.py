# SPDX-License-Identifier: GPL-3.0-only

"""What one hop through modeld's transport costs per streamed chunk, against a bare socket relay; rule: both are measured in one run.

    python bench/hop.py [--chunks N] [--rounds N]

An engine in its own process streams server-sent events of 200 bytes to 64 clients, every client one event each few milliseconds, as a
model under load does. In between stands once the floor (relay_floor.py) and once our protocol with our upstream client. Compared is the
processor time of the relay's process, user and system, from before the first request to after the last byte. A machine with other work
on it moves both numbers, so the result is the median of the ratios of the rounds, and all rounds are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
import uvloop

from modeld.api.protocol import ProtocolLimits, make_protocol
from modeld.api.route import Connection
from modeld.runtime.upstream import Endpoint, Exchange

STREAMS: Final = 64
EVENT: Final = b"data: " + b"x" * 192 + b"\n\n"
PACE_SECONDS: Final = 0.004
REQUEST: Final = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"


class Engine(asyncio.Protocol):
    """Answers every request with `chunks` events, one each PACE_SECONDS."""

    def __init__(self, chunks: int) -> None:
        self.left = chunks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.loop = asyncio.get_running_loop()
        self.got = b""

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.got.endswith(b"{}"):
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            self.transport.write(head)
            self.due = self.loop.time()
            self.tick()

    def tick(self) -> None:
        if self.left == 0:
            self.transport.write(b"0\r\n\r\n")
            self.transport.close()
            return
        self.left -= 1
        self.transport.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        self.due += PACE_SECONDS
        self.loop.call_at(self.due, self.tick)


class Copy:
    """The sink of one relayed answer."""

    def __init__(self, connection: Connection) -> None:
        self.data = connection.write


async def serve_relay(upstream: str) -> None:
    endpoint = Endpoint(socket=upstream)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        connection: Connection = scope["extensions"]["modeld"]
        body = await connection.body(1 << 20)
        exchange = await Exchange.open(endpoint, scope["method"], scope["path"], [], body)
        connection.on_disconnect(exchange.abort)
        connection.on_pressure(exchange.pause, exchange.resume)
        connection.start(exchange.status, [header for header in exchange.headers if header[0] == b"content-type"])
        exchange.attach(Copy(connection))
        await exchange.finished()
        connection.finish()

    protocol = make_protocol(ProtocolLimits())
    config = uvicorn.Config(app, port=0, http=protocol, ws="none", loop="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await server.main_loop()


async def serve_engine(path: str, chunks: int) -> None:
    server = await asyncio.get_running_loop().create_unix_server(lambda: Engine(chunks), path, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


class Client(asyncio.Protocol):
    """Sends the request and counts what comes back."""

    def __init__(self) -> None:
        self.size = 0
        self.tail = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        self.tail = (self.tail + data)[-5:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set_result(None)


async def load(port: int, chunks: int) -> None:
    """One answer for each of the streams, all at once; raises when one of them is not whole."""
    loop = asyncio.get_running_loop()
    clients = [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(STREAMS)]
    for client in clients:
        await client.done
        if client.size < chunks * len(EVENT) or client.tail != b"0\r\n\r\n":
            raise SystemExit(f"an answer of {client.size} bytes is not whole")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(*argv: str) -> Iterator[tuple[int, str]]:
    """A Python process: its id and the first line it printed. Ended at the end."""
    with subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None:
                raise SystemExit("no pipe")
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.kill()


def measure(chunks: int, rounds: int) -> list[dict[str, float]]:
    """Microseconds of processor time per chunk for each relay, round by round; who goes first alternates."""
    here = Path(__file__).resolve()
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "engine")
        relays = [("floor", (str(here.with_name("relay_floor.py")), path)), ("modeld", (str(here), "relay", path))]
        with running(str(here), "engine", path, str(chunks)):
            for _ in range(rounds):
                costs: dict[str, float] = {}
                for name, argv in relays:
                    with running(*argv) as (pid, port):
                        before = cpu_seconds(pid)
                        uvloop.run(load(int(port), chunks))
                        costs[name] = (cpu_seconds(pid) - before) / (chunks * STREAMS) * 1e6
                results.append(costs)
                relays.reverse()
    return results


def main() -> None:
    match sys.argv[1:]:
        case ["engine", path, chunks]:
            uvloop.run(serve_engine(path, int(chunks)))
            return
        case ["relay", path]:
            uvloop.run(serve_relay(path))
            return
    parser = argparse.ArgumentParser(description="processor time per streamed chunk, against a bare socket relay")
    parser.add_argument("--chunks", type=int, default=1000, help="events per stream")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    results = measure(options.chunks, options.rounds)
    ratios = [costs["modeld"] / costs["floor"] for costs in results]
    print(f"{'round':>6} {'floor us':>9} {'modeld us':>10} {'ratio':>6}")
    for number, (costs, ratio) in enumerate(zip(results, ratios, strict=True), 1):
        print(f"{number:>6} {costs['floor']:>9.2f} {costs['modeld']:>10.2f} {ratio:>6.2f}")
    summary = {"ratio_median": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    print(json.dumps({"streams": STREAMS, "chunk_bytes": len(EVENT), "chunks": options.chunks, "rounds": results, **summary}))


if __name__ == "__main__":
    main()
