# SPDX-License-Identifier: GPL-3.0-only
"""What Ollama's clients send, and the same in llama.cpp's words; rule: checked here once, and what is not known passes over in silence.

1. /api/chat is llama.cpp's /v1/chat/completions.
2. /api/generate is that with one message of the user; `raw`, or a model without a chat template, makes it /completion; `suffix` makes it
   /infill. `template` and `context` are Ollama's own business: they are taken and not used.
3. No prompt, or no messages: the model is to be loaded, and nothing generated; with `keep_alive` 0, to be unloaded.

`options` that say how a model is loaded (num_ctx, num_gpu, …) change nothing: the operator's settings do, and a request must not reload a
model for everybody else. The model server is always asked to stream, also when the client wants one object: it notices at each token that
nobody listens any more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from modeld.api.schemas import INT32_MAX, PENALTY_MAX, SEED_MAX, STOP_CHARACTERS_MAX, STOPS_MAX, StopString, decode, encode
from modeld.core.model import ModelId
from modeld.errors import BadRequest

TOP_LOGPROBS_MAX: Final = 20
DIMENSIONS_MAX: Final = 1 << 16

CHAT_PATH: Final = "/v1/chat/completions"
COMPLETION_PATH: Final = "/completion"
INFILL_PATH: Final = "/infill"
EMBEDDINGS_PATH: Final = "/v1/embeddings"

KeepAlive = Annotated[float | str | None, Meta(description="How long the model stays after this: seconds or 5m; below 0 = for good.")]
Name = Annotated[str | None, Meta(description="Any name of the model; default: the daemon's default_model.")]
Options = Annotated[dict[str, Any] | None, Meta(description="Sampling, by Ollama's names; load-time options are ignored.")]
Images = Annotated[list[str] | None, Meta(description="Pictures in base64.")]
Think = bool | str | None

# --- the bodies -------------------------------------------------------------------------------------------------------


class OllamaFunction(Struct):
    """A call of a tool. `arguments` is an object; a text that holds one is taken too."""

    name: str
    arguments: Raw = msgspec.field(default_factory=Raw)


class OllamaToolCall(Struct):
    function: OllamaFunction
    id: str | None = None


class OllamaTurn(Struct):
    """One message of a chat. `tool_name`: of which tool a message of role `tool` is the result."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: Images = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None


class OllamaChatBody(Struct):
    """`POST /api/chat`."""

    model: Name = None
    messages: list[OllamaTurn] | None = None
    tools: list[dict[str, Any]] | None = None
    stream: bool | None = None
    format: Annotated[str | dict[str, Any] | None, Meta(description='"json", or a JSON schema that the answer is to follow.')] = None
    options: Options = None
    think: Think = None
    keep_alive: KeepAlive = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None


class OllamaGenerateBody(Struct):
    """`POST /api/generate`."""

    model: Name = None
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    images: Images = None
    raw: bool | None = None
    stream: bool | None = None
    format: Annotated[str | dict[str, Any] | None, Meta(description='"json", or a JSON schema that the answer is to follow.')] = None
    options: Options = None
    think: Think = None
    keep_alive: KeepAlive = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None


class OllamaEmbedBody(Struct):
    """`POST /api/embed`. `truncate` is taken and not used: what is too long for the model is refused by it."""

    model: Name = None
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1, le=DIMENSIONS_MAX)] | None = None
    options: Options = None
    keep_alive: KeepAlive = None


class OllamaEmbeddingsBody(Struct):
    """`POST /api/embeddings`, the older form: one text."""

    model: Name = None
    prompt: str | None = None
    options: Options = None
    keep_alive: KeepAlive = None


class OllamaShowBody(Struct):
    """`POST /api/show`. Older clients say `name`."""

    model: Name = None
    name: Name = None
    verbose: bool | None = None


_chats: Final = msgspec.json.Decoder(OllamaChatBody)
_generates: Final = msgspec.json.Decoder(OllamaGenerateBody)
_embeds: Final = msgspec.json.Decoder(OllamaEmbedBody)
_old_embeds: Final = msgspec.json.Decoder(OllamaEmbeddingsBody)
_shows: Final = msgspec.json.Decoder(OllamaShowBody)

