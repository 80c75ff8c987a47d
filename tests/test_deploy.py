# SPDX-License-Identifier: GPL-3.0-only
"""What deploy/, scripts/ and the workflow promise; rule: a flag or variable named there exists, a protection stays."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeld.config.settings import TABLE

ROOT = Path(__file__).resolve().parents[1]
UNIT = ROOT / "deploy" / "modeld.service"
CONTAINERFILE = ROOT / "deploy" / "Containerfile"
# The score of `systemd-analyze security` times ten: 0 is sealed, 100 is open. The unit as it is scores 15.
EXPOSURE_MAX = 20
SHUTDOWN_SECONDS = 6

HARDENED = {
    "DynamicUser": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectProc": "invisible",
    "PrivateTmp": "yes",
    "PrivateIPC": "yes",
    "RemoveIPC": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "RestrictRealtime": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
    "DevicePolicy": "closed",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "IPAddressDeny": "any",
    "IPAddressAllow": "localhost",
    "UMask": "0077",
    "LimitCORE": "0",
    "OOMPolicy": "continue",
    "KillMode": "mixed",
}


def unit() -> dict[str, list[str]]:
    """The [Service] keys of the unit, each with its values in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@cache
def serve_flags() -> frozenset[str]:
    """The flags that `modeld serve --help` lists."""
    done = subprocess.run([sys.executable, "-m", "modeld", "serve", "--help"], capture_output=True, text=True, timeout=30, check=True)
    return frozenset(re.findall(r"(?<![\w-])--[a-z][a-z-]+", done.stdout))


def flags_in(command: str) -> list[str]:
    """The long flags of a shell command."""
    return [word.partition("=")[0] for word in shlex.split(command) if re.match(r"--[a-z]", word)]


def variables_in(text: str) -> set[str]:
    """The settings that a text sets by MODELD_* variables, as keys."""
    return {name.lower() for name in re.findall(r"\bMODELD_([A-Z_]+)(?=[=:])", text)}


@pytest.mark.parametrize(("key", "value"), HARDENED.items())
def test_the_unit_keeps_its_protections(key: str, value: str) -> None:
    """Each protection stands once, with this value."""
    assert unit()[key] == [value]


def test_the_unit_leaves_room_for_gpus_and_for_a_proper_end() -> None:
    """GPU drivers write code at run time; the stop time exceeds the daemon's own; wrong settings are not retried."""
    keys = unit()
    assert "MemoryDenyWriteExecute" not in keys
    assert {"char-nvidia-uvm rw", "char-drm rw", "/dev/kfd rw"} <= set(keys["DeviceAllow"])
    assert int(keys["TimeoutStopSec"][0].removesuffix("s")) > SHUTDOWN_SECONDS
    assert keys["RestartPreventExitStatus"] == ["2"]
    assert keys["StateDirectory"] == ["modeld modeld/models"]


def test_the_unit_starts_the_daemon_with_flags_it_knows() -> None:
    """ExecStart names existing flags, and its models lie where the unit makes a folder."""
    [command] = unit()["ExecStart"]
    assert shlex.split(command)[1] == "serve"
    assert "--models-dir /var/lib/modeld/models" in command
    assert flags_in(command) and set(flags_in(command)) <= serve_flags()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_the_unit_scores_well() -> None:
    """systemd's own offline assessment stays at 2.0 or better."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-300:]


def test_the_container_is_not_root_and_takes_only_what_exists() -> None:
    """A user that is not root, a health check, pinned packages, an image name without a host, and every copied file is there."""
    text = CONTAINERFILE.read_text(encoding="utf-8")
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["modeld"]
    assert re.search(r"^HEALTHCHECK .*\\\n +CMD .*/healthz", text, re.MULTILINE)
    installs = re.findall(r"pip install (.*)", text)
    assert installs and [line for line in installs if "--require-hashes" not in line and "--no-index" not in line] == []
    [image] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+-slim", image)
    sources = [name for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert sources and [name for name in sources if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", ["deploy/modeld.service", "deploy/Containerfile", "deploy/compose.yaml"])
def test_variables_are_settings(name: str) -> None:
    """Each MODELD_* variable there is the variable of a setting, or the daemon would refuse to start."""
    found = variables_in((ROOT / name).read_text(encoding="utf-8"))
    assert found and found <= set(TABLE)


def test_compose_serves_this_machine_only() -> None:
    """The port is published on loopback, the root file system is read-only, no capability stays."""
    service: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]["modeld"]
    assert service["ports"] == ["127.0.0.1:8080:8080"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", ["Makefile", "scripts/dev-run.sh"])
def test_scripts_start_the_daemon_with_flags_it_knows(name: str) -> None:
    """`modeld serve` in make run and in dev-run.sh."""
    found = re.findall(r"^.*/modeld (serve .*)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == 1
    assert flags_in(found[0]) and set(flags_in(found[0])) <= serve_flags()


@pytest.mark.parametrize("path", [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(path: Path) -> None:
    """The shell named in the first line accepts the file."""
    shell = "bash" if "bash" in path.read_text(encoding="utf-8").splitlines()[0] else "sh"
    assert path.stat().st_mode & 0o111
    assert subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, timeout=10, check=False).stderr == ""


def test_the_workflow_runs_what_make_runs() -> None:
    """Every supported Python, `.ci/run` for the check, and each `make` target that is named exists."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs: dict[str, Any] = yaml.safe_load(text)["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert ".ci/run" in [step.get("run") for step in jobs["test"]["steps"]]
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"run: make ([a-z0-9-]+)", text)) <= targets
    assert {"run", "test", "install", "build", "tidy", "lint", "unit", "e2e-py", "bench", "clean"} <= targets


def test_make_lists_its_targets(tmp_path: Path) -> None:
    """`make` alone explains itself and makes nothing."""
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    listed = set(re.findall(r"^  make ([a-z0-9-]+) +\S", done.stdout, re.MULTILINE))
    assert {"run", "test", "install", "build", "tidy", "lint", "unit", "e2e-py", "bench", "clean", "lock"} <= listed


def test_a_python_that_is_too_old_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """find-python.sh says what it tried and why it would not do."""
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\necho "it is Python 3.8"\nexit 1\n')
    old.chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "PYTHON": str(old)}
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "find-python.sh")], capture_output=True, text=True, timeout=30, check=False, env=env
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{old}: it is Python 3.8" in done.stderr and "PYTHON=" in done.stderr


def test_a_python_that_runs_is_taken(tmp_path: Path) -> None:
    """A shim that exists and does not run is passed over; this interpreter is found by name."""
    (tmp_path / "python3.14").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python3.14").chmod(0o755)
    (tmp_path / "python3.13").symlink_to(sys.executable)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "find-python.sh")], capture_output=True, text=True, timeout=30, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "python3.13"
