# SPDX-License-Identifier: GPL-3.0-only
"""The JSON that enters and leaves; rule: parsed and checked here once, nothing behind it validates again.

Bodies are msgspec structs: `true` is not a number, numbers are in range, unknown keys are ignored (clients send them).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from modeld.errors import BadRequest, Forbidden, InvariantError, ModeldError

INT32_MAX = 2**31 - 1
SEED_MAX = 2**32 - 1
STOPS_MAX = 16
STOP_CHARACTERS_MAX = 1024
PENALTY_MAX = 1e6

OUR_FAULT = "modeld made a mistake; the log of the daemon says more under this request's id"
RETRY_SECONDS = 1
"""Retry-After where an answer must carry one and the error names no time."""

StopString = Annotated[str, Meta(min_length=1, max_length=STOP_CHARACTERS_MAX)]

# --- in ---------------------------------------------------------------------------------------------------------------


class InferBody(Struct):
    """`POST /infer`: a raw completion, no chat template."""

    prompt: Annotated[str, Meta(min_length=1, description="The text to continue; not only white space.")]
    model: Annotated[str | None, Meta(description="Id, id without .gguf, or alias; default: the daemon's default_model.")] = None
    stream: Annotated[bool | None, Meta(description="false gives one JSON object instead of lines. Default true.")] = None
    max_tokens: Annotated[int, Meta(ge=1, le=INT32_MAX)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=PENALTY_MAX)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=STOPS_MAX)] | None = None
    seed: Annotated[int, Meta(ge=-1, le=SEED_MAX, description="-1 = a random one.")] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=PENALTY_MAX)] | None = None
    ignore_eos: bool | None = None


class OpenAIBody(Struct):
    """What is read of a body under /v1; everything goes to the model server unchanged.

    `n_discard` is read only because a negative one has corrupted memory in builds of llama.cpp that people run. The token limits are
    read for an estimate, in whatever shape they come: whether they are any good is for the model server to say.
    """

    model: str | None = None
    stream: bool | None = None
    n_discard: Annotated[int, Meta(ge=0)] | None = None
    max_tokens: Raw = msgspec.field(default_factory=Raw)
    max_completion_tokens: Raw = msgspec.field(default_factory=Raw)
    n_predict: Raw = msgspec.field(default_factory=Raw)


# --- out --------------------------------------------------------------------------------------------------------------


class Model(Struct, omit_defaults=True):
    """One model on disk. `unavailable` is there only when it cannot be served, and says why; `aliases` only when it has some."""

    id: str
    name: str
    path: str
    quant: str
    family: str
    unavailable: str | UnsetType = UNSET
    aliases: list[str] | UnsetType = UNSET


class Models(Struct):
    models: list[Model]


class InstanceStatus(Struct):
    """One running model. `last_used_unix` is seconds; `queue_len` counts the requests waiting for this model.

    `closed_for` is the model for which it takes nothing new, or "". `devices_mb` says which device holds how much of it.
    """

    model_id: str
    state: str
    last_used_unix: int
    est_vram_mb: int
    queue_len: int
    inflight: int
    max_queue_depth: int
    pid: int | None
    closed_for: str
    devices_mb: dict[str, int]


class QueueStatus(Struct):
    """The line of a model, whether or not an instance of it runs.

    `by_class` counts who waits, classes without anybody left out. `due_in_seconds`: until room is made for the model although others are
    busy; 0 = it is due, null = it has its instance. `estimate_seconds`: what a request that came now would wait.
    """

    model_id: str
    length: int
    oldest_wait_seconds: float
    by_class: dict[str, int]
    due_in_seconds: float | None
    estimate_seconds: float


class WaitStatus(Struct):
    """One waiting request. `request_id` is the client's X-Request-Id and a number; `position` counts from 1 within the line."""

    request_id: str
    model_id: str
    principal: str
    priority: str
    position: int
    waited_seconds: float
    estimate_seconds: float
    why: str


class DeviceStatus(Struct):
    """What instances hold of one device. `budget_mb` 0 = unlimited."""

    id: str
    budget_mb: int
    used_mb: int


