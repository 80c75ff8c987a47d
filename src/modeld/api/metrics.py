# SPDX-License-Identifier: GPL-3.0-only
"""What /metrics counts; rule: labels come from the route table and the settings, never from a client's text.

Counters and histograms are fed while requests run; everything that is a state is read from a snapshot when the page is asked for.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from modeld.api.usage import TokenUsage
from modeld.core.footprint import MIB
from modeld.core.lifecycle import State
from modeld.core.model import Priority
from modeld.core.snapshot import Snapshot

if TYPE_CHECKING:
    from modeld.runtime.adapters.interface import EngineInfo

UNMATCHED: Final = "(unmatched)"
"""The path label of requests that hit no route."""
MEDIA: Final = CONTENT_TYPE_LATEST

_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_HTTP_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_WAIT_SECONDS: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LOAD_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_SPEEDS: Final = (1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_REASONS: Final = ("queue_full", "wait_timeout", "deadline_unreachable")


class Metrics:
    """One registry of its own, so that two daemons in one process (tests) do not share counts. All durations in seconds."""

    def __init__(self, version: str) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ("path", "method", "status")
        self._requests = Counter("modeld_http_requests_total", "HTTP requests answered.", labels, registry=registry)
        self._durations = Histogram(
            "modeld_http_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            labels,
            registry=registry,
            buckets=_HTTP_SECONDS,
        )
        self._inflight = Gauge("modeld_http_inflight_requests", "HTTP requests being answered.", ("path",), registry=registry)
        backpressure = Counter("modeld_http_backpressure_total", "Requests refused because of load.", ("reason",), registry=registry)
        self._backpressure = {reason: backpressure.labels(reason) for reason in _REASONS}
        self._waits = Histogram(
            "modeld_queue_wait_seconds", "From the arrival of a request to its slot.", registry=registry, buckets=_WAIT_SECONDS
        )
        self._loads = Histogram("modeld_load_seconds", "From the start of an instance to ready.", registry=registry, buckets=_LOAD_SECONDS)
        tokens = Counter("modeld_tokens_total", "Tokens: of prompts, of them cached, and generated.", ("kind",), registry=registry)
        self._prompt_tokens, self._completion_tokens = tokens.labels("prompt"), tokens.labels("completion")
        self._cached_tokens = tokens.labels("cached")
        self._speeds = Histogram(
            "modeld_generation_tokens_per_second", "Speed of one answer, as its model server tells it.", registry=registry, buckets=_SPEEDS
        )
        # labels() costs 3 us, a kept child 1 us; the number of combinations is bounded by the route table.
        self._kept: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._kept_inflight: dict[str, Gauge] = {}
        self._states = _States(version)
        registry.register(self._states)

    def watch(self, snapshot: Callable[[], Snapshot], engine: Callable[[], EngineInfo | None]) -> None:
        """Where the states are read from at each scrape."""
        self._states.snapshot = snapshot
        self._states.engine = engine

    def arrived(self, path: str) -> None:
        """A request has come. `path` is a route, or UNMATCHED. Ends in one `answered` with the same path."""
        self._inflight_of(path).inc()

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Its answer has ended."""
        self._inflight_of(path).dec()
        key = (path, method if method in _METHODS else "OTHER", status)
        kept = self._kept.get(key)
        if kept is None:
            names = (key[0], key[1], str(status))
            kept = self._kept[key] = (self._requests.labels(*names), self._durations.labels(*names))
        kept[0].inc()
        kept[1].observe(seconds)

    def observe_wait(self, seconds: float) -> None:
        self._waits.observe(seconds)

    def observe_load(self, seconds: float) -> None:
        self._loads.observe(seconds)

    def backpressure(self, reason: str) -> None:
        """`reason` is "queue_full", "wait_timeout" or "deadline_unreachable"."""
        self._backpressure[reason].inc()

    def tokens(self, used: TokenUsage) -> None:
        """What one request read and generated."""
        if used.prompt:
            self._prompt_tokens.inc(used.prompt)
        if used.cached:
            self._cached_tokens.inc(used.cached)
        if used.completion:
            self._completion_tokens.inc(used.completion)
        if used.tokens_per_second:
            self._speeds.observe(used.tokens_per_second)

    def render(self) -> bytes:
        """The page, of content type MEDIA. The time series of creation times that the library adds are left out: nobody asked for them."""
        page: bytes = generate_latest(self._registry)
        return b"".join(_without_created(page.splitlines(keepends=True)))

    def _inflight_of(self, path: str) -> Gauge:
        kept = self._kept_inflight.get(path)
        if kept is None:
            kept = self._kept_inflight[path] = self._inflight.labels(path)
        return kept


