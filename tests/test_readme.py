# SPDX-License-Identifier: GPL-3.0-only
"""README.md keeps its word: its curl examples are run against the real daemon, its settings are read, its commands exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from curls import ADDRESS, Example, blocks_of, check, pattern
from e2e.daemon import Daemon, link_models, running
from modeld.cli.verbs import VERBS, program
from modeld.config.describe import reference
from modeld.config.load import load
from modeld.config.settings import TABLE

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STARTER = "SmolLM2-135M-Instruct.Q4_1.gguf"


def blocks(kind: str) -> list[Example]:
    """The fenced blocks of one kind in README.md."""
    return blocks_of(README, kind)


CURLS = [example for example in blocks("sh") if "curl" in example.command]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """What `make run` gives: the starter model under its own name. It is loaded, so that the examples do not depend on each other."""
    if (found := shutil.which("curl")) is None:
        pytest.skip("curl is not installed")
    if not (path := os.environ.get("MODELD_TEST_STARTER")):
        pytest.skip("set MODELD_TEST_STARTER to the starter model's file; `make e2e-py` does")
    assert found
    home = tmp_path_factory.mktemp("home")
    with running(home, link_models(home / "models", Path(path), STARTER)) as one:
        assert one.infer(STARTER, max_tokens=1).status == 200
        yield one


@pytest.mark.e2e
@pytest.mark.parametrize("example", CURLS, ids=[re.sub(r".*?8080(\S+).*", r"\1", one.command, flags=re.DOTALL) for one in CURLS])
def test_a_curl_example_works_as_shown(daemon: Daemon, example: Example) -> None:
    check(example, daemon.port)


def test_there_are_examples_and_each_shows_its_answer() -> None:
    """Guards the test above: an empty list, or an answer that allows everything, would pass it."""
    routes = {route for one in CURLS for route in re.findall(re.escape(ADDRESS) + r"(/[\w./]*)", one.command)}
    assert {"/healthz", "/readyz", "/models", "/status", "/infer", "/metrics", "/v1/chat/completions", "/v1/models"} <= routes
    assert [one.command for one in CURLS if ADDRESS not in one.command or not re.search(r"\w", one.expected)] == []
    assert len(CURLS) == README.count("```sh\n")


@pytest.mark.parametrize(
    ("expected", "answer", "matches"),
    [
        ("ok", "ok\n", True),
        ("ok", "okay\n", False),
        ('{"a":…,"b":1}', '{"a":[2],"b":1}\n', True),
        ('{"a":…,"b":1}', '{"a":[2],"b":2}\n', False),
        ("a\n…\nz", "a\nb\nc\nz\n", True),
        ("a\n…\nz", "a\nz\n", True),
        ("a\n…\nz", "a\nb\n", False),
        ("a…z", "a\nz\n", False),
    ],
)
def test_what_an_answer_is_compared_with(expected: str, answer: str, matches: bool) -> None:
    assert (pattern(expected).fullmatch(answer) is not None) == matches


def test_the_two_commands_stand_there_word_for_word() -> None:
    assert "```\nmake run\nmake test\n```" in README


def test_the_tables_of_settings_are_those_of_the_program() -> None:
    """Paste the output of `modeld config reference` again when this fails."""
    assert reference() in README


@pytest.mark.parametrize("example", blocks("yaml"), ids=["least", "models"])
def test_a_settings_file_is_accepted(tmp_path: Path, example: Example) -> None:
    path = tmp_path / "modeld.yaml"
    path.write_text(example.command, encoding="utf-8")
    loaded = load({}, {"HOME": str(tmp_path)}, config=str(path))
    assert loaded.settings.vram_budget_mb > 0


def test_the_minimal_example_is_the_file_in_configs() -> None:
    text = (ROOT / "configs" / "minimal.yaml").read_text(encoding="utf-8")
    assert blocks("yaml")[0].command in text


def test_every_verb_is_explained_and_every_command_exists() -> None:
    shown = re.findall(r"`modeld((?: [^`\n]+)?)`", README)
    for block in blocks(""):
        shown += re.findall(r"^(?:MODELD_\S+ )*modeld\b(.*)$", block.command, re.MULTILINE)
    words = [shlex.split(text) for text in shown]
    firsts = {one[0] for one in words if one and not one[0].startswith("-")}
    assert set(VERBS) == firsts
    flags = {item.flag for item in TABLE.values()}
    for verb in VERBS:
        command = program.get_command(click.Context(program), verb)
        assert command is not None
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | flags | {"--config", "--help"}
        used = [word for one in words if one and one[0] == verb for word in one if word.startswith("--")]
        assert [flag for flag in used if flag not in known] == []
    bare = [word for one in words if one and one[0].startswith("--") for word in one if word.startswith("--")]
    assert bare and [flag for flag in bare if flag not in flags] == []


def test_every_variable_exists() -> None:
    named = set(re.findall(r"\bMODELD_[A-Z_]+\b", README)) - {"MODELD_CONFIG"}
    assert named and named <= {item.env for item in TABLE.values()}
