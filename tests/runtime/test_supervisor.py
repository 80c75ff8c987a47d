# SPDX-License-Identifier: GPL-3.0-only
# ruff: noqa: ASYNC240 - small files in a temporary folder
"""The supervisor over real stub children: every ending is one chain of events. Rows F1, F2, F6, F8, F10, F12, F15 to F17, F19, F25."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from modeld.core.footprint import Probe
from modeld.core.messages import (
    Event,
    FootprintMeasured,
    FootprintProbed,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    InstanceSpawned,
    LaunchChecked,
    LaunchRejected,
    LoadProgressed,
    MemoryFreed,
    ProbeFailed,
    Remember,
)
from modeld.core.model import InstanceId, LaunchOptions, ModelId, ModelSpec
from modeld.errors import Died, EngineMissing, InvariantError, LoadFailed, LoadStalled, ModelUnavailable, OutOfMemory, SpawnFailed
from modeld.runtime.adapters.interface import Adapter, EngineInfo, Served
from modeld.runtime.adapters.llama_server import LlamaServerAdapter
from modeld.runtime.adapters.process import Stall
from modeld.runtime.meter import Meter
from modeld.runtime.supervisor import Supervisor

FAKE = Path(__file__).parents[1] / "stub" / "fake_llama.py"
ONE = InstanceId("1/a.gguf")
Chain = list[type[Event]]
SERVED: Chain = [InstanceSpawned, InstanceReady, InstanceExited, MemoryFreed]
FAILED: Chain = [InstanceSpawned, InstanceFailed, InstanceExited, MemoryFreed]
STOPPED: Chain = [InstanceSpawned, InstanceExited, MemoryFreed]


class Stage:
    """A supervisor with the stub behind it, and what it posted."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self._news = asyncio.Event()
        self.adapter: Adapter = LlamaServerAdapter(
            binary=FAKE, runtime_dir=folder / "run", stop_grace=0.2, stall=Stall(seconds=0.4, seconds_per_gib=0)
        )
        self.supervisor = Supervisor(self.adapter, self.post, **more)

    def post(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def spec(self, name: str = "a.gguf", **script: Any) -> ModelSpec:
        path = self.folder / name
        path.write_bytes(b"GGUF")
        Path(f"{path}.script.json").write_text(json.dumps(script), encoding="utf-8")
        return ModelSpec(ModelId(name), path=str(path), size_bytes=4, fingerprint="f", options=LaunchOptions(parallel=2))

    async def until(self, kind: type[Event], instance: InstanceId = ONE) -> Any:
        async with asyncio.timeout(20):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and getattr(event, "instance", instance) == instance:
                        return event
                self._news.clear()
                await self._news.wait()

    def chain(self, instance: InstanceId = ONE) -> Chain:
        return [
            type(event) for event in self.events if getattr(event, "instance", None) == instance and not isinstance(event, LoadProgressed)
        ]

    async def start(self, **script: Any) -> Served:
        self.supervisor.start(ONE, self.spec(**script))
        await self.until(InstanceReady)
        served = self.supervisor.served(ONE)
        assert served is not None
        return served


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.supervisor.run(), name="supervisor")
        await asyncio.sleep(0)
        try:
            yield stage
        finally:
            await stage.supervisor.close()
            await stage.adapter.close()
    assert list((tmp_path / "run").glob("*")) == []


