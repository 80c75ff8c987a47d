# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from modeld import logs


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("modeld")
    kept = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    yield
    root.handlers[:], logging.raiseExceptions = kept[0], kept[3]
    root.setLevel(kept[1])
    ours.setLevel(kept[2])


def written(form: str, level: str = "info") -> tuple[io.StringIO, logging.Logger]:
    stream = io.StringIO()
    logs.set_up(level, form, stream)
    return stream, logging.getLogger("modeld.driver")


def test_a_console_line_has_time_level_place_and_text():
    stream, log = written("console")
    log.info("start %s", "1/a")
    log.debug("not shown")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("Z INFO    driver: start 1/a\n")


def test_nobody_can_forge_a_line_or_move_the_cursor():
    stream, log = written("console")
    log.info("name=%s", "x\r2026 INFO forged\x1b[2J\u2028\x00")
    assert stream.getvalue().count("\n") == 1
    assert "\\x0d2026 INFO forged\\x1b[2J\\u2028\\x00" in stream.getvalue()
    log.info("two\nlines")
    assert stream.getvalue().splitlines()[2] == "    lines"


def test_json_is_one_object_a_line_with_the_traceback_inside():
    stream, log = written("json")
    try:
        raise ValueError("oops")
    except ValueError:
        log.exception("it failed\nbadly")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "modeld.driver", "it failed\nbadly")
    assert "ValueError: oops" in entry["error"]


def test_the_level_is_ours_and_libraries_speak_only_of_trouble():
    stream, log = written("console", "debug")
    log.debug("shown")
    logging.getLogger("uvicorn.error").info("not shown")
    logging.getLogger("uvicorn.error").warning("shown too")
    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()] == ["shown", "shown too"]