# --- what is made of them ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in llama.cpp's words.

    members       of the body for the model server, all but the model; None = there is nothing to generate
    plain         the same for a model without chat template; None where `members` will do
    path          where they go to
    streams       whether the client wants the answer as it comes
    tokens        most tokens it wants, None = it did not say
    keep_seconds  how long the model is to stay afterwards: +inf = for good, None = it did not say
    dimensions    to how many numbers an embedding is to be cut
    """

    model: str | None
    members: Mapping[str, Any] | None
    path: str = CHAT_PATH
    plain: Mapping[str, Any] | None = None
    streams: bool = True
    tokens: int | None = None
    keep_seconds: float | None = None
    dimensions: int | None = None

    def body(self, model: ModelId, *, has_template: bool = True) -> tuple[str, bytes]:
        """Path and body for the model server. `has_template`: whether the model has a chat template."""
        path, members = (self.path, self.members) if has_template or self.plain is None else (COMPLETION_PATH, self.plain)
        return path, encode({"model": model, **(members or {})})


def chat(raw: bytes) -> Asked:
    """`POST /api/chat`. Raises BadRequest naming what is wrong."""
    body = decode(_chats, raw)
    sampling, tokens = _sampling(body.options)
    keep = keep_seconds(body.keep_alive)
    streams = body.stream is not False
    if not body.messages:
        return Asked(body.model, None, streams=streams, keep_seconds=keep)
    members = _chat_members(_messages(body.messages), body) | sampling
    if body.tools:
        members["tools"] = body.tools
    return Asked(body.model, members, streams=streams, tokens=tokens, keep_seconds=keep)


def generate(raw: bytes) -> Asked:
    """`POST /api/generate`. Raises BadRequest naming what is wrong."""
    body = decode(_generates, raw)
    sampling, tokens = _sampling(body.options)
    keep = keep_seconds(body.keep_alive)
    streams = body.stream is not False
    prompt = body.prompt or ""
    if not prompt and not body.images and not body.suffix:
        return Asked(body.model, None, streams=streams, keep_seconds=keep)
    if body.suffix:
        members = _plain_members(body) | {"input_prefix": prompt, "input_suffix": body.suffix, "prompt": ""} | sampling
        return Asked(body.model, members, INFILL_PATH, streams=streams, tokens=tokens, keep_seconds=keep)
    if body.raw:
        if body.images:
            raise BadRequest("images: a raw prompt has no place for pictures; leave out raw")
        members = _plain_members(body) | {"prompt": prompt} | sampling
        return Asked(body.model, members, COMPLETION_PATH, streams=streams, tokens=tokens, keep_seconds=keep)
    system = [{"role": "system", "content": body.system}] if body.system else []
    members = _chat_members([*system, {"role": "user", "content": _content(prompt, body.images)}], body) | sampling
    plain = None
    if not body.images:
        plain = _plain_members(body) | {"prompt": f"{body.system}\n\n{prompt}" if body.system else prompt} | sampling
    return Asked(body.model, members, plain=plain, streams=streams, tokens=tokens, keep_seconds=keep)


def embed(raw: bytes) -> Asked:
    """`POST /api/embed`. Raises BadRequest naming what is wrong."""
    body = decode(_embeds, raw)
    return _embedding(body.model, body.input, body, body.dimensions)


def embeddings(raw: bytes) -> Asked:
    """`POST /api/embeddings`. Raises BadRequest naming what is wrong."""
    body = decode(_old_embeds, raw)
    return _embedding(body.model, body.prompt, body, None)


def show(raw: bytes) -> str | None:
    """`POST /api/show`: the name that is asked for."""
    body = decode(_shows, raw)
    return body.model or body.name


def _embedding(
    model: str | None, texts: str | list[str] | None, body: OllamaEmbedBody | OllamaEmbeddingsBody, dimensions: int | None
) -> Asked:
    _sampling(body.options)
    members = {"input": texts, "encoding_format": "float"} if texts else None
    keep = keep_seconds(body.keep_alive)
    return Asked(model, members, EMBEDDINGS_PATH, streams=False, tokens=0, keep_seconds=keep, dimensions=dimensions)


# --- keep_alive -------------------------------------------------------------------------------------------------------

_PART: Final = re.compile(r"(\d{1,15}(?:\.\d{0,9})?|\.\d{1,9})(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_BARE: Final = re.compile(r"\d{1,15}(?:\.\d{0,9})?", re.ASCII)
_UNIT_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_MAX: Final = 64


def keep_seconds(given: float | str | None) -> float | None:
    """`keep_alive` in seconds: a number, or a text in Go's notation (`1h30m`); below 0 = +inf. Raises BadRequest for anything else."""
    if given is None or given == "":
        return None
    if isinstance(given, str):
        sign, text = (-1.0, given[1:]) if given.startswith("-") else (1.0, given.removeprefix("+"))
        seconds = sign * _duration(text)
    else:
        seconds = float(given)
    return math.inf if seconds < 0 else seconds


