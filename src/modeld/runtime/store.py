# SPDX-License-Identifier: GPL-3.0-only
"""What was learned of memory, kept across restarts in SQLite; rule: it never keeps a request waiting and never ends the daemon.

One thread owns the file. What cannot be read is put aside under another name, what cannot be written is told of once; the daemon then goes
on with what it learns itself. Figures hold for one *setup*: the engine's build and the devices it runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from modeld.core.footprint import Footprint, Learned, Probe, Source
from modeld.core.messages import FootprintsLearned, Remember
from modeld.core.model import ModelId

log = logging.getLogger("modeld.store")

VERSION: Final = 1
"""`user_version` of the file. A file of a later version is left alone, one of an earlier version is brought up to this one."""
ROWS_MAX: Final = 10_000
BUSY_SECONDS: Final = 5.0
"""Another daemon of the same state folder may be writing."""
CLOSE_SECONDS_MAX: Final = 2.0

_SCHEMA: Final = """
CREATE TABLE launches (
    setup TEXT NOT NULL, launch_key TEXT NOT NULL, header_hash TEXT NOT NULL, model TEXT NOT NULL, footprint BLOB,
    least_bytes INTEGER NOT NULL, predicted_bytes INTEGER NOT NULL, source TEXT NOT NULL, loads INTEGER NOT NULL,
    launch TEXT NOT NULL, seen REAL NOT NULL, PRIMARY KEY (setup, launch_key)
);
CREATE TABLE probes (
    setup TEXT NOT NULL, probe_key TEXT NOT NULL, header_hash TEXT NOT NULL, probe BLOB NOT NULL, seen REAL NOT NULL,
    PRIMARY KEY (setup, probe_key)
);
"""
_FOOTPRINT = msgspec.json.Decoder(Footprint)
_PROBE = msgspec.json.Decoder(Probe)


class Store:
    """`path` is the file, `setup` names engine and devices. `now` gives unix seconds."""

    def __init__(self, path: Path, setup: str, *, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._setup = setup
        self._now = now
        self._work: queue.SimpleQueue[Remember | None] = queue.SimpleQueue()
        self._told = False
        self._over = False
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._read: asyncio.Future[FootprintsLearned] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="footprints", daemon=True)

    async def open(self) -> FootprintsLearned:
        """What earlier runs remembered for this setup; nothing where there is nothing to read."""
        self._thread.start()
        return await asyncio.shield(self._read)

    def remember(self, what: Remember) -> None:
        """Write it soon. Returns at once."""
        self._work.put(what)

    async def close(self) -> None:
        """Write what is left. Gives up after CLOSE_SECONDS_MAX."""
        self._work.put(None)
        if self._thread.ident is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS_MAX):
                    await self._ended.wait()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        found = FootprintsLearned()
        try:
            connection = self._connect()
            if connection is not None:
                found = self._load(connection)
        except (sqlite3.Error, OSError) as error:
            self._tell("cannot be read", error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._tell_read, found)
        while (batch := self._batch()) is not None:
            if connection is not None and batch:
                self._write(connection, batch)
        if connection is not None:
            connection.close()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended.set)

    def _batch(self) -> list[Remember] | None:
        """What has come by now, at least one; None when nothing comes any more. What came before the end is given out first."""
        if self._over:
            return None
        found: list[Remember] = []
        what = self._work.get()
        while what is not None:
            found.append(what)
            try:
                what = self._work.get_nowait()
            except queue.Empty:
                return found
        self._over = True
        return found

    def _tell_read(self, found: FootprintsLearned) -> None:
        if not self._read.done():
            self._read.set_result(found)

    def _connect(self) -> sqlite3.Connection | None:
        """The file, made or brought up to date; one that is damaged is put aside, once."""
        try:
            return self._open_file()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, full, read-only: it is not the file's fault
                raise
            aside = self._path.with_name(f"{self._path.name}.damaged-{int(self._now())}")
            log.warning(
                "%s is damaged (%s): put aside as %s; what was learned of memory is learned anew", self._path.name, error, aside.name
            )
            self._path.replace(aside)
            return self._open_file()

    def _open_file(self) -> sqlite3.Connection | None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            self._path.chmod(0o600)
            connection.execute("BEGIN IMMEDIATE")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                self._tell("was written by a later version of modeld", None)
                connection.close()
                return None
            if version < VERSION:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _load(self, connection: sqlite3.Connection) -> FootprintsLearned:
        learned: dict[str, Learned] = {}
        rows = connection.execute(
            "SELECT launch_key, model, footprint, least_bytes, predicted_bytes, source, loads, launch, seen FROM launches WHERE setup = ?",
            (self._setup,),
        )
        for key, model, footprint, least, predicted, source, loads, launch, seen in rows:
            with contextlib.suppress(msgspec.MsgspecError, ValueError, TypeError):  # a row that somebody else wrote
                marks = None if footprint is None else _FOOTPRINT.decode(footprint)
                numbers = (int(least), int(predicted), Source(source), int(loads))
                learned[key] = Learned(ModelId(model), marks, *numbers, str(launch), float(seen))
        probes: dict[str, Probe] = {}
        for key, probe in connection.execute("SELECT probe_key, probe FROM probes WHERE setup = ?", (self._setup,)):
            with contextlib.suppress(msgspec.MsgspecError, TypeError):
                probes[key] = _PROBE.decode(probe)
        return FootprintsLearned(learned, probes)

    def _write(self, connection: sqlite3.Connection, batch: list[Remember]) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            for what in batch:
                if what.learned is not None:
                    self._write_launch(connection, what, what.learned)
                if what.probe is not None:
                    row = (self._setup, what.key, what.header_hash, msgspec.json.encode(what.probe), self._now())
                    connection.execute("INSERT OR REPLACE INTO probes VALUES (?, ?, ?, ?, ?)", row)
            for table in ("launches", "probes"):
                connection.execute(
                    f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} ORDER BY seen DESC LIMIT -1 OFFSET ?)",  # noqa: S608
                    (ROWS_MAX,),
                )
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            self._tell("cannot be written", error)

    def _write_launch(self, connection: sqlite3.Connection, what: Remember, learned: Learned) -> None:
        footprint = None if learned.footprint is None else msgspec.json.encode(learned.footprint)
        row: list[object] = [
            self._setup,
            what.key,
            what.header_hash,
            str(learned.model),
            footprint,
            learned.least_bytes,
            learned.predicted_bytes,
        ]
        row += [learned.source.value, learned.loads, learned.launch, self._now()]
        connection.execute("INSERT OR REPLACE INTO launches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _tell(self, what: str, error: Exception | None) -> None:
        """Once: the daemon goes on without."""
        if not self._told:
            self._told = True
            log.warning("%s %s%s: what is learned of memory is not kept", self._path.name, what, f" ({error})" if error else "")
