# SPDX-License-Identifier: GPL-3.0-only
"""What has changed since somebody last asked, as data; rule: noted where the book books it, bounded, never read by a decision."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modeld.core.lifecycle import State
from modeld.core.model import InstanceId, ModelId
from modeld.errors import ModeldError

CHANGES_MAX: Final = 1024
"""So many are kept for whoever takes them; when nobody does, the oldest go."""
PROGRESS_STEP: Final = 0.01
"""A load is told of each time it has moved by so much."""


@dataclass(frozen=True, slots=True)
class InstanceMoved:
    """An instance is in `state` from now on. `why` is a word or a sentence, "" where nothing is to be said; `error` what it failed with.

    A launch that was rejected never became an instance: it is told as `0/<model>`, failed.
    """

    model: ModelId
    instance: InstanceId
    state: State
    why: str = ""
    error: ModeldError | None = None


@dataclass(frozen=True, slots=True)
class LoadMoved:
    """`fraction` of the weights is loaded, 0..1."""

    model: ModelId
    instance: InstanceId
    fraction: float


@dataclass(frozen=True, slots=True)
class LineMoved:
    """So many wait for the model."""

    model: ModelId
    length: int


@dataclass(frozen=True, slots=True)
class PinMoved:
    """The model is pinned from now on, or no longer."""

    model: ModelId
    pinned: bool


@dataclass(frozen=True, slots=True)
class WishDropped:
    """The load that somebody asked for without a request will not happen, and why not."""

    model: ModelId
    error: ModeldError


@dataclass(frozen=True, slots=True)
class TableMoved:
    """The catalogue was replaced: so many models."""

    models: int


Change = InstanceMoved | LoadMoved | LineMoved | PinMoved | WishDropped | TableMoved


class Changes:
    """Collects them. Of lines it is only noted that they moved: what they came to is looked up when the changes are taken, so that a
    request which comes and is granted in one step costs nothing and tells nothing.
    """

    __slots__ = ("_kept", "_told", "lines")

    def __init__(self) -> None:
        self.lines: dict[ModelId, None] = {}
        """Models whose line moved."""
        self._kept: deque[Change] = deque(maxlen=CHANGES_MAX)
        self._told: dict[ModelId, int] = {}
        """The lengths that were told last; no zeros."""

    def note(self, change: Change) -> None:
        self._kept.append(change)

    def take(self, length: Callable[[ModelId], int]) -> list[Change]:
        """All that came since the last call, oldest first, then the lines whose length is another one now."""
        if not self._kept and not self.lines:
            return []
        taken = list(self._kept)
        self._kept.clear()
        moved, self.lines = self.lines, {}
        for model in moved:
            now, told = length(model), self._told.get(model, 0)
            if now != told:
                taken.append(LineMoved(model, now))
                if now:
                    self._told[model] = now
                else:
                    del self._told[model]
        return taken
