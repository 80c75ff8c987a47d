# SPDX-License-Identifier: GPL-3.0-only
"""Budget, eviction, lines: real models that do not fit together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.daemon import eventually, is_alive, link_models, running

ONE_MODEL = "400"
"""A budget in MB that holds one starter model (390 MB by the formula) and not two."""


@pytest.fixture
def models(tmp_path: Path, starter: Path) -> Path:
    return link_models(tmp_path / "models", starter, "a.gguf", "b.gguf")


def test_a_second_model_takes_the_place_of_the_first(tmp_path: Path, models: Path):
    with running(tmp_path, models, "--vram-budget-mb", ONE_MODEL) as one:
        for turn, model in enumerate(("a.gguf", "b.gguf", "a.gguf"), start=1):
            assert one.infer(model).lines[-1]["done"]
            status = one.status()
            assert status["used_est_mb"] <= int(ONE_MODEL)
            assert status["loads_total"] == turn
            assert status["evictions_total"] == turn - 1
        assert [x["model_id"] for x in one.status()["instances"]] == ["a.gguf"]


def test_a_running_answer_is_never_cut_for_another_model(tmp_path: Path, models: Path):
    flags = ("--vram-budget-mb", ONE_MODEL, "--fairness-wait", "200ms", "--max-wait", "5m")
    with running(tmp_path, models, *flags) as one, one.stream("a.gguf", tokens=300) as stream:
        assert "token" in stream.line()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(one.infer, "b.gguf")
            eventually(lambda: one.status()["draining_count"] == 1, "a is draining")
            *_, last = stream.rest()
            assert last["finish_reason"] == "length"
            assert last["usage"]["completion_tokens"] == 300
            assert other.result().status == 200


def test_a_full_line_is_a_429_with_retry_after_and_a_long_wait_too(tmp_path: Path, models: Path):
    flags = ("--llama-parallel", "1", "--max-queue-depth", "1", "--max-wait", "1s")
    with running(tmp_path, models, *flags) as one, one.stream("a.gguf") as stream:
        assert "token" in stream.line()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(one.infer, "a.gguf")
            eventually(lambda: one.instance("a.gguf")["queue_len"] == 1, "one waits")
            full = one.infer("a.gguf")
            assert (full.status, full.json["kind"]) == (429, "queue_full")
            assert int(full.headers["retry-after"]) >= 1
            late = waiting.result()
        assert (late.status, late.json["kind"]) == (429, "wait_timeout")
        assert int(late.headers["retry-after"]) >= 1
        assert one.metric('modeld_http_backpressure_total{reason="queue_full"}') == 1
        assert one.metric('modeld_http_backpressure_total{reason="wait_timeout"}') == 1


def test_many_requests_at_once_to_a_cold_model_are_one_load(tmp_path: Path, models: Path):
    with running(tmp_path, models) as one, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda n: one.infer("a.gguf", prompt=f"{n}", max_tokens=1), range(24)))
        assert {answer.status for answer in answers} == {200}
        assert one.status()["loads_total"] == 1


@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions"])
def test_a_client_that_leaves_frees_its_slot(tmp_path: Path, models: Path, path: str):
    with running(tmp_path, models, "--llama-parallel", "1") as one:
        one.infer("a.gguf")
        with one.stream("a.gguf", path=path, tokens=8000) as stream:
            assert stream.line()
            assert one.instance("a.gguf")["inflight"] == 1
        one.wait_idle()
        assert one.infer("a.gguf", max_tokens=1).status == 200  # on the one slot that was taken


def test_a_client_that_leaves_while_it_waits_or_loads_leaves_no_trace(tmp_path: Path, models: Path):
    with running(tmp_path, models, "--llama-parallel", "1") as one:
        with one.stream("a.gguf"):  # leaves while the model loads
            one.wait_state("a.gguf", "loading")
        one.wait_state("a.gguf", "ready")  # the load belongs to the daemon
        with one.stream("a.gguf") as stream:
            stream.line()
            with one.stream("a.gguf"):
                eventually(lambda: one.instance("a.gguf")["queue_len"] == 1, "one waits")
            eventually(lambda: one.instance("a.gguf")["queue_len"] == 0, "nobody waits")
        one.wait_idle()


def test_a_half_closed_client_counts_as_gone(tmp_path: Path, models: Path):
    with running(tmp_path, models) as one, one.stream("a.gguf", tokens=8000) as stream:
        stream.line()
        stream.socket.shutdown(1)
        one.wait_idle()


def test_an_idle_model_leaves_after_its_ttl_and_takes_its_process_along(tmp_path: Path, models: Path):
    config = tmp_path / "c.yaml"
    config.write_text("models:\n  a:\n    ttl: 300ms\n")
    with running(tmp_path, models, "--config", str(config)) as one:
        one.infer("a.gguf")
        children = one.children()
        eventually(lambda: one.instance("a.gguf") is None, "a is unloaded")
        assert not any(is_alive(pid) for pid in children)


def test_infer_timeout_is_a_last_record_with_504(tmp_path: Path, models: Path):
    with running(tmp_path, models, "--infer-timeout", "3s") as one:
        with one.stream("a.gguf", tokens=8000) as stream:
            *_, last = stream.rest()
        assert last["done"] is True
        assert last["code"] == 504
        one.wait_idle()


def test_a_preloaded_model_is_there_before_anybody_asks(tmp_path: Path, models: Path):
    config = tmp_path / "c.toml"
    config.write_text('[models."b.gguf"]\npreload = true\npinned = true\naliases = ["chat"]\n')
    with running(tmp_path, models, "--config", str(config), "--default-model", "chat") as one:
        one.wait_state("b.gguf", "ready")
        assert one.ask("GET", "/readyz").status == 200
        assert one.infer().status == 200
        assert one.status()["loads_total"] == 1


def test_the_folder_is_watched(tmp_path: Path, models: Path, starter: Path):
    with running(tmp_path, models, "--rescan-interval", "200ms") as one:
        link_models(models, starter, "new.gguf")
        assert one.infer("new.gguf").status == 200  # at once, without waiting for the next look
        first = one.instance("new.gguf")["pid"]
        copy = models / "new.gguf.part"
        copy.write_bytes(starter.read_bytes())
        copy.replace(models / "new.gguf")
        eventually(lambda: (now := one.instance("new.gguf")) and now["state"] == "ready" and now["pid"] != first, "it is loaded again")
        (models / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00 not really")
        eventually(lambda: one.infer("broken.gguf").status == 503, "the broken file is listed")
        (models / "new.gguf").unlink()
        eventually(lambda: one.infer("new.gguf").status == 404, "the model is gone")
        assert one.infer("a.gguf").status == 200


def test_the_switch_of_two_models_leaves_nothing_behind(tmp_path: Path, models: Path):
    with running(tmp_path, models, "--vram-budget-mb", ONE_MODEL) as one:
        seen: set[int] = set()
        for turn in range(6):
            one.infer("ab"[turn % 2] + ".gguf", max_tokens=1)
            seen |= set(one.children())
        alive = [pid for pid in seen if is_alive(pid)]
        assert alive == one.children()
        assert len(seen) == 6
