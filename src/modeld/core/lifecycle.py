# SPDX-License-Identifier: GPL-3.0-only
"""The states of an instance and the one table that moves between them; rule: a pair that is not in the table is our bug."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from modeld.errors import InvariantError


class State(StrEnum):
    """Where an instance is between StartInstance and MemoryFreed."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    GONE = "gone"


class Signal(StrEnum):
    """What moves an instance: decisions (drain, resume, stop) and reports (the rest)."""

    BECAME_READY = "became_ready"
    LOAD_FAILED = "load_failed"
    DRAIN = "drain"
    RESUME = "resume"
    STOP = "stop"
    EXITED = "exited"
    FREED = "freed"


TRANSITIONS: Final[Mapping[tuple[State, Signal], State]] = MappingProxyType(
    {
        (State.LOADING, Signal.BECAME_READY): State.READY,
        (State.LOADING, Signal.LOAD_FAILED): State.FAILED,
        (State.LOADING, Signal.STOP): State.STOPPING,
        (State.LOADING, Signal.EXITED): State.FAILED,
        (State.READY, Signal.DRAIN): State.DRAINING,
        (State.READY, Signal.STOP): State.STOPPING,
        (State.READY, Signal.EXITED): State.FAILED,
        (State.DRAINING, Signal.DRAIN): State.DRAINING,
        (State.DRAINING, Signal.RESUME): State.READY,
        (State.DRAINING, Signal.STOP): State.STOPPING,
        (State.DRAINING, Signal.EXITED): State.FAILED,
        # Reports that were on their way when the stop was decided.
        (State.STOPPING, Signal.BECAME_READY): State.STOPPING,
        (State.STOPPING, Signal.LOAD_FAILED): State.STOPPING,
        (State.STOPPING, Signal.EXITED): State.STOPPING,
        (State.STOPPING, Signal.FREED): State.GONE,
        # The child of a failed load is reaped after the failure was reported, or before.
        (State.FAILED, Signal.LOAD_FAILED): State.FAILED,
        (State.FAILED, Signal.EXITED): State.FAILED,
        (State.FAILED, Signal.FREED): State.GONE,
    }
)

HOLDS_MEMORY: Final = frozenset({State.LOADING, State.READY, State.DRAINING, State.STOPPING, State.FAILED})
"""States in which the ledger still counts the instance: all but gone."""


def advance(state: State, signal: Signal, *, story: str = "") -> State:
    """The next state. Raises InvariantError, with `story` in its text, when the pair is not in the table."""
    following = TRANSITIONS.get((state, signal))
    if following is None:
        raise InvariantError(f"an instance that is {state} cannot take {signal}{': ' + story if story else ''}")
    return following


def as_markdown() -> str:
    """The table as Markdown: rows are states, columns signals. docs/states.md is made of it."""
    signals = list(Signal)
    states = [state for state in State if state is not State.GONE]
    lines = ["| state | " + " | ".join(signals) + " |", "| --- |" + " --- |" * len(signals)]
    for state in states:
        cells = [TRANSITIONS.get((state, signal)) for signal in signals]
        lines.append(f"| **{state}** | " + " | ".join(str(cell) if cell else "·" for cell in cells) + " |")
    return "\n".join(lines) + "\n"
