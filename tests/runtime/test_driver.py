# SPDX-License-Identifier: GPL-3.0-only
"""The driver on a real event loop, with hands that note what they are told; the scheduler is the real one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator

import pytest

from core.play import spec
from modeld.core.footprint import DeviceMemory
from modeld.core.messages import (
    CheckProgress,
    Command,
    Event,
    InstanceExited,
    InstanceReady,
    LaunchChecked,
    LeaseFailed,
    LeaseReleased,
    LoadRequested,
    MemoryFreed,
    MemorySeen,
    ModelTableReplaced,
    ProgressChecked,
    Refuse,
    RequestWithdrawn,
    RevokeLease,
    ShutdownRequested,
    Wakeup,
)
from modeld.core.model import (
    LOCAL,
    AttentionLayers,
    Degrade,
    InstanceId,
    LaunchOptions,
    Limits,
    MemoryShape,
    ModelId,
    ModelSpec,
    Request,
    RequestId,
)
from modeld.core.scheduler import Scheduler
from modeld.core.snapshot import Explanation
from modeld.errors import (
    ClientGone,
    DeadlineExceeded,
    DeadlineUnreachable,
    Died,
    Draining,
    InvariantError,
    ModeldError,
    QueueFull,
    Unloaded,
    WaitTimeout,
)
from modeld.runtime import driver as driver_module
from modeld.runtime.driver import Driver, Lease, PendingLease

ONE, TWO = InstanceId("1/a"), InstanceId("2/a")


class Watched(Scheduler):
    """The real scheduler; keeps what it was told, and says `extra` once, after its own commands."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.told: list[Event] = []
        self.extra: list[Command] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        self.told.append(event)
        commands = [*super().handle(event, now), *self.extra]
        self.extra = []
        self.check_invariants()
        return commands

    def ends(self) -> list[str]:
        """The events that ended a lease or a wait, by name."""
        return [type(one).__name__ for one in self.told if isinstance(one, LeaseFailed | LeaseReleased | RequestWithdrawn)]


class Hands:
    """Checks pass at once; a start is ready at once unless `ready` is off."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.driver: Driver | None = None
        self.ready = True
        self.gone: set[InstanceId] = set()
        self.dies_unseen: set[InstanceId] = set()

    def check(self, one: ModelSpec) -> None:
        assert self.driver is not None
        self.driver.post(LaunchChecked(one.id, one.fingerprint))

    def start(self, instance: InstanceId, one: ModelSpec) -> None:
        self.told.append(f"start {instance}")
        assert self.driver is not None
        if self.ready:
            self.driver.post(InstanceReady(instance, pid=1))

    def stop(self, instance: InstanceId, why: str) -> None:
        self.told.append(f"stop {instance} {why}")
        assert self.driver is not None
        self.driver.post(InstanceExited(instance, code=0))
        self.driver.post(MemoryFreed(instance))

    def used(self, instance: InstanceId) -> None: ...

    def served(self, instance: InstanceId) -> object:
        if instance in self.dies_unseen:
            assert self.driver is not None
            self.dies_unseen.discard(instance)
            self.driver.post(InstanceExited(instance, code=-9))
            self.driver.post(MemoryFreed(instance))
            return None
        return None if instance in self.gone else f"served {instance}"


class Counts:
    def __init__(self) -> None:
        self.waits: list[float] = []
        self.loads: list[float] = []
        self.pressure: list[str] = []
        self.observe_wait = self.waits.append
        self.observe_load = self.loads.append
        self.backpressure = self.pressure.append


class Stage:
    def __init__(self, **limits: float) -> None:
        models = {one.id: one for one in (spec("a", 100), spec("b", 100))}
        base = {"budget_mb": {LOCAL: 150}} | limits
        self.hands, self.counts, self.fatal = Hands(), Counts(), []
        self.core = Watched(Limits(**base), models)  # type: ignore[arg-type]
        self.driver = Driver(self.core, observer=self.counts, on_fatal=self.fatal.append)
        self.hands.driver = self.driver
        self.driver.attach(self.hands)  # type: ignore[arg-type]

    def request(self, name: str, model: str = "a") -> PendingLease:
        return self.driver.request(Request(RequestId(name), ModelId(model)))

    def crash(self, instance: InstanceId) -> None:
        self.driver.post(InstanceExited(instance, code=-9))
        self.driver.post(MemoryFreed(instance))

    def ask_progress(self, instance: InstanceId) -> ProgressChecked:
        """What the driver answers, and that it does so before `post` returns."""
        self.core.extra = [CheckProgress(instance)]
        self.driver.post(Wakeup())
        last = self.core.told[-1]
        assert isinstance(last, ProgressChecked)
        return last


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    stage.driver.close()
    assert stage.fatal == []


async def settle() -> None:
    """Let every task that can run, run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_request_holds_a_slot_inside_its_block(stage: Stage):
    async with stage.request("r1") as lease:
        assert (lease.instance, lease.served) == ("1/a", "served 1/a")
        assert stage.driver.snapshot().instances[0].inflight == 1
    assert stage.driver.snapshot().instances[0].inflight == 0
    assert stage.hands.told == ["start 1/a"]
    assert len(stage.counts.waits) == len(stage.counts.loads) == 1


