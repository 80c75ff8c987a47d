# SPDX-License-Identifier: GPL-3.0-only
# ruff: noqa: ASYNC220, ASYNC240 - one short-lived process and small files
"""A server that somebody else runs: here the stub on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modeld.core.model import InstanceId, ModelId, ModelSpec
from modeld.errors import ConfigError, LoadFailed, UpstreamUnreachable
from modeld.runtime.adapters.external import ExternalAdapter, endpoint_of

FAKE = Path(__file__).parents[2] / "stub" / "fake_llama.py"
ONE = InstanceId("1/a")


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    model = tmp_path / "m.gguf"
    Path(f"{model}.script.json").write_text(json.dumps({"load_seconds": 0.1}), encoding="utf-8")
    argv = [sys.executable, str(FAKE), "-m", str(model), "--host", "127.0.0.1", "--alias", "far.gguf", "-np", "3"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = (await asyncio.to_thread(process.stdout.readline)).split()[-1]
        yield f"http://127.0.0.1:{port}"
        process.kill()


async def test_its_models_are_ours_to_use_and_cost_nothing(url: str) -> None:
    adapter = ExternalAdapter(url=url)
    served = adapter.start(ONE, ModelSpec(ModelId("far.gguf"), path=""), lambda _: None)
    await served.ready()
    (model,) = await adapter.models()
    assert (model.id, model.external, model.size_bytes, model.options.parallel) == ("far.gguf", True, 0, 3)
    assert (await adapter.describe()).build == "fake-1"
    await adapter.check(model)
    with pytest.raises(LoadFailed, match="does not have this model"):
        await adapter.check(ModelSpec(ModelId("other"), path=""))
    assert served.pid is None
    assert await served.health()
    exchange = await served.generate("POST", "/completion", [], b'{"prompt": "a", "n_predict": 2}')
    assert json.loads(await exchange.read(10_000))["content"] == " a a"
    served.stop()
    report = await served.exited()
    assert report.code is None
    assert await served.health()  # it lives on
    assert served.log_tail() == ()
    await adapter.close()


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    adapter = ExternalAdapter(url="http://127.0.0.1:9", ready_seconds_max=0.05)
    with pytest.raises(UpstreamUnreachable):
        await adapter.models()
    assert (await adapter.describe()).warning.startswith("llama_url")
    served = adapter.start(ONE, ModelSpec(ModelId("a"), path=""), lambda _: None)
    with pytest.raises(LoadFailed, match="does not answer"):
        await served.ready()
    served.kill()
    await served.exited()


async def test_stop_ends_the_wait_for_it() -> None:
    adapter = ExternalAdapter(url="http://127.0.0.1:9", ready_seconds_max=600)
    served = adapter.start(ONE, ModelSpec(ModelId("a"), path=""), lambda _: None)
    served.stop()
    with pytest.raises(Exception, match="unloaded"):
        await served.ready()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", ("h", 1, False, "")),
        ("https://h", ("h", 443, True, "")),
        ("http://h/x/v1/", ("h", 80, False, "/x")),
        ("http://[::1]:8/v1", ("::1", 8, False, "")),
    ],
)
def test_addresses(url: str, expected: tuple[str, int, bool, str]) -> None:
    endpoint = endpoint_of(url, "k")
    assert (endpoint.host, endpoint.port, endpoint.tls, endpoint.prefix) == expected
    assert endpoint.api_key == "k"


@pytest.mark.parametrize("url", ["h:1", "ftp://h", "http://", "http://h:99999"])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(ConfigError, match="llama_url"):
        endpoint_of(url, None)


class Far:
    """A server whose answers a test writes: status and body of each path."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {"/v1/models": (200, b'{"data":[{"id":"m"}]}')}

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            status, body = self.answers.get(path, (404, b""))
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
            await writer.drain()


@pytest.fixture
async def far() -> AsyncIterator[tuple[Far, ExternalAdapter]]:
    far = Far()
    server = await asyncio.start_server(far, "127.0.0.1", 0)
    async with server:
        yield far, ExternalAdapter(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


BAD = [b"{", b"[]", b'{"data":[{"id":"m\xff"}],"build_info":"m\xff"}', b'{"x":' + b"[" * 100_000, b'{"total_slots":-1, "data": 1}']


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
async def test_an_answer_that_is_nonsense_is_a_fault_of_that_server(far: tuple[Far, ExternalAdapter], body: bytes) -> None:
    server, adapter = far
    server.answers["/props"] = (200, body)
    assert (await adapter.describe()).warning.startswith("llama_url: ")
    assert [one.options.parallel for one in await adapter.models()] == [1]
    server.answers["/v1/models"] = (200, body)
    with pytest.raises(LoadFailed, match="does not list its models"):
        await adapter.models()


@pytest.mark.parametrize("failure", [(503, b""), (404, b""), (200, b"{"), (200, b"{}")], ids=["503", "404", "cut", "silent"])
async def test_slots_that_were_told_once_stay_known(far: tuple[Far, ExternalAdapter], failure: tuple[int, bytes]) -> None:
    """A spec that changes is a new model to core, and ends the answers of the old one."""
    server, adapter = far
    server.answers["/props"] = failure
    assert [one.options.parallel for one in await adapter.models()] == [1]
    server.answers["/props"] = (200, b'{"total_slots": 4}')
    told = await adapter.models()
    assert [one.options.parallel for one in told] == [4]
    server.answers["/props"] = failure
    assert await adapter.models() == told
    server.answers["/props"] = (200, b'{"total_slots": 2}')
    assert [one.options.parallel for one in await adapter.models()] == [2]


async def test_a_host_that_is_no_name() -> None:
    adapter = ExternalAdapter(url="http://a..b:8080")
    with pytest.raises(UpstreamUnreachable):
        await adapter.models()
    assert (await adapter.describe()).warning.startswith("llama_url")
