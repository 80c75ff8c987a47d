# SPDX-License-Identifier: GPL-3.0-only
"""The private folder and the state lines."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from modeld.core.model import ModelId, ModelSpec
from modeld.errors import ModelUnavailable, SpawnFailed
from modeld.runtime.adapters import process
from modeld.runtime.adapters.process import SOCKET_BYTES_MAX, FileCheck, PrivateFolder, Stall, read_state

SHARED = [
    # the mode of the place, the mode of runtime_dir, may it be used
    (0o1777, 0o700, True),
    (0o1777, 0o755, True),
    (0o1777, 0o1777, True),
    (0o1777, 0o775, False),
    (0o1777, 0o777, False),
    (0o755, 0o775, True),
    (0o755, 0o777, False),
    (0o775, 0o775, True),
]


def test_the_folder_is_ours_alone_and_goes_away(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path / "run")
    first, second = folder.socket(), folder.socket()
    assert first != second
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    folder.close()
    assert list((tmp_path / "run").iterdir()) == []
    folder.close()


def test_a_folder_that_was_cleaned_away_is_made_again(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path)
    first = folder.socket()
    (first.parent / "lock").unlink()
    first.parent.rmdir()
    assert folder.socket().parent.is_dir()
    folder.close()


def test_leftovers_go_and_living_neighbours_stay(tmp_path: Path) -> None:
    neighbour = PrivateFolder(tmp_path)
    neighbour.socket()
    killed = tmp_path / "modeld-abcdefgh"
    killed.mkdir()
    (killed / "lock").touch()
    (killed / "1.sock").touch()
    new = tmp_path / "modeld-making00"
    new.mkdir()
    old = tmp_path / "modeld-halfmade"
    old.mkdir()
    os.utime(old, (0, 0))
    other = tmp_path / "something"
    other.mkdir()
    ours = PrivateFolder(tmp_path)
    ours.socket()
    assert set(tmp_path.iterdir()) == {neighbour.path, ours.path, new, other}
    neighbour.close()
    ours.close()


def test_folders_of_others_stay_whatever_their_name_and_age(tmp_path: Path) -> None:
    """runtime_dir may be any folder: what is in it without our lock was never ours to remove."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "modeld-the_link").symlink_to(elsewhere)
    for name, file, text in (
        ("c-projects", "thesis.tex", "years"),
        ("c-locked00", "lock", ""),
        ("modeld-projects", "thesis.tex", "years"),
        ("modeld-packages", "lock", "not ours: ours is empty"),
    ):
        folder = tmp_path / "run" / name
        folder.mkdir()
        (folder / file).write_text(text, encoding="utf-8")
        os.utime(folder, (1, 1))
    before = sorted(tmp_path.rglob("*"))
    ours = PrivateFolder(tmp_path / "run")
    ours.socket()
    ours.close()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_was_taken_for_a_leftover_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another daemon may look between the making of the lock file and its locking."""
    real, calls = fcntl.flock, 0

    def late(lock: int, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            process._remove_strays(tmp_path)  # the other daemon; it locks with its own call of flock
        real(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    folder = PrivateFolder(tmp_path)
    path = folder.path
    assert (path / "lock").exists()
    assert list(tmp_path.iterdir()) == [path]
    process._remove_strays(tmp_path)
    assert path.is_dir()
    folder.close()


def test_a_lock_that_cannot_be_had_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_lock: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(SpawnFailed, match="Check runtime_dir"):
        PrivateFolder(tmp_path).socket()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("place", "mode", "fine"), SHARED)
def test_a_runtime_dir_in_a_shared_place_must_be_ours(tmp_path: Path, place: int, mode: int, fine: bool) -> None:
    shared = tmp_path / "shared"
    run = shared / "run"
    run.mkdir(parents=True)
    run.chmod(mode)
    shared.chmod(place)
    folder = PrivateFolder(run)
    if fine:
        folder.socket()
    else:
        with pytest.raises(SpawnFailed, match="runtime_dir is not this user's alone") as caught:
            folder.socket()
        assert str(run) not in caught.value.message
        assert list(run.iterdir()) == []
    folder.close()


def test_a_runtime_dir_that_somebody_else_made_or_linked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(SpawnFailed, match="runtime_dir"):
        PrivateFolder(tmp_path / "link").socket()
    os.chown(tmp_path / "real", 12345, -1) if os.geteuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SpawnFailed, match="runtime_dir"):
        PrivateFolder(tmp_path / "real").socket()


async def test_files_on_a_mount_that_hangs_are_an_unavailable_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread hangs there, however often the model is asked for; what it finds in the end is no news."""
    monkeypatch.setattr(process, "FILES_SECONDS_MAX", 0.01)
    back, looks = threading.Event(), 0
    real = Path.is_file

    def hanging(self: Path) -> bool:
        nonlocal looks
        looks += 1
        back.wait(20)
        return real(self)

    check, spec = FileCheck(), ModelSpec(ModelId("a.gguf"), path=str(tmp_path / "a.gguf"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", hanging)
        try:
            for _ in range(3):
                with pytest.raises(ModelUnavailable, match="do not answer"):
                    await check.check(spec)
            assert looks == 1
        finally:
            (look,) = check._looks.values()
            back.set()
            with contextlib.suppress(ModelUnavailable):
                await asyncio.wait_for(look, 20)
    monkeypatch.undo()
    with pytest.raises(ModelUnavailable, match=r"gone: a\.gguf"):
        await check.check(spec)
    (tmp_path / "a.gguf").touch()
    await check.check(spec)


def test_a_long_runtime_dir_falls_back_to_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = tmp_path / "modeld-abcdefgh"
    killed.mkdir()
    (killed / "lock").touch()
    folder = PrivateFolder(tmp_path / ("x" * 100))
    socket = folder.socket()
    assert len(os.fsencode(socket)) <= SOCKET_BYTES_MAX
    assert list(tmp_path.iterdir()) == [socket.parent]
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_too_long_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("y" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = PrivateFolder(tmp_path / ("x" * 100))
    with pytest.raises(SpawnFailed, match="shorter runtime_dir"):
        folder.socket()
    folder.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpawnFailed, match="folder"):
        PrivateFolder(tmp_path / "file" / "run").socket()


def test_a_stall_is_scaled_with_the_size() -> None:
    assert Stall().limit(0) == 60
    assert Stall().limit(3 << 30) == 120


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ('{"state":"loading","payload":{"stages":["a"],"current":"a","value":0.25}}', ("loading", 0.25)),
        ('{"state":"loading","payload":{"stages":["a","b"],"current":"b","value":0.5}}', ("loading", 0.75)),
        ('{"state":"loading","payload":{"stages":["a"],"current":"a","value":7}}', ("loading", 1.0)),
        ('{"state":"ready","payload":{"id":"cut he', ("ready", 1.0)),
        ('{"state":"loading","payload":{"stages":[],"current":"a","value":1}}', ("", None)),
        ('{"state":"loading","payload":[]}', ("", None)),
        ("[]", ("", None)),
        ("{", ("", None)),
    ],
)
def test_state_lines(text: str, state: tuple[str, float | None]) -> None:
    assert read_state(b"cmd_child_to_router:state:" + text.encode()) == state
