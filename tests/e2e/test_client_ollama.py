# SPDX-License-Identifier: GPL-3.0-only
"""Ollama's own client against the real daemon: what it can ask, it gets, in the shapes that it checks."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from e2e.daemon import Daemon, eventually, link_models, running
from tinymodels import WIDTH, make_embedder

SMOL = "smol:Q4_1"
HI = [{"role": "user", "content": "Say hello."}]
SHORT: dict[str, Any] = {"temperature": 0, "seed": 1, "num_predict": 8}
LONG = {"num_predict": 3000, "temperature": 1.5, "seed": 7}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Iterator[Daemon]:
    """Two models that write, one that embeds, no budget."""
    home = tmp_path_factory.mktemp("ollama")
    models = link_models(home / "models", starter, "smol.Q4_1.gguf", "other.gguf")
    make_embedder(models / "embedder.gguf")
    (home / "modeld.yaml").write_text('models: {"smol.Q4_1.gguf": {ttl: 30m}, "other.gguf": {ttl: 30m}}\n')
    with running(home, models, "--config", str(home / "modeld.yaml")) as one:
        yield one


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[ollama.Client]:
    with ollama.Client(f"http://127.0.0.1:{daemon.port}", timeout=60) as one:
        yield one


def checked(last: Any) -> None:
    """What each last record says."""
    assert last.done is True
    assert last.done_reason in ("stop", "length")
    assert last.created_at.endswith("Z")
    assert last.prompt_eval_count > 0
    assert last.eval_count > 0
    assert 0 < last.eval_duration < last.total_duration < 120e9
    assert 0 < last.prompt_eval_duration < last.total_duration
    assert 0 <= last.load_duration < last.total_duration


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_chat_streams_what_it_says_whole(client: ollama.Client) -> None:
    whole = client.chat(SMOL, HI, options=SHORT)
    checked(whole)
    assert (whole.model, whole.message.role, whole.done_reason, whole.eval_count) == (SMOL, "assistant", "length", 8)
    *pieces, last = client.chat(SMOL, HI, options=SHORT, stream=True)
    checked(last)
    assert len(pieces) > 1
    assert not any(piece.done for piece in pieces)
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert last.message.content == ""


def test_a_prompt_streams_what_it_says_whole(client: ollama.Client) -> None:
    whole = client.generate(SMOL, "Say hello.", system="You are brief.", options=SHORT)
    checked(whole)
    *pieces, last = client.generate(SMOL, "Say hello.", system="You are brief.", options=SHORT, stream=True)
    checked(last)
    assert "".join(piece.response for piece in pieces) == whole.response
    chat = client.chat(SMOL, [{"role": "system", "content": "You are brief."}, *HI], options=SHORT)
    assert chat.message.content == whole.response


def test_a_raw_prompt_has_no_template(client: ollama.Client, daemon: Daemon) -> None:
    raw = client.generate(SMOL, "Once upon a time", raw=True, options=SHORT)
    assert raw.response == daemon.infer("smol.Q4_1.gguf", seed=1, max_tokens=8).lines[-1]["content"]
    assert raw.response != client.generate(SMOL, "Once upon a time", options=SHORT).response


def test_options_reach_the_model(client: ollama.Client) -> None:
    free = client.generate(SMOL, "Count.", options=SHORT | {"num_predict": 20})
    word = free.response.split()[2]
    stopped = client.generate(SMOL, "Count.", options=SHORT | {"num_predict": 20, "stop": [word]})
    assert stopped.done_reason == "stop"
    assert word not in stopped.response
    assert free.response.startswith(stopped.response)
    hot = [client.generate(SMOL, "Count.", options={"temperature": 2, "num_predict": 12, "seed": seed}).response for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


def test_a_schema_is_followed(client: ollama.Client) -> None:
    schema = {"enum": ["red", "green"]}  # an object leaves room for white space, of which so small a model makes pages
    for given in (
        client.chat(SMOL, HI, format=schema, options=SHORT).message.content,
        client.generate(SMOL, "Hi", format=schema, options=SHORT).response,
        client.generate(SMOL, "Hi", raw=True, format=schema, options=SHORT).response,
    ):
        assert json.loads(given) in ("red", "green")
    assert client.chat(SMOL, HI, format="json", options=SHORT).message.content.lstrip().startswith("{")


def test_logprobs(client: ollama.Client) -> None:
    for answer in (
        client.chat(SMOL, HI, options=SHORT, logprobs=True, top_logprobs=2),
        client.generate(SMOL, "Hi", raw=True, options=SHORT, logprobs=True, top_logprobs=2),
    ):
        assert len(answer.logprobs) == 8
        first = answer.logprobs[0]
        assert first.logprob <= 0
        assert first.token == first.top_logprobs[0].token
        assert len(first.top_logprobs) == 2


def test_tools_and_their_results_are_understood(client: ollama.Client) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
          a: one
          b: the other
        """
        return a + b

    call = {"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_name": "add", "content": "3"}]
    checked(client.chat(SMOL, messages, tools=[add], options=SHORT))
    checked(client.chat(SMOL, HI, think=False, options=SHORT))


