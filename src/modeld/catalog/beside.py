# SPDX-License-Identifier: GPL-3.0-only
"""Files the operator has loaded beside a model: adapters (LoRA) and a draft model; rule: a file that cannot be used makes the model so.

They may lie anywhere. Their headers are read like all others, and their sizes and times are part of the model's fingerprint.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from modeld.catalog.headers import Facts, HeaderCache, printable
from modeld.core.model import Companion, ModelKind, ModelSpec

_PART: Final = re.compile(r".*-\d{5}-of-\d{5}\.gguf", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Look:
    """One file: what it is, or why it cannot be used; `mark` changes when it does."""

    found: Companion
    reason: str
    mark: str


def with_companions(spec: ModelSpec, lora: Sequence[Path], draft: Path | None, headers: HeaderCache) -> ModelSpec:
    """The model with these files beside it. It is unavailable when one of them is, or when it does not write text and has a draft model."""
    if not lora and draft is None:
        return spec
    adapters = [_look(path, headers, whole=False) for path in lora]
    drafted = None if draft is None else _look(draft, headers, whole=True)
    wrong = [f"its adapter {_shown(one)} {one.reason}" for one in adapters if one.reason]
    if drafted is not None and drafted.reason:
        wrong.append(f"its draft model {_shown(drafted)} {drafted.reason}")
    if drafted is not None and spec.kind is not ModelKind.GENERATE:
        wrong.append("it has a draft model, but is not started to write text")
    looks = [*adapters, *([] if drafted is None else [drafted])]
    marks = ";".join((spec.fingerprint, *(one.mark for one in looks)))
    return replace(
        spec,
        fingerprint=hashlib.sha256(marks.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        lora=tuple(one.found for one in adapters),
        draft=None if drafted is None else drafted.found,
        unavailable=spec.unavailable or (wrong[0] if wrong else None),
    )


def _look(path: Path, headers: HeaderCache, *, whole: bool) -> _Look:
    """`whole`: it must be a model in one file, with all that its memory follows from."""
    text = str(path)
    try:
        status = path.stat()
    except OSError as error:
        return _Look(Companion(text, 0), f"cannot be read: {error.strerror}", text)
    found = Companion(text, status.st_size)
    mark = f"{text}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
    if not path.is_file():
        return _Look(found, "is not a file", mark)
    facts = headers.facts(text, status)
    if facts.reason:
        return _Look(found, facts.reason, mark)
    if whole and (reason := _not_a_model(path, facts)):
        return _Look(found, reason, mark)
    memory = facts.memory if whole else found.memory
    return _Look(Companion(text, status.st_size, memory, facts.header_hash), "", mark)


def _not_a_model(path: Path, facts: Facts) -> str:
    if _PART.fullmatch(path.name) or facts.split_count > 1:
        return "is one part of several: a draft model must be one file"
    return "" if facts.memory.layers else "is not a model that writes text"


def _shown(look: _Look) -> str:
    return printable(Path(look.found.path).name, 80)
