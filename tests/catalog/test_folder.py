# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import os
import socket

import pytest

from makegguf import make_gguf
from modeld.catalog import folder
from modeld.catalog.folder import find_files


def names(models_dir, **limits) -> list[str]:
    return [file.relative for file in find_files(models_dir, **limits)[0]]


def test_gguf_files_are_found_below_in_order_whatever_their_case(tmp_path):
    for name in ("b.gguf", "a/z.GGUF", "a/deep/er/y.Gguf", "c.gguf.part", "d.bin", "gguf"):
        make_gguf(tmp_path / name)
    assert names(tmp_path) == ["a/deep/er/y.Gguf", "a/z.GGUF", "b.gguf"]
    file = find_files(tmp_path)[0][1]
    assert (file.folder, file.file_name, file.path, file.problem) == ("a", "z.GGUF", str(tmp_path / "a/z.GGUF"), "")
    assert file.status is not None
    assert file.status.st_size == 4096


def test_dot_names_are_not_looked_at(tmp_path):
    for name in (".hidden.gguf", ".modeld-partial-x/whole.gguf", "a/.cache/b.gguf"):
        make_gguf(tmp_path / name)
    assert find_files(tmp_path) == ([], [])


def test_only_regular_files_count(tmp_path):
    """F70."""
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "folder.gguf").mkdir()
    make_gguf(tmp_path / "folder.gguf" / "inside.gguf")
    (tmp_path / "device.gguf").symlink_to("/dev/null")
    (tmp_path / "to_fifo.gguf").symlink_to("fifo.gguf")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.gguf"))
        files, notes = find_files(tmp_path)
    assert {file.relative: file.problem for file in files} == {
        "folder.gguf/inside.gguf": "",
        "device.gguf": "is a link that leads out of the models folder",
    }
    assert notes == []


def test_links_count_inside_the_folder_only(tmp_path):
    """F70."""
    models = tmp_path / "models"
    make_gguf(models / "real.gguf")
    make_gguf(tmp_path / "outside.gguf")
    make_gguf(tmp_path / "models-too" / "near.gguf")
    (models / "inside.gguf").symlink_to("real.gguf")
    (models / "out.gguf").symlink_to("../outside.gguf")
    (models / "near.gguf").symlink_to("../models-too/near.gguf")
    (models / "gone.gguf").symlink_to("nothing.gguf")
    (models / "loop.gguf").symlink_to("loop.gguf")
    (models / "linked").symlink_to("../models-too")
    files, notes = find_files(models)
    problems = {file.relative: file.problem for file in files}
    assert problems.pop("loop.gguf")
    assert problems == {
        "real.gguf": "",
        "inside.gguf": "",
        "out.gguf": "is a link that leads out of the models folder",
        "near.gguf": "is a link that leads out of the models folder",
        "gone.gguf": "is a link to a file that does not exist",
    }
    assert notes == ['"linked" is a link to a folder and was not followed']


def test_the_models_folder_itself_may_be_a_link(tmp_path):
    make_gguf(tmp_path / "real" / "a.gguf")
    (tmp_path / "real" / "b.gguf").symlink_to("a.gguf")
    (tmp_path / "link").symlink_to("real")
    assert [(file.relative, file.problem) for file in find_files(tmp_path / "link")[0]] == [("a.gguf", ""), ("b.gguf", "")]


def test_a_name_that_cannot_be_shown_is_a_problem_and_not_a_crash(tmp_path):
    make_gguf(tmp_path / "ok.gguf")
    for raw in (b"bad\xff.gguf", b"new\nline.gguf"):
        with open(os.path.join(os.fsencode(tmp_path), raw), "wb"):
            pass
    files = {file.relative: file for file in find_files(tmp_path)[0]}
    assert set(files) == {"bad�.gguf", "new�line.gguf", "ok.gguf"}
    assert "rename it" in files["bad�.gguf"].problem
    assert files["bad�.gguf"].path.isprintable()


def test_a_missing_or_unreadable_folder_is_a_note(tmp_path, monkeypatch):
    """F74."""
    assert find_files(tmp_path / "absent") == ([], ["the models folder cannot be read: No such file or directory"])
    make_gguf(tmp_path / "file")
    assert find_files(tmp_path / "file") == ([], ["the models folder cannot be read: Not a directory"])
    make_gguf(tmp_path / "a.gguf")
    make_gguf(tmp_path / "locked" / "b.gguf")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    files, notes = find_files(tmp_path)
    assert [file.relative for file in files] == ["a.gguf"]
    assert notes == ['folder "locked" cannot be read: Permission denied']


def test_the_walk_has_limits(tmp_path, monkeypatch):
    for index in range(5):
        make_gguf(tmp_path / f"{index}.gguf")
    files, notes = find_files(tmp_path, files_max=3)
    assert (len(files), notes) == (3, ["more than 3 GGUF files: the rest is not listed"])
    monkeypatch.setattr(folder, "DEPTH_MAX", 1)
    make_gguf(tmp_path / "one" / "a.gguf")
    make_gguf(tmp_path / "one" / "two" / "b.gguf")
    files, notes = find_files(tmp_path)
    assert "one/a.gguf" in [file.relative for file in files]
    assert notes == ['folder "one/two" lies too deep and was not looked at']


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; run it as another user")
def test_a_file_without_permission_is_still_listed(tmp_path):
    """F74."""
    make_gguf(tmp_path / "a.gguf").chmod(0)
    assert names(tmp_path) == ["a.gguf"]