def test_num_ctx_reloads_nothing(client: ollama.Client, daemon: Daemon) -> None:
    client.generate(SMOL, "Hi", options=SHORT)
    before = daemon.status()
    answer = client.generate(SMOL, "Hi", options=SHORT | {"num_ctx": 64, "num_gpu": 0, "num_batch": 8, "num_thread": 1, "use_mmap": False})
    checked(answer)
    after = daemon.status()
    assert after["loads_total"] == before["loads_total"]
    assert [one["pid"] for one in after["instances"]] == [one["pid"] for one in before["instances"]]


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_embeddings(client: ollama.Client) -> None:
    seen = client.embed("embedder", ["alpha beta", "gamma"])
    assert [len(row) for row in seen.embeddings] == [WIDTH, WIDTH]
    assert all(math.isclose(math.hypot(*row), 1, abs_tol=1e-3) for row in seen.embeddings)
    assert seen.embeddings[0] != seen.embeddings[1]
    assert seen.prompt_eval_count > 0
    assert 0 <= seen.load_duration < seen.total_duration
    one = client.embeddings("embedder", "gamma").embedding
    assert one == pytest.approx(seen.embeddings[1], abs=1e-4)
    short = client.embed("embedder", "gamma", dimensions=4).embeddings[0]
    assert math.isclose(math.hypot(*short), 1)
    assert short == pytest.approx([number / math.hypot(*one[:4]) for number in one[:4]], abs=1e-3)


def test_a_model_that_does_not_embed_says_so(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="writes text; ask a model for embeddings") as failed:
        client.embed(SMOL, "x")
    assert failed.value.status_code == 400


# --- what there is ----------------------------------------------------------------------------------------------------


def test_list_and_show(client: ollama.Client, starter: Path) -> None:
    listed = {one.model: one for one in client.list().models}
    assert set(listed) == {SMOL, "other:latest", "embedder:latest"}
    one = listed[SMOL]
    assert one.size == starter.stat().st_size
    assert one.modified_at.timestamp() == pytest.approx(starter.stat().st_mtime, abs=1e-3)
    assert len({each.digest for each in listed.values()}) == 3
    assert (one.details.format, one.details.family, one.details.parameter_size, one.details.quantization_level) == (
        "gguf", "llama", "134.5M", "Q4_1",
    )  # fmt: skip
    for name in (SMOL, "smol.Q4_1", "smol.Q4_1.gguf", "SMOL:q4_1", f"{SMOL}:latest"):
        shown = client.show(name)
        assert shown.details == one.details
    assert shown.capabilities == ["completion"]
    assert (shown.modelinfo["general.architecture"], shown.modelinfo["llama.context_length"]) == ("llama", 8192)
    assert client.show("embedder").capabilities == ["embedding"]


def test_loading_and_what_runs(client: ollama.Client, daemon: Daemon) -> None:
    loaded = client.generate("other", keep_alive="2h")
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    assert loaded.load_duration <= loaded.total_duration
    daemon.wait_state("other.gguf", "ready")
    client.generate(SMOL, keep_alive=1)
    daemon.wait_idle()
    expires = {one.model: one.expires_at.timestamp() for one in client.ps().models}
    now = daemon.status()["server_time_unix"]
    assert 6900 < expires["other:latest"] - now < 7260
    assert 1500 < expires[SMOL] - now < 1860  # 1 s is less than its ttl, which it cannot shorten
    one = next(one for one in client.ps().models if one.model == "other:latest")
    assert one.size > 100 << 20
    assert client.generate("other", keep_alive=0).done_reason == "unload"
    assert daemon.instance("other.gguf") is not None


# --- errors -----------------------------------------------------------------------------------------------------------


def test_wrong_names_and_values(client: ollama.Client) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match=r"not found; did you mean .*other") as failed:
            list(client.chat("othr", HI, stream=stream))
        assert failed.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"options\.temperature") as failed:
        client.generate(SMOL, "Hi", options={"temperature": -1})
    assert failed.value.status_code == 400


def test_a_prompt_beyond_the_context_is_refused_by_the_model(client: ollama.Client, daemon: Daemon) -> None:
    with pytest.raises(ollama.ResponseError, match="context") as failed:
        client.generate(SMOL, "word " * 20_000)
    assert failed.value.status_code == 400
    body = {"model": SMOL, "prompt": "word " * 20_000}
    assert daemon.ask("POST", "/api/generate", body).json["source"] == "model"


def test_models_are_not_changed_over_http(client: ollama.Client, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"x")
    for ask in (
        lambda: client.pull("llama3"),
        lambda: list(client.pull("llama3", stream=True)),
        lambda: client.push("llama3"),
        lambda: client.create("new", from_=SMOL),
        lambda: client.copy(SMOL, "new"),
        lambda: client.delete(SMOL),
    ):
        with pytest.raises(ollama.ResponseError, match="models folder") as failed:
            ask()
        assert failed.value.status_code == 501
    assert len(client.list().models) == 3


def test_a_client_that_leaves_in_mid_stream_frees_its_slot(client: ollama.Client, daemon: Daemon) -> None:
    stream = client.generate(SMOL, "Tell me a long story.", options=LONG, stream=True)
    next(stream)
    assert daemon.instance("smol.Q4_1.gguf")["inflight"] == 1  # type: ignore[index]
    stream.close()
    eventually(lambda: daemon.instance("smol.Q4_1.gguf")["inflight"] == 0, "the slot is free")  # type: ignore[index]


def test_a_model_server_that_dies_in_mid_stream_is_told(client: ollama.Client, daemon: Daemon) -> None:
    stream = client.chat("other", HI, options=LONG, stream=True)
    next(stream)
    os.kill(daemon.wait_state("other.gguf", "ready")["pid"], signal.SIGKILL)
    with pytest.raises(ollama.ResponseError, match="model server"):
        list(stream)
