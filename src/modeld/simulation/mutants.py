# SPDX-License-Identifier: GPL-3.0-only
"""Bugs to be planted in core, as source replacements; rule: each is an edit somebody could really make, and applies exactly once.

A mutation whose text is not found exactly once is an error: it has silently stopped to prove anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Misplaced(Exception):
    """A mutation does not apply to the source as it is now."""


class Judge(StrEnum):
    """Who is to catch a bug: the world with its faults, or loads at the edge of the budget."""

    WORLD = "world"
    SQUEEZE = "squeeze"


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` becomes `new` in `file` of core. `means` says what the bug is; `peer` names the project and thread where it was published."""

    name: str
    file: str
    old: str
    new: str
    means: str
    peer: str = ""
    judge: Judge = Judge.WORLD

    @property
    def module(self) -> str:
        """The module it is planted in."""
        return "modeld.core." + self.file.removesuffix(".py")

    def planted(self, source: str) -> str:
        """`source` with the bug in it. Raises Misplaced."""
        found = source.count(self.old)
        if found != 1 or self.old == self.new:
            raise Misplaced(f"{self.name}: its text is found {found} times in core/{self.file}, it must be there once")
        return source.replace(self.old, self.new)
