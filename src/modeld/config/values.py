# SPDX-License-Identifier: GPL-3.0-only
"""What a setting's value may look like; rule: one `Kind` parses, prints and describes, and a value is accepted whole or refused.

Text (flags, environment) and typed values (files) go through the same parser; `Context.text` says which it is. Every size is binary:
`64M`, `64MB` and `64MiB` are the same 64 * 2**20 bytes.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

UNIX_PATH_BYTES_MAX = 107
"""sockaddr_un.sun_path is 108 bytes with its closing NUL."""
DURATION_SECONDS_MAX = 365 * 86400.0
SECRET_BYTES_MAX = 4096

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(?:i?B)?|B)?", re.ASCII | re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})", re.ASCII)
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_SCALE = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Unacceptable(ValueError):
    """The value does not fit; the text continues a sentence that begins with the value."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where a value came from. `base` is the folder relative paths start at; `text` is True for flags and environment."""

    environ: Mapping[str, str]
    base: Path
    text: bool


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One type of value. `parse` raises Unacceptable; `show` gives text that `parse` takes back; `schema` is JSON Schema."""

    name: str
    parse: Callable[[object, Context], T]
    schema: Mapping[str, Any]
    show: Callable[[T], str] = str
    choices: tuple[str, ...] = ()
    is_bool: bool = False
    is_list: bool = False
    is_path: bool = False


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen: TCP (`host` "" = every interface, `port` 0 = any free one) or, when `unix_path` is set, a Unix socket."""

    host: str = ""
    port: int = 0
    unix_path: str | None = None

    def __str__(self) -> str:
        if self.unix_path is not None:
            return f"unix:{self.unix_path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def quoted(value: object) -> str:
    """The value as an error message shows it: one line, control characters escaped, at most 200 characters (a path must stay readable)."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)) and not all(isinstance(item, (str, int, float)) for item in value):
        return "a list"
    text = json.dumps(list(value) if isinstance(value, tuple) else value, default=str)
    return text if len(text) <= 200 else text[:197] + "..."


def nearest(word: str, known: list[str] | tuple[str, ...], mark: str = '"') -> str:
    """`; did you mean "x"?`, or nothing when no known word is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {mark}{close[0]}{mark}?" if close else ""


# --- numbers, sizes, durations ----------------------------------------------------------------------------------------


def integer(minimum: int, maximum: int, unit: str = "") -> Kind[int]:
    """A whole number within bounds, both included."""
    what = f"a whole number{' of ' + unit if unit else ''} from {minimum} to {maximum}"

    def parse(raw: object, ctx: Context) -> int:
        if ctx.text and isinstance(raw, str) and re.fullmatch(r"[+-]?\d{1,19}", raw.strip(), re.ASCII):
            raw = int(raw)
        if isinstance(raw, str) and not ctx.text and raw.strip().lstrip("-").isdigit():
            raise Unacceptable(f"is text where {what} belongs; write it without quotes")
        if isinstance(raw, bool) or not isinstance(raw, int) or not minimum <= raw <= maximum:
            raise Unacceptable(f"is not {what}")
        return raw

    return Kind("integer", parse, {"type": "integer", "minimum": minimum, "maximum": maximum})


def size_bytes(minimum: int, maximum: int) -> Kind[int]:
    """Bytes: a whole number, or a number with K, M, G or T (also KB, KiB, …), all binary."""

    def parse(raw: object, ctx: Context) -> int:
        if isinstance(raw, str) and len(raw) <= 24 and (found := _SIZE.fullmatch(raw.strip())):
            raw = int(found[1]) * (_SCALE[found[2].upper()] if found[2] else 1)
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise Unacceptable("is not a size; write bytes as a whole number, or 64MiB, 512K, 2G (all binary)")
        if not minimum <= raw <= maximum:
            raise Unacceptable(f"is out of range; {show_bytes(minimum)} to {show_bytes(maximum)}")
        return raw

    pattern = "^[0-9]+ *(?:[KMGTkmgt](?:[iI]?[bB])?|[bB])?$"
    schema = {"anyOf": [{"type": "integer", "minimum": minimum, "maximum": maximum}, {"type": "string", "pattern": pattern}]}
    return Kind("size", parse, schema, show_bytes)


