# SPDX-License-Identifier: GPL-3.0-only
"""What the kernel tells of a process and of this machine; rule: it only reads /proc, and says nothing where it cannot."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads, to the nanosecond where the kernel counts that."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9
    except (FileNotFoundError, NotADirectoryError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int, *, peak: bool = False) -> float:
    """Resident memory in MiB, now or the most so far."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(wanted))


def listener(port: int) -> int | None:
    """The process that listens on a TCP port of this machine, if it is one of ours to look at."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        fields = (line.split() for line in lines)
        inodes |= {one[9] for one in fields if one[3] == "0A" and int(one[1].rpartition(":")[2], 16) == port}
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if any(str(link.readlink()) in wanted for link in (entry / "fd").iterdir()):
                    return int(entry.name)
            except OSError:
                continue
    return None


def describe() -> dict[str, str]:
    """What a reader must know to judge the figures."""
    memory = Path("/proc/meminfo").read_text(encoding="ascii").split()[1] if Path("/proc/meminfo").exists() else "0"
    busy = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    return {
        "processor": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{int(memory) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "packages": ", ".join(f"{name} {version(name)}" for name in ("uvloop", "httptools", "uvicorn", "xllamacpp")),
        "load before": busy,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
