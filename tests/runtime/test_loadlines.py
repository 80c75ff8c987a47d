# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import pytest

from modeld.runtime.loadlines import LINES_MAX, MIB, LoadLines, Reported, is_host

STARTER = """
0.00.142.570 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.176.196 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
0.00.178.806 I llama_context:        CPU  output buffer size =     0.75 MiB
0.00.178.889 I llama_kv_cache:        CPU KV buffer size =    90.00 MiB
0.00.232.292 I sched_reserve:        CPU compute buffer size =    18.64 MiB
"""
TWO_DEVICES = """
load_tensors: loading model tensors, this can take a while...
load_tensors:        CUDA0 model buffer size =  2000.00 MiB
load_tensors:        CUDA1 model buffer size =  1900.50 MiB
load_tensors:   CPU_Mapped model buffer size =   281.81 MiB
load_tensors:   CPU_REPACK model buffer size =   100.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB
llama_kv_cache:      CUDA1 KV buffer size =   256.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =    64.00 MiB
llama_memory_recurrent:      CUDA0 RS buffer size =     8.00 MiB
llama_context:  CUDA_Host  output buffer size =     0.49 MiB
sched_reserve:      CUDA0 compute buffer size =   258.50 MiB
sched_reserve:  CUDA_Host compute buffer size =    24.01 MiB
llama_adapter_lora_init_impl:      CUDA0 LoRA buffer size =     4.00 MiB
sched_reserve:      CUDA0 compute buffer size =   260.00 MiB
"""


def read(text: str) -> Reported | None:
    lines = LoadLines()
    for line in text.splitlines():
        lines.feed(line.encode())
    return lines.reported()


def mib(**sizes: float) -> dict[str, int]:
    return {name: round(size * MIB) for name, size in sizes.items()}


def test_a_model_on_the_cpu_has_its_weights_in_the_file():
    found = read(STARTER)
    assert found is not None
    assert found.mapped == {"CPU_Mapped"}
    assert {kind: size for (_, kind), size in found.buffers.items()} == mib(output=0.75, KV=90, compute=18.64)
    assert (found.device_bytes(), found.host_bytes(), found.weights_bytes()) == ({}, found.total_bytes, 0)


def test_caches_add_up_and_a_compute_buffer_reserved_anew_replaces_the_old_one():
    found = read(TWO_DEVICES)
    assert found is not None
    assert found.device_bytes() == mib(CUDA0=2000 + 512 + 64 + 8 + 4 + 260, CUDA1=1900.5 + 256)
    assert found.host_bytes() == sum(mib(a=100, b=0.49, c=24.01).values())
    assert found.weights_bytes() == sum(mib(a=2000, b=1900.5, c=100).values())


def test_a_dry_run_before_the_load_counts_for_nothing_and_a_draft_after_it_adds_up():
    dry = TWO_DEVICES.replace("2000.00", "0.00").replace("1900.50", "0.00").replace("100.00", "0.00").replace("281.81", "0.00")
    alone, both = read(dry + TWO_DEVICES), read(dry + TWO_DEVICES + TWO_DEVICES)
    assert alone == read(TWO_DEVICES)
    assert alone is not None and both is not None
    assert both.total_bytes == 2 * alone.total_bytes


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1024.50 MiB on device 0: cudaMalloc failed: out of memory", 1024.5 * MIB),
        ("alloc_tensor_range: failed to allocate CUDA0 buffer of size 1073741824", 1 << 30),
        ("ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 123456", 123456),
        ("ggml_aligned_malloc: insufficient memory (attempted to allocate 9000.00 MB)", 9000 * MIB),
        ("llama_model_load: error loading model: unable to allocate CPU buffer", 0),
        ("failed to allocate compute buffers", 0),
    ],
)
def test_the_allocation_that_failed(line: str, asked: float):
    lines = LoadLines()
    lines.feed(line.encode())
    assert lines.asked_bytes == asked


def test_device_names_may_hold_brackets():
    found = read("sched_reserve: RPC0[127.0.0.1:50052] compute buffer size = 1.00 MiB")
    assert found is not None
    assert found.device_bytes() == {"RPC0[127.0.0.1:50052]": MIB}


@pytest.mark.parametrize(
    "line", ["", "buffer size = x MiB", "load_tensors: CUDA0 model buffer size = MiB", "a: " + "b" * 10_000 + " buffer size"]
)
def test_nonsense_is_nothing(line: str):
    assert read(line) is None


def test_a_child_that_never_stops_saying_it_is_not_collected_for_ever():
    lines = LoadLines()
    for n in range(LINES_MAX * 2):
        lines.feed(f"llama_kv_cache: CUDA{n} KV buffer size = 1.00 MiB".encode())
    found = lines.reported()
    assert found is not None
    assert len(found.buffers) == LINES_MAX


@pytest.mark.parametrize(
    ("name", "host"), [("CPU", True), ("CPU_REPACK", True), ("CUDA_Host", True), ("CUDA0", False), ("Vulkan1", False), ("Metal", False)]
)
def test_what_is_host_memory(name: str, *, host: bool):
    assert is_host(name) is host