async def test_a_lease_says_what_its_model_was_loaded_without(stage: Stage):
    shape = MemoryShape(10 << 20, attention=(AttentionLayers(10, 512, 512),), value_elements_max=512)
    wide = spec("a", 0, vram_mb=None, memory=shape, options=LaunchOptions(ctx=8192), degrade=(Degrade.CTX,))
    stage.driver.post(ModelTableReplaced({wide.id: wide, ModelId("b"): spec("b", 100)}))
    assert stage.driver.launch(wide.id).options.ctx == 2048
    async with stage.request("r1") as lease:
        assert lease.degraded == stage.driver.degraded(wide.id) == ("llama_ctx 8192 -> 2048",)
    async with stage.request("r2", "b") as lease:
        assert lease.degraded == ()


async def test_a_look_at_the_memory_does_not_fill_the_journal(stage: Stage):
    before = len(stage.driver.journal.lines())
    for _ in range(3):
        stage.driver.post(MemorySeen({LOCAL: DeviceMemory(1000, 900, 0)}))
    assert len(stage.driver.journal.lines()) == before
    assert stage.driver.snapshot().devices[0].total_mb == 1000


async def test_an_error_inside_the_block_gives_the_slot_back(stage: Stage):
    for error in (Died("x"), ValueError("y")):
        with pytest.raises(type(error)):
            async with stage.request("r"):
                raise error
    assert stage.driver.snapshot().instances[0].inflight == 0


async def test_the_second_waits_for_the_first(stage: Stage):
    order: list[str] = []

    async def one(name: str, leave: asyncio.Event) -> None:
        async with stage.request(name):
            order.append(f"{name} in")
            await leave.wait()
            order.append(f"{name} out")

    first, second = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(one("r1", first))
        group.create_task(one("r2", second))
        await settle()
        assert order == ["r1 in"]
        first.set()
        second.set()
    assert order == ["r1 in", "r1 out", "r2 in", "r2 out"]


async def test_a_cancelled_wait_leaves_the_line(stage: Stage):
    async with stage.request("r1"):

        async def wait() -> None:
            async with stage.request("r2"):
                raise AssertionError("it must not get in")

        async with asyncio.TaskGroup() as group:
            task = group.create_task(wait())
            await settle()
            assert stage.driver.snapshot().lines[0].length == 1
            task.cancel()
        assert stage.driver.snapshot().lines == ()


async def test_a_withdrawal_ends_the_wait_with_its_error(stage: Stage):
    async with stage.request("r1"):
        pending = stage.request("r2")
        stage.driver.loop.call_soon(pending.withdraw)
        with pytest.raises(ClientGone):
            async with pending:
                raise AssertionError("it must not get in")
        assert stage.driver.snapshot().lines == ()
        early = stage.request("r3")
        early.withdraw(Draining("no"))
        with pytest.raises(Draining):
            async with early:
                raise AssertionError("it must not get in")