async def test_what_a_model_had_when_it_ran_out_of_memory_is_told_before_its_end(tmp_path: Path) -> None:
    """What it had, and what it asked for in vain, is the least that it takes."""
    said = [
        "load_tensors: loading model tensors",
        "load_tensors: CUDA0 model buffer size = 100.00 MiB",
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 64.00 MiB on device 0: cudaMalloc failed: out of memory",
    ]
    stage = Stage(tmp_path)
    stage.supervisor = Supervisor(stage.adapter, stage.post, meter=Meter(stage.post))
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.supervisor.run(), name="supervisor")
        await asyncio.sleep(0)
        stage.supervisor.start(ONE, stage.spec(exit_in_load=1, stderr="\n".join(said) + "\n"))
        failed = await stage.until(InstanceFailed)
        await stage.until(MemoryFreed)
        await stage.supervisor.close()
    await stage.adapter.close()
    assert stage.chain() == [InstanceSpawned, FootprintMeasured, *FAILED[1:]]
    seen = next(event for event in stage.events if isinstance(event, FootprintMeasured))
    assert (seen.footprint.device_bytes, seen.footprint.complete) == ({"CUDA0": 100 << 20}, False)
    assert failed.error.asked_bytes == 64 << 20


async def test_a_model_is_served_and_unloaded(stage: Stage) -> None:
    served = await stage.start()
    assert await served.health()
    exchange = await served.generate("POST", "/completion", [], b'{"prompt": "a b", "n_predict": 3}')
    assert json.loads(await exchange.read(10_000))["content"] == " a b a"
    stage.supervisor.stop(ONE, "test")
    stage.supervisor.stop(ONE, "test")
    assert (await stage.until(InstanceExited)).reason == "stopped"
    assert stage.chain() == SERVED
    assert stage.supervisor.served(ONE) is None
    ((_, model, report),) = stage.supervisor.exits
    assert (model, report.code) == ("a.gguf", -signal.SIGTERM)


async def test_slow_start(stage: Stage) -> None:
    """A server that answers 503 for a while is loading, not broken; what it says meanwhile is progress."""
    await stage.start(load_seconds=0.3)


async def test_readiness_line_is_progress_and_ready(stage: Stage) -> None:
    state = 'cmd_child_to_router:state:{"state":"loading","payload":{"stages":["text_model"],"current":"text_model","value":%s}}\n'
    ready = 'cmd_child_to_router:state:{"state":"ready","payload":{"id":"a"}}\n'
    stage.supervisor.start(ONE, stage.spec(hang_in_load=True, stdout=state % 0.5 + "nonsense\n" + state % 0.501 + ready))
    await stage.until(InstanceReady)
    assert [e.fraction for e in stage.events if isinstance(e, LoadProgressed)] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("script", "error", "code"),
    [
        ({"exit_in_load": 1}, LoadFailed, 1),
        ({"exit_in_load": 0}, LoadFailed, 0),
        ({"exit_in_load": 1, "stderr": "unknown model architecture: 'x'\n"}, LoadFailed, 1),
        ({"exit_in_load": 1, "stderr": "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer\n"}, OutOfMemory, 1),
        ({"exit_in_load": 1, "stderr": "cudaMalloc failed: out of memory\n"}, OutOfMemory, 1),
        ({"kill_in_load": True}, OutOfMemory, -9),
        ({"hang_in_load": True}, LoadStalled, -9),
    ],
    ids=["exit 1", "exit 0", "architecture", "allocate", "cuda", "killed", "stall"],
)
async def test_a_load_that_fails(stage: Stage, script: dict[str, Any], error: type[Exception], code: int) -> None:
    """F1, F8, F10: the reason is typed, plain, and names neither file nor log line."""
    stage.supervisor.start(ONE, stage.spec(**script))
    assert (await stage.until(MemoryFreed)) == MemoryFreed(ONE)
    assert stage.chain() == FAILED
    failed = await stage.until(InstanceFailed)
    assert type(failed.error) is error
    assert "/" not in failed.error.message
    assert (await stage.until(InstanceExited)).code == code


async def test_a_stall_may_refuse_term(stage: Stage) -> None:
    stage.supervisor.start(ONE, stage.spec(hang_in_load=True, ignore_term=True))
    await stage.until(MemoryFreed)
    assert stage.chain() == FAILED


