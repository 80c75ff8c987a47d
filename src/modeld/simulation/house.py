# SPDX-License-Identifier: GPL-3.0-only
"""The real relay, driver, supervisor and scheduler between simulated clients and simulated children; rule: a seed is a whole evening.

    python -m modeld.simulation.house --seeds 1000        the first seed that fails is printed, and the exit code is 1
    python -m modeld.simulation.house --seed 17           one seed, with the last steps of its journal

What must hold after every step: the invariants of the core, and that each request is waiting, granted or over, and moves between these by
the right events only. What must hold at the end: every client has ended once; no task, lease, line, connection, child or timer is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from modeld.api.metrics import Metrics
from modeld.api.passthrough import Passed
from modeld.api.relay import Relay
from modeld.api.route import Call, Terms
from modeld.catalog.models import ModelTable
from modeld.core.messages import (
    Command,
    Event,
    Grant,
    LeaseFailed,
    LeaseReleased,
    LoadRequested,
    ModelTableReplaced,
    Refuse,
    RequestArrived,
    RequestWithdrawn,
    SettingsReplaced,
    ShutdownRequested,
    UnloadRequested,
)
from modeld.core.model import LOCAL, EvictionPolicy, LaunchOptions, Limits, ModelId, ModelSpec, Priority, RequestId
from modeld.core.scheduler import Scheduler
from modeld.errors import ClientGone, InvariantError, ModeldError
from modeld.runtime.driver import Driver
from modeld.runtime.supervisor import Supervisor
from modeld.simulation.children import Nursery
from modeld.simulation.guests import Guest, Habit, habit
from modeld.simulation.loop import Deadlock, Order, Spin
from modeld.simulation.wire import WiredLoop

BUDGET_MB: Final = 300
MARGIN_MB: Final = 20
EVENING_SECONDS_MAX: Final = 3000.0
"""All guests have ended by then, or something is stuck."""
OPENING_SECONDS: Final = 0.001
TOTALS: Final = (
    "loads_total",
    "load_failures_total",
    "evictions_total",
    "crashes_total",
    "fairness_closings_total",
    "preemptions_total",
    "requeued_total",
    "stuck_total",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed stands for. `closes_at`: the shutdown comes then even when guests are still there; None = after the last one."""

    seed: int
    order: Order
    busy_seconds: float
    faulty: float
    guests: int
    closes_at: float | None
    shutdown_seconds: float
    limits: Limits
    models: tuple[ModelSpec, ...]


@dataclass(slots=True)
class Report:
    """What came of a seed. `digest` is the same whenever the same thing happened in the same order."""

    seed: int
    steps: int = 0
    events: int = 0
    digest: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    """How the requests ended."""
    decisions: Counter[str] = field(default_factory=Counter)
    """What the scheduler did: its totals."""
    faults: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """The counts of another seed; the digest becomes one of all seeds."""
        self.digest = hashlib.sha256(f"{self.digest} {other.digest}".encode()).hexdigest()[:16]
        self.steps += other.steps
        self.events += other.events
        self.outcomes += other.outcomes
        self.decisions += other.decisions
        self.faults += other.faults


def plan_of(seed: int) -> Plan:
    """A quarter keeps asyncio's order, a quarter runs on a busy machine, a fifth has no faults."""
    dice = random.Random(f"plan {seed}")
    limits = Limits(
        budget_mb={LOCAL: BUDGET_MB},
        margin_mb=MARGIN_MB,
        queue_depth_max=dice.choice((2, 4, 16)),
        wait_max_seconds=dice.choice((3.0, 15.0, 60.0)),
        infer_timeout_seconds=dice.choice((0.0, 0.5, 10.0)),
        drain_timeout_seconds=dice.choice((0.5, 10.0)),
        fairness_wait_seconds=dice.choice((0.0, 0.5, 3.0)),
        turn_max_seconds=dice.choice((None, 0.0, 2.0)),
        min_residency_seconds=dice.choice((0.0, 1.0)),
        preempt_after_seconds=dice.choice((None, None, 0.5)),
        eviction=dice.choice(list(EvictionPolicy)),
        first_token_seconds=dice.choice((0.3, 5.0)),
        prompt_token_seconds=0.01,
        inter_token_seconds=dice.choice((0.3, 3.0)),
    )
    return Plan(
        seed=seed,
        order=Order.FIFO if dice.random() < 0.25 else Order.ANY,
        busy_seconds=dice.choice((0.0, 0.0, 0.0, 0.005)),
        faulty=dice.choice((0.0, 0.3, 0.3, 0.7, 1.0)),
        guests=dice.choice((8, 20, 40)),
        closes_at=dice.choice((None, None, dice.random() * 10.0)),
        shutdown_seconds=dice.choice((0.5, 60.0)),
        limits=limits,
        models=tuple(_model(f"m{number}", dice) for number in range(dice.choice((2, 4, 6)))),
    )


