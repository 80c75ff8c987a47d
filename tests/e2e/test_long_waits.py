# SPDX-License-Identifier: GPL-3.0-only
"""A stream whose model has to be loaded first: comments, then the answer, and what fails then is told in the stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.daemon import link_models, running
from makegguf import make_gguf

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "stream": True}
OFTEN = ("--sse-heartbeat", "20ms")


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/chat/completions", CHAT, b"data: [DONE]\n\n"),
        ("/v1/messages", CHAT, b'data: {"type":"message_stop"}\n\n'),
        ("/completion", {"prompt": "Hi", "n_predict": 2, "stream": True}, None),
    ],
)
def test_a_cold_model_keeps_its_client(tmp_path: Path, starter: Path, path: str, body: dict[str, object], last: bytes | None) -> None:
    with running(tmp_path, link_models(tmp_path / "models", starter, "a.gguf"), *OFTEN) as one:
        answer = one.ask("POST", path, {"model": "a"} | body)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        before, _, after = answer.body.partition(b"event: " if path == "/v1/messages" else b"data: ")
        assert before.startswith(b": waiting for the model\n\n")
        assert set(before.split(b"\n\n")) == {b": waiting for the model", b""}
        assert b": waiting" not in after
        assert last is None or after.endswith(last)
        assert one.metric('modeld_http_requests_total{method="POST",path="%s",status="200"}' % path) == 1


def test_a_load_that_fails_is_told_in_the_stream(tmp_path: Path) -> None:
    """The header is right, the weights are not there: only the engine notices."""
    models = tmp_path / "models"
    models.mkdir()
    make_gguf(models / "bad.gguf")
    with running(tmp_path, models, *OFTEN) as one:
        answer = one.ask("POST", "/v1/chat/completions", {"model": "bad"} | CHAT)
        assert (answer.status, answer.body[:2]) == (200, b": ")
        told = json.loads(answer.body.rpartition(b"data: ")[2])["error"]
        assert (told["code"], told["source"]) == ("load_failed", "model")
        whole = one.ask("POST", "/v1/chat/completions", {"model": "bad"} | CHAT | {"stream": False})
        assert whole.status == 503  # it backs off: an answer that is no stream has its own status


def test_a_whole_answer_and_lines_get_nothing_before_they_begin(tmp_path: Path, starter: Path) -> None:
    with running(tmp_path, link_models(tmp_path / "models", starter, "a.gguf", "b.gguf"), *OFTEN) as one:
        assert one.ask("POST", "/v1/chat/completions", {"model": "a"} | CHAT | {"stream": False}).body.startswith(b"{")
        assert one.infer("b").body.startswith(b'{"token"')