def show_bytes(value: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= scale and value % scale == 0:
            return f"{value // scale}{unit}"
    return str(value)


def duration(*, zero: bool, minimum: float = 0.0) -> Kind[float]:
    """Seconds: a number, or text such as 250ms, 30s, 5m, 1h30m, 2d. `zero` says whether 0 is a value."""

    def parse(raw: object, ctx: Context) -> float:
        seconds = _seconds(raw)
        least = "0s is the least" if zero else f"{show_duration(minimum)} is the least" if minimum else "it must be above 0"
        if _is_negative(raw):
            raise Unacceptable(f"is negative; {least}")
        if seconds is None or not math.isfinite(seconds):
            raise Unacceptable("is not a duration; write 250ms, 30s, 5m, 1h30m, or a number of seconds")
        if seconds == 0 and not zero:
            raise Unacceptable("is too short; this duration must be above 0")
        if (seconds or not zero) and not minimum <= seconds <= DURATION_SECONDS_MAX:
            raise Unacceptable(f"is out of range; {show_duration(minimum)} to 365d")
        return seconds

    text = "^(?=[0-9])(?:[0-9]+d)?(?:[0-9]+h)?(?:[0-9]+m(?!s))?(?:[0-9]+(?:[.][0-9]+)?s?)?(?:[0-9]+ms)?$"
    number: dict[str, Any] = {"type": "number", "minimum": minimum} if zero or minimum else {"type": "number", "exclusiveMinimum": 0}
    return Kind("duration", parse, {"anyOf": [number, {"type": "string", "pattern": text}]}, show_duration)


def _is_negative(raw: object) -> bool:
    """A duration, but for its sign."""
    if isinstance(raw, str) and raw.strip().startswith("-"):
        return _seconds(raw.strip()[1:]) is not None
    return isinstance(raw, (int, float)) and raw < 0


def _seconds(raw: object) -> float | None:
    if isinstance(raw, bool):
        return None
    if isinstance(raw, (int, float)):
        return float(raw) if abs(raw) < 1e15 else None
    text = raw.strip() if isinstance(raw, str) else ""
    if not text or len(text) > 40:
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    found = _DURATION.fullmatch(text)
    if not found:
        return None
    parts = [float(part or 0) for part in found.groups()]
    return sum(part * unit for part, unit in zip(parts, (86400, 3600, 60, 1, 0.001), strict=True))


def show_duration(seconds: float) -> str:
    if seconds and seconds % 1:
        ms = round(seconds * 1000)
        return f"{ms}ms" if math.isclose(ms / 1000, seconds) and seconds < 10 else f"{seconds:g}s"
    out, rest = "", int(seconds)
    for unit, scale in (("d", 86400), ("h", 3600), ("m", 60)):
        if rest >= scale:
            out += f"{rest // scale}{unit}"
            rest %= scale
    return out + (f"{rest}s" if rest or not out else "")


# --- words ------------------------------------------------------------------------------------------------------------


def _parse_bool(raw: object, ctx: Context) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower() if isinstance(raw, (str, int)) else ""
    if word not in _WORDS:
        raise Unacceptable("is neither true nor false (also yes/no, on/off, 1/0)")
    return _WORDS[word]


BOOLEAN: Kind[bool] = Kind("boolean", _parse_bool, {"type": "boolean"}, lambda value: "true" if value else "false", is_bool=True)


def choice(options: type[E]) -> Kind[E]:
    """One of the enum's values, upper or lower case."""
    words = tuple(option.value for option in options)

    def parse(raw: object, ctx: Context) -> E:
        if isinstance(raw, bool) and "on" in words:  # a file's plain true/false for on/off
            raw = "on" if raw else "off"
        word = raw.strip().lower() if isinstance(raw, str) else ""
        if word not in words:
            raise Unacceptable(f"is not one of {', '.join(words)}{nearest(word, words)}")
        return options(word)

    return Kind("choice", parse, {"type": "string", "enum": list(words)}, lambda value: value.value, words)


def or_none(kind: Kind[T], word: str) -> Kind[T | None]:
    """The kind, or None by the given word (`auto`, `none`, `off`) or an empty value in a file."""
    choices = tuple(dict.fromkeys((word, *kind.choices))) if kind.choices else ()

    def parse(raw: object, ctx: Context) -> T | None:
        if raw is None or (isinstance(raw, str) and raw.strip().lower() == word) or (raw is False and word == "off"):
            return None  # a file's plain false is off
        try:
            return kind.parse(raw, ctx)
        except Unacceptable as error:
            if kind.choices:
                raise Unacceptable(f"is not one of {', '.join(choices)}{nearest(str(raw).strip().lower(), choices)}") from None
            raise Unacceptable(f'{error} (or "{word}")') from None

    schema = {"anyOf": [{"enum": [word, None]}, dict(kind.schema)]}

    def show(value: T | None) -> str:
        return word if value is None else kind.show(value)

    return Kind(f"{kind.name} or {word}", parse, schema, show, choices, kind.is_bool, kind.is_list, kind.is_path)


def _parse_text(raw: object, ctx: Context) -> str:
    if not isinstance(raw, str) or not raw.strip() or len(raw) > 4096 or any(ord(char) < 32 or ord(char) == 127 for char in raw):
        raise Unacceptable("is not a line of text")
    return raw.strip()


TEXT: Kind[str] = Kind("text", _parse_text, {"type": "string", "minLength": 1})


def listing(check: Callable[[str], str] | None = None) -> Kind[tuple[str, ...]]:
    """A list of text: a list in a file; comma separated, repeated, or a JSON list where only text can be given."""

    def parse(raw: object, ctx: Context) -> tuple[str, ...]:
        given = list(raw) if isinstance(raw, (list, tuple)) else [raw]
        items = [item for part in given for item in (_split(part) if ctx.text or not isinstance(raw, (list, tuple)) else [part])]
        if any(isinstance(item, bool) or not isinstance(item, (str, int, float)) for item in items) or len(items) > 1000:
            raise Unacceptable("is not a list of text")
        texts = tuple(_parse_text(str(item), ctx) for item in items)
        return tuple(check(text) for text in texts) if check else texts

    return Kind("list", parse, {"type": "array", "items": {"type": "string"}}, lambda value: json.dumps(list(value)), is_list=True)


def _split(part: object) -> list[Any]:
    if not isinstance(part, str):
        return [part]
    if part.lstrip().startswith("["):
        try:
            return list(json.loads(part))
        except (ValueError, RecursionError):
            if '"' in part:  # without quotes it is something else in brackets, such as [::1]
                raise Unacceptable("begins like a JSON list, but is none") from None
    return [item.strip() for item in part.split(",") if item.strip()]


def host_name(text: str) -> str:
    """A host for comparison: lower case, without port and brackets. Refuses URLs and wildcards."""
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:]+))(?::\d{1,5})?", text, re.ASCII)
    host = (found[1] or found[2] if found else text).lower()
    if found and found[1] and not _is_ipv6(host):
        host = ""
    if not _HOST.fullmatch(host) and not _is_ipv6(host):
        raise Unacceptable(f"holds {quoted(text)}, which is not a host name; write names like box.lan, without scheme, path or *")
    return host


