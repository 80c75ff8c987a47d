# SPDX-License-Identifier: GPL-3.0-only
"""One request's life: who leaves, who is cut, and that the slot is free afterwards whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from api.edge import SPEC, SSE_HEAD, Edge, FakeLease, FakeServed, Script, Upstream, answers, chunk, hangs_after, http, post, running, sse
from modeld.api import relay
from modeld.api.route import Call
from modeld.api.server import EdgeOptions
from modeld.catalog.models import ModelTable
from modeld.errors import (
    BackingOff,
    CannotEverFit,
    DeadlineExceeded,
    Died,
    Draining,
    EngineMissing,
    LoadFailed,
    LoadStalled,
    ModeldError,
    ModelUnavailable,
    OutOfMemory,
    QueueFull,
    Stuck,
    Unloaded,
    UpstreamUnreachable,
    WaitTimeout,
)

TOKEN = b'data: {"content":"a","stop":false,"tokens_predicted":1,"tokens_evaluated":4}\n\n'
LAST = b'data: {"content":"","stop":true,"tokens_predicted":1,"tokens_evaluated":4,"stop_type":"eos"}\n\n'
INFER = b'{"model":"tiny","prompt":"x"}'
CHAT = b'{"model":"tiny","messages":[],"stream":true}'
BOTH = pytest.mark.parametrize(("path", "body"), [("/infer", INFER), ("/v1/chat/completions", CHAT)])


@BOTH
@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (QueueFull("full", retry_after_seconds=7), 429, "7"),
        (QueueFull("full"), 429, "1"),
        (WaitTimeout("late"), 429, "1"),
        (ModelUnavailable("torn"), 503, "1"),
        (Draining("bye"), 503, "1"),
        (BackingOff("soon", retry_after_seconds=30), 503, "30"),
        (EngineMissing("none"), 503, "1"),
        (CannotEverFit("needs 9 MiB of 4"), 507, None),
        (LoadFailed("bad file"), 502, None),
        (LoadStalled("no progress"), 504, None),
        (OutOfMemory("too big"), 507, None),
        (DeadlineExceeded("over"), 504, None),
    ],
)
async def test_a_refusal_has_its_status_kind_and_time(
    edge: Edge, path: str, body: bytes, error: ModeldError, status: int, retry: str | None
) -> None:
    edge.driver.refusal = error
    answer = await edge.client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == retry
    seen = answer.json()
    if path == "/infer":
        assert seen == {"error": error.message, "code": status, "kind": error.kind, "source": error.source}
    else:
        assert (seen["error"]["message"], seen["error"]["code"], seen["error"]["source"]) == (error.message, error.kind, error.source)


@BOTH
async def test_a_client_that_leaves_while_it_waits_is_withdrawn(edge: Edge, path: str, body: bytes) -> None:
    edge.driver.hold = True
    _, writer = await edge.raw(post(path, body))
    await edge.driver.arrived.wait()
    writer.close()
    assert await edge.driver.ended() == "withdrawn"
    assert edge.upstream.asked == []


@BOTH
async def test_a_client_that_leaves_before_the_first_token_ends_the_generation(edge: Edge, path: str, body: bytes) -> None:
    edge.upstream.script = hangs_after(b"")
    _, writer = await edge.raw(post(path, body))
    await edge.upstream.was_asked.wait()
    writer.close()
    await edge.upstream.left.wait()
    assert await edge.driver.ended() == "released"


@BOTH
async def test_a_client_that_leaves_in_the_stream_ends_the_generation(edge: Edge, path: str, body: bytes) -> None:
    edge.upstream.script = hangs_after(SSE_HEAD + chunk(TOKEN))
    reader, writer = await edge.raw(post(path, body))
    await reader.readuntil(b'"a"')
    writer.close()
    await edge.upstream.left.wait()
    assert await edge.driver.ended() == "released"
    assert edge.driver.leases[0].tokens == (1 if path == "/infer" else 0)  # under /v1 they are counted at the end only
    assert f'method="POST",path="{path}",status="499"}} 1.0' in edge.page()


@BOTH
async def test_a_revoked_lease_before_the_first_byte_is_a_status(edge: Edge, path: str, body: bytes) -> None:
    edge.upstream.script = hangs_after(b"")
    reader, writer = await edge.raw(post(path, body))
    await edge.upstream.was_asked.wait()
    edge.driver.leases[0].revoke(Unloaded("the model was unloaded"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    await edge.upstream.left.wait()
    writer.close()
    assert await edge.driver.ended() == "failed"


async def test_a_revoked_lease_in_the_stream_is_the_last_record(edge: Edge) -> None:
    edge.upstream.script = hangs_after(SSE_HEAD + chunk(TOKEN))
    async with edge.client.stream("POST", "/infer", content=INFER, headers={"content-type": "application/json"}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        edge.driver.leases[0].revoke(DeadlineExceeded("infer_timeout is over"))
        assert [json.loads(line) async for line in lines] == [
            {"done": True, "error": "infer_timeout is over", "code": 504, "kind": "deadline_exceeded", "source": "modeld"}
        ]
    await edge.upstream.left.wait()
    assert await edge.driver.ended() == "released"


async def test_a_slow_reader_pauses_the_model_server(edge: Edge) -> None:
    """The model server can send no more than the buffers between it and the client hold; all of it arrives once the client reads."""
    event = b'data: {"content":"' + b"x" * 50_000 + b'","stop":false}\n\n'
    sent = 0
    stuck = asyncio.Event()

    async def flood(up: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(SSE_HEAD)
        for _ in range(200):
            writer.write(chunk(event))
            try:
                async with asyncio.timeout(0.3):
                    await writer.drain()
            except TimeoutError:
                stuck.set()
                await writer.drain()
            sent += 1
        stuck.set()
        writer.write(chunk(LAST) + b"0\r\n\r\n")
        await writer.drain()

    edge.upstream.script = flood
    async with edge.client.stream("POST", "/infer", content=INFER, headers={"content-type": "application/json"}) as answer:
        await stuck.wait()
        assert sent < 150
        lines = [line async for line in answer.aiter_lines()]
    assert len(lines) == 201
    assert len(json.loads(lines[-1])["content"]) == 200 * 50_000


@pytest.mark.parametrize("name", ["tiny.gguf", "tiny", "small"])
async def test_names_of_a_model(edge: Edge, name: str) -> None:
    edge.upstream.script = answers(sse(LAST))
    assert (await edge.infer(model=name)).status_code == 200
    assert edge.driver.requests[0].model == SPEC.id


async def test_an_unknown_model_is_looked_for_on_disk_once_more(tmp_path: Path) -> None:
    now = ModelTable({})
    scans = 0

    async def rescan() -> None:
        nonlocal now, scans
        scans += 1
        now = ModelTable({SPEC.id: SPEC})

    async with running(tmp_path, table=lambda: now, rescan=rescan) as edge:
        edge.upstream.script = answers(sse(LAST))
        assert (await edge.infer(model="tiny")).status_code == 200
        assert (await edge.infer(model="tiny")).status_code == 200
        assert scans == 1
        answer = await edge.infer(model="tine")
        assert (answer.status_code, answer.json()["kind"]) == (404, "unknown_model")
        assert "tiny" in answer.json()["error"]
        await asyncio.gather(*(edge.infer(model=f"x{n}") for n in range(10)))
        assert scans <= 3


async def test_a_table_at_hand_is_not_waited_for(tmp_path: Path) -> None:
    at_hand: ModelTable | None = ModelTable({SPEC.id: SPEC})
    asked = 0

    def table() -> ModelTable:
        nonlocal asked
        asked += 1
        return ModelTable({SPEC.id: SPEC})

    async def rescan() -> None:
        """Finds nothing new."""

    async with running(tmp_path, table=table, rescan=rescan, at_hand=lambda: at_hand) as edge:
        edge.upstream.script = answers(sse(LAST))
        assert ((await edge.infer(model="tiny")).status_code, asked) == (200, 0)
        assert ((await edge.infer(model="tine")).status_code, asked) == (404, 1)  # after the second look
        at_hand = None
        assert ((await edge.infer(model="tiny")).status_code, asked) == (200, 2)


async def test_no_model_named(edge: Edge, tmp_path: Path) -> None:
    answer = await edge.infer(model=None)
    assert (answer.status_code, answer.json()["kind"]) == (404, "no_model_named")
    assert "default_model" in answer.json()["error"]
    (tmp_path / "two").mkdir()
    async with running(tmp_path / "two", EdgeOptions(default_model="tiny")) as other:
        other.upstream.script = answers(sse(LAST))
        assert (await other.infer(model=None)).status_code == 200


async def test_two_requests_of_the_same_id_are_two(edge: Edge) -> None:
    edge.upstream.script = answers(sse(LAST))
    for _ in range(2):
        answer = await edge.client.post("/infer", content=INFER, headers={"content-type": "application/json", "x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine"
    assert len({request.id for request in edge.driver.requests}) == 2


async def test_a_fault_of_ours_tells_the_client_nothing(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.driver.refusal = ValueError("/secret/path")  # type: ignore[assignment]
    answer = await edge.infer()
    assert (answer.status_code, answer.json()["kind"]) == (500, "invariant")
    assert "secret" not in answer.text
    assert "/secret/path" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text


async def test_the_childs_answer_goes_nowhere_else(edge: Edge) -> None:
    """After an error of one request the next one is served as if nothing had been."""
    edge.upstream.script = answers(http(b"{}", "500 Oops"))
    assert (await edge.infer()).status_code == 502
    edge.upstream.script = answers(sse(TOKEN, LAST))
    assert (await edge.infer(stream=False)).json()["content"] == "a"


async def test_a_lease_revoked_before_it_was_used_asks_nobody(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeLease, "on_revoke", lambda self, callback: callback(Unloaded("gone again")))
    answer = await edge.infer()
    assert (answer.status_code, answer.json()["kind"]) == (503, "unloaded")
    assert edge.upstream.asked == []
    assert await edge.driver.ended() == "failed"


async def test_a_client_that_leaves_while_the_folder_is_read_never_reaches_the_driver(tmp_path: Path) -> None:
    scanning, scanned = asyncio.Event(), asyncio.Event()
    now = ModelTable({})

    async def rescan() -> None:
        nonlocal now
        scanning.set()
        await scanned.wait()
        now = ModelTable({SPEC.id: SPEC})

    async with running(tmp_path, table=lambda: now, rescan=rescan) as edge:
        _, writer = await edge.raw(post("/infer", INFER))
        await scanning.wait()
        writer.close()
        await writer.wait_closed()
        # Another request is served after it: by then the server has read the end of file of the first.
        assert (await edge.client.get("/healthz")).status_code == 200
        scanned.set()
        assert (await edge.client.get("/healthz")).status_code == 200
        assert edge.driver.requests == []
        assert 'path="/infer",status="499"} 1.0' in edge.page()


async def test_a_fault_of_ours_after_the_first_byte_is_logged_and_the_connection_ends(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    def broken(end: str) -> None:
        raise ValueError(end)

    edge.upstream.script = answers(SSE_HEAD + chunk(TOKEN))
    edge.driver.note = broken  # type: ignore[method-assign]
    reader, writer = await edge.raw(post("/infer", INFER))
    seen = await reader.read(-1)
    writer.close()
    assert b'{"token":"a"}' in seen
    assert b'"done"' not in seen
    assert not seen.endswith(b"0\r\n\r\n")
    assert "our fault" in caplog.text


# --- another instance is asked ----------------------------------------------------------------------------------------

CHAT_LAST = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
WHOLE = b'{"model":"tiny","prompt":"x","stream":false}'
THREE = pytest.mark.parametrize(("path", "body"), [("/infer", INFER), ("/infer", WHOLE), ("/v1/chat/completions", CHAT)])


def in_turn(*scripts: Script) -> Script:
    """Each connection gets the next script; the last one stays."""
    left = list(scripts)

    async def play(up: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(up, reader, writer)

    return play


def good(path: str) -> Script:
    return answers(sse(TOKEN, LAST) if path == "/infer" else sse(CHAT_LAST))


def is_whole(path: str, text: str) -> bool:
    """One token, said once."""
    if path != "/infer":
        return text == CHAT_LAST.decode()
    *tokens, last = [json.loads(line) for line in text.splitlines()]
    return tokens in ([], [{"token": "a"}]) and (last["content"], last["done"]) == ("a", True)


@THREE
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 20", SSE_HEAD, SSE_HEAD + chunk(b'data: {"con'), SSE_HEAD + b"9"])
async def test_an_instance_that_dies_before_the_first_byte_is_not_noticed(edge: Edge, path: str, body: bytes, said: bytes) -> None:
    edge.upstream.script = in_turn(answers(said), good(path))
    answer = await edge.client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert is_whole(path, answer.text)
    first, second = edge.upstream.asked
    assert first == second
    assert len(edge.driver.requests) == 1
    assert [await edge.driver.ended(), await edge.driver.ended()] == ["failed", "released"]
    assert [(type(fault), fault.__traceback__) for fault in edge.driver.faults] == [(Died, None)]


@THREE
async def test_a_degraded_instance_is_told_in_a_header(edge: Edge, path: str, body: bytes) -> None:
    edge.driver.given_up = [("llama_ctx 8192 -> 4096", "llama_kv_type f16 -> q8_0")]
    edge.upstream.script = good(path)
    answer = await edge.client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.headers["x-modeld-degraded"] == "llama_ctx 8192 -> 4096, llama_kv_type f16 -> q8_0"
    edge.upstream.script = answers(http(b'{"error":{"message":"too long"}}', "400 Bad Request"))
    refused = await edge.client.post(path, content=body, headers={"content-type": "application/json"})
    assert (refused.status_code, "x-modeld-degraded" in refused.headers) == (400, True)


@pytest.mark.parametrize(("given_up", "told"), [([("a",), ()], []), ([(), ("b",)], ["b"]), ([("a",), ("b",)], ["b"]), ([()], [])])
async def test_the_header_tells_of_the_instance_that_answered(edge: Edge, given_up: list[tuple[str, ...]], told: list[str]) -> None:
    edge.driver.given_up = given_up
    edge.upstream.script = in_turn(answers(b""), good("/infer"))
    answer = await edge.infer()
    assert answer.status_code == 200
    assert answer.headers.get_list("x-modeld-degraded") == told


async def test_what_was_generated_for_a_whole_answer_is_forgotten(edge: Edge) -> None:
    """The client has had nothing of it, so that it may be made again; it must not be told twice."""
    edge.upstream.script = in_turn(answers(SSE_HEAD + chunk(TOKEN) + chunk(TOKEN)), good("/infer"))
    answer = await edge.infer(stream=False)
    assert is_whole("/infer", answer.text)
    assert [lease.tokens for lease in edge.driver.leases] == [1, 1]
    edge.upstream.script = in_turn(answers(SSE_HEAD + chunk(TOKEN)), answers(b""))
    assert (await edge.infer(stream=False)).status_code == 502
    assert [lease.tokens for lease in edge.driver.leases[2:]] == [1, 0]


@THREE
async def test_two_that_die_are_one_clear_error(edge: Edge, path: str, body: bytes) -> None:
    edge.upstream.script = answers(SSE_HEAD)
    answer = await edge.client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 502
    assert Died.kind in answer.text
    assert len(edge.upstream.asked) == 2
    assert [await edge.driver.ended(), await edge.driver.ended()] == ["failed", "failed"]
    assert edge.driver.ends == []


@BOTH
async def test_after_the_first_byte_nobody_else_is_asked(edge: Edge, path: str, body: bytes) -> None:
    edge.upstream.script = answers(SSE_HEAD + chunk(TOKEN))
    answer = await edge.client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert "error" in answer.text.splitlines()[-1] + answer.text.splitlines()[-2]
    assert (len(edge.upstream.asked), edge.driver.faults) == (1, [])
    assert await edge.driver.ended() == "failed"


@BOTH
@pytest.mark.parametrize(
    "said",
    [
        http(b'{"error":{"code":400,"message":"x"}}', "400 Bad Request"),
        http(b'{"error":{"code":500,"message":"x"}}', "500 Oops"),
        http(b'{"error":{"code":503,"message":"x"}}', "503 Busy"),
        b"\x00\xff this is not HTTP\r\n\r\n",
        sse(b'data: {"error":{"code":500,"message":"x"}}\n\n'),
    ],
    ids=["400", "500", "503", "garbage", "in band"],
)
async def test_an_answer_of_a_living_instance_is_not_asked_for_again(edge: Edge, path: str, body: bytes, said: bytes) -> None:
    edge.upstream.script = answers(said)
    answer = await edge.client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code >= 400 or "error" in answer.text
    assert (len(edge.upstream.asked), edge.driver.faults) == (1, [])


async def test_an_instance_that_takes_no_connection_is_left_for_the_next(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = FakeServed.generate, itertools.count(1)

    async def generate(self: FakeServed, *given: object) -> object:
        if next(tries) == 1:
            raise UpstreamUnreachable("nobody there")
        return await real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeServed, "generate", generate)
    edge.upstream.script = good("/infer")
    assert is_whole("/infer", (await edge.infer()).text)
    assert [type(fault) for fault in edge.driver.faults] == [UpstreamUnreachable]


@BOTH
@pytest.mark.parametrize("error", [Died("it ended"), Stuck("no token came")])
async def test_a_lease_revoked_before_the_first_byte_is_replaced(edge: Edge, path: str, body: bytes, error: ModeldError) -> None:
    edge.upstream.script = in_turn(hangs_after(SSE_HEAD), good(path))
    reader, writer = await edge.raw(post(path, body))
    await edge.upstream.was_asked.wait()
    edge.driver.leases[0].revoke(error)
    seen = await reader.readuntil(b"0\r\n\r\n")
    assert seen.startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert [await edge.driver.ended(), await edge.driver.ended()] == ["failed", "released"]
    assert [type(fault) for fault in edge.driver.faults] == [type(error)]


async def test_what_is_told_to_the_first_lease_does_not_end_the_second(edge: Edge) -> None:
    edge.upstream.script = in_turn(answers(b""), hangs_after(SSE_HEAD + chunk(TOKEN)))
    reader, writer = await edge.raw(post("/infer", INFER))
    await reader.readuntil(b'{"token":"a"}')
    first, second = edge.driver.leases
    first.revoke(Died("late"))
    second.revoke(DeadlineExceeded("in time"))
    assert b"in time" in await reader.readuntil(b"0\r\n\r\n")
    writer.close()


@BOTH
async def test_a_client_that_leaves_while_it_waits_again_is_withdrawn(edge: Edge, path: str, body: bytes) -> None:
    edge.driver.again.clear()
    edge.upstream.script = answers(b"")
    _, writer = await edge.raw(post(path, body))
    assert await edge.driver.ended() == "failed"
    writer.close()
    assert await edge.driver.ended() == "withdrawn"
    assert (await edge.client.get("/healthz")).status_code == 200
    assert (len(edge.upstream.asked), edge.driver.ends) == (1, [])
    assert f'path="{path}",status="499"}} 1.0' in edge.page()


async def test_both_waits_are_told_in_the_log(edge: Edge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """On a clock that goes on by a second each time it is looked at."""
    caplog.set_level("INFO")
    monkeypatch.setattr(relay, "time", SimpleNamespace(monotonic=itertools.count(1.0).__next__))
    edge.upstream.script = in_turn(answers(b""), good("/infer"))
    assert (await edge.infer()).status_code == 200
    edge.upstream.script = answers(b"")
    assert (await edge.infer()).status_code == 502
    lines = [line for line in caplog.messages if line.startswith("POST /infer")]
    assert ["wait_ms=2000" in line for line in lines] == [True, False]
    assert "wait_ms=3000" in lines[1]  # it waited three times: the last wait ended in the refusal


async def test_the_prompt_is_kept_until_the_answer_begins() -> None:
    call = Call("r", "POST", {}, SimpleNamespace(start=lambda status, headers: None), body=b"prompt")  # type: ignore[arg-type]
    assert call.body == b"prompt"
    call.start(200, [])
    assert (call.body, call.begun, call.answered) == (b"prompt", True, False)  # a heartbeat is no answer
    call.answer()
    assert (call.body, call.answered) == (b"", True)


async def test_a_lease_knows_whether_its_answer_moves(edge: Edge) -> None:
    edge.upstream.script = hangs_after(SSE_HEAD)
    _, quiet = await edge.raw(post("/infer", INFER))
    await edge.upstream.was_asked.wait()
    edge.upstream.script = hangs_after(SSE_HEAD + chunk(TOKEN))
    reader, talks = await edge.raw(post("/infer", INFER))
    await reader.readuntil(b'{"token":"a"}')
    now = asyncio.get_running_loop().time()
    one, two = (lease.progress for lease in edge.driver.leases)
    assert one is not None
    assert two is not None
    assert (one.began, two.began) == (False, True)
    assert one.moved_at(now) < two.moved_at(now) <= now
    quiet.close()
    talks.close()