async def test_a_bad_interpreter_is_a_failed_spawn(stage: Stage) -> None:
    """F17: found only by the exec in the child."""
    broken = stage.folder / "llama-server"
    broken.write_text("#!/does/not/exist\n", encoding="ascii")
    broken.chmod(0o755)
    stage.adapter = LlamaServerAdapter(binary=broken, runtime_dir=stage.folder / "run2", stop_grace=0.2)
    stage.supervisor._adapter = stage.adapter
    stage.supervisor.start(ONE, stage.spec())
    await stage.until(MemoryFreed)
    assert stage.chain() == FAILED
    assert isinstance((await stage.until(InstanceFailed)).error, SpawnFailed)
    await stage.adapter.close()


async def test_a_spawn_that_fails_gives_the_same_chain(stage: Stage) -> None:
    """F17: nothing is half registered."""
    stage.supervisor._adapter = LlamaServerAdapter(binary=None, runtime_dir=stage.folder / "run", stop_grace=0.2)
    stage.supervisor.start(ONE, stage.spec())
    assert stage.events == []  # nothing is posted from inside the call
    await stage.until(MemoryFreed)
    assert stage.chain() == [InstanceFailed, InstanceExited, MemoryFreed]
    assert stage.supervisor.served(ONE) is None


@pytest.mark.parametrize("script", [{"load_seconds": 60}, {"load_seconds": 60, "ignore_term": True}, {"hang_in_load": True}])
async def test_stop_while_it_loads(stage: Stage, script: dict[str, Any]) -> None:
    """F19, F6: neither ready nor failed comes any more."""
    stage.supervisor.start(ONE, stage.spec(**script))
    await stage.until(InstanceSpawned)
    stage.supervisor.stop(ONE, "test")
    await stage.until(MemoryFreed)
    assert stage.chain() == STOPPED


async def test_stop_in_the_same_breath_as_start(stage: Stage) -> None:
    stage.supervisor.start(ONE, stage.spec())
    stage.supervisor.stop(ONE, "test")
    await stage.until(MemoryFreed)
    assert stage.chain() == STOPPED


async def test_refused_term_with_a_grandchild_left_behind(stage: Stage) -> None:
    """F6, F12."""
    for instance, where in ((ONE, "group"), (InstanceId("2/b.gguf"), "session")):
        spec = stage.spec(f"{where}.gguf", ignore_term=True, grandchild=where)
        stage.supervisor.start(instance, spec)
        await stage.until(InstanceReady, instance)
        grandchild = int(Path(f"{spec.path}.grandchild").read_text(encoding="ascii"))
        pidfd = os.pidfd_open(grandchild)
        try:
            stage.supervisor.stop(instance, "test")
            assert (await stage.until(InstanceExited, instance)).code == -signal.SIGKILL
            with pytest.raises(ProcessLookupError):  # gone, or a zombie that waits for its own new parent
                signal.pidfd_send_signal(pidfd, 0)
                if "State:\tZ" in Path(f"/proc/{grandchild}/status").read_text(encoding="ascii"):
                    raise ProcessLookupError
        finally:
            os.close(pidfd)
        await stage.until(MemoryFreed, instance)
        assert stage.chain(instance) == SERVED


