# SPDX-License-Identifier: GPL-3.0-only
"""The commands that pages show, run as they stand, and their answers compared with what stands below them."""

from __future__ import annotations

import os
import re
import subprocess
from typing import NamedTuple

ADDRESS = "localhost:8080"
EXAMPLE_SECONDS = 60.0

_BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$(?:\n\n^```text\n(?P<expected>.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A command of a page and the answer that stands below it, "" where none does."""

    command: str
    expected: str


def blocks_of(page: str, kind: str) -> list[Example]:
    """The fenced blocks of one kind, in their order."""
    return [Example(found["text"], found["expected"] or "") for found in _BLOCK.finditer(page) if found["kind"] == kind]


def pattern(expected: str) -> re.Pattern[str]:
    """What an answer must look like: `…` stands for anything within a line, alone on a line for any number of lines."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else ".*?".join(re.escape(part) for part in line.split("…")) + r"\n"
        for line in expected.strip().split("\n")
    ]
    return re.compile("".join(lines))


def check(example: Example, port: int) -> None:
    """Run it against a daemon on `port`; fails when it does, or when the answer is another one."""
    command = example.command.replace(ADDRESS, f"localhost:{port}")
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True, timeout=EXAMPLE_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert pattern(example.expected).fullmatch(done.stdout.strip() + "\n"), f"{command}\nanswered\n{done.stdout}"
