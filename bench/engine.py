# SPDX-License-Identifier: GPL-3.0-only
"""A model server that computes nothing, for the hop alone; rule: it costs as little as Python can, and each chunk says which it is.

    python bench/engine.py [PORT]        prints the TCP port it listens on; 0 or none = a free one

It answers what modeld and other front ends ask of llama.cpp: `/health`, `/v1/models` (one model, `bench-hop`), `/props` (1024 slots), and
`POST /v1/completions` and `/v1/chat/completions`. `max_tokens` of the body is the number of chunks, `pace_us` the microseconds between
two of them (from the first on; late ones are sent at once), `stream` false makes it a short whole answer. A chunk is an event of 200 bytes
with its number and the nanosecond of CLOCK_MONOTONIC at which it was written, so that loss, order and delay are seen by the client.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final, cast

import msgspec
import uvloop

MODEL: Final = "bench-hop"
SLOTS: Final = 1024
CHUNK_BYTES: Final = 200
_EVENT: Final = b'data: {"n":%07d,"t":%020d,"pad":"%b"}\n\n'
_PAD: Final = b"x" * (CHUNK_BYTES - len(_EVENT % (0, 0, b"")))
_FRAME: Final = b"%x\r\n%b\r\n" % (CHUNK_BYTES, _EVENT.replace(b"%b", _PAD))
_DONE: Final = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
_WHOLE: Final = (
    b'{"id":"x","object":"text_completion","created":1,"model":"bench-hop","choices":[{"index":0,"text":"Once upon a time there was",'
    b'"message":{"role":"assistant","content":"Once upon a time there was"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":4,"completion_tokens":6,"total_tokens":10}}'
)
_MODELS: Final = b'{"object":"list","data":[{"id":"bench-hop","object":"model","created":1,"owned_by":"bench"}]}'
_PROPS: Final = b'{"total_slots":%d,"build_info":"bench engine","default_generation_settings":{"n_ctx":4096}}' % SLOTS


class Ask(msgspec.Struct):
    """What is read of a request."""

    max_tokens: int = 1
    pace_us: int = 0
    stream: bool = False


_asks: Final = msgspec.json.Decoder(Ask)


class Engine(asyncio.Protocol):
    """One connection; requests one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.loop = asyncio.get_running_loop()
        self.got = b""
        self.closing = False
        self.gone = False
        self.sent = self.wanted = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True

    def data_received(self, data: bytes) -> None:
        self.got += data
        end = self.got.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.got[:end].lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.got) < end + 4 + size:
            return
        body, self.got = self.got[end + 4 : end + 4 + size], self.got[end + 4 + size :]
        self.closing = b"connection: close" in head
        self.answer(head.split(b" ", 2)[1], body)

    def answer(self, path: bytes, body: bytes) -> None:
        if path.startswith((b"/v1/chat/completions", b"/v1/completions")):
            ask = _asks.decode(body)
            if ask.stream:
                self.stream(ask)
            else:
                self.whole(_WHOLE)
        elif path == b"/v1/models":
            self.whole(_MODELS)
        elif path.startswith(b"/props"):
            self.whole(_PROPS)
        else:
            self.whole(b'{"status":"ok"}')

    def whole(self, body: bytes) -> None:
        close = b"Connection: close\r\n" if self.closing else b""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n" % (close, len(body))
        self.transport.write(head + body)
        if self.closing:
            self.transport.close()

    def stream(self, ask: Ask) -> None:
        self.sent, self.wanted, self.pace = 0, ask.max_tokens, ask.pace_us / 1e6
        self.transport.write(_STREAM_HEAD + (b"Connection: close\r\n\r\n" if self.closing else b"\r\n"))
        self.due = self.loop.time()
        self.tick()

    def tick(self) -> None:
        if self.gone:
            return
        if self.sent == self.wanted:
            self.transport.write(_DONE)
            if self.closing:
                self.transport.close()
            return
        self.transport.write(_FRAME % (self.sent, time.monotonic_ns()))
        self.sent += 1
        self.due += self.pace
        self.loop.call_at(self.due, self.tick)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
