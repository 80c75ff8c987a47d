# SPDX-License-Identifier: GPL-3.0-only
"""For those who run it: /healthz, /readyz, /metrics; rule: answer from what is known already, wait for nothing.

The two health checks are answered to any peer under any Host, because a load balancer's probe comes from elsewhere; they say one word.
"""

from __future__ import annotations

from collections.abc import Callable

from modeld.api.metrics import MEDIA, Metrics
from modeld.api.route import PLAIN, Call, Reply, Route, Scope
from modeld.core.lifecycle import State
from modeld.core.snapshot import Snapshot


class Ops:
    """The handlers."""

    def __init__(self, metrics: Metrics, snapshot: Callable[[], Snapshot]) -> None:
        self._metrics = metrics
        self._snapshot = snapshot

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/healthz", Scope.OPEN, "200 `ok` while the daemon runs.", self.healthz, media=PLAIN),
            Route(
                "GET", "/readyz", Scope.OPEN, "200 `ready` when a model is, else 503 `loading`.", self.readyz, media=PLAIN, faults=(503,)
            ),
            Route("GET", "/metrics", Scope.READ, "Counters in Prometheus' text format.", self.metrics, media=MEDIA),
        ]

    async def healthz(self, call: Call) -> Reply:
        return Reply(200, b"ok", PLAIN)

    async def readyz(self, call: Call) -> Reply:
        if any(view.state == State.READY for view in self._snapshot().instances):
            return Reply(200, b"ready", PLAIN)
        return Reply(503, b"loading", PLAIN, ((b"retry-after", b"1"),))

    async def metrics(self, call: Call) -> Reply:
        return Reply(200, self._metrics.render(), MEDIA)