def _model(name: str, dice: random.Random) -> ModelSpec:
    return ModelSpec(
        id=ModelId(name),
        path=f"/{name}",
        fingerprint="1",
        vram_mb=dice.choice((40, 90, 140, 250, 250)),
        options=LaunchOptions(parallel=dice.choice((1, 1, 2, 3)), threads=1, ctx=512),
        ttl_seconds=dice.choice((None, None, 0.0, 2.0)),
        priority=dice.choice(list(Priority)),
        pinned=dice.random() < 0.01,
    )


class WatchedScheduler(Scheduler):
    """The real one. Each step is checked and goes into the digest; `granted` is called for each grant in the step that books it.

    `punctual(now)` says whether at that moment no deadline may have passed unseen.
    """

    def __init__(
        self, plan: Plan, complain: Callable[[str], None], granted: Callable[[Grant], None], punctual: Callable[[float], bool]
    ) -> None:
        super().__init__(plan.limits, {spec.id: spec for spec in plan.models})
        self.events = 0
        self._hash = hashlib.sha256()
        self._complain = complain
        self._granted = granted
        self._punctual = punctual
        self._places: dict[RequestId, str] = {}

    def handle(self, event: Event, now: float) -> list[Command]:
        self.events += 1
        self._enter(event)
        if (wakeup := self.next_wakeup()) is not None and wakeup < now and self._punctual(now):
            self._complain(f"{_tell(event)} at {now:.3f} s: the wakeup of {wakeup:.3f} s did not come")
        commands = super().handle(event, now)
        self.check_invariants()
        for command in commands:
            self._leave(command)
        told = ", ".join(_tell(command) for command in commands)
        self._hash.update(f"{now!r} {_tell(event)} -> {told}\n".encode())
        return commands

    def digest(self) -> str:
        return self._hash.hexdigest()[:16]

    def _enter(self, event: Event) -> None:
        """Where the request was before, and where it is now."""
        match event:
            case RequestArrived(request):
                self._move(request.id, ("",), "waiting", event)
            case LeaseReleased(request_id):
                self._move(request_id, ("granted",), "over", event)
            case LeaseFailed(request_id, before_first_byte):
                self._move(request_id, ("granted",), "waiting" if before_first_byte else "over", event)
            case RequestWithdrawn(request_id):
                self._move(request_id, ("waiting", "granted", "over"), "over", event)
            case _:
                pass

    def _leave(self, command: Command) -> None:
        if isinstance(command, Grant):
            self._move(command.request, ("waiting",), "granted", command)
            self._granted(command)
        elif isinstance(command, Refuse):
            self._move(command.request, ("waiting",), "over", command)

    def _move(self, request: RequestId, places: tuple[str, ...], to: str, why: Event | Command) -> None:
        before = self._places.get(request, "")
        if before not in places:
            self._complain(f"{_tell(why)}: it is {before or 'unknown'}")
        self._places[request] = to

    def left(self) -> list[str]:
        """Requests that are not over."""
        return [f"{request} is {place}" for request, place in self._places.items() if place != "over"]


def _tell(what: Event | Command) -> str:
    """Name and what it is about; never the order of a set."""
    about = getattr(what, "request", None) or getattr(what, "instance", None) or getattr(what, "model", None) or ""
    kind = getattr(getattr(what, "error", None), "kind", "")
    return f"{type(what).__name__} {getattr(about, 'id', about)} {kind}".rstrip()


