# SPDX-License-Identifier: GPL-3.0-only
"""Which route a path means; rule: exact paths first, then those with `{names}`, in the order of the table.

A `{name}` is one segment, percent-decoded; written at the end as `{rest}` it is all that follows, as it came. The path itself is never
decoded: `%2e%2e` and `%2f` cannot make it mean another route.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from modeld.api.dialects import dialect_of
from modeld.api.route import Dialect, Route
from modeld.errors import InvariantError

_NAME: Final = re.compile(r"\{([a-z]+)\}")


@dataclass(frozen=True, slots=True)
class Match:
    """The routes of one path, by method; none when the path is unknown. `path` is theirs, for labels, or ""."""

    asked: str
    path: str = ""
    methods: Mapping[str, Route] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)

    def dialect(self, method: str) -> Dialect:
        """Whose shapes an answer to this path has."""
        route = self.methods.get(method) or next(iter(self.methods.values()), None)
        return dialect_of(self.asked) if route is None else route.dialect


class RouteTable:
    """The table, indexed. Raises InvariantError for two routes of the same method and path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        patterns: dict[str, dict[str, Route]] = {}
        for route in routes:
            methods = (patterns if "{" in route.path else self._exact).setdefault(route.path, {})
            if route.method in methods:
                raise InvariantError(f"two routes for {route.method} {route.path}")
            methods[route.method] = route
        self._patterns = [(re.compile(_pattern(path)), path, methods) for path, methods in patterns.items()]
        self.paths = (*self._exact, *patterns)

    def match(self, asked: str) -> Match:
        """The routes of a raw path."""
        methods = self._exact.get(asked)
        if methods is not None:
            return Match(asked, asked, methods)
        for pattern, path, methods in self._patterns:
            if (found := pattern.fullmatch(asked)) is not None:
                values = {name: text if name == "rest" else unquote(text, errors="replace") for name, text in found.groupdict().items()}
                return Match(asked, path, methods, values)
        return Match(asked)


def _pattern(path: str) -> str:
    pieces = _NAME.split(path)
    return "".join(_part(piece) if index % 2 else re.escape(piece) for index, piece in enumerate(pieces))


def _part(name: str) -> str:
    return f"(?P<{name}>.*)" if name == "rest" else f"(?P<{name}>[^/]+)"
