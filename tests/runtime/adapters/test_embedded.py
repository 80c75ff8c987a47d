# SPDX-License-Identifier: GPL-3.0-only
# ruff: noqa: ASYNC240 - small files in a temporary folder
"""The embedded engine, most of it with the real llama.cpp on the starter model. Rows F1, F13 and F21."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modeld.catalog.alone import model_at
from modeld.catalog.models import Catalog, ModelOverride, PartialOptions
from modeld.core.footprint import Footprint
from modeld.core.model import InstanceId, LaunchOptions, ModelId, ModelKind, ModelSpec
from modeld.errors import Died, EngineMissing, LoadFailed, ModelUnavailable, SpawnFailed
from modeld.runtime.adapters import embedded
from modeld.runtime.adapters.embedded import EmbeddedAdapter
from modeld.runtime.adapters.interface import Adapter
from modeld.runtime.meter import footprint, held_bytes
from tinymodels import WIDTH, make_decoder, make_embedder, make_reranker

STARTER = os.environ.get("MODELD_TEST_STARTER")
ONE = InstanceId("1/a.gguf")
needs_starter = pytest.mark.skipif(STARTER is None, reason="set MODELD_TEST_STARTER to the starter model; make test does")


def spec(path: str | None = None, **options: object) -> ModelSpec:
    path = path or STARTER or ""
    size = os.stat(path).st_size if os.path.exists(path) else 0
    launch = LaunchOptions(ctx=256, parallel=2, threads=2, **options)  # type: ignore[arg-type]
    return ModelSpec(ModelId("starter, the first.gguf"), path=path, size_bytes=size, options=launch)


@pytest.fixture
async def adapter(tmp_path: Path) -> AsyncIterator[EmbeddedAdapter]:
    adapter = EmbeddedAdapter(runtime_dir=tmp_path / "run", stop_grace=2.0)
    yield adapter
    await adapter.close()


@pytest.mark.engine
@needs_starter
async def test_a_model_is_loaded_served_and_unloaded(adapter: EmbeddedAdapter) -> None:
    """Ready means that the next request is answered; TERM ends at once; the socket and nothing else was opened."""
    progress: list[float] = []
    served = adapter.start(ONE, spec(), progress.append)
    await served.ready()
    assert served.pid is not None
    try:
        assert await served.health()
        assert progress
        assert progress == sorted(progress)
        assert progress[-1] == 1.0
        body = json.dumps({"model": "x", "prompt": "Once upon", "max_tokens": 4}).encode()
        answer = await served.generate("POST", "/v1/completions", [(b"content-type", b"application/json")], body)
        reply = json.loads(await answer.read(100_000))
        assert reply["usage"]["completion_tokens"] <= 4
        slots = await served.generate("GET", "/slots", [], b"")
        assert len(json.loads(await slots.read(100_000))) == 2
        models = await served.generate("GET", "/v1/models", [], b"")
        assert json.loads(await models.read(100_000))["data"][0]["id"] == "starter, the first.gguf"
        limits = Path(f"/proc/{served.pid}/limits").read_text(encoding="ascii")
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        command = Path(f"/proc/{served.pid}/cmdline").read_bytes()
        assert os.fsencode(spec().path) not in command
    finally:
        served.stop()
    report = await served.exited()
    assert (report.code, report.reason) == (-signal.SIGTERM, "stopped")
    assert served.endpoint.socket is not None
    assert not Path(served.endpoint.socket).exists()


def scanned(folder: Path, **said: ModelKind) -> dict[str, ModelSpec]:
    """The models of the folder as the catalogue sees them; `said` is the operator's kind, by the id without `.gguf`."""
    few = PartialOptions(parallel=2, threads=1)
    found = Catalog(folder, lambda name: ModelOverride(options=few, kind=said.get(name)), None, said).scan()
    assert [model.unavailable for model in found.models.values()] == [None] * len(found.models)
    return {key.removesuffix(".gguf"): model for key, model in found.models.items()}


@contextlib.asynccontextmanager
async def running(adapter: Adapter, model: ModelSpec) -> AsyncIterator[Callable[..., Awaitable[tuple[int, Any]]]]:
    """An instance, as a function that posts JSON and gives back status and answer."""
    served = adapter.start(ONE, model, lambda _: None)
    await served.ready()

    async def post(path: str, **body: object) -> tuple[int, Any]:
        headers = [(b"content-type", b"application/json")]
        answer = await served.generate("POST", path, headers, json.dumps(body).encode())
        return answer.status, json.loads(await answer.read(10_000_000))

    try:
        yield post
    finally:
        served.stop()
        await served.exited()


def vectors(answer: dict[str, Any]) -> list[list[float]]:
    return [one["embedding"] for one in answer["data"]]