async def test_a_withdrawal_after_the_grant_changes_nothing(stage: Stage):
    pending = stage.request("r1")
    async with pending:
        pending.withdraw()
        assert stage.driver.snapshot().instances[0].inflight == 1


async def test_refusals_are_raised_and_counted():
    stage = Stage(queue_depth_max=1, wait_max_seconds=0.25)
    async with stage.request("r1"):
        pending = stage.request("r2")
        async with asyncio.TaskGroup() as group:

            async def wait() -> None:
                with pytest.raises(WaitTimeout):
                    async with pending:
                        raise AssertionError("it must not get in")

            group.create_task(wait())
            await settle()
            with pytest.raises(QueueFull):
                async with stage.request("r3"):
                    raise AssertionError("it must not get in")
    assert stage.counts.pressure == ["queue_full", "wait_timeout"]
    stage.driver.close()


async def test_the_timer_revokes_a_request_that_runs_too_long():
    stage = Stage(infer_timeout_seconds=0.01)
    revoked: asyncio.Future[ModeldError] = asyncio.get_running_loop().create_future()
    async with stage.request("r1") as lease:
        lease.on_revoke(revoked.set_result)
        assert isinstance(await revoked, DeadlineExceeded)
        assert isinstance(lease.revoked, DeadlineExceeded)
        late: list[ModeldError] = []
        lease.on_revoke(late.append)
        assert len(late) == 1
    stage.driver.close()


async def test_a_crash_revokes_and_the_next_request_starts_anew(stage: Stage):
    seen: list[ModeldError] = []
    with pytest.raises(Died):
        async with stage.request("r1") as lease:
            lease.on_revoke(seen.append)
            stage.crash(lease.instance)
            raise seen[0]
    async with stage.request("r2") as lease:
        assert lease.instance == "2/a"


async def test_a_grant_to_an_instance_that_is_gone_already_fails_twice_and_frees_the_slot(stage: Stage):
    stage.hands.gone.add(ONE)
    with pytest.raises(Died, match="ended before"):
        async with stage.request("r1"):
            raise AssertionError("it must not get in")
    assert stage.core.ends() == ["LeaseFailed", "LeaseFailed"]
    assert stage.driver.snapshot().instances[0].inflight == 0


async def test_a_grant_to_an_instance_that_dies_just_then_becomes_one_to_the_next(stage: Stage):
    """The report of the death is handled first: it revokes a lease that nobody holds any more."""
    stage.hands.dies_unseen.add(ONE)
    async with stage.request("r1") as lease:
        assert lease.instance == TWO
        assert lease.revoked is None
        assert stage.driver.snapshot().instances[0].inflight == 1
    assert stage.core.ends() == ["LeaseFailed", "LeaseReleased"]
    assert len(stage.counts.waits) == 1  # it never had the first


async def test_one_model_gives_way_to_another(stage: Stage):
    async with stage.request("r1", "a"):
        pass
    async with stage.request("r2", "b"):
        assert stage.hands.told == ["start 1/a", "stop 1/a evicted for b", "start 2/b"]


async def test_shutdown_ends_all(stage: Stage):
    seen: list[ModeldError] = []
    async with stage.request("r1") as lease:
        lease.on_revoke(seen.append)
        stage.driver.post(ShutdownRequested())
        assert [error.kind for error in seen] == ["unloaded"]
    assert stage.driver.snapshot().instances == ()


async def test_a_broken_invariant_is_reported_and_the_driver_goes_on(caplog: pytest.LogCaptureFixture):
    stage = Stage()
    stage.driver.post(LoadRequested(ModelId("a")))
    stage.driver.post(InstanceReady(InstanceId("9/z")))
    assert [type(error) for error in stage.fatal] == [InvariantError]
    assert "LoadRequested" in caplog.text  # the journal is in the log
    stage.driver.post(ModelTableReplaced({}))
    assert stage.driver.snapshot().instances == ()
    stage.driver.close()