def _without_created(lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        name = line.removeprefix(b"# HELP ").removeprefix(b"# TYPE ").split(b" ", 1)[0].split(b"{", 1)[0]
        if not name.endswith(b"_created"):
            yield line


class _States(Collector):
    """Gauges and totals out of a snapshot, taken when the page is made."""

    def __init__(self, version: str) -> None:
        self._version = version
        self.snapshot: Callable[[], Snapshot] | None = None
        self.engine: Callable[[], EngineInfo | None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        yield self._build_info()
        if self.snapshot is None:
            return
        seen = self.snapshot()
        by_state = Tally(view.state for view in seen.instances)
        instances = GaugeMetricFamily("modeld_instances", "Instances by state.", labels=("state",))
        for state in State:
            if state is not State.GONE:
                instances.add_metric((state.value,), by_state[state])
        yield instances
        yield from _lines(seen)
        for name, total, text in (
            ("modeld_loads", seen.loads_total, "Loads that ended ready."),
            ("modeld_load_failures", seen.load_failures_total, "Instances that did not become ready."),
            ("modeld_evictions", seen.evictions_total, "Instances stopped to make room."),
            ("modeld_crashes", seen.crashes_total, "Instances that ended by themselves."),
            ("modeld_fairness_closings", seen.fairness_closings_total, "Instances closed to newcomers for a model that is due."),
            ("modeld_preemptions", seen.preemptions_total, "Requests cut for a model that is due."),
            ("modeld_requeued", seen.requeued_total, "Requests that kept their place when their instance failed."),
            ("modeld_stuck", seen.stuck_total, "Instances stopped because no token came."),
            ("modeld_out_of_memory", seen.out_of_memory_total, "Loads that ran out of memory."),
            ("modeld_grown", seen.grown_total, "Instances that took more than was reserved for them."),
        ):
            yield CounterMetricFamily(name, text, value=total)
        for name, value, text in (
            ("modeld_memory_used_mb", seen.used_mb, "MiB that the ledger counts as used."),
            ("modeld_memory_budget_mb", seen.budget_mb, "MiB that instances may use; 0 = unlimited."),
            ("modeld_memory_margin_mb", seen.margin_mb, "MiB kept free inside the budget."),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        yield from _devices(seen)
        yield from _footprints(seen)

    def _build_info(self) -> Metric:
        engine = self.engine()
        info = GaugeMetricFamily("modeld_build_info", "Versions; always 1.", labels=("version", "engine", "build"))
        info.add_metric((self._version, engine.adapter if engine else "", engine.build if engine else ""), 1)
        return info


def _devices(seen: Snapshot) -> Iterator[Metric]:
    """What there is, and who has it. A device without a limit has no room to tell of."""
    families = [
        GaugeMetricFamily(f"modeld_memory_{name}_bytes", text, labels=("device",))
        for name, text in (
            ("budget", "What instances may use of the device; 0 = unlimited."),
            ("room", "The budget less the margin and what other programs hold."),
            ("used", "What the ledger counts as used."),
            ("releasing", "What of it is on its way back."),
            ("foreign", "What other programs hold of the device for good."),
        )
    ]
    for view in seen.devices:
        amounts = (view.budget_mb, view.room_mb, view.used_mb, view.releasing_mb, view.foreign_mb)
        for family, amount_mb in zip(families, amounts, strict=True):
            if amount_mb is not None:
                family.add_metric((view.id,), amount_mb * MIB)
    yield from families


def _footprints(seen: Snapshot) -> Iterator[Metric]:
    """What was predicted of each instance, and what it takes."""
    memory = GaugeMetricFamily("modeld_instance_memory_bytes", "What an instance takes: predicted, measured.", labels=("model", "kind"))
    errors = GaugeMetricFamily("modeld_prediction_error_ratio", "Measured over predicted, less 1.", labels=("model", "source"))
    degraded = GaugeMetricFamily("modeld_degraded", "1 where something of an instance was given up to make it fit.", labels=("model",))
    for view in seen.instances:
        if view.cost is None or view.external:
            continue
        predicted = view.cost.total_bytes
        memory.add_metric((view.model, "predicted"), predicted)
        degraded.add_metric((view.model,), bool(view.degraded))
        if view.measured is not None:
            measured = view.measured.total_bytes
            memory.add_metric((view.model, "measured"), measured)
            if predicted:
                errors.add_metric((view.model, view.cost.source.value), measured / predicted - 1)
    yield from (memory, errors, degraded)


def _lines(seen: Snapshot) -> Iterator[Metric]:
    lengths = GaugeMetricFamily("modeld_queue_length", "Requests that wait, by model.", labels=("model",))
    oldest = GaugeMetricFamily("modeld_queue_oldest_wait_seconds", "How long the oldest request waits, by model.", labels=("model",))
    by_class = Tally[Priority]()
    for line in seen.lines:
        lengths.add_metric((line.model,), line.length)
        oldest.add_metric((line.model,), line.oldest_wait_seconds)
        by_class.update(line.by_class)
    classes = GaugeMetricFamily("modeld_queue_length_by_class", "Requests that wait, by class.", labels=("class",))
    for priority in Priority:
        classes.add_metric((priority.value,), by_class[priority])
    yield from (lengths, oldest, classes)
