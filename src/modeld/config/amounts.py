# SPDX-License-Identifier: GPL-3.0-only
"""What the settings about memory may look like beside plain numbers; rule: as values.py has it, a value is accepted whole or refused.

`vram_budget_mb: CUDA0=20000,CUDA1=8000` (in a file a mapping too), `llama_ctx: max` or `max:32768`, `degrade: [ctx, kv_type]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeVar

from modeld.config.values import Context, Kind, Unacceptable, integer, listing, nearest, quoted

E = TypeVar("E", bound=StrEnum)

DEVICES_MAX: Final = 64
_DEVICE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:\[\]-]{0,99}", re.ASCII)
_PAIRS: Final = r"^ *[A-Za-z][A-Za-z0-9_.:\[\]-]* *= *[0-9]+ *(?:, *[A-Za-z][A-Za-z0-9_.:\[\]-]* *= *[0-9]+ *)*$"
_MAX: Final = re.compile(r"max(?:\s*:\s*(\d{1,9}))?", re.ASCII | re.IGNORECASE)

Amount = int | Mapping[str, int]
"""MiB, of all devices together or of each by llama.cpp's name."""


@dataclass(frozen=True, slots=True)
class CtxMax:
    """The most context that fits; `cap` is the most tokens of it, 0 = what the model was trained for."""

    cap: int = 0

    def __str__(self) -> str:
        return f"max:{self.cap}" if self.cap else "max"


def amount_per_device(minimum: int, maximum: int) -> Kind[Amount]:
    """A whole number of MiB, or one for each device that is named."""
    one = integer(minimum, maximum, "MiB")

    def parse(raw: object, ctx: Context) -> Amount:
        if isinstance(raw, str) and "=" in raw:
            return _pairs([part.partition("=")[::2] for part in raw.split(",")], Context(ctx.environ, ctx.base, text=True))
        if isinstance(raw, Mapping):
            return _pairs(list(raw.items()), ctx)
        return one.parse(raw, ctx)

    def _pairs(pairs: list[tuple[str, object]], ctx: Context) -> Amount:
        found: dict[str, int] = {}
        for name, amount in pairs:
            name = str(name).strip()
            if not _DEVICE.fullmatch(name):
                raise Unacceptable(f"holds {quoted(name)}, which is not a device; write CUDA0=20000,CUDA1=8000")
            if name in found:
                raise Unacceptable(f"names {name} twice")
            try:
                found[name] = one.parse(amount, ctx)
            except Unacceptable as error:
                raise Unacceptable(f"holds {quoted(amount)} for {name}, which {error}") from None
        if not 0 < len(found) <= DEVICES_MAX:
            raise Unacceptable("names no device" if not found else f"names more than {DEVICES_MAX} devices")
        return MappingProxyType(found)

    number = dict(one.schema)
    schema = {
        "anyOf": [
            number,
            {"type": "string", "pattern": _PAIRS},
            {"type": "object", "additionalProperties": number},
        ]
    }
    return Kind("integer or NAME=integer", parse, schema, show_amount)


def show_amount(value: Amount) -> str:
    """As a flag takes it."""
    return str(value) if isinstance(value, int) else ",".join(f"{name}={mb}" for name, mb in value.items())


def context_length(minimum: int, maximum: int) -> Kind[int | CtxMax]:
    """Tokens, or `max`, or `max:N` for at most N of them."""
    number = integer(minimum, maximum, "tokens")

    def parse(raw: object, ctx: Context) -> int | CtxMax:
        if isinstance(raw, str) and (found := _MAX.fullmatch(raw.strip())):
            if found[1] is None:
                return CtxMax()
            return CtxMax(number.parse(int(found[1]), ctx))
        try:
            return number.parse(raw, ctx)
        except Unacceptable as error:
            raise Unacceptable(f'{error}, "max" or "max:N"') from None

    schema = {"anyOf": [dict(number.schema), {"type": "string", "pattern": "^[mM][aA][xX](?: *: *[0-9]{1,9})?$"}]}
    return Kind("integer or max", parse, schema)


def steps(options: type[E]) -> Kind[tuple[E, ...]]:
    """Words of the enum in an order, each at most once; `none` is none of them."""
    words = tuple(option.value for option in options)
    texts = listing()

    def parse(raw: object, ctx: Context) -> tuple[E, ...]:
        given = () if raw is None else tuple(text.lower() for text in texts.parse(raw, ctx))
        if given == ("none",):
            return ()
        for text in given:
            if text not in words:
                raise Unacceptable(f"holds {quoted(text)}, which is not one of {', '.join(words)}{nearest(text, words)}")
        if len(set(given)) < len(given):
            raise Unacceptable("names the same step twice")
        return tuple(options(text) for text in given)

    schema = {"anyOf": [{"enum": ["none", None]}, {"type": "array", "items": {"type": "string", "enum": list(words)}}]}

    def show(value: tuple[E, ...]) -> str:
        return json.dumps([step.value for step in value])

    return Kind("list", parse, schema, show, is_list=True)
