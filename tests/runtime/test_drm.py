# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import os
from pathlib import Path

import pytest

from modeld.runtime import drm
from modeld.runtime.drm import DrmCard, cards, region_bytes, used_by

AMD = "0000:03:00.0"
MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


def card(root: Path, number: int, pci: str, vendor: str, **files: int) -> None:
    device = root / "devices" / pci
    write(device, {"vendor": f"{vendor}\n"} | {name: f"{value}\n" for name, value in files.items() if name.startswith("mem_")})
    folder = root / "class" / "drm" / f"card{number}"
    write(folder, {name: f"{value}\n" for name, value in files.items() if name.startswith("lmem")})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "device").symlink_to(device)
    (root / "class" / "drm" / f"card{number}-DP-1").mkdir()


def opened(proc: Path, pid: int, *files: tuple[str, str]) -> None:
    for number, (target, text) in enumerate(files):
        write(proc / str(pid), {f"fdinfo/{number}": text})
        (proc / str(pid) / "fd").mkdir(exist_ok=True)
        (proc / str(pid) / "fd" / str(number)).symlink_to(target)


def info(client: int, *lines: str, pci: str = AMD) -> str:
    return "\n".join([f"pos:\t0\ndrm-driver:\tamdgpu\ndrm-client-id:\t{client}\ndrm-pdev:\t{pci}", *lines]) + "\n"


def test_the_cards_of_amd_and_intel(tmp_path: Path):
    card(tmp_path, 10, "0000:0b:00.0", "0x8086", lmem_total_bytes=16 << 30, lmem_avail_bytes=15 << 30)
    card(tmp_path, 1, AMD, "0x1002", mem_info_vram_total=24 << 30, mem_info_vram_used=1 << 30)
    card(tmp_path, 2, "0000:01:00.0", "0x10de")
    card(tmp_path, 3, "0000:00:02.0", "0x8086")
    assert cards(tmp_path) == (
        DrmCard(AMD, "amd", 24 << 30, 23 << 30),
        DrmCard("0000:00:02.0", "intel", 0, None),  # its driver tells nothing
        DrmCard("0000:0b:00.0", "intel", 16 << 30, 15 << 30),
    )
    assert cards(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        ("drm-memory-vram:\t2048 KiB\ndrm-memory-gtt:\t 9 KiB", 2 * MIB),
        ("drm-total-vram0:\t10 MiB\ndrm-resident-vram0:\t8 MiB\ndrm-resident-vram1:\t1 MiB\ndrm-total-system0:\t5 MiB", 9 * MIB),
        ("drm-total-local0: 4096\ndrm-shared-local0: 4 KiB", 4096),
        ("drm-memory-vram:\t7 KiB\ndrm-total-vram:\t9 KiB\ndrm-resident-vram:\t6 KiB", 6 << 10),
        ("drm-engine-gfx:\t0 ns", None),
        ("drm-memory-vram:\tmany KiB", None),
        ("", None),
    ],
)
def test_what_a_file_says_is_held(lines: str, size: int | None):
    assert region_bytes(lines) == size


def test_files_of_one_client_count_once(tmp_path: Path):
    held = "drm-resident-vram:\t100 MiB"
    other = "0000:0b:00.0"
    opened(
        tmp_path,
        7,
        ("/dev/dri/renderD128", info(1, held)),
        ("/dev/dri/renderD128", info(1, held)),  # a copy of the same
        ("/dev/dri/renderD128", info(2, "drm-resident-vram:\t20 MiB")),
        ("/dev/dri/renderD129", info(1, held, pci=other)),  # numbers are given by card
        ("/dev/null", info(9, held)),
        ("/tmp/x", "pos:\t0\n"),
    )
    assert used_by(7, tmp_path, tmp_path) == {AMD: 120 * MIB, other: 100 * MIB}


def test_what_may_not_be_seen_is_none_and_who_has_ended_holds_nothing(tmp_path: Path):
    opened(tmp_path, 8, ("/dev/null", ""))
    assert used_by(8, tmp_path, tmp_path) is None
    (tmp_path / "9").mkdir()  # no folder of files: not ours to look at
    assert used_by(9, tmp_path, tmp_path) is None
    assert used_by(10, tmp_path, tmp_path) == {}


def test_compute_of_amd_counts_where_the_files_do_not_have_it(tmp_path: Path):
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    kfd = sys / "class" / "kfd" / "kfd"
    write(
        kfd,
        {
            "proc/7/vram_1234": f"{300 * MIB}\n",
            "proc/7/pasid": "3\n",
            "proc/8/vram_9": "1\n",
            "topology/nodes/0/gpu_id": "0\n",
            "topology/nodes/0/properties": "cpu_cores_count 8\n",
            "topology/nodes/1/gpu_id": "1234\n",
            "topology/nodes/1/properties": "location_id 768\ndomain 0\nname\n",
        },
    )
    opened(proc, 7, ("/dev/dri/renderD128", info(1, "drm-memory-vram:\t5 MiB")), ("/dev/kfd", ""))
    opened(proc, 8, ("/dev/kfd", ""))
    assert used_by(7, proc, sys) == {AMD: 300 * MIB}
    assert used_by(8, proc, sys) is None  # of a card that nobody knows


def test_a_process_with_very_many_files_is_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drm, "FILES_MAX", 1)
    opened(tmp_path, 7, ("/dev/dri/a", info(1, "drm-memory-vram: 1 MiB")), ("/dev/dri/a", info(2, "drm-memory-vram: 1 MiB")))
    assert used_by(7, tmp_path, tmp_path) == {AMD: MIB}


def test_this_process_holds_no_card_here():
    assert not used_by(os.getpid())