class House:
    """One seed, from opening to closing."""

    def __init__(self, plan: Plan, loop: WiredLoop) -> None:
        self.report = Report(plan.seed)
        self._plan = plan
        self._loop = loop
        self._dice = random.Random(f"house {plan.seed}")
        self._here: dict[str, Guest] = {}
        """Guests that have not ended, by the id of their call."""
        complain = self.report.failures.append
        self.scheduler = WatchedScheduler(plan, complain, self._was_granted, lambda now: not plan.busy_seconds and now > loop.stood_until)
        self.driver = Driver(self.scheduler, observer=(metrics := Metrics("0")), on_fatal=self._on_fatal)
        self.nursery = Nursery(loop, self._dice, faulty=plan.faulty, room_mb=BUDGET_MB - MARGIN_MB, complain=complain)
        self.supervisor = Supervisor(self.nursery, self.driver.post)
        self.driver.attach(self.supervisor)
        self._relay = Relay(self.driver, self._table, metrics, default_model=None, rescan=None)

    async def evening(self) -> Report:
        """Open, serve, close, look whether anything is left."""
        report, plan = self.report, self._plan
        async with asyncio.TaskGroup() as group:
            group.create_task(self.supervisor.run(), name="supervisor")
            await asyncio.sleep(OPENING_SECONDS)  # it runs before the first request is let in, as in the daemon
            guests = [group.create_task(self._visit(number), name=f"guest {number}") for number in range(plan.guests)]
            operator = group.create_task(self._operate(), name="operator")
            _, left = await asyncio.wait(guests, timeout=plan.closes_at or EVENING_SECONDS_MAX)
            if left and plan.closes_at is None:
                report.failures += sorted(f"{task.get_name()} has not ended" for task in left)
            self.driver.post(ShutdownRequested())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(plan.shutdown_seconds):
                    await self.driver.empty()
            await self.supervisor.close()
            _, left = await asyncio.wait(guests, timeout=EVENING_SECONDS_MAX)
            report.failures += sorted(f"{task.get_name()} was not sent home" for task in left)
            for task in (operator, *left):
                task.cancel()
        self.driver.close()
        self._look_around()
        return report

    # --- guests -------------------------------------------------------------------------------------------------------

    async def _visit(self, number: int) -> None:
        dice = random.Random(f"guest {self._plan.seed} {number}")
        await asyncio.sleep(dice.choice((0.0, dice.random() * 3.0, dice.random() * 20.0)))
        nature = habit(dice)
        for ask in range(nature.asks):
            if await self._ask(f"g{number}.{ask}", nature, dice):
                return
            await asyncio.sleep(dice.choice((0.0, dice.random())))

    async def _ask(self, name: str, nature: Habit, dice: random.Random) -> bool:
        """True when it was answered."""
        guest = Guest(name, dice.choice(self._plan.models).id, dice.choice((None, *Priority)), nature, dice)
        guest.task = asyncio.current_task()
        self._here[name] = guest
        terms = Terms(priority=guest.priority, timeout_seconds=dice.choice((float("inf"), float("inf"), 5.0)), work=dice.random() * 100.0)
        call = Call(name, "POST", {}, guest, body=b"{}", terms=terms)
        outcome = "answered"
        try:
            guest.asks()
            reply = await self._relay.serve(call, guest.model, "/v1/chat/completions", Passed(call))
            if reply is None and not guest.answered:
                self.report.failures.append(f"{name} has neither an answer nor an error")
            outcome = call.fault or outcome
        except ModeldError as error:
            outcome = error.kind
            if isinstance(error, ClientGone) and not guest.left:
                self.report.failures.append(f"{name} was said to have left")
            if isinstance(error, InvariantError):
                self.report.failures.append(f"{name}: {error.message}")
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.report.outcomes[outcome] += 1
            self.report.failures += guest.complaints
            guest.gone()
            del self._here[name]
        return outcome == "answered"

    def _was_granted(self, grant: Grant) -> None:
        """In the step of the grant: soon, and before or after its owner sees it, the worst may happen."""
        guest = self._here.get(grant.request.rpartition("-")[0])
        if guest is None:
            self.report.failures.append(f"{grant.request} was granted after its end")
            return
        guest.was_granted()
        luck = self._dice.random()
        if luck < 0.1 * self._plan.faulty:
            self._loop.call_soon(self.nursery.crash, grant.instance)
        elif luck > 0.98:
            self._loop.call_soon(self.driver.post, UnloadRequested(guest.model))

    # --- the operator -------------------------------------------------------------------------------------------------

    async def _operate(self) -> None:
        """Does something now and then, also while the house closes."""
        dice, plan = random.Random(f"operator {self._plan.seed}"), self._plan
        table = {spec.id: spec for spec in plan.models}
        for _ in range(dice.choice((0, 3, 12))):
            await asyncio.sleep(dice.random() * 4.0)
            spec = dice.choice(plan.models)
            match dice.randrange(6):
                case 0:
                    self.driver.post(LoadRequested(spec.id, may_evict=dice.random() < 0.5))
                case 1:
                    self.driver.post(UnloadRequested(spec.id))
                case 2:
                    self.driver.post(SettingsReplaced(replace(plan.limits, wait_max_seconds=dice.choice((1.0, 20.0)))))
                case 3:
                    self._loop.stand_still(dice.random() * 4.0)
                case 4:
                    if table.pop(spec.id, None) is None:
                        table[spec.id] = spec
                    self.driver.post(ModelTableReplaced(dict(table)))
                case _:
                    table[spec.id] = replace(spec, fingerprint=f"{dice.randrange(3)}")
                    self.driver.post(ModelTableReplaced(dict(table)))

    async def _table(self) -> ModelTable:
        return ModelTable({spec.id: spec for spec in self._plan.models})

    # --- the end ------------------------------------------------------------------------------------------------------

    def _on_fatal(self, error: InvariantError) -> None:
        self.report.failures.append(f"invariant: {error.message}")
        self.report.journal = self.report.journal or self.driver.journal.lines()

    def _look_around(self) -> None:
        """Everybody is gone: is everything?"""
        report, snapshot, loop = self.report, self.driver.snapshot(), self._loop
        left = [f"guest {name}" for name in self._here]
        left += [f"instance {view.id} ({view.state})" for view in snapshot.instances]
        left += [f"child of {instance}" for instance in self.nursery.children]
        left += sorted(f"task {task.get_name()}" for task in asyncio.all_tasks() if task is not asyncio.current_task())
        left += [f"timer {timer}" for timer in loop.armed()]
        left += [f"request {told}" for told in self.scheduler.left()]
        left += [f"line of {view.model}" for view in snapshot.lines]
        if self.nursery.open_wires:
            left.append(f"{self.nursery.open_wires} connections")
        if snapshot.used_mb:
            left.append(f"{snapshot.used_mb} MiB")
        if not self.driver.is_idle():
            left.append("something in the driver")
        report.failures += [f"left over: {one}" for one in left]
        report.failures += [f"nobody caught {context.get('exception') or context['message']!r}" for context in loop.faults]
        for name in TOTALS:
            report.decisions[name.removesuffix("_total")] = getattr(snapshot, name)
        report.journal = report.journal or self.driver.journal.lines()
        report.steps, report.events = loop.steps, self.scheduler.events
        report.digest, report.faults = self.scheduler.digest(), self.nursery.faults


