# SPDX-License-Identifier: GPL-3.0-only
"""Everything modeld can say no with, drawn as a tree; rule: each leaf knows its status, its stable word and the way out.

    ModeldError
    ├── Refused            we decline, nothing was started for this request
    │   ├── BadRequest 400 · Forbidden 403 · UnknownModel 404 · NoModelNamed 404 · UnknownRoute 404
    │   ├── MethodNotAllowed 405 · BodyTimeout 408 · BodyTooLarge 413 · WrongContentType 415
    │   ├── WrongHost 421 · HeadersTooLarge 431
    │   ├── QueueFull 429 · WaitTimeout 429 · DeadlineUnreachable 429     (retry_after_seconds)
    │   ├── NotSupported 501
    │   ├── ModelUnavailable 503 · Draining 503 · BackingOff 503 · EngineMissing 503 · TooManyReaders 503
    │   └── CannotEverFit 507
    ├── InstanceFault      the model server failed
    │   ├── SpawnFailed 502 · LoadFailed 502 · LoadStalled 504 · OutOfMemory 507
    │   ├── Died 502 · BadUpstreamReply 502 · UpstreamUnreachable 502 · Stuck 504
    │   └── Unloaded 503                              an unload, a reload or the shutdown ended the request
    ├── DeadlineExceeded 504                          infer_timeout
    ├── ClientGone                                    nobody is left to tell; never rendered
    ├── ConfigError                                   the operator; exit code 2 before listening
    └── InvariantError 500                            our own fault

`message` is shown to inference clients: it never holds a path, a log line or a traceback. `detail` is for logs and /status.
"""

from __future__ import annotations

from typing import ClassVar


class ModeldError(Exception):
    """Base of all. `kind` is the stable word clients may match on; `source` says who failed: "modeld" or "model"."""

    http_status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal_error"
    source: ClassVar[str] = "modeld"

    def __init__(self, message: str, *, retry_after_seconds: int | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.detail = detail


# --- we decline -------------------------------------------------------------------------------------------------------


class Refused(ModeldError):
    """The request was not served and changed nothing."""


class BadRequest(Refused):
    http_status = 400
    kind = "bad_request"


class RefusedByModel(BadRequest):
    """The model server did not like the request."""

    source = "model"


class Forbidden(Refused):
    http_status = 403
    kind = "forbidden"


class UnknownModel(Refused):
    http_status = 404
    kind = "unknown_model"


class NoModelNamed(Refused):
    http_status = 404
    kind = "no_model_named"


class UnknownRoute(Refused):
    http_status = 404
    kind = "unknown_route"


class MethodNotAllowed(Refused):
    """`allow` lists the methods the route does have."""

    http_status = 405
    kind = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTimeout(Refused):
    http_status = 408
    kind = "body_timeout"


class BodyTooLarge(Refused):
    http_status = 413
    kind = "body_too_large"


class WrongContentType(Refused):
    http_status = 415
    kind = "wrong_content_type"


class WrongHost(Refused):
    http_status = 421
    kind = "wrong_host"


class HeadersTooLarge(Refused):
    http_status = 431
    kind = "headers_too_large"


class QueueFull(Refused):
    http_status = 429
    kind = "queue_full"


class WaitTimeout(Refused):
    http_status = 429
    kind = "wait_timeout"


class DeadlineUnreachable(Refused):
    """The request would have to wait longer than it may: said at once instead of then."""

    http_status = 429
    kind = "deadline_unreachable"


class NotSupported(Refused):
    """What is asked for is not there, and will not be: here, or in the model server (`source` "model")."""

    http_status = 501
    kind = "not_supported"

    def __init__(self, message: str, *, source: str = "modeld") -> None:
        super().__init__(message)
        self.source = source  # type: ignore[misc]  # of the class for all others


class ModelUnavailable(Refused):
    http_status = 503
    kind = "model_unavailable"


class Draining(Refused):
    http_status = 503
    kind = "draining"


class TooManyReaders(Refused):
    http_status = 503
    kind = "too_many_readers"


class BackingOff(Refused):
    http_status = 503
    kind = "backing_off"


class EngineMissing(Refused):
    http_status = 503
    kind = "engine_missing"


class CannotEverFit(Refused):
    http_status = 507
    kind = "cannot_ever_fit"


# --- the model server failed ------------------------------------------------------------------------------------------


class InstanceFault(ModeldError):
    """A child, or a server we do not own, failed while it held or awaited the request."""

    http_status = 502
    kind = "instance_fault"
    source = "model"


class SpawnFailed(InstanceFault):
    kind = "spawn_failed"


class LoadFailed(InstanceFault):
    kind = "load_failed"


class LoadStalled(InstanceFault):
    http_status = 504
    kind = "load_stalled"


class OutOfMemory(InstanceFault):
    """`asked_bytes` is the allocation that failed, 0 = unknown."""

    http_status = 507
    kind = "out_of_memory"

    def __init__(self, message: str, *, retry_after_seconds: int | None = None, detail: str = "", asked_bytes: int = 0) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds, detail=detail)
        self.asked_bytes = asked_bytes


class Died(InstanceFault):
    kind = "instance_died"


class Stuck(InstanceFault):
    """The model server lives and no token comes."""

    http_status = 504
    kind = "instance_stuck"


class BadUpstreamReply(InstanceFault):
    kind = "bad_upstream_reply"


class UpstreamUnreachable(InstanceFault):
    kind = "upstream_unreachable"


class Unloaded(InstanceFault):
    http_status = 503
    kind = "unloaded"
    source = "modeld"


# --- the rest ---------------------------------------------------------------------------------------------------------


class DeadlineExceeded(ModeldError):
    http_status = 504
    kind = "deadline_exceeded"


class ClientGone(ModeldError):
    """The client left. 499 appears in metrics and logs only."""

    http_status = 499
    kind = "client_gone"


class ConfigError(ModeldError):
    """One line naming source, key, value and the nearest valid key. Exit code 2."""

    kind = "config_error"


class InvariantError(ModeldError):
    """Our own bug. Its text carries the story of what it happened to."""

    kind = "invariant"