def http_token(text: str) -> str:
    """A method or header name."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", text):
        raise Unacceptable(f"holds {quoted(text)}, which is not a method or header name")
    return text


def origin(text: str) -> str:
    """`*`, or scheme://host[:port] in lower case, as browsers send it."""
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", text.lower()):
        raise Unacceptable(f"holds {quoted(text)}, which is not an origin; write https://app.example, with no path, or *")
    return text.lower()


# --- places -----------------------------------------------------------------------------------------------------------


def expand(text: str, ctx: Context) -> Path:
    """An absolute path: `~` is the home folder of `environ`, anything relative starts at the context's base."""
    home = ctx.environ.get("HOME", "")
    if text == "~" or text.startswith("~/"):
        text = home + text[1:] if home else str(Path(text).expanduser())
    elif text.startswith("~"):
        try:
            text = str(Path(text).expanduser())
        except RuntimeError:
            raise Unacceptable("names a home folder that does not exist") from None
    return Path(os.path.normpath(ctx.base / text))


def _parse_path(raw: object, ctx: Context) -> Path:
    return expand(_parse_text(raw, ctx), ctx)


PATH: Kind[Path] = Kind("path", _parse_path, {"type": "string", "minLength": 1}, is_path=True)


def _parse_paths(raw: object, ctx: Context) -> tuple[Path, ...]:
    return tuple(expand(text, ctx) for text in listing().parse(raw, ctx))


