# SPDX-License-Identifier: GPL-3.0-only
"""What a setting is, as declared; rule: a declaration says everything about its key but where the value came from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from modeld.config import values as v

T = TypeVar("T")
Default = object | Callable[[Mapping[str, str]], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """One declaration. `default` is what a user would write, or a function of the environment; `shown` is its text in the docs."""

    key: str
    kind: v.Kind[Any]
    default: Default
    group: str
    help: str
    shown: str = ""
    per_model: bool = False
    secret: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def env(self) -> str:
        return "MODELD_" + self.key.upper()

    def default_value(self, ctx: v.Context) -> Any:
        """The default in the given environment. Our own defaults always parse."""
        raw = self.default(ctx.environ) if callable(self.default) else self.default
        return self.kind.parse(raw, ctx)

    @property
    def default_text(self) -> str:
        """The default as the docs write it."""
        if self.shown:
            return self.shown
        return self.kind.show(self.kind.parse(self.default, v.Context({}, Path("/"), text=False)))


def setting(
    kind: v.Kind[T], default: Default, group: str, text: str, *, shown: str = "", per_model: bool = False, secret: bool = False
) -> T:
    """A dataclass field that carries its declaration."""
    declared = Setting("", kind, default, group, text, shown, per_model, secret)

    def make() -> T:
        parsed: T = declared.default_value(v.Context(os.environ, Path.cwd(), text=False))
        return parsed

    return field(default_factory=make, repr=not secret, metadata={"declared": declared})
