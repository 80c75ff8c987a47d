# SPDX-License-Identifier: GPL-3.0-only
"""The house rules that a program can check; rule: a message names the file and what to do."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from modeld.config.settings import MODEL_TABLE, TABLE

ROOT = Path(__file__).resolve().parents[1]
SPDX = "SPDX-License-Identifier: GPL-3.0-only"
FILE_LINES_MAX = 499
FUNCTION_LINES_MAX = 69
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
UNTRACKED = {".git", ".venv", ".run", ".hypothesis", "__pycache__", "dist", "build", "reports", "PKG-INFO"}
# Tests of things that are not modules: tests/<these> need no file of that name in src/modeld.
FREE_TESTS = {"test_tidy.py", "test_deploy.py", "test_readme.py", "test_docs.py", "test_configs.py"}
FREE_FOLDERS = {"e2e", "bench"}
# Split so that this file does not contain what it looks for.
FORBIDDEN_TEXT = (
    *(r"\b" + name + r"\." + top for name, top in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("crates", "io"))),
    *(r"\b" + name + r"\." + top for name, top in (("docker", "io"), ("ghcr", "io"), ("quay", "io"), ("gcr", "io"))),
    r"(^|\s)--?(extra-)?" + r"index-" + r"url\b",
    r"(^|[\s\"'=(])/(root|work|home/[a-z]\w+)/" + r"\w",
    r"/tmp/" + r"(?!modeld)\w+/\w",
)


@cache
def tracked() -> tuple[Path, ...]:
    """Files that belong to the project: git's answer, or, in an unpacked sdist, everything that is not made by make."""
    made = {*UNTRACKED, *(p.name for p in ROOT.glob(".*_cache"))}
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if (ROOT / ".git").exists() and (git := subprocess.run(command, check=False, capture_output=True)).returncode == 0:
        places = [ROOT / name for name in git.stdout.decode().split("\0") if name]
    else:
        places = [p for p in ROOT.rglob("*") if not made.intersection(p.relative_to(ROOT).parts) and p.suffix != ".gguf"]
    return tuple(sorted(p for p in places if p.is_file()))


def python_files(folder: str) -> list[Path]:
    """The project's Python files below `folder`."""
    return [p for p in tracked() if p.suffix == ".py" and p.is_relative_to(ROOT / folder)]


def relative(paths: Iterator[Path] | list[Path]) -> list[str]:
    """Paths as a person reads them in a failure."""
    return [str(p.relative_to(ROOT)) for p in paths]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method below `tree`."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_project_is_seen_at_all() -> None:
    """Guards every test below: an empty list of files would pass them all."""
    assert {"Makefile", "pyproject.toml", "src/modeld/errors.py", "tests/test_tidy.py"} <= set(relative(list(tracked())))


def test_every_source_file_names_its_licence() -> None:
    """The SPDX line stands among the first two lines (a `#!` line may come first)."""
    kinds = {".py", ".sh", ".service", ".toml", ".yml"}
    sources = [p for p in tracked() if p.suffix in kinds or p.name in {"Makefile", "Containerfile"} or p.parent.name == ".ci"]
    assert relative([p for p in sources if SPDX not in "\n".join(p.read_text(encoding="utf-8").splitlines()[:2])]) == []


def test_files_are_short() -> None:
    """A file is one noun: move a decision out as a function when it grows beyond this."""
    long = {
        str(p.relative_to(ROOT)): n for p in python_files("src") if (n := len(p.read_text(encoding="utf-8").splitlines())) > FILE_LINES_MAX
    }
    assert long == {}


def test_functions_are_short() -> None:
    """The docstring and the signature count."""
    long = {}
    for path in [*python_files("src"), *python_files("tests"), *python_files("scripts")]:
        for node in functions(ast.parse(path.read_text(encoding="utf-8"))):
            if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX:
                long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = lines
    assert long == {}


