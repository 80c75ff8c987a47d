# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from modeld.core.budget import DeviceFacts
from modeld.runtime.devices import Card, EngineDevice, Machine, match, read_described, read_list
from modeld.runtime.nvidia import Nvidia, NvidiaCard

AMD = "0000:03:00.0"
GIB = 1 << 30
MIB = 1 << 20


def amd_machine(root: Path, pid: int) -> None:
    """A card of AMD, and a process that holds 3 MiB of it."""
    for folder in (f"devices/{AMD}", "class/drm/card0", f"{pid}/fd", f"{pid}/fdinfo"):
        (root / folder).mkdir(parents=True)
    for name, text in {"vendor": "0x1002", "mem_info_vram_total": str(24 * GIB), "mem_info_vram_used": str(GIB)}.items():
        (root / "devices" / AMD / name).write_text(text)
    (root / "class/drm/card0/device").symlink_to(root / "devices" / AMD)
    (root / f"{pid}/fd/5").symlink_to("/dev/dri/renderD128")
    (root / f"{pid}/fdinfo/5").write_text(f"drm-client-id:\t1\ndrm-pdev:\t{AMD}\ndrm-memory-vram:\t3 MiB\n")


def gpu(name: str, description: str = "", *, pci: str = "", total_mb: int = 0, kind: str = "GPU") -> EngineDevice:
    return EngineDevice(name, description, kind, total_mb, 0, pci)


def nvidia(number: int, name: str = "NVIDIA H100") -> Card:
    return Card(f"GPU-{number}", "nvidia", name, f"0000:0{number}:00.0", 80 * GIB, 79 * GIB)


AMD_CARD = Card(AMD, "amd", "", AMD, 24 * GIB, 23 * GIB)


def pairs(devices: list[EngineDevice], cards: list[Card], environment: Mapping[str, str] | None = None) -> dict[str, str | None]:
    return {device.name: one.id if one else None for device, one in match(devices, cards, environment or {})}


def test_the_address_decides_before_name_and_order():
    devices = [gpu("CUDA0", "NVIDIA H100", pci="0000:02:00.0"), gpu("CUDA1", "NVIDIA H100", pci="0000:01:00.0")]
    assert pairs(devices, [nvidia(1), nvidia(2)]) == {"CUDA0": "GPU-2", "CUDA1": "GPU-1"}


def test_the_name_decides_before_the_order():
    devices = [gpu("CUDA0", "NVIDIA H100"), gpu("CUDA1", "NVIDIA L4")]
    assert pairs(devices, [nvidia(1, "NVIDIA L4"), nvidia(2)]) == {"CUDA0": "GPU-2", "CUDA1": "GPU-1"}


@pytest.mark.parametrize(
    ("small", "large"),
    [("NVIDIA L4", "NVIDIA L40S"), ("NVIDIA GeForce RTX 3080", "NVIDIA GeForce RTX 3080 Ti"), ("NVIDIA A10", "NVIDIA A100")],
)
def test_a_name_that_begins_like_another_is_another(small: str, large: str):
    devices = [gpu("CUDA0", large), gpu("CUDA1", small)]  # CUDA has the faster first, the driver the one with the lower address
    assert pairs(devices, [nvidia(1, small), nvidia(2, large)]) == {"CUDA0": "GPU-2", "CUDA1": "GPU-1"}
    assert pairs([gpu("CUDA0", f"{small} (GPU 0)")], [nvidia(2, large), nvidia(1, small)]) == {"CUDA0": "GPU-1"}


def test_the_order_does_not_stand_against_a_name():
    # CUDA numbers the faster card first, NVML the one with the lower address: 0 is not the same card for both.
    cards = [nvidia(1, "NVIDIA L4"), nvidia(2)]
    zero = {"CUDA_VISIBLE_DEVICES": "0"}
    assert pairs([gpu("CUDA0", "NVIDIA H100")], cards, zero) == {"CUDA0": "GPU-2"}
    assert pairs([gpu("CUDA0", "NVIDIA H100")], [*cards, nvidia(3)], zero) == {"CUDA0": None}  # one of the two
    assert pairs([gpu("CUDA0", "NVIDIA H200")], cards, zero) == {"CUDA0": None}
    assert pairs([gpu("CUDA0", "NVIDIA H100 MIG 1g.10gb")], [nvidia(1)]) == {"CUDA0": None}  # a part has less than the card


