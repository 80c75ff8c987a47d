# SPDX-License-Identifier: GPL-3.0-only
"""/models, /status, /infer and the small routes, as a client sees them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.daemon import Daemon


def test_models_lists_what_the_folder_holds_in_id_order(daemon: Daemon):
    answer = daemon.ask("GET", "/models")
    assert answer.status == 200
    models = answer.json["models"]
    assert [one["id"] for one in models] == ["a.gguf", "b.gguf", "c.gguf"]
    assert {key: models[0][key] for key in ("quant", "family")} == {"quant": "Q4_1", "family": "llama"}
    assert models[0]["path"].endswith("/a.gguf")
    assert models[0]["name"]


def test_infer_streams_tokens_and_one_last_record(daemon: Daemon):
    answer = daemon.infer("a.gguf", max_tokens=5, ignore_eos=True)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    *tokens, last = answer.lines
    assert all(set(line) == {"token"} and line["token"] for line in tokens)
    assert last["done"] is True
    assert last["content"] == "".join(line["token"] for line in tokens)
    assert last["finish_reason"] == "length"
    usage = last["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


def test_without_stream_the_last_line_is_the_answer(daemon: Daemon):
    streamed = daemon.infer("a.gguf", seed=1).lines[-1]
    whole = daemon.infer("a.gguf", seed=1, stream=False)
    assert whole.headers["content-type"].startswith("application/json")
    assert whole.json == streamed


def test_the_id_without_its_ending_is_a_name_too(daemon: Daemon):
    assert daemon.infer("a").status == 200


def test_a_stop_word_ends_the_answer_with_stop(daemon: Daemon):
    free = daemon.infer("a.gguf", max_tokens=12, ignore_eos=True).lines
    word = free[3]["token"]
    last = daemon.infer("a.gguf", max_tokens=12, ignore_eos=True, stop=[word]).lines[-1]
    assert last["finish_reason"] == "stop"
    assert word not in last["content"]


def test_as_many_at_once_as_there_are_slots(daemon: Daemon):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: daemon.infer("a.gguf", prompt=f"Number {n}", max_tokens=8), range(4)))
    assert {answer.status for answer in answers} == {200}
    assert all(answer.lines[-1]["done"] for answer in answers)


def test_status_has_its_fields(daemon: Daemon):
    daemon.infer("a.gguf")
    status = daemon.status()
    wanted = {
        "instances", "budget_mb", "used_est_mb", "margin_mb", "uptime_seconds", "server_time_unix", "evictions_total", "loads_total",
        "state", "warmups_in_progress", "draining_count",
    }  # fmt: skip
    assert wanted <= set(status)
    one = daemon.wait_state("a.gguf", "ready")
    assert {"model_id", "state", "last_used_unix", "est_vram_mb", "queue_len", "inflight", "max_queue_depth", "pid"} <= set(one)
    assert 280 <= one["est_vram_mb"] <= 400  # predicted, or measured meanwhile
    assert status["used_est_mb"] >= one["est_vram_mb"] - 1
    assert abs(one["last_used_unix"] - status["server_time_unix"]) < 3600
    assert status["state"] == "ready"


def test_the_small_routes_say_one_word(daemon: Daemon):
    daemon.infer("a.gguf")
    for path, word in (("/healthz", b"ok"), ("/readyz", b"ready")):
        answer = daemon.ask("GET", path)
        assert (answer.status, answer.body) == (200, word)
        assert answer.headers["content-type"].startswith("text/plain")


def test_metrics_count_routes_and_never_raw_text(daemon: Daemon):
    before = daemon.metric('modeld_http_requests_total{method="POST",path="/infer",status="200"}')
    daemon.infer("a.gguf")
    assert daemon.metric('modeld_http_requests_total{method="POST",path="/infer",status="200"}') == before + 1
    daemon.ask("GET", "/no-such-path-here")
    page = daemon.ask("GET", "/metrics").body.decode()
    assert "no-such-path-here" not in page
    for name in ("modeld_http_request_duration_seconds_count", "modeld_http_inflight_requests", "modeld_http_backpressure_total"):
        assert name in page
    assert daemon.metric('modeld_instances{state="ready"}') >= 1


def test_the_request_id_comes_back(daemon: Daemon):
    assert daemon.ask("GET", "/models", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = daemon.ask("GET", "/models", headers={"X-Request-Id": "not sane\t"}).headers["x-request-id"]
    assert made
    assert made != "not sane"


def test_the_api_describes_itself(daemon: Daemon):
    document = daemon.ask("GET", "/openapi.json").json
    assert {"/infer", "/models", "/status", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/chat/completions"} <= set(
        document["paths"]
    )
    page = daemon.ask("GET", "/docs")
    assert page.status == 200
    assert b"//cdn" not in page.body


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_openai_answers_carry_the_id_and_not_a_path(daemon: Daemon, path: str):
    ask = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Once"}
    answer = daemon.ask("POST", path, {"model": "a.gguf", "max_tokens": 3} | ask)
    assert answer.status == 200
    assert answer.json["model"] == "a.gguf"
    assert answer.json["usage"]["completion_tokens"] <= 3
    streamed = daemon.ask("POST", path, {"model": "a.gguf", "max_tokens": 3, "stream": True} | ask)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.body.rstrip().endswith(b"data: [DONE]")


def test_openai_lists_the_models(daemon: Daemon):
    listed = daemon.ask("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == ["a.gguf", "b.gguf", "c.gguf"]
