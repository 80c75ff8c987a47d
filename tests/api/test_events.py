# SPDX-License-Identifier: GPL-3.0-only
"""GET /events on a real connection: what comes first, what is replayed, who is filtered, who is cut, and how it ends; on both wires."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.edge import SPEC, Edge, snapshot
from modeld.api import events
from modeld.api.events import READERS_MAX
from modeld.core.changes import InstanceMoved, PinMoved
from modeld.core.lifecycle import State
from modeld.core.model import InstanceId, ModelId

OTHER = ModelId("other.gguf")


def state(model: ModelId = SPEC.id, why: str = "") -> InstanceMoved:
    return InstanceMoved(model, InstanceId(f"1/{model}"), State.READY, why)


class Followed:
    """An open event stream, read event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, object]:
        """The next event; its `id` and `event` lines are checked against what it says of itself."""
        found: dict[str, str] = {}
        async with asyncio.timeout(5):
            async for line in self._lines:
                if line.startswith(":"):
                    return {"comment": line}
                if not line:
                    break
                key, _, value = line.partition(": ")
                found[key] = value
        if not found:
            return {}
        data = json.loads(found["data"])
        assert data["type"] == found["event"]
        assert found.get("id") == data.get("id", data.get("last_id") if "id" in found else None)
        assert isinstance(data, dict)
        return data

    async def rest(self) -> list[str]:
        """The types of all that still comes."""
        kinds = []
        while one := await self.next():
            kinds.append(str(one.get("type", "comment")))
        return kinds


@asynccontextmanager
async def following(edge: Edge, query: str = "", **headers: str) -> AsyncIterator[Followed]:
    async with edge.client.stream("GET", f"/events{query}", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        yield Followed(response)


async def eventually(holds: Callable[[], object]) -> None:
    for _ in range(5000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


async def until_alone(edge: Edge) -> None:
    """Every reader is forgotten."""
    await eventually(lambda: not edge.feed._subscribers)


# --- server-sent events -----------------------------------------------------------------------------------------------


async def test_it_begins_with_what_is_there_and_goes_on_with_what_happens(edge: Edge):
    edge.driver.seen = snapshot("ready", "loading", pinned=frozenset({SPEC.id}))
    edge.feed.take([state()])
    async with following(edge) as stream:
        assert stream.response.headers["content-type"] == "text/event-stream"
        assert stream.response.headers["x-accel-buffering"] == "no"
        assert await stream.next() == {
            "type": "hello",
            "last_id": "run-1",
            "instances": [
                {"model_id": SPEC.id, "instance_id": "i0", "state": "ready", "progress": 1.0},
                {"model_id": SPEC.id, "instance_id": "i1", "state": "loading", "progress": 1.0},
            ],
            "lines": {SPEC.id: 3},
            "pinned": [SPEC.id],
        }
        edge.feed.take([state(why="x\ny"), PinMoved(SPEC.id, True)])
        first, second = await stream.next(), await stream.next()
        assert (first["id"], first["state"], first["why"], second["type"]) == ("run-2", "ready", "x\ny", "pin")
    await until_alone(edge)


async def test_who_comes_back_gets_what_it_missed(edge: Edge):
    edge.feed.take([state(), state(), state()])
    for query, headers in (("?since=run-1", {}), ("", {"Last-Event-ID": "run-1"}), ("?since=run-3", {"Last-Event-ID": "run-1"})):
        async with following(edge, query, **headers) as stream:
            assert (await stream.next())["last_id"] == "run-3"
            assert [(await stream.next())["id"] for _ in range(2)] == ["run-2", "run-3"]
            edge.feed.take([state()])
            edge.feed._seq = 3
            assert (await stream.next())["id"] == "run-4"
            edge.feed._ring.pop()


async def test_who_missed_what_is_forgotten_is_told(edge: Edge):
    edge.feed.take([state()])
    async with following(edge, "?since=gone-17") as stream:
        assert [(await stream.next())["type"] for _ in range(3)] == ["hello", "lost", "state"]
    async with following(edge, "?since=run-0") as stream:
        assert [(await stream.next())["type"] for _ in range(2)] == ["hello", "state"]


async def test_only_what_is_asked_for_comes(edge: Edge):
    edge.driver.seen = replace(snapshot("ready"), pinned=frozenset({SPEC.id, OTHER}))
    edge.feed.take([state(OTHER), state(), PinMoved(SPEC.id, True)])
    async with following(edge, "?since=run-0&model=small&type=pin,%20line") as stream:
        hello = await stream.next()
        assert (hello["pinned"], hello["lines"]) == ([SPEC.id], {SPEC.id: 3})
        assert (await stream.next())["type"] == "pin"
        edge.feed.take([state(), PinMoved(OTHER, True), PinMoved(SPEC.id, False)])
        told = await stream.next()
        assert (told["model_id"], told["pinned"]) == (SPEC.id, False)


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("?type=state,nonsense", 400, "nonsense"),
        ("?since=" + "x" * 65, 400, "since"),
        ("?since=%00", 400, "since"),
        ("?model=nobody", 404, "nobody"),
    ],
)
async def test_what_is_asked_wrongly_is_refused(edge: Edge, query: str, status: int, said: str):
    answer = await edge.client.get(f"/events{query}")
    assert answer.status_code == status
    assert said in answer.json()["error"]


