# SPDX-License-Identifier: GPL-3.0-only
"""Ollama's `name:tag` for models that have file names; rule: a name that could mean two models means none.

`base:quant` is the model `base.quant.gguf` or `base-quant.gguf`, and `X:latest` is X.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from modeld.catalog.folder import SUFFIX
from modeld.core.model import ModelId, ModelSpec

LATEST: Final = ":latest"
_QUANT: Final = r"I?Q\d(?:_(?:\d|K|NL|XXS|XS|S|M|L|XL))*|BF16|F16|F32|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4"
_QUANT_WORD: Final = re.compile(rf"(?:^|[-_.])({_QUANT})(?=$|[-_.])", re.IGNORECASE)
_ENDS_IN_QUANT: Final = re.compile(rf"(?P<base>.+?)[-_.](?P<tag>(?:UD-)?(?:{_QUANT}))", re.IGNORECASE | re.DOTALL)


def quant_by_name(stem: str) -> str:
    """The last thing in the name that looks like a quantization, as llama.cpp spells it; empty when nothing does."""
    matches = _QUANT_WORD.findall(stem)
    return matches[-1].upper() if matches else ""


def tagged(model: ModelId) -> str:
    """`base:QUANT` of an id that ends in its quantization, else an empty text."""
    found = _ENDS_IN_QUANT.fullmatch(stem(model))
    return f"{found['base']}:{found['tag'].upper()}" if found else ""


def stem(name: str) -> str:
    """The name without `.gguf`."""
    return name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name


def tag_names(specs: Iterable[ModelSpec], taken: Mapping[str, object]) -> dict[str, ModelId]:
    """`base:QUANT` -> id, where it is one model's alone and is not `taken` as another name."""
    owners: dict[str, ModelId | None] = {}
    for spec in specs:
        if (name := tagged(spec.id)) and name not in taken:
            owners[name] = None if name in owners else spec.id
    return {name: owner for name, owner in owners.items() if owner is not None}


def fold(names: Mapping[str, ModelId]) -> dict[str, ModelId | None]:
    """The names in one case; None where two models would have the same."""
    folded: dict[str, ModelId | None] = {}
    for name, model in names.items():
        key = name.casefold()
        folded[key] = model if folded.get(key, model) == model else None
    return folded


def shown_name(spec: ModelSpec, find: Callable[[str], ModelId | None]) -> str:
    """The name for Ollama's lists, the first of `_spellings` that `find` gives this model back for; the id, which always does, at last."""
    return next((name for name in _spellings(spec.id) if name and find(name) == spec.id), spec.id)


def _spellings(model: ModelId) -> Iterator[str]:
    yield tagged(model)
    yield stem(model) + LATEST
    yield model + LATEST
