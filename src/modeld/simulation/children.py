# SPDX-License-Identifier: GPL-3.0-only
"""Model servers that load, fail, hang and die by dice, for the real supervisor; rule: what a child does wrong, it does on the wire.

Each child listens on the inside network (wire.py) and speaks real HTTP, so that the real Exchange reads it. It never answers more requests
at a time than it has slots, and all children together never hold more memory than there is: both would be an error of ours.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from modeld.core.model import InstanceId, ModelSpec
from modeld.errors import Died, InstanceFault, LoadFailed, LoadStalled, ModelUnavailable, OutOfMemory, SpawnFailed
from modeld.runtime.adapters.interface import Adapter, EngineInfo, ExitReport, Served
from modeld.runtime.upstream import Endpoint, Exchange
from modeld.simulation.wire import Wire, WiredLoop

_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_TOKEN: Final = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
_USAGE: Final = b'data: {"choices":[],"usage":{"completion_tokens":7,"prompt_tokens":3}}\n\ndata: [DONE]\n\n'
_REFUSAL: Final = b'{"error":{"message":"too long"}}'
_NO_ANSWERS: Final = (
    *(b"HTTP/1.1 %d No\r\ncontent-length: %d\r\n\r\n%b" % (status, len(_REFUSAL), _REFUSAL) for status in (400, 500, 503)),
    b"!garbage\r\n\r\n",
)


class Nursery(Adapter):
    """Starts children. `faulty` (0..1) scales how often things go wrong, `faults` counts what did; `complain` is told what must not be."""

    name = "simulated"

    def __init__(self, loop: WiredLoop, dice: random.Random, *, faulty: float, room_mb: int, complain: Callable[[str], None]) -> None:
        self.loop = loop
        self.dice = dice
        self.faulty = faulty
        self.faults: Counter[str] = Counter()
        self.room_mb = room_mb
        self.complain = complain
        self.children: dict[InstanceId, Child] = {}
        """Those that are not reaped."""
        self.open_wires = 0

    def goes_wrong(self, share: float, what: str) -> bool:
        """Whether it does this time: `share` of the cases in which something may."""
        if self.dice.random() >= share * self.faulty:
            return False
        self.faults[what] += 1
        return True

    async def describe(self) -> EngineInfo:
        return EngineInfo(self.name, "0", ())

    async def check(self, spec: ModelSpec) -> None:
        if self.dice.random() < 0.5:
            await asyncio.sleep(self.dice.random() * 0.2)
        if self.goes_wrong(0.1, "check rejected"):
            raise ModelUnavailable(f"{spec.id} is torn")

    def start(self, instance: InstanceId, spec: ModelSpec, on_progress: Callable[[float], None]) -> Child:
        if self.goes_wrong(0.1, "spawn failed"):
            raise SpawnFailed("no process")
        child = self.children[instance] = Child(self, instance, spec, on_progress)
        held_mb = sum(one.vram_mb for one in self.children.values())
        if held_mb > self.room_mb:
            self.complain(f"with {instance} children hold {held_mb} MiB of {self.room_mb}")
        return child

    async def close(self) -> None:
        """Nothing of its own is held."""

    def crash(self, instance: InstanceId) -> None:
        """The child of `instance` dies now, if it lives."""
        if (child := self.children.get(instance)) is not None:
            self.faults["died at a grant"] += 1
            child.die(-11)


class Child(Served):
    """One instance: loads, answers, ends. Its timers are its own and end with it."""

    def __init__(self, nursery: Nursery, instance: InstanceId, spec: ModelSpec, on_progress: Callable[[float], None]) -> None:
        number = int(instance.partition("/")[0])
        self.endpoint = Endpoint(host="child", port=number)
        self.wires: dict[Wire, None] = {}
        self.vram_mb = spec.vram_mb or 0
        self._instance = instance
        self._slots = spec.options.parallel
        self._nursery = nursery
        self._dice = nursery.dice
        self._loop = nursery.loop
        self._on_progress = on_progress
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._code: int | None = None
        self._stopping = self._ended = False
        self._timers: list[asyncio.TimerHandle] = []
        self._load()

    @property
    def pid(self) -> int:
        return self.endpoint.port

    async def ready(self) -> None:
        await asyncio.shield(self._loaded)

    async def exited(self) -> ExitReport:
        await self._gone.wait()
        return ExitReport(self._code, "killed" if (self._code or 0) < 0 else "")

    def stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._nursery.goes_wrong(0.3, "ignored the stop"):
            self._later(5.0 + self._dice.random() * 5.0, self.die, -9)  # the KILL after the grace
        else:
            self._later(self._dice.choice((0.0, 0.01, self._dice.random())), self.die, -15)

    def kill(self) -> None:
        self._stopping = True
        self._later(0.0, self.die, -9)

    async def health(self) -> bool:
        return not self._ended

    async def generate(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Exchange:
        return await Exchange.open(self.endpoint, method, path, headers, body)

    def log_tail(self) -> tuple[str, ...]:
        return ()

    # --- its life -----------------------------------------------------------------------------------------------------

    def _later(self, seconds: float, callback: Callable[..., None], *args: object) -> None:
        if not self._ended:
            self._timers.append(self._loop.call_later(seconds, callback, *args))

    def _load(self) -> None:
        wrong = self._nursery.goes_wrong
        seconds = self._dice.choice((0.0, 0.05, 1.0, self._dice.random() * 6.0))
        self._later(seconds / 2, self._on_progress, 0.5)
        if wrong(0.2, "load failed"):
            error = self._dice.choice((LoadFailed, OutOfMemory))("bad file")
            self._later(seconds, self._fail, error)
            if self._dice.random() < 0.5:
                self._later(seconds, self.die, 1)  # the report and the death, in any order
        elif wrong(0.2, "died while it loaded"):
            self._later(seconds, self.die, -11)
        elif wrong(0.1, "load hung"):
            self._later(20.0, self._fail, LoadStalled("no progress"))
        else:
            self._later(seconds, self._open)

    def _fail(self, error: InstanceFault) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(error)
            self._loaded.exception()  # seen, also when nobody waits any more

    def _open(self) -> None:
        if self._loaded.done():
            return
        self._loop.listen(self.endpoint.port, self._accept)
        self._loaded.set_result(None)
        if self._nursery.goes_wrong(0.3, "died by itself"):
            seconds = self._dice.choice((-1.0, 0.0, self._dice.random(), self._dice.random() * 30.0))
            if seconds < 0.0:
                self.die(-11)  # before anybody saw that it was ready
            else:
                self._later(seconds, self.die, -11)

    def die(self, code: int) -> None:
        """The kernel closes its sockets; that and the reaping are seen in any order."""
        if self._ended:
            return
        self._ended = True
        self._code = code
        self._loop.silence(self.endpoint.port)
        for timer in self._timers:
            timer.cancel()
        for wire in list(self.wires):
            wire.lose(self._dice.choice((None, ConnectionResetError("reset"))))
        if self._dice.random() < 0.5:
            self._reap()
        else:
            self._loop.call_later(self._dice.random() * 0.1, self._reap)

    def _reap(self) -> None:
        self._fail(self._dice.choice((LoadFailed, Died))("died while it loaded"))
        del self._nursery.children[self._instance]
        self._gone.set()

    # --- its answers --------------------------------------------------------------------------------------------------

    def _accept(self, wire: Wire) -> None:
        self.wires[wire] = None
        self._nursery.open_wires += 1
        if len(self.wires) > self._slots:
            self._nursery.complain(f"{self._instance} has {len(self.wires)} requests and {self._slots} slots")
        script = Script(self._nursery, wire)
        wire.on_request = script.begin

        def closed() -> None:
            del self.wires[wire]
            self._nursery.open_wires -= 1
            script.end()

        wire.on_closed = closed


class Script:
    """What one answer looks like: each piece some time after the last; it may break off, hang, or be nonsense."""

    def __init__(self, nursery: Nursery, wire: Wire) -> None:
        self._nursery = nursery
        self._wire = wire
        self._timer: asyncio.TimerHandle | None = None
        dice = nursery.dice
        self._gap = dice.choice((0.0, 0.01, 0.2, dice.random()))
        self._pieces = [_HEAD, *(_chunk(_TOKEN) for _ in range(dice.randrange(8))), _chunk(_USAGE) + b"0\r\n\r\n"]
        self._ending: str = "closed"
        self._spoil(dice)

    def begin(self) -> None:
        self._next(0)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _spoil(self, dice: random.Random) -> None:
        wrong = self._nursery.goes_wrong
        if wrong(0.2, "answer was refused or nonsense"):
            self._pieces = [dice.choice(_NO_ANSWERS)]
        elif wrong(0.3, "connection was reset"):
            self._pieces, self._ending = self._pieces[: dice.randrange(len(self._pieces))], "reset"
        elif wrong(0.2, "answer hung"):
            self._pieces, self._ending = self._pieces[: dice.randrange(len(self._pieces))], "hangs"
        elif wrong(0.1, "answer ended early"):
            self._pieces = self._pieces[: dice.randrange(len(self._pieces))]

    def _next(self, number: int) -> None:
        if number < len(self._pieces):
            wait = self._gap * self._nursery.dice.random()
            self._timer = self._nursery.loop.call_later(wait, self._say, number)
        elif self._ending != "hangs":
            self._wire.lose(None if self._ending == "closed" else ConnectionResetError("reset"))

    def _say(self, number: int) -> None:
        piece, dice = self._pieces[number], self._nursery.dice
        if dice.random() < 0.1:  # a kernel hands over what it likes
            cut = dice.randrange(len(piece))
            self._wire.send(piece[:cut] or piece)
            if piece[:cut]:
                self._wire.send(piece[cut:])
        else:
            self._wire.send(piece)
        self._next(number + 1)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
