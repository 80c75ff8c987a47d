# SPDX-License-Identifier: GPL-3.0-only
"""Reading YAML, JSON and TOML, with everything that can be wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeld.config.files import FILE_BYTES_MAX, Unreadable, read


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.yaml", "vram_budget_mb: 5\nmax_wait: 1m\nallow_remote: true\nmodels: {'a.gguf': {ttl: 5}}\nallowed_hosts: [a, b]\n"),
        (
            "c.yml",
            '{"vram_budget_mb": 5, "max_wait": "1m", "allow_remote": true, "models": {"a.gguf": {"ttl": 5}}, "allowed_hosts": ["a", "b"]}',
        ),
        (
            "c.JSON",
            '{"vram_budget_mb": 5, "max_wait": "1m", "allow_remote": true, "models": {"a.gguf": {"ttl": 5}}, "allowed_hosts": ["a", "b"]}',
        ),
        ("c.toml", 'vram_budget_mb = 5\nmax_wait = "1m"\nallow_remote = true\nallowed_hosts = ["a", "b"]\n[models."a.gguf"]\nttl = 5\n'),
    ],
)
def test_all_formats_say_the_same(tmp_path: Path, name: str, content: str) -> None:
    expected = {"vram_budget_mb": 5, "max_wait": "1m", "allow_remote": True, "models": {"a.gguf": {"ttl": 5}}, "allowed_hosts": ["a", "b"]}
    assert read(write(tmp_path, name, content)) == expected
    assert read(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode())) == expected


@pytest.mark.parametrize("name", ["c.yaml", "c.json", "c.toml"])
def test_an_empty_file_holds_no_settings(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path, name, "")) == {}
    assert read(write(tmp_path, name, "\n\n")) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("no", "no"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("010", 10), ("0x10", 16), ("0o10", 8), ("~", None),
        ("", None), ("'5'", "5"), ("1.5", 1.5), ("True", True), (":8080", ":8080"), ("1_0", "1_0"), ("!!str 5x", "5x"), ("|\n  a\n", "a\n"),
        (".inf", ".inf"), ("-7", -7),
    ],
)  # fmt: skip
def test_yaml_means_what_it_looks_like(tmp_path: Path, text: str, value: object) -> None:
    assert read(write(tmp_path, "c.yaml", f"a: {text}\n")) == {"a": value}


def test_yaml_anchors_are_followed(tmp_path: Path) -> None:
    assert read(write(tmp_path, "c.yaml", "a: &x {ttl: 5}\nb: *x\n")) == {"a": {"ttl": 5}, "b": {"ttl": 5}}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.yaml", "a: 1\nb: 2\na: 3\n", 'key "a" stands there twice: line 3, column 1'),
        ("c.yaml", "models:\n  x: {ttl: 1, ttl: 2}\n", 'key "ttl" stands there twice: line 2'),
        ("c.yaml", "a: 1\n b: 2\n", "line 2, column"),
        ("c.yaml", "addr: [::1]:8080\n", "stands in quotes"),
        ("c.yaml", "a: {b: 1\n", "line 2"),
        ("c.yaml", "\ta: 1\n", "line 1, column 1"),
        ("c.yaml", "- a\n- b\n", "does not hold settings"),
        ("c.yaml", "just text\n", "does not hold settings"),
        ("c.yaml", "a: 1\n---\nb: 2\n", "line 2"),
        ("c.yaml", "a: !!python/object:os.system x\n", "tags such as"),
        ("c.yaml", "a: !!binary x\n", "tags such as"),
        ("c.yaml", "a: !x [1]\n", "tags such as"),
        ("c.yaml", "? [a]\n: 1\n", "must be text"),
        ("c.yaml", "a: &x [*x]\n", "contains itself"),
        ("c.yaml", "a: *y\n", "line 1"),
        ("c.yaml", "a: \x01\n", "not valid YAML"),
        ("c.yaml", "[" * 2000, "nested too deeply"),
        ("c.json", '{"a": 1, "a": 2}', 'key "a" stands there twice'),
        ("c.json", '{"a": 1,}', "line 1, column"),
        ("c.json", '{"a": NaN}', "NaN"),
        ("c.json", "[1]", "does not hold a table"),
        ("c.json", "{" * 3, "not valid JSON"),
        ("c.json", '{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("c.json", "[" * 200_000, "nested too deeply"),
        ("c.toml", "a = 1\na = 2\n", "line 2"),
        ("c.toml", "a = \n", "line 1"),
        ("c.toml", "vram_budget_mb: 5\n", "line 1"),
        ("c.yaml", b"a: \xff\n", "UTF-8"),
        ("c.yaml", "#" * (FILE_BYTES_MAX + 1), "1 MiB"),
        ("c.ini", "a=1", "must end in"),
        ("c", "a: 1", "must end in"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    assert words in refused(write(tmp_path, name, content))


def test_nested_aliases_do_not_blow_up(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "too many values" in refused(write(tmp_path, "c.yaml", "\n".join(lines)))


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.yaml")
    (tmp_path / "d.yaml").mkdir()
    assert "not a file" in refused(tmp_path / "d.yaml")
