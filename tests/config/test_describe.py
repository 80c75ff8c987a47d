# SPDX-License-Identifier: GPL-3.0-only
"""config show, the schema for editors and the reference table, all made from the one table."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from modeld.config import SETTINGS, Loaded, describe, files, load
from modeld.config.settings import GROUPS, MODEL_TABLE, TABLE

ROOT = Path(__file__).resolve().parents[2]
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def wrong(schema: dict[str, Any], value: Any, where: str = "$") -> list[str]:
    """What a JSON Schema validator would say; the keywords that our schema uses, and an error for any other."""
    known = {
        "$schema",
        "title",
        "description",
        "default",
        "type",
        "enum",
        "anyOf",
        "properties",
        "additionalProperties",
        "items",
        "pattern",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "minLength",
    }
    assert set(schema) <= known, set(schema) - known
    if "anyOf" in schema:
        return [] if any(not wrong(part, value, where) for part in schema["anyOf"]) else [f"{where}: fits none"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: not in enum"]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds):
        return [f"{where}: not {kinds}"]
    if isinstance(value, str):
        found = [f"{where}: pattern"] if not re.search(schema.get("pattern", ""), value) else []
        return found + ([f"{where}: short"] if len(value) < schema.get("minLength", 0) else [])
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        too_low = value < schema.get("minimum", value) or value <= schema.get("exclusiveMinimum", value - 1)
        return [f"{where}: range"] if too_low or value > schema.get("maximum", value) else []
    if isinstance(value, list):
        return [error for item in value for error in wrong(schema.get("items", {}), item, f"{where}[]")]
    if isinstance(value, dict):
        found = []
        for key, item in value.items():
            part = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            found += [f"{where}.{key}: unknown"] if part is False else wrong(part, item, f"{where}.{key}")
        return found
    return []


def given(tmp_path: Path, flags: dict[str, str] | None = None, env: dict[str, str] | None = None, **content: Any) -> Loaded:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    return load(flags, {"HOME": str(tmp_path), **(env or {})}, config=str(path))


def test_the_schema_knows_every_key_and_no_other() -> None:
    schema = describe.schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == {*TABLE, "models"}
    assert schema["additionalProperties"] is False
    model = schema["properties"]["models"]["additionalProperties"]
    assert set(model["properties"]) == set(MODEL_TABLE)
    assert model["additionalProperties"] is False
    for part in (*schema["properties"].values(), *model["properties"].values()):
        assert part["description"]
        assert "default" in part
    json.dumps(schema)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").iterdir()), ids=lambda path: path.name)
def test_the_examples_fit_the_schema(path: Path) -> None:
    assert wrong(describe.schema(), files.read(path)) == []


def test_every_default_fits_its_own_schema() -> None:
    text = re.sub(r"^#(?=[a-z_]+ = |\[)", "", (ROOT / "configs" / "full.toml").read_text(), flags=re.MULTILINE)
    assert wrong(describe.schema(), tomllib.loads(text)) == []
    schema = describe.schema()["properties"]
    assert {key: error for key in TABLE if (error := wrong(schema[key], schema[key]["default"]))} == {}


@pytest.mark.parametrize(
    "content",
    [
        {"vram_budgt_mb": 5},
        {"vram_budget_mb": "5"},
        {"vram_budget_mb": -1},
        {"max_wait": "soon"},
        {"max_wait": 0},
        {"adapter": "x"},
        {"allow_remote": "maybe"},
        {"allowed_hosts": [1]},
        {"models": {"a": {"max_wait": 5}}},
        {"models": {"a": 5}},
        {"llama_url": "gopher://a"},
    ],
)
def test_the_schema_refuses_mistakes(content: dict[str, Any]) -> None:
    assert len(wrong(describe.schema(), content)) == 1


def test_show_names_each_source(tmp_path: Path) -> None:
    loaded = given(tmp_path, {"vram_budget_mb": "9"}, {"MODELD_LOG_LEVEL": "debug"}, max_wait="1m", models={"a.gguf": {"ttl": 90}})
    lines = {line.split()[0]: line.split()[1:] for line in describe.show_text(loaded).splitlines()[1:]}
    path = tmp_path / "c.json"
    assert lines["vram_budget_mb"] == ["9", "flag", "--vram-budget-mb"]
    assert lines["log_level"] == ["debug", "env", "MODELD_LOG_LEVEL"]
    assert lines["max_wait"] == ["1m", "file", f"{path}:max_wait"]
    assert lines["models.a.ttl"] == ["1m30s", "file", f"{path}:models.a.ttl"]
    assert lines["llama_ctx"] == ["auto", "default"]
    assert describe.show_text(loaded).startswith(f"# file: {path}\n")
    assert set(TABLE) <= set(lines)


def test_what_is_shown_can_be_given_back(tmp_path: Path) -> None:
    """The values of `show --json` are a settings file, and mean the same."""
    first = given(
        tmp_path,
        max_wait=90,
        max_body_bytes="2MiB",
        allowed_hosts=["a.lan"],
        llama_kv_type="q8_0",
        llama_flash_attn=True,
        adapter="embedded",
        addr="[::1]:0",
        infer_timeout="250ms",
        llama_kv_unified=False,
        llama_extra_args=["--top-k", 4],
        vram_budget_mb={"CUDA0": 20000, "CUDA1": 0},
        llama_ctx="max:32768",
        degrade=["ctx"],
    )
    data = describe.show_data(first)
    assert set(data["settings"]) == set(TABLE)
    values = {key: item["value"] for key, item in data["settings"].items()}
    assert wrong(describe.schema(), values) == []
    again = given(tmp_path, **json.loads(json.dumps(values)))
    assert again.settings == first.settings


def test_secrets_are_masked_everywhere(tmp_path: Path) -> None:
    loaded = given(tmp_path, llama_api_key="hunter2", llama_url="http://a:1")
    assert loaded.settings.llama_api_key == "hunter2"
    for text in (describe.show_text(loaded), json.dumps(describe.show_data(loaded)), repr(loaded), repr(loaded.settings)):
        assert "hunter2" not in text
    assert "********" in describe.show_text(loaded)


def test_the_reference_has_a_row_for_each_key() -> None:
    text = describe.reference()
    assert [key for key in (*TABLE, *MODEL_TABLE) if f"`{key}`" not in text] == []
    assert [group for group in GROUPS if f"### {group}" not in text] == []
    assert [line for line in text.splitlines() if line.startswith("|") and len(re.findall(r"(?<!\\)\|", line)) != 4] == []


def test_the_table_is_complete() -> None:
    for item in SETTINGS:
        assert (item.help and item.help[0].islower()) or item.help[0].isupper(), item.key
        assert not item.help.endswith("."), item.key
        assert item.group in GROUPS