async def test_a_command_that_cannot_be_carried_out_is_no_error_of_whoever_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """It is reported as what it is; the step goes on, and the request stays in line until it is withdrawn."""
    stage = Stage()

    def check(_: ModelSpec) -> None:
        raise InvariantError("no hands")

    monkeypatch.setattr(stage.hands, "check", check)
    pending = stage.request("r1")
    stage.driver.loop.call_soon(pending.withdraw)
    stage.core.extra = [RevokeLease(RequestId("r9"), Died("x")), Refuse(RequestId("r9"), QueueFull("x"))]
    with pytest.raises(ClientGone):
        async with pending:
            raise AssertionError("it must not get in")
    assert [error.message for error in stage.fatal] == ["no hands"]
    assert "invariant broken by CheckLaunch" in caplog.text
    assert stage.counts.pressure == ["queue_full"]  # the last command of the step
    stage.driver.close()


async def test_a_lease_revoked_in_the_step_of_its_grant_is_given_back(stage: Stage):
    """The instance dies after the grant is booked and before anybody holds the lease."""
    lease = Lease(Request(RequestId("x"), ModelId("a")), ONE, "served", 0.0)  # type: ignore[arg-type]
    lease.revoke(Died("gone"))
    lease.revoke(Draining("later"))
    assert isinstance(lease.revoked, Died)


async def test_a_refused_request_is_forgotten_at_once():
    """Its error, the error's traceback and the request must not hold each other: a prompt may hang on them."""
    stage = Stage(queue_depth_max=1)
    gc.disable()
    try:
        async with stage.request("r1"):
            waiting = stage.request("r2")
            async with asyncio.TaskGroup() as group:

                async def wait() -> None:
                    with pytest.raises(Draining):
                        async with waiting:
                            raise AssertionError("it must not get in")

                group.create_task(wait())
                await settle()
                seen = []
                for name in ("r3", "r4"):
                    pending = stage.request(name)
                    seen.append(weakref.ref(pending))
                    with contextlib.suppress(QueueFull):
                        async with pending:
                            raise AssertionError("it must not get in")
                    del pending
                assert [ref() for ref in seen] == [None, None]
                waiting.withdraw(Draining("enough"))
    finally:
        gc.enable()
    stage.driver.close()


async def test_empty_is_when_the_last_memory_is_free(stage: Stage):
    async with stage.request("r1"):
        pass
    stage.driver.post(ShutdownRequested())
    await stage.driver.empty()
    assert stage.driver.snapshot().instances == ()


async def test_idle_is_when_nothing_is_held_here(stage: Stage):
    assert stage.driver.is_idle()
    async with stage.request("r1"):
        assert not stage.driver.is_idle()  # a lease
    stage.driver.post(ShutdownRequested())
    assert stage.driver.is_idle()
    stage.driver.arrive(Request(RequestId("r2"), ModelId("a")), stage.driver.never)
    assert stage.driver.is_idle()  # refused at the door


async def test_what_waits_or_loads_is_not_idle(stage: Stage):
    stage.hands.ready = False
    pending = stage.request("r1")
    seen: list[bool] = []
    stage.driver.loop.call_soon(lambda: (seen.append(stage.driver.is_idle()), pending.withdraw()))
    with pytest.raises(ClientGone):
        async with pending:
            raise AssertionError("it must not get in")
    assert [*seen, stage.driver.is_idle()] == [False, False]  # the load goes on, for nobody
    stage.driver.post(ShutdownRequested())
    assert stage.driver.is_idle()


async def test_what_is_refused_because_of_load_is_counted(stage: Stage):
    for error in (QueueFull("x"), WaitTimeout("x"), DeadlineUnreachable("x"), Draining("x")):
        stage.driver._refuse(RequestId("r"), error, 0.0)
    assert stage.counts.pressure == ["queue_full", "wait_timeout", "deadline_unreachable"]


