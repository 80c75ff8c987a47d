# SPDX-License-Identifier: GPL-3.0-only
"""One model by one of its files, wherever that lies; rule: the catalogue's own reading of it, but only its files are opened.

Of the folder around it no more is looked at than names: those of the other parts, of projectors, and of the models that a projector could
belong to instead.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from modeld.catalog.folder import SUFFIX, FoundFile
from modeld.catalog.headers import Facts, HeaderCache, printable
from modeld.catalog.launch import ModelOverride, usable_cpu_count
from modeld.catalog.models import PROJECTOR_FAMILY, PROJECTOR_PREFIX, Draft, attach_projectors, bare_spec, finished, group
from modeld.core.model import ModelId, ModelSpec
from modeld.errors import ModelUnavailable


def model_at(path: Path, override: ModelOverride, mmproj: Path | None = None) -> ModelSpec:
    """The model of which the file at `path` is a part, with the projector `mmproj`, or one that lies beside it.

    Raises ModelUnavailable, with a sentence that names the file.
    """
    named = _named(path)
    headers = HeaderCache(None)
    own = _facts(named, headers)
    if own.reason:
        raise ModelUnavailable(f"{_shown(path)} {own.reason}")
    if own.family == PROJECTOR_FAMILY:
        raise ModelUnavailable(f"{_shown(path)} is a projector, not a model: name the model it belongs to, and this one with --mmproj")
    beside = _beside(named)
    facts = {file.relative: Facts() for file in beside} | {named.relative: own}
    drafts = group([file for file in beside if file == named or not _is_projector(file)], facts)
    draft = next(one for one in drafts if named in one.parts)
    _complete(draft, facts, headers)
    if mmproj is not None:
        draft.projector = _projector(mmproj, facts, headers)
    else:
        offered = [file for file in beside if file != named and _is_projector(file)]
        facts |= {file.relative: _facts(file, headers) for file in offered}
        attach_projectors(drafts, offered, facts)
    draft.id = ModelId(draft.short)
    spec = bare_spec(draft, facts)
    if spec.unavailable is not None:
        raise ModelUnavailable(f"{_shown(path)} cannot be loaded: {spec.unavailable}")
    return finished(spec, draft.facts[0], override, (), usable_cpu_count())


def _named(path: Path) -> FoundFile:
    """The file itself; also one that has another ending, as the blobs of other programs have. Raises ModelUnavailable."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ModelUnavailable(f"{_shown(path)} does not exist") from None
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{_shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ModelUnavailable(f"{_shown(path)} is a folder: name a file in it")
    return FoundFile(str(path), _relative(path), status)


def _beside(named: FoundFile) -> list[FoundFile]:
    """The named file, and all models of its folder by their names. A folder that cannot be listed holds nothing else."""
    folder = Path(named.path).parent
    found = [named]
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIX) and not entry.name.startswith("."))
    except OSError:
        return found
    for name in names:
        path = folder / name
        if name != Path(named.path).name and printable(name, len(name)) == name:
            try:
                status = path.stat()
            except OSError:
                continue
            found.append(FoundFile(str(path), _relative(path), status))
    return found


def _complete(draft: Draft, facts: dict[str, Facts], headers: HeaderCache) -> None:
    """Read the other parts."""
    for part in draft.parts:
        if not facts[part.relative].family:
            facts[part.relative] = _facts(part, headers)
    draft.facts = [facts[part.relative] for part in draft.parts]


def _projector(path: Path, facts: dict[str, Facts], headers: HeaderCache) -> FoundFile:
    """The projector that was named. Raises ModelUnavailable."""
    file = _named(path)
    read = _facts(file, headers)
    if read.reason or read.family != PROJECTOR_FAMILY:
        raise ModelUnavailable(f"{_shown(path)} {read.reason or 'is no projector (its architecture is not clip)'}")
    facts[file.relative] = read
    return file


def _is_projector(file: FoundFile) -> bool:
    return file.file_name.lower().startswith(PROJECTOR_PREFIX)


def _facts(file: FoundFile, headers: HeaderCache) -> Facts:
    assert file.status is not None
    return headers.facts(file.path, file.status)


def _relative(path: Path) -> str:
    """Below some folder of its own: a projector that lies with one model alone belongs to it."""
    return f"{printable(path.absolute().parent.name) or '.'}/{printable(path.name, len(path.name))}"


def _shown(path: Path) -> str:
    return printable(str(path), 4096)
