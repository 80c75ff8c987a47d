# SPDX-License-Identifier: GPL-3.0-only
"""Main memory as /proc and the groups of processes above us have it, on made-up trees; and once on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modeld.runtime import hostmemory
from modeld.runtime.hostmemory import HostMemory, held_mb, read_host_memory

GIB = 1 << 30


def tree(folder: Path, *, total_kb: int = 16 << 20, free_kb: int = 12 << 20, group: str = "0::/a/b\n", **files: str) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup; `files` are `PATH__NAME` -> text, where `_` in PATH stands for `/`."""
    proc, cgroup = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroup.mkdir()
    (proc / "meminfo").write_text(f"MemTotal:       {total_kb} kB\nMemFree: 1 kB\nMemAvailable:   {free_kb} kB\n")
    (proc / "self" / "cgroup").write_text(group)
    for key, text in files.items():
        where, _, name = key.partition("__")
        path = cgroup / where.replace("_", "/") / name.replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, cgroup


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    assert read_host_memory(*tree(tmp_path, a_b__memory_max="max\n")) == HostMemory(16 << 10, 12 << 10)


def test_a_groups_limit_counts_and_its_page_cache_is_free(tmp_path: Path) -> None:
    roots = tree(
        tmp_path,
        a_b__memory_max=f"{4 * GIB}\n",
        a_b__memory_current=f"{3 * GIB}\n",
        a_b__memory_stat=f"anon {GIB}\nfile {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB // 2}\n",
    )
    assert read_host_memory(*roots) == HostMemory(4 << 10, 2560)


def test_the_tightest_of_all_above_counts(tmp_path: Path) -> None:
    assert read_host_memory(*tree(tmp_path, a_b__memory_max=str(8 * GIB), a__memory_max=str(2 * GIB))) == HostMemory(2 << 10, 2 << 10)


def test_in_a_container_the_own_group_is_the_root(tmp_path: Path) -> None:
    for number, group in enumerate(("0::/\n", "0::/../../x\n", "")):
        roots = tree(tmp_path / str(number), group=group, __memory_max=str(GIB))
        assert read_host_memory(*roots) == HostMemory(1 << 10, 1 << 10)


def test_a_group_that_holds_more_than_it_may_has_nothing_free(tmp_path: Path) -> None:
    assert read_host_memory(*tree(tmp_path, __memory_max=str(GIB), __memory_current=str(2 * GIB))).free_mb == 0


@pytest.mark.parametrize("line", ["4:memory:/a/b\n", "12:cpuset:/x\n3:hugetlb,memory:/a/b\n0::/c\n"])
def test_limits_of_version_1_count_too(tmp_path: Path, line: str) -> None:
    """Those of the group above hold as well; what says "no limit" there is a number."""
    roots = tree(
        tmp_path,
        group=line,
        memory_a_b__memory_limit_in_bytes=f"{4 * GIB}\n",
        memory_a_b__memory_usage_in_bytes=f"{3 * GIB}\n",
        memory_a_b__memory_stat=f"inactive_file 1\nactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file {GIB // 2}\n",
        memory_a__memory_limit_in_bytes="9223372036854771712\n",
    )
    assert read_host_memory(*roots) == HostMemory(4 << 10, 2560)


def test_without_proc_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_host_memory(tmp_path, tmp_path).total_mb > 0
    monkeypatch.setattr(hostmemory.os, "sysconf", lambda name: -1 if name == "SC_PHYS_PAGES" else 1)
    assert read_host_memory(tmp_path, tmp_path) == HostMemory(0, 0)


def test_what_processes_hold(tmp_path: Path) -> None:
    for pid, kb in ((7, 1024), (8, 1 << 20)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(f"Name:\tx\nRssAnon:\t  {kb} kB\nRssFile:\t  77777777 kB\nRssShmem:\t 1024 kB\n")
    assert held_mb([7, 8, 9], tmp_path) == 2 + 1025
    assert held_mb([os.getpid()]) > 0


def test_this_machine_has_memory() -> None:
    found = read_host_memory()
    assert 0 < found.free_mb <= found.total_mb
