# SPDX-License-Identifier: GPL-3.0-only
"""Whether a model is one for what is asked."""

from __future__ import annotations

import pytest

from modeld.api.tasks import Task, check_task
from modeld.core.model import ModelId, ModelKind, ModelSpec
from modeld.errors import BadRequest

WRITER = ModelSpec(ModelId("writer"), "/m/writer.gguf")
ENCODER = ModelSpec(ModelId("encoder"), "/m/encoder.gguf", kind=ModelKind.EMBED, logits=False)
DECODER = ModelSpec(ModelId("decoder"), "/m/decoder.gguf", kind=ModelKind.EMBED)
RANKER = ModelSpec(ModelId("ranker"), "/m/ranker.gguf", kind=ModelKind.RERANK, logits=False)
LISTENER = ModelSpec(ModelId("listener"), "/m/listener.gguf", modalities=("text", "audio"))
FOREIGN = ModelSpec(ModelId("foreign"), "", external=True)


@pytest.mark.parametrize(
    ("spec", "tasks"),
    [
        (WRITER, {Task.WRITE, Task.READ}),
        (ENCODER, {Task.EMBED, Task.READ}),
        (DECODER, {Task.WRITE, Task.EMBED, Task.READ}),
        (RANKER, {Task.RANK, Task.READ}),
        (LISTENER, {Task.WRITE, Task.HEAR, Task.READ}),
        (FOREIGN, set(Task)),
    ],
    ids=lambda one: one.id if isinstance(one, ModelSpec) else "",
)
def test_what_a_model_is_for(spec: ModelSpec, tasks: set[Task]) -> None:
    allowed = set()
    for task in Task:
        try:
            check_task(spec, task)
        except BadRequest as error:
            assert spec.id in error.message
        else:
            allowed.add(task)
    assert allowed == tasks


def test_the_way_out_is_told() -> None:
    with pytest.raises(BadRequest, match="kind: embed"):
        check_task(WRITER, Task.EMBED)
    with pytest.raises(BadRequest, match="kind: rerank"):
        check_task(ENCODER, Task.RANK)
