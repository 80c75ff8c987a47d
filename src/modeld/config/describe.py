# SPDX-License-Identifier: GPL-3.0-only
"""Tells people and editors about the settings; rule: everything comes from the table, and a secret is never printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modeld.config.declaration import Setting
from modeld.config.load import SECRET_SHOWN, Loaded, Source
from modeld.config.settings import GROUPS, MODEL_TABLE, TABLE
from modeld.config.values import Context

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def effective(loaded: Loaded) -> Iterator[tuple[str, Setting, Any, Source]]:
    """(key, declaration, value, source) of every setting, then of each key said of a model (`models.ID.KEY`)."""
    for key, declared in TABLE.items():
        yield key, declared, getattr(loaded.settings, key), loaded.source(key)
    for name, entry in loaded.settings.models.items():
        for key, declared in MODEL_TABLE.items():
            full = f"models.{name}.{key}"
            if full in loaded.sources:
                yield full, declared, getattr(entry, key), loaded.source(full)


def shown(declared: Setting, value: Any) -> str:
    """The value as text that the same setting takes back; secrets are masked."""
    if value is not None and declared.secret:
        return SECRET_SHOWN
    return declared.kind.show(value)


def show_text(loaded: Loaded) -> str:
    """The table that `config show` prints."""
    rows = [(key, shown(declared, value), source.short(key)) for key, declared, value, source in effective(loaded)]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    wide[1] = min(wide[1], 48)
    lines = [f"{key:<{wide[0]}}  {value:<{wide[1]}}  {source}" for key, value, source in rows]
    return "\n".join([f"# file: {loaded.file or 'none'}", *lines]) + "\n"


def show_data(loaded: Loaded) -> dict[str, Any]:
    """The same for programs: {"file", "settings": {key: {"value", "source", "name"}}}. Values are as a JSON file would hold them."""
    settings = {
        key: {"value": _plain(declared, value), "source": source.kind, "name": source.name or None}
        for key, declared, value, source in effective(loaded)
    }
    return {"file": str(loaded.file) if loaded.file else None, "settings": settings}


def _plain(declared: Setting, value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(item) if isinstance(item, Path) else item for item in value]
    if isinstance(value, (bool, int)) and not isinstance(value, str):
        return value
    return shown(declared, value)


# --- for editors ------------------------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of a settings file."""
    models = {
        "type": ["object", "null"],
        "description": "Settings of single models, by id (the file's name, with or without .gguf).",
        "default": {},
        "additionalProperties": {
            "type": ["object", "null"],
            "properties": {key: _property(declared) for key, declared in MODEL_TABLE.items()},
            "additionalProperties": False,
        },
    }
    return {
        "$schema": SCHEMA_DIALECT,
        "title": "modeld settings",
        "description": "Each key can be a flag (--vram-budget-mb) or a variable (MODELD_VRAM_BUDGET_MB); models is for files only.",
        "type": "object",
        "properties": {**{key: _property(declared) for key, declared in TABLE.items()}, "models": models},
        "additionalProperties": False,
    }


def _property(declared: Setting) -> dict[str, Any]:
    default = declared.shown or declared.default
    text = f"{declared.help} (flag {declared.flag}, variable {declared.env})" if declared.key in TABLE else declared.help
    return {**_copy(declared.kind.schema), "description": text, "default": list(default) if isinstance(default, tuple) else default}


def _copy(schema_part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: [_copy(item) if isinstance(item, Mapping) else item for item in value] if isinstance(value, list) else value
        for key, value in schema_part.items()
    }


# --- for people -------------------------------------------------------------------------------------------------------


def reference() -> str:
    """Markdown tables of every setting, for the README."""
    out = []
    for group in GROUPS:
        out += [f"### {group}", "", "| key | default | meaning |", "| --- | --- | --- |"]
        out += [_row(declared) for declared in TABLE.values() if declared.group == group]
        out.append("")
    own = [declared for declared in MODEL_TABLE.values() if declared.key not in TABLE]
    both = ", ".join(f"`{key}`" for key in MODEL_TABLE if key in TABLE)
    out += ["### One model (`models`, in a file only)", "", "| key | default | meaning |", "| --- | --- | --- |"]
    out += [_row(declared) for declared in own]
    out += [f"| {both} | as for all | the same settings, for this model alone |", ""]
    return "\n".join(out)


def _row(declared: Setting) -> str:
    text = declared.help.replace("|", "\\|").replace("*.gguf", "`*.gguf`")
    return f"| `{declared.key}` | `{default_text(declared)}` | {text} |"


def default_text(declared: Setting) -> str:
    """The default as the docs and --help write it."""
    return declared.shown or shown(declared, declared.default_value(Context({}, Path("/"), text=False)))
