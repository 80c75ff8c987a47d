# SPDX-License-Identifier: GPL-3.0-only
"""What the page says: names and labels are an interface."""

from __future__ import annotations

from dataclasses import replace

from api.edge import SPEC, snapshot
from modeld.api.metrics import UNMATCHED, Metrics
from modeld.api.usage import TokenUsage
from modeld.core.estimate import Need, Part
from modeld.core.footprint import Footprint, Source
from modeld.core.model import HOST, LOCAL, ModelId
from modeld.core.snapshot import DeviceView
from modeld.runtime.adapters.interface import EngineInfo


def test_requests_are_counted_by_route_method_and_status() -> None:
    metrics = Metrics("1")
    metrics.arrived("/infer")
    assert 'modeld_http_inflight_requests{path="/infer"} 1.0' in metrics.render().decode()
    metrics.answered("/infer", "POST", 200, 0.2)
    metrics.arrived(UNMATCHED)
    metrics.answered(UNMATCHED, "BREW", 404, 0.2)
    page = metrics.render().decode()
    assert 'modeld_http_inflight_requests{path="/infer"} 0.0' in page
    assert 'modeld_http_requests_total{method="POST",path="/infer",status="200"} 1.0' in page
    assert 'modeld_http_requests_total{method="OTHER",path="(unmatched)",status="404"} 1.0' in page
    assert 'modeld_http_request_duration_seconds_bucket{le="0.25",method="POST",path="/infer",status="200"} 1.0' in page


def test_states_come_from_the_snapshot_at_the_time_of_asking() -> None:
    metrics = Metrics("1.2")
    assert "modeld_instances" not in metrics.render().decode()
    metrics.watch(lambda: snapshot("ready", "ready", "loading"), lambda: EngineInfo("embedded", "b9", ()))
    page = metrics.render().decode()
    for line in (
        'modeld_instances{state="ready"} 2.0',
        'modeld_instances{state="loading"} 1.0',
        'modeld_instances{state="draining"} 0.0',
        'modeld_instances{state="stopping"} 0.0',
        'modeld_instances{state="failed"} 0.0',
        f'modeld_queue_length{{model="{SPEC.id}"}} 3.0',
        "modeld_loads_total 7.0",
        "modeld_load_failures_total 1.0",
        "modeld_evictions_total 2.0",
        "modeld_crashes_total 3.0",
        "modeld_fairness_closings_total 4.0",
        "modeld_preemptions_total 5.0",
        "modeld_requeued_total 6.0",
        "modeld_stuck_total 8.0",
        f'modeld_queue_oldest_wait_seconds{{model="{SPEC.id}"}} 1.5',
        'modeld_queue_length_by_class{class="interactive"} 0.0',
        'modeld_queue_length_by_class{class="normal"} 2.0',
        'modeld_queue_length_by_class{class="batch"} 1.0',
        "modeld_memory_used_mb 120.0",
        "modeld_memory_budget_mb 1000.0",
        "modeld_memory_margin_mb 10.0",
        'modeld_build_info{build="b9",engine="embedded",version="1.2"} 1.0',
    ):
        assert line in page.splitlines()


def test_memory_is_told_by_device_and_by_instance() -> None:
    seen = snapshot("ready", "loading", "ready", out_of_memory_total=2, grown_total=3)
    first, second, third = seen.instances
    cost = Need(100, Source.PROBED, (Part("weights", 100 << 20),))
    first = replace(first, cost=cost, measured=Footprint({}, 110 << 20), degraded=("llama_ctx 2 -> 1",))
    second = replace(second, model=ModelId("other.gguf"), cost=Need(50, Source.DECLARED))
    third = replace(third, model=ModelId("far.gguf"), external=True, cost=Need(0, Source.EXTERNAL))
    devices = (DeviceView(LOCAL, 1000, 120, 20, 850, 1200, 150), DeviceView(HOST, 0, 7))
    metrics = Metrics("1")
    metrics.watch(lambda: replace(seen, instances=(first, second, third), devices=devices), lambda: None)
    page = metrics.render().decode()
    for line in (
        f'modeld_memory_budget_bytes{{device="local/all"}} {float(1000 << 20)}',
        f'modeld_memory_room_bytes{{device="local/all"}} {float(850 << 20)}',
        f'modeld_memory_used_bytes{{device="local/all"}} {float(120 << 20)}',
        f'modeld_memory_releasing_bytes{{device="local/all"}} {float(20 << 20)}',
        f'modeld_memory_foreign_bytes{{device="local/all"}} {float(150 << 20)}',
        'modeld_memory_budget_bytes{device="local/host"} 0.0',
        f'modeld_instance_memory_bytes{{kind="predicted",model="{SPEC.id}"}} {float(100 << 20)}',
        f'modeld_instance_memory_bytes{{kind="measured",model="{SPEC.id}"}} {float(110 << 20)}',
        f'modeld_instance_memory_bytes{{kind="predicted",model="other.gguf"}} {float(50 << 20)}',
        f'modeld_degraded{{model="{SPEC.id}"}} 1.0',
        'modeld_degraded{model="other.gguf"} 0.0',
        "modeld_out_of_memory_total 2.0",
        "modeld_grown_total 3.0",
    ):
        assert _plain(line) in map(_plain, page.splitlines()), line
    [error] = [line for line in page.splitlines() if line.startswith("modeld_prediction_error_ratio{")]
    assert error.startswith(f'modeld_prediction_error_ratio{{model="{SPEC.id}",source="probed"}} 0.1')
    assert 'modeld_memory_room_bytes{device="local/host"}' not in page
    assert "far.gguf" not in page


def _plain(line: str) -> str:
    """The number written one way: the page has 1.048576e+09, Python 1048576000.0."""
    name, _, value = line.rpartition(" ")
    return line if line.startswith("#") else f"{name} {float(value):g}"


def test_durations_tokens_and_backpressure() -> None:
    metrics = Metrics("1")
    metrics.observe_wait(0.02)
    metrics.observe_load(3.0)
    metrics.backpressure("queue_full")
    metrics.backpressure("deadline_unreachable")
    metrics.tokens(TokenUsage(5, 3))
    metrics.tokens(TokenUsage(completion=7, tokens_per_second=9.5))
    page = metrics.render().decode().splitlines()
    for line in (
        'modeld_queue_wait_seconds_bucket{le="0.05"} 1.0',
        'modeld_load_seconds_bucket{le="5.0"} 1.0',
        'modeld_http_backpressure_total{reason="queue_full"} 1.0',
        'modeld_http_backpressure_total{reason="wait_timeout"} 0.0',
        'modeld_http_backpressure_total{reason="deadline_unreachable"} 1.0',
        'modeld_tokens_total{kind="prompt"} 5.0',
        'modeld_tokens_total{kind="completion"} 7.0',
        'modeld_tokens_total{kind="cached"} 3.0',
        'modeld_generation_tokens_per_second_bucket{le="5.0"} 0.0',
        'modeld_generation_tokens_per_second_bucket{le="10.0"} 1.0',
    ):
        assert line in page
    assert not any("_created" in line for line in page)
