# SPDX-License-Identifier: GPL-3.0-only
"""What a route asks of a model, and whether the model is one for it; rule: said before anything is loaded or evicted for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from modeld.core.model import ModelKind, ModelSpec
from modeld.errors import BadRequest


class Task(StrEnum):
    """WRITE makes tokens, EMBED vectors, RANK scores, HEAR text of a recording; READ is what every model can do, such as count tokens."""

    WRITE = "write"
    EMBED = "embed"
    RANK = "rank"
    HEAR = "hear"
    READ = "read"


_NEEDED: Final = {Task.EMBED: ModelKind.EMBED, Task.RANK: ModelKind.RERANK}
_DOES: Final = {ModelKind.GENERATE: "writes text", ModelKind.EMBED: "makes embeddings", ModelKind.RERANK: "ranks documents"}
_WANTED: Final = {Task.EMBED: "embeddings", Task.RANK: "a ranking"}


def check_task(spec: ModelSpec, task: Task) -> None:
    """Raise BadRequest when the model is of another kind. Of a server that is not ours nothing is known: it answers for itself."""
    if spec.external:
        return
    if task is Task.WRITE and not spec.logits:
        raise BadRequest(f'model "{spec.id}" {_DOES[spec.kind]} and cannot write text')
    if task is Task.HEAR and "audio" not in spec.modalities:
        takes = " and ".join(spec.modalities)
        raise BadRequest(f'model "{spec.id}" takes {takes}, no recordings: that needs a projector (mmproj file) for audio')
    needed = _NEEDED.get(task)
    if needed is not None and spec.kind is not needed:
        raise BadRequest(
            f'model "{spec.id}" {_DOES[spec.kind]}; ask a model for {_WANTED[task]} that was made for it, '
            f'or start this one so: set "kind: {needed}" for it in the settings file'
        )
