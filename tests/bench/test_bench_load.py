# SPDX-License-Identifier: GPL-3.0-only
"""The load generator sees what a relay does to a stream: loss, order, repetition, a wrong status, an end that is too early."""

from __future__ import annotations

import asyncio

import pytest
from columns import peer
from engine import _EVENT, _PAD, CHUNK_BYTES, Engine
from load import Job, Load, Result, percentile
from real import spelled
from sequence import Sequence


def events(*numbers: int, at: int = 0) -> bytes:
    return b"".join(_EVENT % (number, at, _PAD) for number in numbers)


def read(*numbers: int) -> Sequence:
    one = Sequence()
    one.take(events(*numbers), 5)
    return one


def test_an_event_is_of_the_size_that_is_told():
    assert len(events(7)) == CHUNK_BYTES


def test_whatever_the_cuts_all_is_there():
    body = events(0, 1, 2, at=1000) + b"data: [DONE]\n\n"
    for size in (1, 7, 199, 200, 201, 1000):
        one = Sequence()
        for begin in range(0, len(body), size):
            one.take(body[begin : begin + size], 1500)
        assert (one.lost(3), one.reordered, one.repeated, one.foreign, one.done) == (0, 0, 0, 0, True)
        assert one.delays == [500, 500, 500]


def test_a_lost_chunk_is_counted():
    assert (read(0, 2, 3).lost(4), read(0, 1).lost(4), read().lost(4)) == (1, 2, 4)
    assert read(0, 2, 3).reordered == 0


def test_a_late_chunk_is_reordered_and_not_lost():
    one = read(0, 2, 1, 3)
    assert (one.lost(4), one.reordered, one.repeated) == (0, 1, 0)


def test_a_chunk_that_comes_twice_is_repeated():
    one = read(0, 1, 1)
    assert (one.lost(2), one.reordered, one.repeated) == (0, 0, 1)


def test_what_the_engine_did_not_send_is_foreign():
    one = Sequence()
    one.take(b'data: {"error":"x"}\n\n', 5)
    assert (one.foreign, one.done) == (1, False)


def test_percentiles():
    assert (percentile([], 0.5), percentile([1, 2, 3], 0.5), percentile([1, 2, 3], 0.99)) == (0.0, 2.0, 3.0)


class Lossy(Engine):
    """Leaves out one chunk of each stream."""

    def tick(self) -> None:
        self.sent += self.sent == 3
        super().tick()


class Cut(Engine):
    """Closes in the middle."""

    def tick(self) -> None:
        if self.sent == 3:
            self.transport.close()
        else:
            super().tick()


class Refusing(Engine):
    def answer(self, path: bytes, body: bytes) -> None:
        self.transport.write(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")


async def asked(kind: type[Engine], **fields: object) -> Result:
    server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0)
    async with server:
        job = Job(model="m", streams=2, requests=4, port=server.sockets[0].getsockname()[1], chunks=6, **fields)  # type: ignore[arg-type]
        return await asyncio.wait_for(Load(job).run(), 20)


async def test_good_streams_are_counted_and_timed():
    one = await asked(Engine, pace_us=1000)
    assert (one.requests, one.chunks, one.lost, one.reordered, one.failed, one.errors) == (4, 24, 0, 0, 0, [])
    assert 0 < one.first_p50 <= one.first_p99
    assert one.delay_p99 > 0


@pytest.mark.parametrize("keep", [False, True])
async def test_short_answers_on_new_and_on_kept_connections(keep: bool):
    one = await asked(Engine, stream=False, keep=keep)
    assert (one.requests, one.failed, one.errors) == (4, 0, [])


async def test_a_relay_that_loses_a_chunk_is_found_out():
    one = await asked(Lossy)
    assert (one.lost, one.failed) == (4, 0)


async def test_a_stream_that_is_cut_has_failed():
    one = await asked(Cut)
    assert (one.failed, one.lost) == (4, 12)
    assert "the connection ended early" in one.errors


async def test_a_refusal_has_failed():
    one = await asked(Refusing)
    assert (one.failed, one.errors) == (4, ["status 503"] * 3)


def test_a_peer_is_named_and_found():
    one = peer("swap=http://192.0.2.1:8081/v1")
    assert (one.name, one.host, one.port, one.prefix, one.pid) == ("swap", "192.0.2.1", 8081, "", None)
    for wrong in ("http://x", "modeld=http://x", "a=https://x", "=http://x", "a=http://:1"):
        with pytest.raises(ValueError, match="write --peer"):
            peer(wrong)


def test_a_peer_may_leave_the_ending_of_a_file_out():
    assert spelled(frozenset({"m"}), "m.gguf") == "m"
    assert spelled(frozenset({"m", "m.gguf"}), "m.gguf") == "m.gguf"
    assert spelled(frozenset({"other"}), "m.gguf") is None