def test_the_size_decides_where_only_one_card_has_it():
    small = Card("0000:0c:00.0", "amd", "", "0000:0c:00.0", GIB // 2, 0)  # in the processor; Vulkan leaves it out beside the other
    assert pairs([gpu("Vulkan0", total_mb=24 * 1024 - 100)], [small, AMD_CARD]) == {"Vulkan0": AMD}
    assert pairs([gpu("ROCm0", total_mb=24 * 1024), gpu("ROCm1", total_mb=512)], [small, AMD_CARD]) == {"ROCm0": AMD, "ROCm1": small.id}
    twin = Card("0000:04:00.0", "amd", "", "0000:04:00.0", 24 * GIB, 0)
    assert pairs([gpu("Vulkan0", total_mb=24 * 1024)], [small, AMD_CARD, twin]) == {"Vulkan0": None}  # either
    both = [gpu("ROCm0", total_mb=24 * 1024), gpu("ROCm1", total_mb=24 * 1024)]
    assert pairs(both, [AMD_CARD, twin]) == {"ROCm0": AMD, "ROCm1": twin.id}


def test_without_a_name_the_order_decides_where_none_is_missing():
    assert pairs([gpu("ROCm0", "AMD Radeon RX 7900")], [nvidia(1), AMD_CARD]) == {"ROCm0": AMD}
    assert pairs([gpu("ROCm0"), gpu("ROCm1")], [AMD_CARD]) == {"ROCm0": None, "ROCm1": None}
    assert pairs([gpu("Vulkan0")], [nvidia(1), AMD_CARD]) == {"Vulkan0": None}


def test_only_cards_that_the_engine_may_see_count():
    cards = [nvidia(1), nvidia(2), nvidia(3)]
    one = [gpu("CUDA0", "NVIDIA H100")]
    assert pairs(one, cards, {"CUDA_VISIBLE_DEVICES": "2"}) == {"CUDA0": "GPU-3"}
    assert pairs(one, cards, {"CUDA_VISIBLE_DEVICES": "GPU-2"}) == {"CUDA0": "GPU-2"}
    assert pairs([*one, gpu("CUDA1", "NVIDIA H100")], cards, {"CUDA_VISIBLE_DEVICES": "2, 0"}) == {"CUDA0": "GPU-3", "CUDA1": "GPU-1"}
    for part in ("MIG-GPU-1/3/0", "9", "-1"):
        assert pairs(one, cards, {"CUDA_VISIBLE_DEVICES": part}) == {"CUDA0": None}


def test_a_card_that_two_backends_see_counts_once():
    both = [gpu("CUDA0", "NVIDIA H100", pci="0000:01:00.0"), gpu("Vulkan0", "NVIDIA H100", pci="0000:01:00.0")]
    assert pairs(both, [nvidia(1)]) == {"CUDA0": "GPU-1"}
    assert pairs([gpu("CUDA0", "NVIDIA H100"), gpu("Vulkan0", "NVIDIA H100")], [nvidia(1)]) == {"CUDA0": "GPU-1"}
    assert pairs([gpu("CUDA0", "NVIDIA H100"), gpu("Vulkan0", "AMD")], [nvidia(1), AMD_CARD]) == {"CUDA0": "GPU-1", "Vulkan0": AMD}


class FakeNvidia(Nvidia):
    """Cards and processes as they are said to be."""

    def __init__(self, *cards: NvidiaCard, used: Mapping[str, int] | None = None) -> None:
        super().__init__(None)
        self.there, self.used = cards, used

    def cards(self) -> tuple[NvidiaCard, ...]:
        return self.there

    def used_by(self, pid: int) -> Mapping[str, int] | None:
        return self.used if pid == 7 else {}


H100 = NvidiaCard("GPU-1", "NVIDIA H100", "0000:01:00.0", 80 * GIB, 70 * GIB)


def test_what_devices_there_are_and_what_is_free_and_held(tmp_path: Path):
    amd_machine(tmp_path, pid=7)
    engine = [gpu("CUDA0", "NVIDIA H100"), gpu("ROCm0", "AMD"), gpu("BLAS", kind="ACCEL"), gpu("CPU", kind="CPU")]
    driver = FakeNvidia(H100, used={"GPU-1": 5 * MIB, "GPU-of-another": 1})
    machine = Machine(engine, nvidia=driver, proc=tmp_path, sys=tmp_path)
    assert machine.facts() == (DeviceFacts("GPU-1", "CUDA0", 80 * 1024), DeviceFacts(AMD, "ROCm0", 24 * 1024))
    assert machine.memory() == {"CUDA0": (80 * GIB, 70 * GIB), "ROCm0": (24 * GIB, 23 * GIB)}
    assert machine.device_bytes_of(7) == {"CUDA0": 5 * MIB, "ROCm0": 3 * MIB}
    assert machine.device_bytes_of(8) == {}
    driver.there = (NvidiaCard("GPU-1", "NVIDIA H100", "", 80 * GIB, 60 * GIB),)
    assert machine.memory()["CUDA0"] == (80 * GIB, 60 * GIB)  # looked at anew, and still the same card


def test_what_no_driver_tells_is_left_out(tmp_path: Path):
    (tmp_path / "7").mkdir()
    machine = Machine([gpu("Vulkan0", "Some GPU", total_mb=8000)], proc=tmp_path, sys=tmp_path)
    assert machine.facts() == (DeviceFacts("Vulkan0", "Vulkan0", 8000),)
    assert machine.memory() == {}
    assert machine.device_bytes_of(7) is None


@pytest.mark.parametrize(
    ("device", "shared"),
    [
        (gpu("CUDA0", "NVIDIA GB10", total_mb=119_000, kind="IGPU"), True),
        (gpu("CUDA0", "NVIDIA GB10", total_mb=121_900), True),  # llama.cpp gives the host's memory for it
        (gpu("MTL0", "Apple M4", total_mb=48_000), True),
        (gpu("Vulkan0", "Some card", total_mb=24_000), False),
        (gpu("CUDA0", "NVIDIA H100", total_mb=122_000), False),  # as much as the host, and its own
    ],
)
def test_memory_that_is_the_hosts(device: EngineDevice, *, shared: bool, tmp_path: Path):
    cards = (H100,) if device.description == "NVIDIA H100" else (NvidiaCard("GPU-2", "NVIDIA GB10", "", 0, 0),)
    machine = Machine([device], nvidia=FakeNvidia(*cards), host_total_mb=122_000, proc=tmp_path, sys=tmp_path)
    assert [one.shares_host for one in machine.facts()] == [shared]


def test_a_graphics_unit_in_the_processor_uses_the_hosts_memory(tmp_path: Path):
    # llama-server's list does not say that it is one, and its driver tells at most of the part that is set aside for the screen.
    device = tmp_path / "devices" / "0000:05:00.0"
    device.mkdir(parents=True)
    (tmp_path / "class/drm/card0").mkdir(parents=True)
    (tmp_path / "class/drm/card0/device").symlink_to(device)
    (device / "vendor").write_text("0x1002")
    (device / "mem_info_vram_total").write_text(str(GIB // 2))
    (device / "mem_info_vram_used").write_text("0")
    machine = Machine([gpu("Vulkan0", "AMD Radeon 780M", total_mb=16_000)], host_total_mb=30_000, proc=tmp_path, sys=tmp_path)
    assert machine.facts() == (DeviceFacts("0000:05:00.0", "Vulkan0", 16_000, shares_host=True),)
    assert machine.memory() == {}  # what is free of that part says nothing of the rest


def test_intels_is_told_by_its_place(tmp_path: Path):
    for number, pci in enumerate(("0000:00:02.0", "0000:03:00.0")):
        root = tmp_path / str(number)
        (root / "devices" / pci).mkdir(parents=True)
        (root / "devices" / pci / "vendor").write_text("0x8086")
        (root / "class/drm/card0").mkdir(parents=True)
        (root / "class/drm/card0/device").symlink_to(root / "devices" / pci)
        machine = Machine([gpu("Vulkan0", "Intel", total_mb=16_000)], host_total_mb=30_000, proc=root, sys=root)
        assert machine.facts() == (DeviceFacts(pci, "Vulkan0", 16_000, shares_host=number == 0),)


def test_what_llama_server_lists():
    said = ["ggml_cuda_init: found 2 CUDA devices:", "Available devices:"]
    said += ["  CUDA0: NVIDIA H100 (PCIe) (81559 MiB, 80000 MiB free)", "  BLAS: OpenBLAS (0 MiB, 0 MiB free)"]
    said += ["  RPC0[127.0.0.1:50052]: RPC (100 MiB, 90 MiB free)", "  nonsense", "warning: x (1 MiB, 2 MiB)"]
    assert read_list(said) == (
        EngineDevice("CUDA0", "NVIDIA H100 (PCIe)", "GPU", 81559, 80000),
        EngineDevice("BLAS", "OpenBLAS", "ACCEL"),
        EngineDevice("RPC0[127.0.0.1:50052]", "RPC", "GPU", 100, 90),
    )
    assert read_list(["Available devices:", "  (none)"]) == ()
    assert read_list(["error: unknown argument"]) is None
    assert read_list([]) is None


def test_what_our_worker_says():
    one = {
        "name": "CUDA0",
        "description": "d",
        "type": "GGML_BACKEND_DEVICE_TYPE_GPU",
        "total": 80 * GIB,
        "free": GIB,
        "pci": "0000:01:00.0",
    }
    assert read_described([one]) == (EngineDevice("CUDA0", "d", "GPU", 80 * 1024, 1024, "0000:01:00.0"),)
    assert read_described([{"name": "CPU", "description": "d", "type": "CPU"}]) == (EngineDevice("CPU", "d", "CPU"),)
    for nonsense in (None, {}, ["x"], [{}], [one | {"total": "much"}], 7):
        assert read_described(nonsense) is None
