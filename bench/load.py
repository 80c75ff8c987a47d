# SPDX-License-Identifier: GPL-3.0-only
"""The load generator, a process of its own; rule: one job a line on stdin, one result a line on stdout, and it tells what it cost.

A job keeps `streams` requests open until `requests` of them have been asked; each is a new connection unless `keep` is set. The first
ones begin spread over `spread` seconds, so that no front end meets them in one instant. Times begin before the connection is opened.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final, cast

import httptools
import msgspec
import uvloop
from sequence import Sequence

ERRORS_MAX: Final = 3
ANSWER_SECONDS_MAX: Final = 120.0


class Job(msgspec.Struct):
    """What to ask, of whom, how often.

    host, port, unix   where; `unix` is a socket path and wins
    prefix             put before the path, for a peer that serves below one
    numbered           the answer comes from engine.py: its chunks are checked
    """

    model: str
    streams: int
    requests: int
    host: str = "127.0.0.1"
    port: int = 0
    unix: str = ""
    prefix: str = ""
    stream: bool = True
    chunks: int = 1
    pace_us: int = 0
    spread: float = 0.0
    keep: bool = False
    numbered: bool = True
    prompt: str = "Once upon a time"


class Result(msgspec.Struct):
    """What came of it. Times in milliseconds; `cpu` and `wall` in seconds, from the first request to the last byte."""

    requests: int
    wall: float
    cpu: float
    chunks: int
    first_p50: float
    first_p99: float
    delay_p50: float
    delay_p99: float
    lost: int
    reordered: int
    failed: int
    errors: list[str]


class Client(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, asked_ns: int) -> asyncio.Future[None]:
        """Send the request; the future ends with the answer, good or not."""
        self.asked_ns = asked_ns
        self.first_ns = 0
        self.events = 0
        self.good = self.over = False
        self.sequence = Sequence()
        self.parts: list[bytes] = []
        self.on_body = self.parts.append
        self.parser = httptools.HttpResponseParser(self)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        assert self.transport is not None
        self.transport.write(self.load.request)
        return self.ended

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self.parser.feed_data(data)
        if self.parts:
            body = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
            self.parts.clear()
            if not self.first_ns:
                self.first_ns = now
            if self.load.job.stream and self.load.job.numbered:
                self.sequence.take(body, now)
            else:
                self.events += body.count(b"data: {")
        if self.over and not self.ended.done():
            self.ended.set_result(None)

    def on_message_complete(self) -> None:
        self.over = True
        status = self.parser.get_status_code()
        self.good = status == 200
        if not self.good:
            self.load.error(f"status {status}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if hasattr(self, "ended") and not self.ended.done():
            self.load.error(f"the connection ended early {exc or ''}".strip())
            self.ended.set_result(None)


class Load:
    """One job while it runs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        fields: dict[str, object] = {"model": job.model, "prompt": job.prompt, "max_tokens": job.chunks, "stream": job.stream}
        fields |= {"pace_us": job.pace_us} if job.numbered else {"ignore_eos": True, "temperature": 0}
        body = json.dumps(fields).encode()
        close = "" if job.keep else "Connection: close\r\n"
        head = f"POST {job.prefix}/v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{close}"
        self.request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.left = job.requests
        self.errors: list[str] = []
        self.firsts: list[int] = []
        self.delays: list[int] = []
        self.answered = self.chunks = self.lost = self.reordered = self.failed = 0

    def error(self, text: str) -> None:
        if len(self.errors) < ERRORS_MAX:
            self.errors.append(text)

    async def run(self) -> Result:
        begin, cpu = time.monotonic(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for number in range(self.job.streams):
                group.create_task(self.worker(self.job.spread * number / self.job.streams), name=f"stream {number}")
        wall, cpu = time.monotonic() - begin, time.process_time() - cpu
        first, delay = sorted(self.firsts), sorted(self.delays)
        return Result(
            self.answered,
            wall,
            cpu,
            self.chunks,
            percentile(first, 0.5) / 1e6,
            percentile(first, 0.99) / 1e6,
            percentile(delay, 0.5) / 1e6,
            percentile(delay, 0.99) / 1e6,
            self.lost,
            self.reordered,
            self.failed,
            self.errors,
        )

    async def worker(self, pause: float) -> None:
        await asyncio.sleep(pause)
        client: Client | None = None
        while self.left > 0:
            self.left -= 1
            asked = time.monotonic_ns()
            try:
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    if client is None or client.closed:
                        client = await self.connect()
                    await client.ask(asked)
            except (OSError, TimeoutError) as error:
                self.failed += 1
                self.error(f"{type(error).__name__}: {error}")
                client = None
                continue
            self.note(client)
            if not self.job.keep:
                assert client.transport is not None
                client.transport.abort()
                client = None
        if client is not None and client.transport is not None:
            client.transport.abort()

    async def connect(self) -> Client:
        loop = asyncio.get_running_loop()
        if self.job.unix:
            return (await loop.create_unix_connection(lambda: Client(self), self.job.unix))[1]
        return (await loop.create_connection(lambda: Client(self), self.job.host, self.job.port))[1]

    def note(self, client: Client) -> None:
        """Add what came of one request."""
        one = client.sequence
        self.answered += 1
        if client.first_ns:
            self.firsts.append(client.first_ns - client.asked_ns)
        if not self.job.stream:
            self.failed += not client.good
            return
        if not self.job.numbered:
            self.chunks += client.events
            self.failed += not client.good
            return
        self.chunks += len(one.delays)
        self.delays += one.delays
        self.lost += one.lost(self.job.chunks)
        self.reordered += one.reordered + one.repeated
        if one.foreign:
            self.error("an event that the engine did not send")
        self.failed += not (client.good and one.done and not one.foreign)


def percentile(values: list[int], share: float) -> float:
    """Of sorted values; 0 when there are none."""
    return float(values[min(len(values) - 1, int(len(values) * share))]) if values else 0.0


def main() -> None:
    jobs = msgspec.json.Decoder(Job)
    for line in sys.stdin:
        result: Any = uvloop.run(Load(jobs.decode(line)).run())
        print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
