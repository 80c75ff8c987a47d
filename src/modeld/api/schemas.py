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
N_MAX = 128

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


# Numbers in a range, or null. Fractions pass where whole numbers are meant: what else is wrong with one the engine says.
Tokens = Annotated[float, Meta(ge=-2, le=INT32_MAX)] | None
"""A number of tokens. llama.cpp's -1 is "until the model ends", -2 "until the context is full"."""
Count = Annotated[float, Meta(ge=0, le=INT32_MAX)] | None
Some = Annotated[float, Meta(ge=1, le=INT32_MAX)] | None
Answers = Annotated[float, Meta(ge=1, le=N_MAX)] | None
Switch = Annotated[float, Meta(ge=-1, le=INT32_MAX)] | None
"""A number whose -1 means "all" or "off"."""
Share = Annotated[float, Meta(ge=0, le=1)] | None
Positive = Annotated[float, Meta(ge=0, le=PENALTY_MAX)] | None
Penalty = Annotated[float, Meta(ge=-PENALTY_MAX, le=PENALTY_MAX)] | None
MirostatVersion = Annotated[float, Meta(ge=0, le=2)] | None


class EngineBody(Struct):
    """What is read of a body that goes to the model server unchanged: its name, whether it streams, and the numbers whose range is known.

    Everything else passes unread. The ranges keep out what no caller can mean and what has harmed builds of llama.cpp that people run: a
    negative `n_discard` wrote outside of a buffer (CVE-2026-21869). Names and meanings: llama.cpp's tools/server/README.md.
    """

    model: str | None = None
    stream: bool | None = None
    max_tokens: Tokens = None
    max_completion_tokens: Tokens = None
    max_output_tokens: Tokens = None
    n_predict: Tokens = None
    n_discard: Count = None
    n_keep: Switch = None
    n_indent: Count = None
    n_probs: Count = None
    n_cache_reuse: Count = None
    n: Answers = None
    n_cmpl: Answers = None
    min_keep: Count = None
    top_logprobs: Count = None
    top_n: Count = None
    top_k: Switch = None
    id_slot: Switch = None
    temperature: Positive = None
    dynatemp_range: Positive = None
    top_p: Share = None
    min_p: Share = None
    typical_p: Share = None
    xtc_probability: Share = None
    xtc_threshold: Share = None
    repeat_last_n: Switch = None
    repeat_penalty: Positive = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    dry_multiplier: Positive = None
    dry_base: Positive = None
    dry_allowed_length: Count = None
    dry_penalty_last_n: Switch = None
    mirostat: MirostatVersion = None
    mirostat_tau: Positive = None
    mirostat_eta: Positive = None
    dimensions: Some = None
    t_max_predict_ms: Switch = None
    t_max_prompt_ms: Switch = None


class MessagesBody(EngineBody, kw_only=True):
    """The same of Anthropic's messages. Without them llama.cpp answers nonsense, or says that it failed."""

    messages: list[dict[str, Raw]]


# --- out --------------------------------------------------------------------------------------------------------------


class Model(Struct, omit_defaults=True):
    """One model on disk. `unavailable` is there only when it cannot be served, and says why; `aliases` only when it has some.

    `footprint_mb` is what it holds, or would take, MiB; absent where it cannot be served.
    """

    id: str
    name: str
    path: str
    quant: str
    family: str
    unavailable: str | UnsetType = UNSET
    aliases: list[str] | UnsetType = UNSET
    footprint_mb: int | UnsetType = UNSET


class Models(Struct):
    models: list[Model]


class PartStatus(Struct):
    """One part of what was predicted. `bytes` is negative where less was measured than the others say; `on_host`: beside the device."""

    name: str
    bytes: int
    source: str
    on_host: bool


