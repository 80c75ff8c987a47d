# SPDX-License-Identifier: GPL-3.0-only
"""Reads a settings file; rule: YAML, JSON and TOML give the same plain values, and what is ambiguous is an error with its place.

YAML is read by the rules of its version 1.2: only true and false are booleans, so that `on`, `no` and `12:30` stay text. Duplicate keys are
errors in all three formats. A file is at most 1 MiB.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

FILE_BYTES_MAX = 1 << 20
NODES_MAX = 100_000
EXTENSIONS = (".yaml", ".yml", ".toml", ".json")


class Unreadable(Exception):
    """The file is no settings file; the text says why, with line and column where there are any."""


class _Duplicate(ValueError):
    """A JSON object holds the same key twice."""


def read(path: Path) -> dict[str, Any]:
    """The file's settings, not yet checked; an empty file holds none. Raises Unreadable."""
    if path.suffix.lower() not in EXTENSIONS:
        raise Unreadable("its name must end in .yaml, .yml, .toml or .json")
    try:
        if not path.is_file():
            raise Unreadable("is not a file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    if len(data) > FILE_BYTES_MAX:
        raise Unreadable("is larger than 1 MiB, which no settings file is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 text: byte {error.start} is wrong") from None
    try:
        content = {".toml": _toml, ".json": _json}.get(path.suffix.lower(), _yaml)(text)
    except RecursionError:
        raise Unreadable("is nested too deeply") from None
    if not isinstance(content, dict):
        raise Unreadable("does not hold settings: write one `key: value` a line" if _is_yaml(path) else "does not hold a table of settings")
    return content


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml")


def _toml(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise Unreadable(f"is not valid TOML: {one_line(str(error))}") from None


def _json(text: str) -> Any:
    if not text.strip():
        return {}

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise _Duplicate(f"key {json.dumps(key)} stands there twice")
            found[key] = value
        return found

    def no_constant(name: str) -> Any:
        raise _Duplicate(f"{name} is not a value")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise Unreadable(f"is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except _Duplicate as error:
        raise Unreadable(str(error)) from None
    except ValueError as error:
        raise Unreadable(f"is not valid JSON: {one_line(str(error))}") from None


# --- YAML -------------------------------------------------------------------------------------------------------------

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_BASED = re.compile(r"0(?:o[0-7]{1,20}|x[0-9a-fA-F]{1,15})")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")


def _yaml(text: str) -> Any:
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return {} if node is None else _Nodes().value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = "; a value such as [::1]:8080 stands in quotes" if "[" in text and "]:" in text else ""
        raise Unreadable(f"is not valid YAML: {where}{one_line(error.problem or error.context or 'cannot be read')}{hint}") from None
    except yaml.YAMLError as error:
        raise Unreadable(f"is not valid YAML: {one_line(str(error))}") from None


class _Nodes:
    """Turns YAML's nodes into plain values; counts them, so that nested aliases cannot blow up."""

    def __init__(self) -> None:
        self.count = 0
        self.open: set[int] = set()

    def value(self, node: yaml.Node) -> Any:
        import yaml

        self.count += 1
        if self.count > NODES_MAX:
            raise Unreadable("holds too many values")
        if isinstance(node, yaml.ScalarNode):
            self._untagged(node, "str")
            return _scalar(node.value) if node.style is None else node.value
        if id(node) in self.open:
            raise Unreadable(f"contains itself at {_at(node)}")
        self.open.add(id(node))
        result = self._list(node) if isinstance(node, yaml.SequenceNode) else self._mapping(node)
        self.open.discard(id(node))
        return result

    def _list(self, node: yaml.Node) -> list[Any]:
        self._untagged(node, "seq")
        return [self.value(item) for item in node.value]

    def _mapping(self, node: yaml.Node) -> dict[str, Any]:
        self._untagged(node, "map")
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node.value, str):
                raise Unreadable(f"a key must be text: {_at(key_node)}")
            key = key_node.value
            if key in found:
                raise Unreadable(f"key {json.dumps(key)} stands there twice: {_at(key_node)}")
            found[key] = self.value(value_node)
        return found

    def _untagged(self, node: yaml.Node, usual: str) -> None:
        if node.tag not in (f"tag:yaml.org,2002:{usual}", "!"):
            raise Unreadable(f"tags such as {one_line(str(node.tag))[:40]} are not read: {_at(node)}")


def _at(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def _scalar(text: str) -> str | int | float | bool | None:
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def one_line(text: str) -> str:
    """The text without line breaks and control characters, at most 200 characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:200]
