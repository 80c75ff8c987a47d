# SPDX-License-Identifier: GPL-3.0-only
"""The program from outside: what it prints, its exit codes, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modeld import __version__
from modeld.cli.verbs import VERBS
from modeld.config import SETTINGS

Modeld = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def world(tmp_path: Path) -> dict[str, str]:
    """An environment with a fresh home and no settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MODELD_", "XDG_"))}
    return {**kept, "HOME": str(tmp_path), "COLUMNS": "100"}


@pytest.fixture
def modeld(world: dict[str, str]) -> Modeld:
    def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "modeld", *words], env={**world, **(env or {})}, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.mark.parametrize("words", [("--version",), ("version",)])
def test_versions(modeld: Modeld, words: tuple[str, ...]) -> None:
    done = modeld(*words)
    assert done.returncode == 0
    assert re.fullmatch(rf"modeld {re.escape(__version__)}\npython 3\.\d+\.\S+\nxllamacpp \S+\n", done.stdout)


def test_help_teaches(modeld: Modeld) -> None:
    text = modeld("--help").stdout
    assert all(re.search(rf"^  {verb} ", text, re.MULTILINE) for verb in VERBS)
    assert "Examples:" in text
    serve = modeld("serve", "-h").stdout
    assert [item.flag for item in SETTINGS if item.flag not in serve] == []
    assert "--no-allow-remote" in serve
    assert "Listening and access:" in serve