async def test_the_explanation_is_of_this_moment(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []
    told = Explanation({ModelId("a"): "runs"}, ())
    monkeypatch.setattr(Scheduler, "explain", lambda self, now: asked.append(now) or told)
    before = stage.driver.now()
    assert stage.driver.explain() is told
    assert before <= asked[0] <= stage.driver.now()


# --- a second instance ------------------------------------------------------------------------------------------------


async def test_who_failed_before_the_first_byte_is_first_at_the_next_instance(stage: Stage, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "modeld.driver")
    first = stage.request("r1")
    async with asyncio.TaskGroup() as group, first as lease:

        async def other() -> None:
            async with stage.request("r2"):
                pass

        group.create_task(other())
        await settle()
        seen: list[ModeldError] = []
        lease.on_revoke(seen.append)
        stage.hands.ready = False
        stage.crash(lease.instance)
        assert [type(error) for error in seen] == [Died]
        stage.driver.loop.call_soon(stage.driver.post, InstanceReady(TWO))
        again = await first.again(Died("gone"))
        assert (again.instance, again.revoked) == (TWO, None)
        assert stage.driver.snapshot().lines[0].length == 1
    assert stage.core.ends() == ["LeaseFailed", "LeaseReleased", "LeaseReleased"]
    assert stage.core.told.count(LeaseReleased(RequestId("r1"))) == 1
    assert len(stage.counts.waits) == 3
    assert "start 1/a: 100 MiB of local/all" in caplog.text
    assert "request r1 of a waits again: 1/a: gone" in caplog.text


async def test_the_failure_may_be_known_before_the_death(stage: Stage):
    pending = stage.request("r1")
    async with pending:
        stage.driver.loop.call_soon(stage.crash, ONE)
        assert (await pending.again(Died("gone"))).instance == TWO


async def test_an_instance_that_lives_may_be_granted_again(stage: Stage):
    """Only the connection was lost. What the first lease is told afterwards is not heard by the second."""
    pending = stage.request("r1")
    async with pending as first:
        second = await pending.again(Died("reset"))
        assert (first.instance, second.instance) == (ONE, ONE)
        first.revoke(Died("late"))
        assert second.revoked is None
        assert stage.driver.snapshot().instances[0].inflight == 1
    assert stage.driver.snapshot().instances[0].inflight == 0


async def test_the_second_failure_is_the_end(stage: Stage, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "modeld.driver")
    pending = stage.request("r1")
    with pytest.raises(Died, match="second"):
        async with pending as lease:
            stage.crash(lease.instance)
            lease = await pending.again(Died("first"))
            stage.crash(lease.instance)
            await pending.again(Died("second"))
            raise AssertionError("it must not get a third")
    assert stage.core.ends() == ["LeaseFailed", "LeaseFailed"]
    assert stage.driver.snapshot().lines == ()
    assert "refuse request r1 of a (instance_died): second" in caplog.text
    assert caplog.text.count("waits again") == 1


async def test_who_leaves_while_it_waits_again_is_withdrawn_once(stage: Stage):
    stage.hands.ready = False
    pending = stage.request("r1")
    stage.driver.loop.call_soon(lambda: stage.driver.post(InstanceReady(ONE)))
    with pytest.raises(ClientGone):
        async with pending as lease:
            stage.crash(lease.instance)
            stage.driver.loop.call_soon(pending.withdraw)
            await pending.again(Died("gone"))
    assert stage.core.ends() == ["LeaseFailed", "RequestWithdrawn"]
    assert stage.driver.snapshot().lines == ()
    stage.driver.post(InstanceReady(TWO))  # the load goes on, for nobody
    assert stage.driver.snapshot().instances[0].inflight == 0


@pytest.mark.parametrize("granted", [False, True])
async def test_who_is_cancelled_while_it_waits_again_is_withdrawn_once(stage: Stage, granted: bool):
    """Also when the grant is there and has not been seen."""
    pending = stage.request("r1")

    async def run() -> None:
        async with pending as lease:
            stage.hands.ready = False
            stage.crash(lease.instance)
            await pending.again(Died("gone"))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run())
        await settle()
        if granted:
            stage.driver.post(InstanceReady(TWO))
        task.cancel()
    assert stage.core.ends() == ["LeaseFailed", "RequestWithdrawn"]
    assert stage.driver.snapshot().lines == ()
    assert [one.inflight for one in stage.driver.snapshot().instances] == [0]


