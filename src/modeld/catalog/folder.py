# SPDX-License-Identifier: GPL-3.0-only
"""Which GGUF files lie in the models folder; rule: only regular files inside it, and nothing found there can stop the walk.

Dot-files and dot-folders are not looked at (unfinished downloads live there), links to folders are not followed, devices, sockets and
FIFOs are passed over. A link to a file counts when it stays inside the folder.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modeld.catalog.headers import printable

SUFFIX: Final = ".gguf"
FILES_MAX: Final = 20_000
DEPTH_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file. `relative` has forward slashes and starts below the models folder; `problem` says why it cannot be used, "" if it can."""

    path: str
    relative: str
    status: os.stat_result | None = None
    problem: str = ""

    @property
    def folder(self) -> str:
        return self.relative.rpartition("/")[0]

    @property
    def file_name(self) -> str:
        return self.relative.rpartition("/")[2]


def find_files(models_dir: Path, files_max: int = FILES_MAX) -> tuple[list[FoundFile], list[str]]:
    """All `*.gguf` below `models_dir` in the order of their relative paths, and notes on what was passed over."""
    top = str(models_dir.absolute())
    real_top = os.path.realpath(top)
    found: list[FoundFile] = []
    notes: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        where = f'folder "{printable(folder)}"' if folder else "the models folder"
        if folder.count("/") >= DEPTH_MAX:
            notes.append(f"{where} lies too deep and was not looked at")
            continue
        try:
            with os.scandir(os.path.join(top, folder)) as entries:  # noqa: PTH118  Path objects cost more than the scan
                children = [(entry.name, entry) for entry in entries if not entry.name.startswith(".")]
            for name, entry in children:
                relative = f"{folder}/{name}" if folder else name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(relative)
                elif name.lower().endswith(SUFFIX):
                    if (file := _look_at(entry, relative, real_top)) is not None:
                        found.append(file)
                elif entry.is_symlink() and entry.is_dir():
                    notes.append(f'"{printable(relative)}" is a link to a folder and was not followed')
        except OSError as error:
            notes.append(f"{where} cannot be read: {error.strerror}")
        if len(found) > files_max:
            del found[files_max:]
            notes.append(f"more than {files_max} GGUF files: the rest is not listed")
            break
    found.sort(key=lambda file: file.relative)
    return found, notes


def _look_at(entry: os.DirEntry[str], relative: str, real_top: str) -> FoundFile | None:
    """Decide about one `*.gguf` entry; None for what is no file at all."""
    shown = printable(relative, len(relative))
    if shown != relative:
        # Neither JSON nor the engine's arguments can carry such a name, so the true path is not kept either.
        return FoundFile(printable(entry.path, len(entry.path)), shown, None, "has a name with unprintable characters; rename it")
    try:
        if entry.is_symlink() and os.path.commonpath((os.path.realpath(entry.path), real_top)) != real_top:
            return FoundFile(entry.path, relative, None, "is a link that leads out of the models folder")
        status = entry.stat()
    except FileNotFoundError:
        return FoundFile(entry.path, relative, None, "is a link to a file that does not exist") if entry.is_symlink() else None
    except OSError as error:
        return FoundFile(entry.path, relative, None, f"cannot be read: {error.strerror}")
    return FoundFile(entry.path, relative, status) if stat.S_ISREG(status.st_mode) else None
