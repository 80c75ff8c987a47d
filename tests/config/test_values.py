# SPDX-License-Identifier: GPL-3.0-only
"""Each kind of value: what it takes, what it refuses, and that it reads back what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from modeld.config import values as v
from modeld.core.model import FlashAttention

FILE = v.Context({"HOME": "/h", "PATH": "/usr/bin:/bin"}, Path("/etc/modeld"), text=False)
TEXT = v.Context({"HOME": "/h", "PATH": "/usr/bin:/bin"}, Path("/cwd"), text=True)
DURATION = v.duration(zero=True)
SIZE = v.size_bytes(1, 1 << 40)
COUNT = v.integer(0, 100)
LIST = v.listing()


def refused(kind: v.Kind[Any], raw: object, ctx: v.Context = FILE) -> str:
    with pytest.raises(v.Unacceptable) as caught:
        kind.parse(raw, ctx)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1m250ms", 60.25),
        ("2d", 172800),
        ("1.5s", 1.5),
        ("90", 90),
        ("0.5", 0.5),
        (7, 7),
        (0.25, 0.25),
        (0, 0),
        ("0s", 0),
        (" 3s ", 3),
    ],
)
def test_durations(raw: object, seconds: float) -> None:
    assert DURATION.parse(raw, FILE) == seconds
    assert DURATION.parse(DURATION.show(seconds), FILE) == seconds


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "s",
        "m5",
        "5 m",
        "5x",
        "-1s",
        "1m1h",
        "1h-1m",
        "\u0661s",
        "1e3s",
        "inf",
        "nan",
        -1,
        True,
        None,
        [],
        float("nan"),
        float("inf"),
        10**400,
        "9" * 50,
    ],
)
def test_no_durations(raw: object) -> None:
    refused(DURATION, raw)


def test_a_duration_may_have_to_be_above_zero() -> None:
    kind = v.duration(zero=False)
    assert "above 0" in refused(kind, "0s")
    assert "above 0" in refused(kind, 0)
    assert "100ms" in refused(v.duration(zero=False, minimum=0.1), "10ms")
    assert "365d" in refused(kind, "366d")


def test_a_negative_duration_is_told_the_nearest_that_is_valid() -> None:
    for raw in (-1, -0.5, "-1s", " -1m30s", "-2"):
        assert refused(DURATION, raw) == "is negative; 0s is the least"
        assert refused(v.duration(zero=False), raw) == "is negative; it must be above 0"
        assert refused(v.duration(zero=False, minimum=0.1), raw) == "is negative; 100ms is the least"
    assert "is not a duration" in refused(DURATION, "-soon")


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (5, 5),
        ("64MiB", 64 << 20),
        ("1MB", 1 << 20),
        ("64M", 64 << 20),
        ("512K", 512 << 10),
        ("2G", 2 << 30),
        ("1 kib", 1024),
        ("77", 77),
        ("8B", 8),
        ("1T", 1 << 40),
    ],
)
def test_sizes_are_binary(raw: object, count: int) -> None:
    assert SIZE.parse(raw, FILE) == count
    assert SIZE.parse(SIZE.show(count), FILE) == count


@pytest.mark.parametrize("raw", ["", "M", "1.5M", "-1", "1MM", "1Mi", "0", 0, -1, True, None, 1.0, "2T", "9" * 30, "1iB"])
def test_no_sizes(raw: object) -> None:
    refused(SIZE, raw)


def test_integers_are_strict_in_files_and_text_elsewhere() -> None:
    assert COUNT.parse(7, FILE) == 7
    assert COUNT.parse("7", TEXT) == 7
    assert "without quotes" in refused(COUNT, "7")
    for raw in (True, 7.0, None, [], {}, 101, -1):
        refused(COUNT, raw)
    for raw in ("7.0", "", "0x7", "1_0", "\u0667", "1" * 30, "101", "-1"):
        refused(COUNT, raw, TEXT)


@pytest.mark.parametrize(
    ("word", "value"),
    [("true", True), ("YES", True), ("on", True), ("1", True), ("False", False), ("no", False), ("off", False), ("0", False)],
)
def test_booleans(word: str, value: bool) -> None:
    assert v.BOOLEAN.parse(word, TEXT) is value
    assert v.BOOLEAN.parse(value, FILE) is value


@pytest.mark.parametrize("raw", ["", "y", "t", "2", 2, None, 1.0, [], "truee"])
def test_no_booleans(raw: object) -> None:
    refused(v.BOOLEAN, raw)


def test_choices_name_the_nearest() -> None:
    kind = v.choice(FlashAttention)
    assert kind.parse("ON", TEXT) is FlashAttention.ON
    assert kind.parse(True, FILE) is FlashAttention.ON
    assert kind.parse(False, FILE) is FlashAttention.OFF
    assert 'did you mean "auto"' in refused(kind, "autp")
    refused(kind, 1)


def test_none_has_a_word() -> None:
    kind = v.or_none(COUNT, "auto")
    assert kind.parse("auto", FILE) is None
    assert kind.parse("AUTO", TEXT) is None
    assert kind.parse(None, FILE) is None
    assert kind.parse(3, FILE) == 3
    assert kind.show(None) == "auto"
    assert 'or "auto"' in refused(kind, -3)
    off = v.or_none(v.duration(zero=False), "off")
    assert (off.parse("off", TEXT), off.parse(False, FILE), off.parse("2s", TEXT), off.show(None)) == (None, None, 2, "off")
    refused(off, True)
    refused(kind, False)
    assert v.or_none(v.choice(FlashAttention), "auto").choices == ("auto", "on", "off")


@pytest.mark.parametrize(
    ("raw", "ctx", "items"),
    [
        (["a", "b,c"], FILE, ("a", "b,c")),
        ("a, b", FILE, ("a", "b")),
        (["--top-k", 40, 0.5], FILE, ("--top-k", "40", "0.5")),
        ([], FILE, ()),
        ("a,b", TEXT, ("a", "b")),
        (("a,b", "c"), TEXT, ("a", "b", "c")),
        ('["a,b", "c"]', TEXT, ("a,b", "c")),
        (("",), TEXT, ()),
        ("[::1],b", TEXT, ("[::1]", "b")),
    ],
)
def test_lists(raw: object, ctx: v.Context, items: tuple[str, ...]) -> None:
    assert LIST.parse(raw, ctx) == items
    assert LIST.parse(LIST.show(items), TEXT) == items


@pytest.mark.parametrize(
    ("raw", "ctx"),
    [([True], FILE), ([None], FILE), ([["a"]], FILE), ({"a": 1}, FILE), (None, FILE), ('["a', TEXT), (["a\nb"], FILE), ([""], FILE)],
)
def test_no_lists(raw: object, ctx: v.Context) -> None:
    refused(LIST, raw, ctx)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (":8080", ":8080"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[::1]:8080", "[::1]:8080"),
        ("box.lan:80", "box.lan:80"),
        (8080, ":8080"),
        ("8080", ":8080"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:~/a.sock", "unix:/h/a.sock"),
        ("unix:a.sock", "unix:/etc/modeld/a.sock"),
    ],
)
def test_addresses(raw: object, text: str) -> None:
    address = v.ADDRESS.parse(raw, FILE)
    assert str(address) == text
    assert v.ADDRESS.parse(v.ADDRESS.show(address), FILE) == address


def test_an_address_has_parts() -> None:
    assert v.ADDRESS.parse("[::1]:80", FILE) == v.ListenAddress("::1", 80)
    assert v.ADDRESS.parse(":80", FILE) == v.ListenAddress("", 80)
    assert v.ADDRESS.parse("unix:/s", FILE).unix_path == "/s"


@pytest.mark.parametrize(
    "raw",
    [
        "",
        ":",
        "a",
        "a:",
        "a:b",
        ":65536",
        ":-1",
        "::1:80",
        "[::1]",
        "[x]:1",
        "a b:1",
        "http://a:1",
        "unix:",
        "unix:/" + "x" * 107,
        "\uff18",
        None,
        True,
        70000,
        -1,
        ":9999999999999999999",
    ],
)
def test_no_addresses(raw: object) -> None:
    refused(v.ADDRESS, raw)


def test_paths_start_where_they_were_written() -> None:
    assert v.PATH.parse("a/../b", FILE) == Path("/etc/modeld/b")
    assert v.PATH.parse("a", TEXT) == Path("/cwd/a")
    assert v.PATH.parse("~/m", TEXT) == Path("/h/m")
    assert v.PATH.parse("~", TEXT) == Path("/h")
    assert v.PATH.parse("/x/", TEXT) == Path("/x")
    refused(v.PATH, "~nobody-here-is-called-this/x")
    refused(v.PATH, "a\0b")
    refused(v.PATH, 3)


def test_a_program_is_a_path_or_a_name(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    ctx = v.Context({"PATH": str(tmp_path)}, Path("/"), text=True)
    assert v.PROGRAM.parse("llama-server", ctx) == program
    assert v.PROGRAM.parse("./x", ctx) == Path("/x")
    assert "PATH" in refused(v.PROGRAM, "llama-serverr", ctx)


@pytest.mark.parametrize(
    ("raw", "host"), [("Box.LAN", "box.lan"), ("box.lan:8080", "box.lan"), ("[::1]:8080", "::1"), ("::1", "::1"), ("10.0.0.7", "10.0.0.7")]
)
def test_host_names(raw: str, host: str) -> None:
    assert v.listing(v.host_name).parse([raw], FILE) == (host,)


@pytest.mark.parametrize("raw", ["*", "http://a", "a/b", "a b", "[x]", "-a"])
def test_no_host_names(raw: str) -> None:
    refused(v.listing(v.host_name), [raw])


def test_origins_methods_headers() -> None:
    assert v.listing(v.origin).parse(["*", "https://App.example:8443"], FILE) == ("*", "https://app.example:8443")
    for raw in ("null", "app.example", "https://a/", "https://a/b", "https://"):
        refused(v.listing(v.origin), [raw])
    assert v.listing(v.http_token).parse("GET,X-Request-Id", TEXT) == ("GET", "X-Request-Id")
    refused(v.listing(v.http_token), ["a b"])


def test_urls() -> None:
    assert v.URL.parse("http://127.0.0.1:8081/", FILE) == "http://127.0.0.1:8081"
    assert v.URL.parse("https://gpu.lan/llama", FILE) == "https://gpu.lan/llama"
    for raw in (
        "ftp://a",
        "127.0.0.1:80",
        "http://",
        "http://a:0",
        "http://a:99999",
        "http://[x",
        "http://a b",
        "http://a?b=1",
        "http://a#b",
        3,
    ):
        refused(v.URL, raw)
    assert "llama_api_key" in refused(v.URL, "http://user:secret@a")


def test_secrets_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abc\nnext line\n")
    (tmp_path / "empty").write_text("")
    ctx = v.Context({}, tmp_path, text=False)
    assert v.SECRET.parse("word", ctx) == "word"
    assert v.SECRET.parse("@key", ctx) == "abc"
    for raw in ("", "two words", "a\r\nX: y", "@empty", "ü", 5):
        assert "abc" not in refused(v.SECRET, raw, ctx)
    assert "cannot be read" in refused(v.SECRET, "@missing", ctx)


def test_schema_patterns_take_what_the_parser_takes() -> None:
    """Editors must not mark as wrong what the daemon accepts."""
    for kind, words in (
        (DURATION, ("30s", "5m", "1h30m", "250ms", "1m250ms", "2d", "90", "1.5s", "0.5")),
        (SIZE, ("64MiB", "1MB", "64M", "512K", "2 GiB", "77", "8B")),
    ):
        pattern = kind.schema["anyOf"][1]["pattern"]
        for word in words:
            kind.parse(word, FILE)
            assert re.search(pattern, word), word
        assert not re.search(pattern, "abc")
        assert not re.search(pattern, "")


@pytest.mark.parametrize(
    ("raw", "text"),
    [({"a": 1}, "a mapping"), ([{"a": 1}], "a list"), ("a\nb", '"a\\nb"'), (True, "true"), (None, "null"), (("a",), '["a"]')],
)
def test_values_are_shown_on_one_line(raw: object, text: str) -> None:
    assert v.quoted(raw) == text
    assert len(v.quoted("x" * 500)) == 200
