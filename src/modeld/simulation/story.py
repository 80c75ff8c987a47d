# SPDX-License-Identifier: GPL-3.0-only
"""A workload with its faults, as JSON and back; rule: what is written here replays exactly."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from modeld.simulation.faults import NO_FAULTS, Faults
from modeld.simulation.workload import Workload


@dataclass(frozen=True, slots=True)
class Story:
    """All that a run depends on."""

    seed: int
    workload: Workload
    faults: Faults = NO_FAULTS


def as_json(story: Story) -> str:
    """Fields with their default are left out; an infinite number is the word "inf"."""
    return msgspec.json.format(msgspec.json.encode(_plain(story)), indent=1).decode()


def from_json(text: str | bytes) -> Story:
    """Raises msgspec.ValidationError when it is not a story."""
    return msgspec.convert(msgspec.json.decode(text), Story, strict=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {field.name: _plain(held) for field, held in fields if not _is_default(field, held)}
    if isinstance(value, dict):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(held) for held in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _is_default(field: dataclasses.Field[Any], held: object) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(field.default == held)
    return field.default_factory is not dataclasses.MISSING and bool(field.default_factory() == held)
