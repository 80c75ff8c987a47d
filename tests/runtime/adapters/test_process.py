# SPDX-License-Identifier: GPL-3.0-only
"""The private folder and the state lines."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from modeld.errors import SpawnFailed
from modeld.runtime.adapters.process import SOCKET_BYTES_MAX, PrivateFolder, Stall, read_state


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
    killed = tmp_path / "c-abcdefgh"
    killed.mkdir()
    (killed / "lock").touch()
    new = tmp_path / "c-making00"
    new.mkdir()
    old = tmp_path / "c-halfmade"
    old.mkdir()
    os.utime(old, (0, 0))
    other = tmp_path / "something"
    other.mkdir()
    ours = PrivateFolder(tmp_path)
    ours.socket()
    assert set(tmp_path.iterdir()) == {neighbour.path, ours.path, new, other}
    neighbour.close()
    ours.close()


def test_a_long_runtime_dir_falls_back_to_a_short_one(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path / ("x" * 100))
    socket = folder.socket()
    assert len(os.fsencode(socket)) <= SOCKET_BYTES_MAX
    assert socket.is_relative_to(tempfile.gettempdir())
    folder.close()
    assert not socket.parent.exists()


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
