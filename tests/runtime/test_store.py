# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from modeld.core.footprint import Footprint, Learned, Source
from modeld.core.messages import FootprintsLearned, Remember
from modeld.core.model import ModelId
from modeld.runtime import store as module
from modeld.runtime.store import Store

LEARNED = Learned(ModelId("a.gguf"), Footprint({"CUDA0": 5 << 30}, 7 << 20), 9, 8, Source.PROBED, 3, "ctx 4096", 100.0)


async def kept(path: Path, *what: Remember, setup: str = "b1 on CPU", now: float = 100.0) -> FootprintsLearned:
    """What a store at `path` reads; then it writes `what`."""
    one = Store(path, setup, now=lambda: now)
    found = await one.open()
    for each in what:
        one.remember(each)
    await one.close()
    return found


async def test_what_was_learned_is_there_after_a_restart(tmp_path: Path):
    path = tmp_path / "state" / "footprints.sqlite"
    assert await kept(path, Remember("k1", "h1", learned=LEARNED)) == FootprintsLearned()
    assert (await kept(path)).learned == {"k1": LEARNED}
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_failed_start_is_remembered_without_a_footprint_and_overwritten_by_what_comes_later(tmp_path: Path):
    path = tmp_path / "f.sqlite"
    bound = Learned(ModelId("a.gguf"), None, 1 << 33, seen_unix=100.0)
    await kept(path, Remember("k1", "h1", learned=LEARNED), Remember("k1", "h1", learned=bound))
    assert (await kept(path)).learned == {"k1": bound}


async def test_another_build_or_device_has_figures_of_its_own(tmp_path: Path):
    path = tmp_path / "f.sqlite"
    await kept(path, Remember("k1", "h1", learned=LEARNED), setup="b1 on CUDA0")
    assert (await kept(path, setup="b2 on CUDA0")).learned == {}
    assert (await kept(path, setup="b1 on CUDA0")).learned == {"k1": LEARNED}


@pytest.mark.parametrize("damage", [b"", b"no database at all, but long enough for a header" * 20])
async def test_a_damaged_file_is_put_aside(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "f.sqlite"
    path.write_bytes(damage)
    assert await kept(path, Remember("k1", "h1", learned=LEARNED)) == FootprintsLearned()
    assert (await kept(path)).learned == {"k1": LEARNED}
    aside = sorted(tmp_path.glob("*damaged*"))  # noqa: ASYNC240
    assert [one.read_bytes() for one in aside] == ([damage] if damage else [])
    assert len(caplog.records) == len(aside)


async def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "f.sqlite"
    with sqlite3.connect(path) as later:
        later.execute("PRAGMA user_version = 99")
    later.close()
    before = path.read_bytes()
    assert await kept(path, Remember("k1", "h1", learned=LEARNED)) == FootprintsLearned()
    assert path.read_bytes() == before
    assert len(caplog.records) == 1


async def test_a_folder_that_cannot_be_made_costs_the_memory_of_figures_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    many = [Remember(f"k{n}", "h", learned=LEARNED) for n in range(5)]
    assert await kept(tmp_path / "file" / "f.sqlite", *many) == FootprintsLearned()
    assert len(caplog.records) == 1


async def test_a_row_that_makes_no_sense_is_passed_over(tmp_path: Path):
    path = tmp_path / "f.sqlite"
    await kept(path, Remember("k1", "h1", learned=LEARNED), Remember("k2", "h1", learned=LEARNED))
    with sqlite3.connect(path) as rows:
        rows.execute("UPDATE launches SET footprint = '{\"host_bytes\": \"much\"}' WHERE launch_key = 'k2'")
    rows.close()
    assert set((await kept(path)).learned) == {"k1"}


async def test_two_daemons_may_write_the_same_file(tmp_path: Path):
    path = tmp_path / "f.sqlite"
    one, two = Store(path, "s"), Store(path, "s")
    await asyncio.gather(one.open(), two.open())
    for n in range(50):
        one.remember(Remember(f"one{n}", "h", learned=LEARNED))
        two.remember(Remember(f"two{n}", "h", learned=LEARNED))
    await asyncio.gather(one.close(), two.close())
    assert len((await kept(path, setup="s")).learned) == 100


async def test_the_oldest_rows_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ROWS_MAX", 3)
    path = tmp_path / "f.sqlite"
    for n in range(5):
        await kept(path, Remember(f"k{n}", "h", learned=LEARNED), now=float(n))
    assert set((await kept(path)).learned) == {"k2", "k3", "k4"}