def play(seed: int) -> Report:
    """One seed from beginning to end, on a loop of its own."""
    plan = plan_of(seed)
    houses: list[House] = []

    async def main() -> Report:
        houses.append(House(plan, loop))
        return await houses[0].evening()

    loop = WiredLoop(seed, order=plan.order, busy_seconds=plan.busy_seconds)
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(main())
    except (Deadlock, Spin) as error:
        report = houses[0].report
        report.failures.append(str(error))
        report.journal = report.journal or houses[0].driver.journal.lines()
        return report


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 when a seed fails."""
    parser = argparse.ArgumentParser(prog="python -m modeld.simulation.house", description="The real driver on a deterministic loop.")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="only this one, with its journal")
    given = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    seeds = range(given.start, given.start + given.seeds) if given.seed is None else [given.seed]
    total, failed = Report(seeds[0]), None
    for seed in seeds:
        report = play(seed)
        total.add(report)
        if report.failures:
            failed = report
            break
    out = sys.stdout.write
    out(f"seeds {seeds[0]} to {seed}: {total.steps} steps of the loop, {total.events} events, {total.faults.total()} faults\n")
    out(f"digest: {total.digest}\n")
    for name, counts in (("requests", total.outcomes), ("decisions", total.decisions), ("faults", total.faults)):
        out(f"{name}: " + ", ".join(f"{what} {count}" for what, count in sorted(counts.items())) + "\n")
    if given.seed is not None:
        out("\n".join([f"{plan_of(given.seed)}", *report.journal, ""]))
    if failed is not None:
        out(f"FAILED seed {failed.seed}\n" + "".join(f"  {failure}\n" for failure in failed.failures))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
