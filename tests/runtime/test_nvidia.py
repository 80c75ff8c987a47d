# SPDX-License-Identifier: GPL-3.0-only
"""NVML as a library that was compiled here: what ctypes reads is what a C program with NVIDIA's own declarations wrote."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from typing import Any

import pytest

from modeld.runtime.nvidia import LIBRARY, Memory, Nvidia, NvidiaCard, Pci, Process, normal_pci

GIB = 1 << 30
STUB = r"""
#include <stdio.h>
#include <string.h>
typedef int nvmlReturn_t;
typedef struct card { int number; } *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int pid; unsigned long long usedGpuMemory; unsigned int gpuInstanceId, computeInstanceId; } nvmlProcessInfo_t;
typedef struct {
    char busIdLegacy[16]; unsigned int domain, bus, device, pciDeviceId, pciSubSystemId; char busId[32];
} nvmlPciInfo_t;
static struct card cards[3] = {{0}, {1}, {2}};
static int started = 0;
nvmlReturn_t nvmlInit_v2(void) { started++; return 0; }
nvmlReturn_t nvmlShutdown(void) { started--; return 0; }
int stub_started(void) { return started; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = 3; return 0; }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (index == 2) return 4;                             /* no permission */
    *device = &cards[index]; return 0;
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *text, unsigned int n) { snprintf(text, n, "GPU-%d", d->number); return 0; }
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *text, unsigned int n) { snprintf(text, n, "NVIDIA H%d00", d->number + 1); return 0; }
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *m) {
    if (d->number == 1) return 3;                         /* not supported: it shares the host's */
    m->total = 80ULL << 30; m->free = 79ULL << 30; m->used = 1ULL << 30; return 0;
}
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, nvmlPciInfo_t *p) {
    memset(p, 0xff, sizeof *p); strcpy(p->busIdLegacy, "wrong"); sprintf(p->busId, "00000000:0%d:00.0", d->number + 1); return 0;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *count, nvmlProcessInfo_t *infos) {
    unsigned int have = d->number == 0 ? 200 : 1, room = *count;
    *count = have;
    if (room < have) return 7;                            /* insufficient size */
    for (unsigned int i = 0; i < have; i++) {
        infos[i].pid = 1000 + i; infos[i].usedGpuMemory = d->number ? ~0ULL : (i + 1ULL) << 20;
        infos[i].gpuInstanceId = infos[i].computeInstanceId = 0xffffffffu;
    }
    return 0;
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t d, unsigned int *count, nvmlProcessInfo_t *infos) {
    if (d->number) return 3;
    *count = 1; infos[0].pid = 1007; infos[0].usedGpuMemory = 9ULL << 20; return 0;
}
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(STUB, encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "nvml.so", folder / "nvml.c"], check=True, timeout=60)
    return ctypes.CDLL(str(folder / "nvml.so"))


def test_the_cards_and_what_they_have(stub: ctypes.CDLL):
    asked: list[str] = []

    def load(name: str) -> ctypes.CDLL:
        asked.append(name)
        return stub

    nvidia = Nvidia.find(load)
    assert nvidia is not None
    assert asked == [LIBRARY]
    # The third may not be used; the second has no memory of its own to tell of.
    assert nvidia.cards() == (
        NvidiaCard("GPU-0", "NVIDIA H100", "0000:01:00.0", 80 * GIB, 79 * GIB),
        NvidiaCard("GPU-1", "NVIDIA H200", "0000:02:00.0", 0, 0),
    )
    assert stub.stub_started() == 1
    nvidia.close()
    assert stub.stub_started() == 0


def test_who_holds_what_also_when_there_are_many(stub: ctypes.CDLL):
    nvidia = Nvidia.find(lambda name: stub)
    assert nvidia is not None
    assert nvidia.used_by(1199) == {"GPU-0": 200 << 20}
    assert nvidia.used_by(1007) == {"GPU-0": 9 << 20}  # it computes and draws: the higher figure, not both
    assert nvidia.used_by(1000) == {"GPU-0": 1 << 20}  # the other card does not know its figure, which is not zero
    assert nvidia.used_by(4) == {}
    nvidia.close()


@pytest.mark.parametrize(("kind", "size"), [(Memory, 24), (Process, 24), (Pci, 68)])
def test_the_sizes_are_those_of_nvml_h(kind: type[ctypes.Structure], size: int):
    assert ctypes.sizeof(kind) == size


class Broken:
    """A driver whose functions end with the codes it is told, 0 for the rest; what is in `missing` it does not have."""

    def __init__(self, missing: tuple[str, ...] = (), **codes: int) -> None:
        self.missing, self.codes = missing, codes

    def __getattr__(self, name: str) -> Any:
        if name in self.missing:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name == "nvmlDeviceGetCount_v2":
                arguments[0]._obj.value = 1
            return self.codes.get(name, 0)

        return call


def test_no_driver_is_none():
    def absent(name: str) -> Any:
        raise OSError(name)

    assert Nvidia.find(absent) is None
    assert Nvidia.find(lambda name: Broken(nvmlInit_v2=9)) is None
    assert Nvidia.find(lambda name: Broken(missing=("nvmlInit_v2",))) is None


def test_a_driver_that_tells_nothing_of_processes_is_silent_and_not_empty():
    old = Nvidia.find(lambda name: Broken(missing=("nvmlDeviceGetComputeRunningProcesses_v3",)))
    assert old is not None
    assert old.used_by(1) is None
    lost = Nvidia.find(lambda name: Broken(nvmlDeviceGetUUID=15))
    assert lost is not None
    assert lost.cards() == ()


@pytest.mark.parametrize(
    ("text", "normal"),
    [("00000000:0A:00.0", "0000:0a:00.0"), ("0000:01:00.0", "0000:01:00.0"), ("1:02:00.0", "0001:02:00.0"), ("", ""), ("pci", "")],
)
def test_addresses_are_written_as_linux_does(text: str, normal: str):
    assert normal_pci(text) == normal