def _duration(text: str) -> float:
    if len(text) <= _DURATION_MAX:
        if _BARE.fullmatch(text):
            return float(text)
        parts = list(_PART.finditer(text))
        if parts and "".join(part[0] for part in parts) == text:
            return sum(float(part[1]) * _UNIT_SECONDS[part[2]] for part in parts)
    raise BadRequest("keep_alive: write seconds (300) or a duration such as 5m or 1h30m; -1 is for good")


# --- options ----------------------------------------------------------------------------------------------------------


class _Rule(NamedTuple):
    """What is taken of one option: llama.cpp's name for it, and what it may be."""

    name: str
    least: float
    most: float
    whole: bool = False


_RULES: Final = {
    "num_predict": _Rule("n_predict", -2, INT32_MAX, whole=True),
    "num_keep": _Rule("n_keep", -1, INT32_MAX, whole=True),
    "seed": _Rule("seed", -1, SEED_MAX, whole=True),
    "temperature": _Rule("temperature", 0, PENALTY_MAX),
    "top_k": _Rule("top_k", -1, INT32_MAX, whole=True),
    "top_p": _Rule("top_p", 0, 1),
    "min_p": _Rule("min_p", 0, 1),
    "typical_p": _Rule("typical_p", 0, 1),
    "repeat_last_n": _Rule("repeat_last_n", -1, INT32_MAX, whole=True),
    "repeat_penalty": _Rule("repeat_penalty", 0, PENALTY_MAX),
    "presence_penalty": _Rule("presence_penalty", -PENALTY_MAX, PENALTY_MAX),
    "frequency_penalty": _Rule("frequency_penalty", -PENALTY_MAX, PENALTY_MAX),
    "mirostat": _Rule("mirostat", 0, 2, whole=True),
    "mirostat_tau": _Rule("mirostat_tau", 0, PENALTY_MAX),
    "mirostat_eta": _Rule("mirostat_eta", 0, PENALTY_MAX),
}
"""Names and meanings from Ollama's `docs/modelfile.md` and `docs/api.md`, and from llama.cpp's `tools/server/README.md`."""


def _sampling(options: Mapping[str, Any] | None) -> tuple[dict[str, Any], int | None]:
    """llama.cpp's members for the options, and the token limit. Raises BadRequest for a known one that is out of range."""
    given = options or {}
    members: dict[str, Any] = {}
    for option, rule in _RULES.items():
        value = given.get(option)
        if value is not None:
            members[rule.name] = _number(option, value, rule)
    limit = members.pop("n_predict", None)
    if limit is not None and limit > 0:  # 0, -1 and -2 all mean "until the model ends or the context is full"
        members["n_predict"] = limit
    else:
        limit = None
    if members.get("top_k") == -1:
        members["top_k"] = 0  # llama.cpp's "all of them"
    stop = given.get("stop")
    if stop:
        members["stop"] = _stop(stop)
    return members, limit


def _number(option: str, value: Any, rule: _Rule) -> float:
    what = "a whole number" if rule.whole else "a number"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not rule.least <= value <= rule.most or (rule.whole and value != int(value)):
        raise BadRequest(f"options.{option}: it must be {what} from {rule.least:g} to {rule.most:.10g}")
    return int(value) if rule.whole else value


def _stop(given: Any) -> list[str]:
    try:
        stop = msgspec.convert(given, StopString | Annotated[list[StopString], Meta(max_length=STOPS_MAX)])
    except msgspec.ValidationError:
        raise BadRequest(f"options.stop: it must be a list of at most {STOPS_MAX} texts of 1 to {STOP_CHARACTERS_MAX} characters") from None
    return [stop] if isinstance(stop, str) else list(stop)


# --- chat -------------------------------------------------------------------------------------------------------------