@pytest.mark.engine
@pytest.mark.parametrize("make", [make_embedder, make_decoder])
async def test_an_embedding_model_embeds(adapter: EmbeddedAdapter, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Recognised by its header, started in that mode; the same words give the same unit vector."""
    make(tmp_path / "m.gguf")
    model = scanned(tmp_path)["m"]
    assert model.kind is ModelKind.EMBED
    async with running(adapter, model) as post:
        status, answer = await post("/v1/embeddings", input=["the cat", "a dog, 1 dog", "the cat"])
        assert status == 200
        first, second, third = vectors(answer)
        assert len(first) == model.embedding_length == WIDTH
        assert first == pytest.approx(third, abs=1e-4)
        assert first != pytest.approx(second, abs=1e-2)
        assert sum(number * number for number in first) == pytest.approx(1, abs=1e-3)
        assert answer["usage"]["prompt_tokens"] > 10
        status, answer = await post("/v1/rerank", query="a", documents=["b"])
        assert status == 501


@pytest.mark.engine
async def test_a_long_text_fits_into_one_batch(adapter: EmbeddedAdapter, tmp_path: Path) -> None:
    """An encoder reads an input whole: 1,500 tokens, three times llama.cpp's own batch of 512."""
    make_embedder(tmp_path / "m.gguf", ctx=4096)
    model = scanned(tmp_path)["m"]
    async with running(adapter, model) as post:
        status, answer = await post("/v1/embeddings", input="a b c d e " * 300)
    assert (status, answer["usage"]["prompt_tokens"]) == (200, 1502)


@pytest.mark.engine
async def test_a_reranker_scores(adapter: EmbeddedAdapter, tmp_path: Path) -> None:
    make_reranker(tmp_path / "m.gguf")
    model = scanned(tmp_path)["m"]
    assert model.kind is ModelKind.RERANK
    async with running(adapter, model) as post:
        status, answer = await post("/v1/rerank", query="who", documents=["a cat", "the dogs", "a cat"])
        assert status == 200
        scores = {one["index"]: one["relevance_score"] for one in answer["results"]}
        assert sorted(scores) == [0, 1, 2]
        assert scores[0] == pytest.approx(scores[2], abs=1e-4)
        assert scores[0] != pytest.approx(scores[1], abs=1e-3)


@pytest.mark.engine
async def test_the_operators_kind_is_the_mode(adapter: EmbeddedAdapter, tmp_path: Path) -> None:
    """A model that writes refuses to embed until it is told to."""
    make_decoder(tmp_path / "m.gguf", pooling=None)
    async with running(adapter, scanned(tmp_path)["m"]) as post:
        assert (await post("/v1/embeddings", input="a"))[0] == 501
        assert (await post("/v1/completions", prompt="a", max_tokens=2))[0] == 200
    async with running(adapter, scanned(tmp_path, m=ModelKind.EMBED)["m"]) as post:
        assert len(vectors((await post("/v1/embeddings", input="a"))[1])[0]) == WIDTH


@pytest.mark.engine
async def test_a_file_that_is_no_model(adapter: EmbeddedAdapter, tmp_path: Path) -> None:
    """F1."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    served = adapter.start(ONE, spec(str(bad)), lambda _: None)
    with pytest.raises(LoadFailed) as caught:
        await served.ready()
    assert "/" not in caught.value.message
    report = await served.exited()
    assert report.code == 3
    assert report.log_tail


def printed_bytes(log: tuple[str, ...]) -> int:
    """What llama.cpp told of its buffers, added up by other means than ours."""
    return round(sum(float(line.split("buffer size =")[1].split()[0]) for line in log if "buffer size =" in line) * 2**20)


@pytest.mark.engine
@needs_starter
async def test_what_was_learned_is_what_is_printed_at_the_next_load(adapter: EmbeddedAdapter) -> None:
    """The sum of the load lines, to the byte; with the weights in the file, within a thousandth of all that the next load prints."""
    known = model_at(Path(STARTER or ""), ModelOverride())
    seen: list[tuple[Footprint, int]] = []
    for ngl in (-1, 0):  # there is no device here: both are the same
        launched = replace(known, options=replace(spec().options, ngl=ngl))
        served = adapter.start(ONE, launched, lambda _: None)
        await served.ready()
        try:
            reported, held = served.reported(), held_bytes(served.pid or 0)
            assert reported is not None and held is not None
            mapped = round(float(next(line for line in served.log_tail() if "CPU_Mapped" in line).split("=")[1].split()[0]) * 2**20)
            assert reported.total_bytes == printed_bytes(served.log_tail()) - mapped
            # What it holds is what it told of, and the process around it; the mapped file is in neither.
            assert reported.host_bytes() * 0.9 <= held <= reported.host_bytes() + 100 * 2**20
            seen.append((footprint(launched, reported, None, held), printed_bytes(served.log_tail())))
        finally:
            served.stop()
            await served.exited()
    (learned, _), (_, printed) = seen
    assert learned.complete
    assert abs(learned.reported_bytes - printed) <= printed / 1000


@pytest.mark.engine
@needs_starter
async def test_stop_in_the_middle_of_a_load(adapter: EmbeddedAdapter) -> None:
    served = adapter.start(ONE, spec(), lambda _: None)
    served.stop()
    with pytest.raises(Died):
        await served.ready()
    assert (await served.exited()).code == -signal.SIGTERM


@pytest.mark.engine
async def test_the_devices_are_asked_in_another_process(adapter: EmbeddedAdapter) -> None:
    info = await adapter.describe()
    assert info.adapter == "embedded"
    assert info.build.startswith("xllamacpp ")
    assert any("CPU" in device for device in info.devices)
    assert "xllamacpp" not in sys.modules


@pytest.mark.engine
@needs_starter
@pytest.mark.parametrize("way", ["kill", "life line"])
@pytest.mark.parametrize("moment", ["loading", "ready"])
def test_no_orphan(tmp_path: Path, way: str, moment: str) -> None:
    """F21: the parent is killed, or closes the pipe; llama.cpp holds the interpreter meanwhile."""
    code = f"""
        import asyncio, os, sys
        from pathlib import Path
        from modeld.core.model import *
        from modeld.runtime.adapters.embedded import EmbeddedAdapter
        async def main():
            adapter = EmbeddedAdapter(runtime_dir=Path({str(tmp_path)!r}), stop_grace=1)
            spec = ModelSpec(ModelId("a"), path={STARTER!r}, options=LaunchOptions(ctx=256))
            loading = asyncio.Event()
            served = adapter.start("1/a", spec, lambda _: loading.set())
            await (served.ready() if {moment == "ready"} else loading.wait())
            print(served.pid, flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            served._child._process.stdin.close()
            await asyncio.sleep(600)
        asyncio.run(main())
    """
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdin is not None
            pidfd = os.pidfd_open(int(parent.stdout.readline()))
            try:
                if way == "kill":
                    parent.kill()
                else:
                    parent.stdin.write(b"\n")
                    parent.stdin.flush()
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                assert poll.poll(10_000)
            finally:
                os.close(pidfd)
        finally:
            parent.kill()


async def test_check_names_what_is_wrong(adapter: EmbeddedAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there.gguf"
    there.write_bytes(b"GGUF")
    await adapter.check(spec(str(there)))
    with pytest.raises(ModelUnavailable, match=r"gone: missing\.gguf"):
        await adapter.check(spec(str(tmp_path / "missing.gguf")))
    with pytest.raises(ModelUnavailable, match="llama_extra_args"):
        await adapter.check(spec(str(there), extra_args=("--foo",)))
    with pytest.raises(ModelUnavailable, match="broken header"):
        await adapter.check(ModelSpec(ModelId("a"), path=str(there), unavailable="broken header"))
    monkeypatch.setattr(embedded, "find_engine", lambda: None)
    with pytest.raises(EngineMissing):
        await adapter.check(spec(str(there)))
    with pytest.raises(SpawnFailed):
        adapter.start(ONE, spec(str(there)), lambda _: None)
    assert (await adapter.describe()).build == "missing"
    assert await adapter.devices() is None


async def test_no_core_limit_of_our_own_is_changed(adapter: EmbeddedAdapter) -> None:
    """F13: the limit is the child's, set in the child."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    await asyncio.sleep(0)
    await adapter.devices()
    assert resource.getrlimit(resource.RLIMIT_CORE) == before


async def test_a_runtime_dir_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(embedded, "find_engine", lambda: tmp_path)
    adapter = EmbeddedAdapter(runtime_dir=tmp_path / "file", stop_grace=1)
    assert "runtime_dir" in (await adapter.describe()).warning


def test_a_mount_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """The look at the files never comes back; the process ends all the same."""
    code = f"""
        import asyncio, threading
        from pathlib import Path
        from modeld.core.model import ModelId, ModelSpec
        from modeld.errors import ModelUnavailable
        from modeld.runtime.adapters import embedded, process
        async def main():
            process.FILES_SECONDS_MAX = 0.01
            embedded.find_engine = lambda: Path("/")
            Path.is_file = lambda self: threading.Event().wait()
            try:
                await embedded.EmbeddedAdapter(runtime_dir=Path({str(tmp_path)!r}), stop_grace=1).check(ModelSpec(ModelId("a"), path="/a"))
            except ModelUnavailable:
                print("unavailable", end="")
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=30, check=False, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"unavailable", b"")