@pytest.mark.parametrize("verb", list(VERBS))
def test_each_verb_has_help(modeld: Modeld, verb: str) -> None:
    done = modeld(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: modeld {verb}")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--vram-budgt-mb", "5"], "modeld: config error: flag --vram-budgt-mb is not known; did you mean --vram-budget-mb?"),
        (["serve", "--max-wiat=5"], "modeld: config error: flag --max-wiat is not known; did you mean --max-wait?"),
        (
            ["config", "show", "--no-alow-remote"],
            "modeld: config error: flag --no-alow-remote is not known; did you mean --no-allow-remote?",
        ),
        (["--vram-budget-mb"], "modeld: config error: flag --vram-budget-mb needs a value"),
        (["--allow-remote=1"], "modeld: config error: flag --allow-remote takes no value"),
        (["--max-wait", "soon"], 'modeld: config error: flag --max-wait: key "max_wait": "soon" is not a duration'),
        (["--config", "nope.yaml"], 'modeld: config error: flag --config: key "config": "nope.yaml" does not exist'),
        (
            ["--vram-budget-mb", "5", "--vram-margin-mb", "5"],
            'modeld: config error: flag --vram-margin-mb: key "vram_margin_mb": 5 leaves no room',
        ),
        (
            ["--llama-extra-args", "-c,9"],
            'modeld: config error: flag --llama-extra-args: key "llama_extra_args": holds -c: use the setting llama_ctx',
        ),
        (["serv"], 'modeld: "serv" is not a verb; did you mean "serve"?'),
        (["config", "shw"], 'modeld: config "shw" is not a verb; did you mean "show"?'),
        (["serve", "now"], "modeld: Got unexpected extra argument (now)"),
        (["pull", "startr"], 'modeld: "startr" is not a model modeld can fetch; did you mean "starter"?'),
        (["completion", "ksh"], "modeld: name a shell"),
        (["status", "--addr", "nowhere"], 'modeld: config error: flag --addr: key "addr": "nowhere" is not an address'),
    ],
)
def test_mistakes_cost_one_line_and_exit_code_2(modeld: Modeld, words: list[str], line: str) -> None:
    done = modeld(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_wrong_file_and_a_wrong_variable_stop_the_start(modeld: Modeld, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("vram_budgt_mb: 5\n")
    done = modeld("--config", str(path))
    assert done.returncode == 2
    assert done.stderr == f'modeld: config error: file {path}: key "vram_budgt_mb" = 5 is not known; did you mean "vram_budget_mb"?\n'
    done = modeld(env={"MODELD_MAX_WIAT": "5"})
    assert done.returncode == 2
    assert done.stderr.startswith("modeld: config error: environment MODELD_MAX_WIAT: ")


def test_config_show_and_check(modeld: Modeld, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('max_wait = "1m"\nllama_api_key = "hunter2"\n')
    env = {"MODELD_CONFIG": str(path), "MODELD_ALLOWED_HOSTS": "x"}
    done = modeld("config", "show", "--no-allow-remote", "--allowed-hosts", "a,b", "--allowed-hosts=c", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^max_wait +1m +file {re.escape(str(path))}:max_wait$", done.stdout, re.MULTILINE)
    assert re.search(r"^allow_remote +false +flag --allow-remote$", done.stdout, re.MULTILINE)
    assert re.search(r'^allowed_hosts +\["a", "b", "c"\] +flag --allowed-hosts$', done.stdout, re.MULTILINE)
    data = json.loads(modeld("config", "show", "--json", env=env).stdout)
    assert data["settings"]["allowed_hosts"] == {"value": ["x"], "source": "env", "name": "MODELD_ALLOWED_HOSTS"}
    assert "hunter2" not in done.stdout + json.dumps(data)
    assert modeld("config", "check", env=env).stdout == f"settings are fine (file {path})\n"
    assert modeld("config", "check", env={"MODELD_MAX_WAIT": "x"}).returncode == 2


def test_config_schema_and_reference(modeld: Modeld) -> None:
    assert json.loads(modeld("config", "schema").stdout)["additionalProperties"] is False
    assert "| `max_wait` | `30s` |" in modeld("config", "reference").stdout
    assert modeld("config").stdout.startswith("Usage: modeld config")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(modeld: Modeld, shell: str) -> None:
    done = modeld("completion", shell)
    assert done.returncode == 0
    assert "_MODELD_COMPLETE" in done.stdout
    assert modeld("completion", env={"SHELL": f"/bin/{shell}"}).stdout == done.stdout


def test_completion_knows_flags_and_values(modeld: Modeld) -> None:
    def complete(words: str, index: int) -> list[str]:
        env = {"_MODELD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        return [line.partition(",")[2] for line in modeld(env=env).stdout.splitlines()]

    assert complete("modeld st", 1) == ["status"]
    assert complete("modeld serve --vram", 2) == ["--vram-budget-mb", "--vram-margin-mb"]
    assert complete("modeld serve --adapter e", 3) == ["embedded", "external"]


def test_clients_without_a_daemon(modeld: Modeld, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/none.sock"
    for words, env in ((["status", "--addr", address], {}), (["models"], {"MODELD_ADDR": address})):
        done = modeld(*words, env=env)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"modeld: no daemon at {address} (No such file or directory); start one with `modeld serve`")
        assert done.stderr.count("\n") == 1


def test_addr_alone_needs_no_valid_settings(modeld: Modeld, tmp_path: Path) -> None:
    """An operator who broke the file can still look at the daemon that runs."""
    assert modeld("status", "--addr", f"unix:{tmp_path}/none.sock", env={"MODELD_MAX_WAIT": "x"}).returncode == 1


def test_models_offline(modeld: Modeld, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    env = {"MODELD_MODELS_DIR": str(tmp_path)}
    done = modeld("models", "--offline", "--json", env=env)
    assert done.returncode == 0
    (found,) = json.loads(done.stdout)["models"]
    assert found["id"] == "broken.gguf"
    assert found["unavailable"]
    assert "UNAVAILABLE" in modeld("models", "--offline", env=env).stdout


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["config", "show"], ["config", "schema"], ["serve", "--help"], ["status", "--addr", "unix:/none"]]
)
def test_verbs_import_only_what_they_need(world: dict[str, str], words: list[str]) -> None:
    heavy = (
        "uvicorn",
        "uvloop",
        "xllamacpp",
        "prometheus_client",
        "msgspec",
        "asyncio",
        "yaml",
        "modeld.app",
        "modeld.api",
        "modeld.catalog",
        "modeld.runtime",
    )
    code = f"""
import sys
from modeld.cli import run
run({words!r})
found = sorted(name for name in {heavy!r} if name in sys.modules)
print("HEAVY", *found)
"""
    done = subprocess.run([sys.executable, "-c", code], env=world, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"


def test_a_reader_that_leaves_is_no_error(world: dict[str, str]) -> None:
    """`modeld config schema | head -1`: the pipe is closed before anything is read."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "modeld", "config", "schema"], env=world, stdout=pipe, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_one_line(world: dict[str, str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "modeld", "config", "show"], env=world, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"modeld: ")
    assert b"Traceback" not in done.stderr


def test_an_interrupt_is_quiet(world: dict[str, str], tmp_path: Path) -> None:
    """A settings file that never answers (a FIFO is refused, so the key file is one): the interrupt ends it with 130."""
    fifo = tmp_path / "key"
    os.mkfifo(fifo)
    child = subprocess.Popen(
        [sys.executable, "-m", "modeld", "config", "check", "--llama-api-key", f"@{fifo}"], env=world, stderr=subprocess.PIPE
    )
    with open(fifo, "wb"):  # returns once the child has opened the other end and reads
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    assert (child.returncode, error) == (130, b"")