def test_no_file_is_named_after_nothing() -> None:
    """A name says what is inside: no utils, helpers, common, misc, base."""
    assert relative([p for p in tracked() if BANNED_NAMES & {part.removesuffix(p.suffix) for part in p.relative_to(ROOT).parts}]) == []


def test_modules_say_their_role() -> None:
    """Each module of src has a docstring; package markers without code may stay empty."""
    silent = []
    for path in python_files("src"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and ast.get_docstring(tree) is None:
            silent.append(path)
    assert relative(silent) == []


def test_nothing_is_global() -> None:
    """State has an owner: no `global` statement in src."""
    found = []
    for path in python_files("src"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found += [f"{path.relative_to(ROOT)}:{node.lineno}" for node in nodes if isinstance(node, ast.Global)]
    assert found == []


@pytest.mark.parametrize("pattern", FORBIDDEN_TEXT)
def test_no_registry_and_no_machine_is_named(pattern: str) -> None:
    """A mirror or an offline folder must do: no registry host, no index address, no path of one machine."""
    needle = re.compile(pattern, re.MULTILINE)
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, m.start()) + 1}: {m[0].strip()}" for m in needle.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "pypi" + ".org/simple",
        "--index-" + "url x",
        "-r a --extra-index-" + "url=x",
        "FROM ghcr" + ".io/x/y",
        "cd /wo" + "rk/main",
    ],
)
def test_what_is_forbidden_is_found(text: str) -> None:
    """The patterns above find what they are for; the flag that leaves the address out is none of it."""
    assert any(re.search(pattern, text, re.MULTILINE) for pattern in FORBIDDEN_TEXT)
    assert not any(re.search(pattern, "uv pip compile --no-emit-index-" + "url", re.MULTILINE) for pattern in FORBIDDEN_TEXT)


def test_tests_mirror_src() -> None:
    """tests/a/test_b.py or test_b_<aspect>.py tests src/modeld/a/b.py (or the package b)."""
    strays = []
    for path in python_files("tests"):
        place = path.relative_to(ROOT / "tests")
        if not path.name.startswith("test_") or str(place) in FREE_TESTS or place.parts[0] in FREE_FOLDERS:
            continue
        folder = ROOT / "src" / "modeld" / place.parent
        words = path.stem.removeprefix("test_").split("_")
        names = ["_".join(words[:n]) for n in range(1, len(words) + 1)]
        if not any((folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file() for name in names):
            strays.append(path)
    assert relative(strays) == []


def test_requirements_are_pinned_by_hash() -> None:
    """Each package of each requirement file has one version and at least one sha256, and what pyproject asks for is in run.txt."""
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        for entry in re.split(r"\n(?=[A-Za-z0-9])", path.read_text(encoding="utf-8").strip()):
            assert re.match(r"[a-z0-9-]+(\[[a-z,]+\])?==\S+ ", entry) and "--hash=sha256:" in entry, f"{path.name}: {entry[:80]}"
    asked = set(
        re.findall(
            r'^    "([a-z-]+)[>=<]', (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\ndependencies = [")[2], re.MULTILINE
        )
    )
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "run.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert asked and asked <= locked


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md has a line for each package that pyproject.toml or requirements/*.in names."""
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = {name.strip() for line in text.splitlines() if line.startswith("| ") for name in line.split("|")[1].split(",")}
    named = re.findall(r'^    "([A-Za-z0-9-]+)[>=<]', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    for path in sorted((ROOT / "requirements").glob("*.in")):
        named += re.findall(r"^([A-Za-z0-9-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) - rows == set()


def test_the_readme_names_every_setting() -> None:
    """Each key of the settings table stands in README.md as `key`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [key for key in {**TABLE, **MODEL_TABLE} if not re.search(rf"`{key}\b", text)] == []


def test_the_readme_names_every_metric() -> None:
    """Each metric name in src stands in README.md."""
    source = "\n".join(p.read_text(encoding="utf-8") for p in python_files("src"))
    names = set(re.findall(r"[\"'](modeld_[a-z0-9_]+)[\"']", source))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert names
    assert sorted(name for name in names if name not in text) == []