class ExitStatus(Struct):
    """How an instance ended. `code` is the exit code, negative = the signal, null = no process."""

    model_id: str
    unix: int
    code: int | None
    reason: str
    log_tail: list[str]


class EngineStatus(Struct):
    adapter: str
    build: str
    devices: list[str]
    warning: str


class Status(Struct, omit_defaults=True):
    """The daemon at one moment. MB means MiB; 0 = unlimited for budget_mb. `why` and `waiting` are there with `?explain=1` only."""

    instances: list[InstanceStatus]
    budget_mb: int
    used_est_mb: int
    margin_mb: int
    uptime_seconds: int
    server_time_unix: int
    evictions_total: int
    loads_total: int
    state: str
    warmups_in_progress: int
    draining_count: int
    queues: list[QueueStatus]
    exits: list[ExitStatus]
    exposure: str
    devices: list[DeviceStatus]
    fairness_closings_total: int
    preemptions_total: int
    requeued_total: int
    stuck_total: int
    engine: EngineStatus | UnsetType = UNSET
    error: str | UnsetType = UNSET
    last_error: str | UnsetType = UNSET
    why: dict[str, str] | UnsetType = UNSET
    waiting: list[WaitStatus] | UnsetType = UNSET


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Token(Struct):
    """A line of `/infer` while it runs."""

    token: str


class Done(Struct):
    """The last line of `/infer`. `finish_reason` is "stop" or "length"."""

    done: Literal[True]
    content: str
    finish_reason: str
    usage: Usage


class Failed(Struct):
    """The last line of `/infer` when it failed after the first byte."""

    done: Literal[True]
    error: str
    code: int
    kind: str


class Fault(Struct):
    """An error: text, HTTP status, and the word that stays the same over versions."""

    error: str
    code: int
    kind: str


class OpenAIFaultBody(Struct):
    """`source` says who failed: "modeld" or "model"."""

    message: str
    type: str
    param: str | None
    code: str
    source: str


class OpenAIFault(Struct):
    error: OpenAIFaultBody


class OpenAIModel(Struct):
    id: str
    created: int
    object: str = "model"
    owned_by: str = "modeld"


class OpenAIModels(Struct):
    data: list[OpenAIModel]
    object: str = "list"


# --- reading and writing ----------------------------------------------------------------------------------------------

T = TypeVar("T")

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<field>[^`]*)`)?$", re.DOTALL)
_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """One JSON text in UTF-8, without a line end."""
    return _encoder.encode(value)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Parse and check a body. Raises BadRequest naming the field; also for nesting too deep and for text that is not Unicode."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        match = _AT.match(str(error))
        what, field = (match["what"], match["field"]) if match else (str(error), None)
        what = what.replace(" | null", "")
        raise BadRequest(f"{field}: {what}" if field else what) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = "it is not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise BadRequest(f"the body is not valid JSON: {what}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def fault(error: ModeldError) -> Fault:
    """What a client may know of an error."""
    return Fault(shown(error), error.http_status, error.kind)


def openai_fault(error: ModeldError) -> OpenAIFault:
    """The same in OpenAI's shape."""
    param = "model" if error.kind in ("unknown_model", "no_model_named") else None
    return OpenAIFault(OpenAIFaultBody(shown(error), _openai_type(error), param, error.kind, error.source))


def shown(error: ModeldError) -> str:
    """The text for clients: an error of our own making tells its story to the log only."""
    return OUR_FAULT if isinstance(error, InvariantError) or error.http_status == 500 else error.message


def retry_after(error: ModeldError) -> int | None:
    """Seconds for Retry-After, None for no such header. 429 and 503 always carry one."""
    if error.retry_after_seconds is not None:
        return max(error.retry_after_seconds, RETRY_SECONDS)
    return RETRY_SECONDS if error.http_status in (429, 503) else None


def _openai_type(error: ModeldError) -> str:
    if isinstance(error, Forbidden):
        return "permission_error"
    if error.http_status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if error.http_status < 500 else "server_error"