async def test_a_head_request_does_not_follow(edge: Edge):
    answer = await edge.client.head("/events")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert not edge.feed._subscribers


async def test_a_quiet_stream_is_kept_open(edge: Edge, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.01)
    async with following(edge) as stream:
        await stream.next()
        assert "comment" in await stream.next()
        assert (await stream.next()) == {}  # the blank line that ends a comment
        assert "comment" in await stream.next()


async def test_the_end_of_the_daemon_ends_all_streams(edge: Edge):
    async with following(edge) as stream:
        await stream.next()
        edge.feed.take([state()])
        edge.feed.close()
        assert await stream.rest() == ["state", "bye"]
    async with following(edge) as stream:  # who comes later hears it at once
        assert await stream.rest() == ["hello", "bye"]


async def test_one_that_does_not_read_is_cut_and_the_others_are_not(edge: Edge):
    async with following(edge) as good:
        await good.next()
        reader, writer = await edge.raw(b"GET /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"\n\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        assert len(edge.feed._subscribers) == 2
        sent = 0
        async with asyncio.timeout(20):
            while len(edge.feed._subscribers) == 2:
                edge.feed.take([state(why="w" * 500)])
                sent += 1
                assert (await good.next())["seq"] == sent
        assert sent < 5000, "what it has not read is not kept for ever"
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            tail = await reader.read(-1)
        assert b'event: bye\ndata: {"type":"bye","why":"this reader is too far behind"}\n\n' in tail
        assert tail.endswith(b"0\r\n\r\n")
        writer.close()
        edge.feed.take([state()])
        assert (await good.next())["seq"] == sent + 1


async def test_one_that_is_slow_for_a_while_misses_nothing(edge: Edge):
    reader, writer = await edge.raw(b"GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"\n\n")
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    subscriber = next(iter(edge.feed._subscribers))
    one = subscriber.tell.__self__  # type: ignore[attr-defined]
    sent = 0
    async with asyncio.timeout(20):
        while one._behind_bytes < 20_000:
            edge.feed.take([state(why="w" * 500)])
            sent += 1
            await asyncio.sleep(0)
    reader._transport.resume_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        got = b""
        while f'"seq":{sent},'.encode() not in got:
            got += await reader.read(65536)
    await eventually(lambda: not one._behind_bytes and not one._paused)
    assert all(f'"seq":{number},'.encode() in got for number in range(2, sent + 1))
    edge.feed.take([state()])
    assert f'"seq":{sent + 1},'.encode() in await reader.readuntil(b"\n\n")
    writer.close()
    await until_alone(edge)


async def test_there_are_not_more_readers_than_allowed(edge: Edge, monkeypatch: pytest.MonkeyPatch):
    assert READERS_MAX == 64
    monkeypatch.setattr(events, "READERS_MAX", 1)
    async with following(edge) as stream:
        await stream.next()
        refused = await edge.client.get("/events")
        assert (refused.status_code, refused.json()["kind"]) == (503, "too_many_readers")
        assert int(refused.headers["retry-after"]) > 0
    await until_alone(edge)
    async with following(edge) as stream:
        assert (await stream.next())["type"] == "hello"


async def test_a_page_of_another_origin_may_not(edge: Edge):
    assert (await edge.client.get("/events", headers={"Origin": "https://evil.example"})).status_code == 403


# --- WebSocket --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected(edge: Edge, query: str = "", **more: object) -> AsyncIterator[ClientConnection]:
    async with unix_connect(edge.socket_path, f"ws://localhost/events{query}", proxy=None, **more) as socket:  # type: ignore[arg-type]
        yield socket


async def heard(socket: ClientConnection) -> dict[str, object]:
    async with asyncio.timeout(5):
        text = await socket.recv()
    assert isinstance(text, str)
    told = json.loads(text)
    assert isinstance(told, dict)
    return told


async def test_a_websocket_gets_the_same(edge: Edge):
    edge.feed.take([state(), state(why="ü")])
    async with connected(edge, "?since=run-1") as socket:
        assert (await heard(socket))["last_id"] == "run-2"
        assert await heard(socket) == json.loads(edge.feed.since("run-1").events[0].json)
        edge.feed.take([PinMoved(SPEC.id, True)])
        assert (await heard(socket))["type"] == "pin"
        assert socket.response is not None
        assert socket.response.headers["x-request-id"]
    await until_alone(edge)


async def test_its_pings_are_answered_and_what_it_says_is_ignored(edge: Edge):
    async with connected(edge) as socket:
        await heard(socket)
        await socket.send("hello?")
        async with asyncio.timeout(5):
            await (await socket.ping())
        edge.feed.take([state()])
        assert (await heard(socket))["type"] == "state"


async def test_a_message_that_is_too_long_ends_it(edge: Edge):
    async with connected(edge) as socket:
        await heard(socket)
        await socket.send("x" * 5000)
        with pytest.raises(ConnectionClosed) as closed:
            await heard(socket)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
    await until_alone(edge)


async def test_bytes_that_are_no_frames_end_it(edge: Edge):
    head = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    reader, writer = await edge.raw(b"GET /events HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(5):
        tail = await reader.read(-1)
    assert b"\x88" in tail  # a close frame, and then the end
    writer.close()
    await until_alone(edge)


async def test_the_end_of_the_daemon_has_a_code(edge: Edge):
    async with connected(edge) as socket:
        await heard(socket)
        edge.feed.close()
        assert (await heard(socket))["type"] == "bye"
        with pytest.raises(ConnectionClosed) as closed:
            await heard(socket)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "modeld is shutting down")


async def test_it_is_pinged_and_one_that_never_answers_is_let_go(edge: Edge, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.02)
    head = b"Upgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    async with connected(edge) as socket:
        await heard(socket)
        reader, writer = await edge.raw(b"GET /events HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n")
        async with asyncio.timeout(5):
            tail = await reader.read(-1)
        assert tail.count(b"\x89\x06modeld") == events.SILENT_BEATS_MAX
        assert b"no answer to a ping" in tail
        writer.close()
        edge.feed.take([state()])
        assert (await heard(socket))["type"] == "state"  # the library answers for the other


@pytest.mark.parametrize(
    "head",
    [
        b"Sec-WebSocket-Version: 13\r\n",
        b"Sec-WebSocket-Version: 12\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n",
    ],
)
async def test_a_handshake_that_is_none_is_refused_in_our_words(edge: Edge, head: bytes):
    request = b"GET /events HTTP/1.1\r\nHost: localhost\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n" + head + b"\r\n"
    reader, writer = await edge.raw(request)
    async with asyncio.timeout(5):
        answer = await reader.read(-1)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"kind":"bad_request"' in answer
    writer.close()
    assert not edge.feed._subscribers


async def test_who_does_not_wait_for_the_answer_is_refused(edge: Edge):
    head = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    request = b"GET /events HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n"
    reader, writer = await edge.raw(request + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(5):
        answer = await reader.read(-1)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"HTTP/1.1 200 OK" in answer  # the second request is one like any other
    writer.close()


async def test_a_handshake_obeys_the_same_rules(edge: Edge):
    for origin in ("https://evil.example", "null"):
        with pytest.raises(InvalidStatus) as refused:
            async with connected(edge, origin=origin):
                raise AssertionError("it must not get in")
        assert refused.value.response.status_code == 403
    async with connected(edge, origin="http://localhost:3000") as socket:
        assert (await heard(socket))["type"] == "hello"


async def test_other_routes_do_not_know_of_it(edge: Edge):
    with pytest.raises(InvalidStatus) as refused:
        async with unix_connect(edge.socket_path, "ws://localhost/healthz", proxy=None):
            raise AssertionError("it must not get in")
    assert (refused.value.response.status_code, refused.value.response.body) == (200, b"ok")


async def test_a_slow_websocket_is_cut_too(edge: Edge, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "BEHIND_BYTES_MAX", 4096)
    head = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    reader, writer = await edge.raw(b"GET /events HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n")
    await reader.readuntil(b"\r\n\r\n")
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        while edge.feed._subscribers:
            edge.feed.take([state(why="w" * 500)])
            await asyncio.sleep(0)
    reader._transport.resume_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        tail = await reader.read(-1)
    assert b"this reader is too far behind" in tail[-200:]
    writer.close()
