# SPDX-License-Identifier: GPL-3.0-only
"""Kills model servers under load, then whole daemons, and reports what came of every request; rule: black box, it ends what it starts.

Children: several clients ask two models that fit together without a pause while one child after another is killed (SIGKILL, at a random
moment; one in ten while it loads, which makes its model back off). Every request must end, with an answer or with an error that says so.
Daemons: each is killed (SIGKILL) with one model loaded and one still loading; its children must be gone within a second.
Exit code 1 when anything hung or stayed.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from service import Daemon, daemon, place

HUNG_SECONDS = 60.0
ORPHAN_SECONDS_MAX = 1.0
CLIENTS = 4


class Clients:
    """Threads that ask and note how each request ended."""

    def __init__(self, running: Daemon, models: list[str]) -> None:
        self.ends: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0
        self._running = running
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(models[n % len(models)], n)) for n in range(CLIENTS)]
        self._lock = threading.Lock()

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, model: str, number: int) -> None:
        stream = number % 2 == 0
        body = {"model": model, "prompt": f"{number}: Once upon a time", "max_tokens": 24, "ignore_eos": True, "stream": stream}
        while not self._stop.is_set():
            begin = time.perf_counter()
            end = self._one(body)
            seconds = time.perf_counter() - begin
            with self._lock:
                self.ends["HUNG" if seconds > HUNG_SECONDS else end] += 1
                self.slowest = max(self.slowest, seconds)
            if not end.startswith("200"):
                self._stop.wait(0.05)

    def _one(self, body: dict[str, object]) -> str:
        try:
            status, raw = self._running.call("POST", "/infer", body)
            last = json.loads(raw.splitlines()[-1])
        except (OSError, http.client.HTTPException, ValueError, IndexError) as error:
            return f"BROKEN: {type(error).__name__}"
        if status != 200:
            return f"{status} {last.get('kind')}"
        if not last.get("done"):
            return "BROKEN: no last record"
        return f"200, then {last['code']} in the last record" if "error" in last else "200 complete"


def kill_children(running: Daemon, kills: int, dice: random.Random) -> int:
    """Kill until so many have been killed; the number of distinct processes."""
    killed: set[int] = set()
    while len(killed) < kills:
        time.sleep(dice.random())
        states = ("ready", "loading") if dice.random() < 0.1 else ("ready",)
        instances = json.loads(running.call("GET", "/status")[1])["instances"]
        fresh = [one["pid"] for one in instances if one["pid"] and one["pid"] not in killed and one["state"] in states]
        if fresh:
            victim = dice.choice(fresh)
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
            if len(killed) % 20 == 0:
                print(f"  {len(killed)} killed", file=sys.stderr, flush=True)
    return len(killed)


def descendants(pid: int) -> list[int]:
    """Processes whose parent is `pid`, and theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == pid:
                found += [int(entry.name), *descendants(int(entry.name))]
    return found


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def runs(pid: int) -> bool:
    """Whether it runs; a zombie that waits for somebody to reap it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def children_part(folder: Path, kills: int, dice: random.Random) -> bool:
    with daemon(folder) as (running, _):
        before = descriptors(running.process.pid)
        with Clients(running, ["a.gguf", "b.gguf"]) as clients:
            done = kill_children(running, kills, dice)
        status = json.loads(running.call("GET", "/status")[1])
        busy = [one for one in status["instances"] if one["inflight"] or one["queue_len"]]
        alive = [pid for pid in descendants(running.process.pid) if runs(pid)]
        after = descriptors(running.process.pid)
        known = {one["pid"] for one in status["instances"]}
    print(f"children killed: {done}; requests: {sum(clients.ends.values())}, slowest {clients.slowest:.1f} s")
    for end, count in clients.ends.most_common():
        print(f"  {count:6} x {end}")
    strays = [pid for pid in alive if pid not in known]
    left = [pid for pid in alive if runs(pid)]
    print(f"  afterwards: {len(busy)} instances busy, {len(strays)} stray processes, descriptors {before} -> {after}")
    print(f"  after the daemon's end: {len(left)} processes left")
    bad = [end for end in clients.ends if end.startswith(("HUNG", "BROKEN", "500"))]
    return not (bad or busy or strays or left)


def daemons_part(folder: Path, times: int) -> bool:
    longest, stayed = 0.0, 0
    for _ in range(times):
        with daemon(folder) as (running, _started):
            running.infer("a.gguf")
            asking = threading.Thread(target=_ignore, args=(running,))
            asking.start()
            family: list[int] = []
            while len(family) < 2:
                family = descendants(running.process.pid)
            running.process.kill()
            running.process.wait()
            begin = time.perf_counter()
            while any(runs(pid) for pid in family) and time.perf_counter() - begin < 10 * ORPHAN_SECONDS_MAX:
                time.sleep(0.005)
            longest = max(longest, time.perf_counter() - begin)
            stayed += sum(runs(pid) for pid in family)
            asking.join()
    print(f"daemons killed: {times}; orphans gone after at most {longest:.3f} s, {stayed} stayed")
    return stayed == 0 and longest <= ORPHAN_SECONDS_MAX


def _ignore(running: Daemon) -> None:
    try:
        running.call("POST", "/infer", {"model": "b.gguf", "prompt": "x", "max_tokens": 1})
    except (OSError, http.client.HTTPException):
        return


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill model servers and daemons under load.")
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file to serve")
    parser.add_argument("--kills", type=int, default=200, help="model servers to kill")
    parser.add_argument("--daemons", type=int, default=25, help="daemons to kill")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    fine = True
    with tempfile.TemporaryDirectory(prefix="mc") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        for model in ("a.gguf", "b.gguf"):
            place(arguments.model.resolve(), folder / "models" / model)
        if arguments.kills:
            fine &= children_part(folder, arguments.kills, random.Random(arguments.seed))  # noqa: S311 - a replayable choice, no secret
        if arguments.daemons:
            fine &= daemons_part(folder, arguments.daemons)
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