class InstanceStatus(Struct):
    """One running model. `last_used_unix` is seconds; `queue_len` counts the requests waiting for this model.

    `closed_for` is the model for which it takes nothing new, or "". `devices_mb` says which device holds how much of it. `pinned`: it is
    never evicted.

    `predicted_bytes` is what was reserved for it, `source` where that comes from (declared, learned, probed, formula), `parts` the sum;
    null and empty for what failed. `measured_bytes` is the most it was seen to take, null until it was. `ctx` is the context it was started
    with, `degraded` what was given up to make it fit ("llama_ctx 8192 -> 4096").
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
    pinned: bool
    parts: list[PartStatus]
    source: str | None
    predicted_bytes: int | None
    measured_bytes: int | None
    ctx: int | None
    degraded: list[str]


class ModelState(Struct):
    """What an operator's verb came to.

    `state` is that of the model's instance (loading, ready, draining, stopping, failed), or `unloaded` when it has none, or `waiting` when
    it is to be loaded and waits for its check or for room. `instance_id` is null without an instance.
    """

    model_id: str
    state: str
    pinned: bool
    instance_id: str | None


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
    """What instances hold of one device. `budget_mb` 0 = unlimited.

    `total_mb` is what it has, 0 = not known; `foreign_mb` what other programs hold of it for good; `room_mb` what may be used now and
    `free_mb` what of that is left, null = unlimited. `used_mb` is the sum of `reserved_mb` (loads), `committed_mb` and `releasing_mb`.
    """

    id: str
    budget_mb: int
    used_mb: int
    total_mb: int
    room_mb: int | None
    free_mb: int | None
    reserved_mb: int
    committed_mb: int
    releasing_mb: int
    foreign_mb: int


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
    out_of_memory_total: int
    grown_total: int
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
    """The last line of `/infer` when it failed after the first byte. `source` says who failed: "modeld" or "model"."""

    done: Literal[True]
    error: str
    code: int
    kind: str
    source: str


class Fault(Struct):
    """An error: text, HTTP status, the word that stays the same over versions, and who failed: "modeld" or "model"."""

    error: str
    code: int
    kind: str
    source: str


class OpenAIFaultBody(Struct):
    """`source` says who failed: "modeld" or "model"."""

    message: str
    type: str
    param: str | None
    code: str
    source: str


class OpenAIFault(Struct):
    error: OpenAIFaultBody


class LlamaFaultBody(Struct):
    """llama.cpp's own shape, with two members more: `kind`, the word that stays the same over versions, and `source`."""

    code: int
    message: str
    type: str
    kind: str
    source: str


class LlamaFault(Struct):
    error: LlamaFaultBody


class AnthropicFaultBody(Struct):
    """`type` is Anthropic's word, `code` ours, `source` who failed."""

    type: str
    message: str
    code: str
    source: str


class AnthropicFault(Struct):
    error: AnthropicFaultBody
    type: str = "error"


class ModelMeta(Struct):
    """What clients may want to know before they choose a model.

    n_ctx        tokens over all slots, as it is or would be loaded; n_ctx_train what it was trained for, 0 = unknown
    slots        requests it serves at the same time
    kind         generate (writes text), embed or rerank
    modalities   text, image, audio: what it takes
    parameters   how many it has, 0 = unknown
    state        of its instance: loading, ready, draining, stopping, failed, or "unloaded"
    footprint_mb what it holds, or would take, MiB
    """

    n_ctx: int
    n_ctx_train: int
    slots: int
    kind: str
    modalities: list[str]
    parameters: int
    state: str
    footprint_mb: int
    quant: str
    family: str
    size_bytes: int


class OpenAIModel(Struct):
    """`aliases` are further names it answers to."""

    id: str
    created: int
    meta: ModelMeta
    aliases: list[str]
    object: str = "model"
    owned_by: str = "modeld"


class OpenAIModels(Struct):
    data: list[OpenAIModel]
    object: str = "list"


# --- reading and writing ----------------------------------------------------------------------------------------------

T = TypeVar("T")

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<field>[^`]*)`)?$", re.DOTALL)
_encoder = msgspec.json.Encoder()
_TYPES = re.compile(r"`(\w+)`")
_WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "object": "an object", "array": "a list"}
"""msgspec's words for types, in ours."""


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
        what = _TYPES.sub(lambda found: _WORDS.get(found[1], found[0]), what.replace(" | null", ""))
        raise BadRequest(f"{field}: {what}" if field else what) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = "it is not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise BadRequest(f"the body is not valid JSON: {what}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def fault(error: ModeldError) -> Fault:
    """What a client may know of an error."""
    return Fault(shown(error), error.http_status, error.kind, error.source)


def openai_fault(error: ModeldError) -> OpenAIFault:
    """The same in OpenAI's shape."""
    param = "model" if error.kind in ("unknown_model", "no_model_named") else None
    return OpenAIFault(OpenAIFaultBody(shown(error), openai_type(error), param, error.kind, error.source))


def shown(error: ModeldError) -> str:
    """The text for clients: an error of our own making tells its story to the log only."""
    return OUR_FAULT if isinstance(error, InvariantError) or error.http_status == 500 else error.message


def retry_after(error: ModeldError) -> int | None:
    """Seconds for Retry-After, None for no such header. 429 and 503 always carry one."""
    if error.retry_after_seconds is not None:
        return max(error.retry_after_seconds, RETRY_SECONDS)
    return RETRY_SECONDS if error.http_status in (429, 503) else None


def openai_type(error: ModeldError) -> str:
    """OpenAI's word for this sort of error, which llama.cpp uses too."""
    if isinstance(error, Forbidden):
        return "permission_error"
    if error.http_status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if error.http_status < 500 else "server_error"