PATHS: Kind[tuple[Path, ...]] = Kind(
    "list",
    _parse_paths,
    {"type": "array", "items": {"type": "string", "minLength": 1}},
    lambda value: json.dumps([str(path) for path in value]),
    is_list=True,
)


def _parse_program(raw: object, ctx: Context) -> Path:
    text = _parse_text(raw, ctx)
    if "/" in text or text.startswith("~"):
        return expand(text, ctx)
    import shutil

    found = shutil.which(text, path=ctx.environ.get("PATH", os.defpath))
    if found is None:
        raise Unacceptable("is not a program on PATH; write its full path")
    return Path(found)


PROGRAM: Kind[Path] = Kind("program", _parse_program, {"type": "string", "minLength": 1}, is_path=True)


def _parse_address(raw: object, ctx: Context) -> ListenAddress:
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    text = _parse_text(raw, ctx)
    if text.startswith("unix:"):
        if text == "unix:":
            raise Unacceptable("names no socket; write unix:/run/modeld/api.sock")
        path = str(expand(text[5:], ctx))
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            raise Unacceptable(f"is too long for a Unix socket; at most {UNIX_PATH_BYTES_MAX} bytes")
        return ListenAddress(unix_path=path)
    host, colon, port = text.rpartition(":")
    if not colon and text.isdigit():
        port = text
    if not port.isdecimal() or not port.isascii() or int(port[:6]) > 65535:
        raise Unacceptable("is not an address; write :8080, 127.0.0.1:8080, [::1]:8080, a.name:8080 or unix:PATH")
    if host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1]):
        return ListenAddress(host[1:-1], int(port))
    if ":" in host:
        raise Unacceptable("is not an address; an IPv6 address stands in brackets: [::1]:8080")
    if host and not _HOST.fullmatch(host):
        raise Unacceptable("is not an address; write :8080, 127.0.0.1:8080, [::1]:8080, a.name:8080 or unix:PATH")
    return ListenAddress(host, int(port))


ADDRESS: Kind[ListenAddress] = Kind("address", _parse_address, {"anyOf": [{"type": "string"}, {"type": "integer", "maximum": 65535}]})


def _is_ipv6(text: str) -> bool:
    import socket

    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def _parse_url(raw: object, ctx: Context) -> str:
    from urllib.parse import urlsplit

    text = _parse_text(raw, ctx)
    try:
        parts = urlsplit(text)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if wrong or " " in text:
        raise Unacceptable("is not a URL of a server; write http://127.0.0.1:8081 or https://gpu.lan")
    if parts.username is not None or parts.query or parts.fragment:
        raise Unacceptable("holds more than scheme, host, port and path; a key belongs into llama_api_key")
    return text.rstrip("/")


URL: Kind[str] = Kind("URL", _parse_url, {"type": "string", "pattern": "^https?://"})


def _parse_secret(raw: object, ctx: Context) -> str:
    """The key itself, or `@FILE` for the first line of a file."""
    text = raw.strip() if isinstance(raw, str) else ""
    if text.startswith("@"):
        try:
            with expand(text[1:], ctx).open("rb") as file:
                text = file.read(SECRET_BYTES_MAX).decode("ascii", "replace").partition("\n")[0].strip()
        except OSError as error:
            raise Unacceptable(f"names a file that cannot be read: {error.strerror}") from None
    if not text or not re.fullmatch(r"[\x21-\x7e]{1,1000}", text):
        raise Unacceptable("is not a key; one word of printable ASCII, or @FILE whose first line holds it")
    return text


SECRET: Kind[str] = Kind("secret", _parse_secret, {"type": "string", "minLength": 1})