async def test_a_child_that_is_halted_is_killed_when_its_time_to_end_is_over(stage: Stage) -> None:
    """It cannot take TERM while it is. Its request ends with it, not before."""
    served = await stage.start(prompt_seconds=3600)
    assert served.pid is not None
    os.kill(served.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{served.pid}/stat")
    async with asyncio.timeout(10):
        while stat.read_text().rpartition(")")[2].split()[0] != "T":  # noqa: ASYNC110 - no event tells that a signal took effect
            await asyncio.sleep(0.005)
    stage.supervisor.stop(ONE, "stuck")
    with pytest.raises(Died):
        await served.generate("POST", "/completion", [], b'{"prompt": "a", "n_predict": 3, "stream": true}')
    assert (await stage.until(InstanceExited)) == InstanceExited(ONE, -signal.SIGKILL, "killed")
    assert stage.chain() == SERVED


async def test_crash_in_mid_stream(stage: Stage) -> None:
    """F2: the stream ends with an error, then the instance is gone."""
    served = await stage.start(crash_at_token=3)
    exchange = await served.generate("POST", "/completion", [], b'{"prompt": "a", "stream": true}')
    with pytest.raises(Died):
        await exchange.read(10_000)
    exited = await stage.until(InstanceExited)
    assert exited.code == -signal.SIGKILL
    assert "memory" in exited.reason
    await stage.until(MemoryFreed)
    assert stage.chain() == SERVED


@pytest.mark.parametrize(("said", "ran_out"), [("CUDA error: out of memory\n", True), ("llama_decode: it does not work\n", False)])
async def test_a_crash_says_whether_memory_ran_out(stage: Stage, said: str, ran_out: bool) -> None:
    """By what the child wrote: a signal alone may have been sent by anybody."""
    served = await stage.start(crash_at_token=3, stderr=said)
    exchange = await served.generate("POST", "/completion", [], b'{"prompt": "a", "stream": true}')
    with pytest.raises(Died):
        await exchange.read(10_000)
    assert (await stage.until(InstanceExited)).ran_out is ran_out


async def test_one_that_was_told_to_end_did_not_run_out(stage: Stage) -> None:
    await stage.start(stderr="CUDA error: out of memory\n")
    stage.supervisor.stop(ONE, "test")
    assert (await stage.until(InstanceExited)).ran_out is False


async def test_killed_from_outside(stage: Stage) -> None:
    served = await stage.start()
    assert served.pid is not None
    os.kill(served.pid, signal.SIGKILL)
    await stage.until(MemoryFreed)
    assert stage.chain() == SERVED


@pytest.mark.parametrize(
    "script",
    [
        {"flood_bytes": 8 << 20},
        {"flood_lines": 20_000},
        {"close_output": True},
        {"stdout": "\x00\xff\x1b[2J cmd_child_to_router:state:{\n"},
    ],
    ids=["flood", "lines", "closed", "garbage"],
)
async def test_an_odd_log_disturbs_nothing(stage: Stage, script: dict[str, Any]) -> None:
    """F15, F16."""
    served = await stage.start(**script)
    assert await served.health()
    assert not any(char < " " for line in served.log_tail() for char in line)
    stage.supervisor.stop(ONE, "test")
    await stage.until(MemoryFreed)
    assert stage.chain() == SERVED


async def test_kill_all_is_at_once(stage: Stage) -> None:
    stage.supervisor.start(ONE, stage.spec(ignore_term=True))
    stage.supervisor.start(two := InstanceId("2/b.gguf"), stage.spec("b.gguf", load_seconds=60))
    await stage.until(InstanceReady)
    stage.supervisor.kill_all()
    await stage.until(MemoryFreed, ONE)
    await stage.until(MemoryFreed, two)
    assert (stage.chain(), stage.chain(two)) == (SERVED, STOPPED)


async def test_twice_the_same_instance_is_our_bug(stage: Stage) -> None:
    stage.supervisor.start(ONE, stage.spec())
    with pytest.raises(InvariantError):
        stage.supervisor.start(ONE, stage.spec())


async def test_check_says_yes_or_no(stage: Stage) -> None:
    spec = stage.spec()
    stage.supervisor.check(spec)
    assert await stage.until(LaunchChecked) == LaunchChecked(spec.id, "f")
    Path(spec.path).unlink()
    stage.supervisor.check(spec)
    rejected = await stage.until(LaunchRejected)
    assert isinstance(rejected.error, ModelUnavailable)
    assert "/" not in rejected.error.message


class Broken(Adapter):
    """Raises what no adapter should."""

    name = "broken"

    async def describe(self) -> EngineInfo:
        raise EngineMissing("no")

    async def check(self, spec: ModelSpec) -> None:
        raise ZeroDivisionError

    def start(self, instance: InstanceId, spec: ModelSpec, on_progress: Callable[[float], None]) -> Served:
        raise ZeroDivisionError

    async def close(self) -> None:
        pass


async def test_a_bug_in_an_adapter_costs_one_instance(stage: Stage) -> None:
    """F25: it is logged, the chain is complete, the others live."""
    await stage.start()
    stage.supervisor._adapter = Broken()
    two = InstanceId("2/b.gguf")
    stage.supervisor.start(two, stage.spec("b.gguf"))
    stage.supervisor.check(stage.spec("b.gguf"))
    await stage.until(MemoryFreed, two)
    await stage.until(LaunchRejected)
    assert stage.chain(two) == [InstanceFailed, InstanceExited, MemoryFreed]
    assert stage.supervisor.served(ONE) is not None


async def test_a_supervisor_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(stage.supervisor.run(), name="supervisor")
        await asyncio.sleep(0)
        served = await stage.start()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        report = await served.exited()
        assert report.code == -signal.SIGKILL
    await stage.adapter.close()


async def test_nothing_starts_before_run(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    with pytest.raises(InvariantError):
        stage.supervisor.start(ONE, stage.spec())
    with pytest.raises(InvariantError):
        stage.supervisor.check(stage.spec())
    await stage.supervisor.close()


async def test_a_bug_at_the_end_of_one_costs_that_one_only(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await stage.start()
    two = InstanceId("2/b.gguf")
    stage.supervisor.start(two, stage.spec("b.gguf"))
    await stage.until(InstanceReady, two)

    def bug(_code: int) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(served, "_reason", bug)
    assert served.pid is not None
    os.kill(served.pid, signal.SIGKILL)
    assert "fault in modeld" in (await stage.until(InstanceExited)).reason
    await stage.until(MemoryFreed)
    assert stage.chain() == SERVED
    living = stage.supervisor.served(two)
    assert living is not None
    assert await living.health()


class _Prober:
    """Answers when it is told to, with what it is told."""

    def __init__(self, answer: Probe | Exception) -> None:
        self._answer = answer
        self.may_answer = asyncio.Event()

    async def ask(self, spec: ModelSpec, *, around: bool) -> Probe:
        await self.may_answer.wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


PROBE = Probe(ctx=4096, parallel=1, ubatch=512, weights_bytes=1, context_bytes=2, compute_bytes=3)


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (PROBE, FootprintProbed(ModelId("a.gguf"), "key", PROBE)),
        (LoadFailed("no such family"), ProbeFailed(ModelId("a.gguf"), "key", "no such family")),
        (OSError("a bug"), ProbeFailed(ModelId("a.gguf"), "key", "it could not be asked because of a fault in modeld")),
    ],
)
async def test_a_probe_ends_in_one_event_and_keeps_nothing_else_waiting(tmp_path: Path, answer: Probe | Exception, event: Event) -> None:
    prober, kept = _Prober(answer), list[Remember]()
    stage = Stage(tmp_path, prober=prober, keep=kept.append)
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.supervisor.run())
        await asyncio.sleep(0)
        stage.supervisor.probe(stage.spec(), "key")
        stage.supervisor.start(ONE, stage.spec("b.gguf"))
        await stage.until(InstanceReady)
        assert not any(isinstance(one, FootprintProbed | ProbeFailed) for one in stage.events)
        prober.may_answer.set()
        await stage.until(type(event))
        assert [one for one in stage.events if isinstance(one, FootprintProbed | ProbeFailed)] == [event]
        stage.supervisor.remember(Remember("key", "hash", probe=PROBE))
        assert kept == [Remember("key", "hash", probe=PROBE)]
        await stage.supervisor.close()
    await stage.adapter.close()


async def test_without_a_prober_the_answer_is_that_there_is_none(stage: Stage) -> None:
    stage.supervisor.probe(stage.spec(), "key")
    assert await stage.until(ProbeFailed) == ProbeFailed(ModelId("a.gguf"), "key", "this engine cannot be asked")
    stage.supervisor.remember(Remember("key", "hash"))