async def test_a_shutdown_refuses_who_waits_again(stage: Stage):
    pending = stage.request("r1")
    with pytest.raises(Draining):
        async with pending as lease:
            stage.hands.ready = False
            stage.crash(lease.instance)
            stage.driver.loop.call_soon(stage.driver.post, ShutdownRequested())
            await pending.again(Died("gone"))
    assert stage.core.ends() == ["LeaseFailed"]


async def test_what_a_shutdown_ends_does_not_wait_again(stage: Stage):
    pending = stage.request("r1")
    seen: list[ModeldError] = []
    with pytest.raises(Unloaded):
        async with pending as lease:
            lease.on_revoke(seen.append)
            stage.driver.post(ShutdownRequested())
            assert isinstance(seen[0], Unloaded)
            await pending.again(Unloaded("shutting down"))
    await stage.driver.empty()


async def test_a_fault_after_the_first_byte_is_the_end(stage: Stage):
    with pytest.raises(Died):
        async with stage.request("r1"):
            raise Died("in the middle")
    (event,) = (one for one in stage.core.told if isinstance(one, LeaseFailed))
    assert (event.before_first_byte, str(event.error)) == (False, "in the middle")
    assert event.error is not None
    assert event.error.__traceback__ is None  # the journal keeps it
    assert stage.driver.snapshot().instances[0].inflight == 0


async def test_a_request_that_failed_twice_is_forgotten_at_once(stage: Stage):
    async def run() -> weakref.ref[PendingLease]:
        pending = stage.request("r1")
        with contextlib.suppress(Died):
            async with pending as lease:
                stage.crash(lease.instance)
                lease = await pending.again(Died("first"))
                stage.crash(lease.instance)
                await pending.again(Died("second"))
        return weakref.ref(pending)

    gc.disable()
    try:
        assert (await run())() is None
    finally:
        gc.enable()


async def test_only_a_lease_can_fail(stage: Stage):
    with pytest.raises(InvariantError):
        await stage.request("r1").again(Died("x"))


# --- progress ---------------------------------------------------------------------------------------------------------


class Moves:
    """An exchange whose last byte came at `at`."""

    def __init__(self, at: float, began: bool = True) -> None:
        self.at, self.began = at, began

    def moved_at(self, now: float) -> float:
        return self.at


async def test_progress_is_told_at_once_for_the_leases_of_one_instance():
    stage = Stage(budget_mb={LOCAL: 300})  # type: ignore[arg-type]
    before = stage.driver.now()
    async with stage.request("r1", "a") as one, stage.request("r2", "b") as other:
        granted = stage.ask_progress(ONE)
        assert (granted.instance, granted.moved.keys(), granted.began) == (ONE, {"r1"}, set())
        assert before <= granted.moved[RequestId("r1")] <= stage.driver.now()
        one.follow(Moves(granted.moved[RequestId("r1")] - 5, began=False))  # nothing yet: the grant counts
        assert stage.ask_progress(ONE) == granted
        other.follow(Moves(before + 60))
        one.follow(Moves(before + 50))
        assert stage.ask_progress(ONE) == ProgressChecked(ONE, {RequestId("r1"): before + 50}, frozenset({RequestId("r1")}))
        assert stage.ask_progress(InstanceId("9/z")) == ProgressChecked(InstanceId("9/z"), {})
    assert stage.ask_progress(ONE).moved == {}
    assert stage.fatal == []
    stage.driver.close()


async def test_a_silence_in_which_the_daemon_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch):
    """After a halt the timer comes first, and the bytes that came meanwhile are read later."""
    monkeypatch.setattr(driver_module, "LATE_SECONDS", -1.0)
    stage = Stage(wait_max_seconds=0.01)
    async with stage.request("r1"):
        granted = stage.ask_progress(ONE).moved[RequestId("r1")]
        with pytest.raises(WaitTimeout):
            async with stage.request("r2"):
                raise AssertionError("it must not get in")
        assert stage.ask_progress(ONE).moved[RequestId("r1")] >= granted + 0.01
    stage.driver.close()