# Without this the last event of a completion would echo the prompt and all settings.
_LAST_EVENT_FIELDS: Final = [
    "content",
    "stop",
    "stop_type",
    "tokens_predicted",
    "tokens_evaluated",
    "timings",
    "completion_probabilities",
]
_ANY_OBJECT: Final = {"type": "object"}
_MEDIA: Final = (("/9j/", "jpeg"), ("iVBOR", "png"), ("R0lGOD", "gif"), ("UklGR", "webp"), ("Qk", "bmp"))
"""How the base64 of each kind of picture begins: JPEG, PNG, GIF, RIFF (WebP), BMP by their magic numbers."""


def _chat_members(messages: list[dict[str, Any]], body: OllamaChatBody | OllamaGenerateBody) -> dict[str, Any]:
    """Of a chat completion, all but sampling and tools."""
    members: dict[str, Any] = {
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": True,
    }
    schema = _schema(body.format)
    if schema is not None:
        members["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    if body.think is not None:
        members["chat_template_kwargs"] = _thinking(body.think)
    if body.logprobs:
        members |= {"logprobs": True, "top_logprobs": body.top_logprobs or 1}
    return members


def _plain_members(body: OllamaGenerateBody) -> dict[str, Any]:
    """Of a completion without chat template, all but prompt and sampling."""
    members: dict[str, Any] = {"stream": True, "cache_prompt": True, "response_fields": _LAST_EVENT_FIELDS}
    schema = _schema(body.format)
    if schema is not None:
        members["json_schema"] = schema
    if body.logprobs:
        members["n_probs"] = body.top_logprobs or 1
    return members


def _schema(given: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(given, dict):
        return given or _ANY_OBJECT
    if not given:
        return None
    if given != "json":
        raise BadRequest('format: it must be "json" or a JSON schema')
    return _ANY_OBJECT


def _thinking(think: bool | str) -> dict[str, Any]:
    """For the chat template. A text is a level (low, medium, high): models that know levels have them under a name of their own."""
    if isinstance(think, bool):
        return {"enable_thinking": think}
    if not think or len(think) > _DURATION_MAX:
        raise BadRequest('think: it must be true, false, "low", "medium" or "high"')
    return {"enable_thinking": True, "reasoning_effort": think}


def _messages(turns: list[OllamaTurn]) -> list[dict[str, Any]]:
    """OpenAI's form of the messages.

    A result names its call there, in Ollama only the tool: the ids of calls are made here where there are none, and a result takes the
    first call of its tool, or of any where it names none, that has no result yet.
    """
    messages = []
    calls = 0
    open_calls: list[tuple[str, str]] = []  # id, name
    for at, turn in enumerate(turns):
        message: dict[str, Any] = {"role": turn.role, "content": _content(turn.content or "", turn.images)}
        if turn.thinking:
            message["reasoning_content"] = turn.thinking
        if turn.tool_calls:
            made = []
            for call in turn.tool_calls:
                calls += 1
                key = call.id or f"call_{calls}"
                function = {"name": call.function.name, "arguments": _arguments(call.function.arguments, at)}
                made.append({"id": key, "type": "function", "function": function})
                open_calls.append((key, call.function.name))
            message["tool_calls"] = made
        if turn.role == "tool":
            _name_call(message, turn, open_calls)
        messages.append(message)
    return messages


def _name_call(message: dict[str, Any], turn: OllamaTurn, open_calls: list[tuple[str, str]]) -> None:
    """Put into a result which call it is of."""
    tool = turn.tool_name or turn.name
    answered = next((call for call in open_calls if turn.tool_call_id in (None, call[0]) and tool in (None, call[1])), None)
    if answered is not None:
        open_calls.remove(answered)
    if key := turn.tool_call_id or (answered[0] if answered else None):
        message["tool_call_id"] = key
    if tool or answered:
        message["name"] = tool or (answered[1] if answered else "")


def _content(text: str, images: list[str] | None) -> str | list[dict[str, Any]]:
    if not images:
        return text
    pictures = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    return [{"type": "text", "text": text}, *pictures]


def _data_url(image: str) -> str:
    if image.startswith("data:"):
        return image
    if not image or image.startswith(("http:", "https:")):
        raise BadRequest("images: a picture must be given in base64")
    kind = next((kind for start, kind in _MEDIA if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{image}"


def _arguments(raw: Raw, at: int) -> str:
    """The arguments of a call as a text that holds a JSON object."""
    given = bytes(raw) or b"{}"
    if given.startswith(b'"'):
        given = msgspec.json.decode(given, type=str).encode()
    if not given.lstrip().startswith(b"{"):
        raise BadRequest(f"messages[{at}].tool_calls: arguments must be an object")
    return given.decode()
