# SPDX-License-Identifier: GPL-3.0-only
"""Makes one header-only GGUF for each of many families, sparse and loadable; rule: llama.cpp itself names the tensors, none is listed here.

make_arch(folder, "gemma3")   writes gemma3.gguf: metadata from SHAPES, every tensor llama.cpp creates for them, no data on the disk

A file is made in a process of its own (this one, run as a program), because llama.cpp ends a process in which its assertions fail.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from makegguf import Tensor, header

VOCABULARY = 4096
CTX = 32768
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
BLOCK = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34), Q4_K: (256, 144)}

PLAIN = re.compile(r"conv1d|shortconv\.conv|ssm_(a|d)\.|norm|time_mix_(lerp|w|decay|first|ln)|exp_probs|altup|gate_inp|rel_b|position")

# fmt: off
MOE = {
    "expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 256, "expert_shared_count": 1,
    "expert_shared_feed_forward_length": 256, "expert_gating_func": 2, "expert_weights_scale": 1.0,
}
SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 1024, "ssm.state_size": 64, "ssm.time_step_rank": 16, "ssm.group_count": 2}
GDN = {"ssm.conv_kernel": 4, "ssm.inner_size": 512, "ssm.state_size": 128, "ssm.time_step_rank": 4, "ssm.group_count": 2}
MLA = {
    "attention.head_count_kv": 1, "attention.key_length": 192, "attention.value_length": 128, "attention.key_length_mla": 96,
    "attention.value_length_mla": 64, "attention.kv_lora_rank": 128, "attention.q_lora_rank": 64, "rope.dimension_count": 64,
    "leading_dense_block_count": 1,
}
SWA = {"attention.sliding_window": 1024}
ROPES = {"rope.dimension_sections": (16, 24, 24, 0)}


def mixed(*counts: int) -> dict[str, Any]:
    """Heads by layer; the first layer must have some where llama.cpp asks it for their length."""
    return {"attention.head_count_kv": counts, "block_count": len(counts)}


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"block_count": 5},
    "llama4": {**MOE, "interleave_moe_layer_step": 2, "block_count": 8},
    "qwen2": {},
    "qwen2moe": MOE,
    "qwen3": {"attention.key_length": 128, "attention.value_length": 128},
    "qwen3moe": {**MOE, "attention.key_length": 128, "attention.value_length": 128},
    "qwen3next": {**MOE, **GDN, "full_attention_interval": 4, "block_count": 8, "attention.key_length": 128, "attention.value_length": 128},
    "qwen35": {**GDN, **ROPES, "full_attention_interval": 4, "block_count": 8, "attention.key_length": 128, "attention.value_length": 128},
    "qwen35moe": {**MOE, **GDN, **ROPES, "attention.recurrent_layers": (True, False, True, True), "attention.key_length": 128,
                  "attention.value_length": 128},
    "gemma": {},
    "gemma2": {"block_count": 7},
    "gemma3": {**SWA, "block_count": 13, "attention.key_length": 128, "attention.value_length": 128},
    "gemma3n": {**SWA, "block_count": 24, "attention.key_length": 64, "attention.value_length": 64, "embedding_length_per_layer_input": 64},
    "gemma4": {**SWA, "block_count": 12, "attention.key_length": 128, "attention.value_length": 128, "attention.key_length_swa": 64,
               "attention.value_length_swa": 64, "attention.shared_kv_layers": 4, "embedding_length_per_layer_input": 64,
               "attention.sliding_window_pattern": (True, True, True, False) * 3},
    "gpt-oss": {**MOE, "attention.sliding_window": 128, "attention.key_length": 64, "attention.value_length": 64},
    "deepseek2": {**MOE, **MLA},
    "deepseek32": {**MOE, **MLA, "attention.indexer.head_count": 4, "attention.indexer.key_length": 128, "attention.indexer.top_k": 2048},
    "mamba": {**SSM, "attention.head_count": 0, "attention.head_count_kv": None},
    "mamba2": {**SSM, "attention.head_count": 0, "attention.head_count_kv": None},
    "rwkv6": {"attention.head_count": 0, "attention.head_count_kv": None, "wkv.head_size": 64, "time_mix_extra_dim": 32,
              "time_decay_extra_dim": 64, "rescale_every_n_layers": 6},
    "rwkv7": {"attention.head_count": 0, "attention.head_count_kv": None, "wkv.head_size": 64, "attention.decay_lora_rank": 64,
              "attention.iclr_lora_rank": 64, "attention.value_residual_mix_lora_rank": 32, "attention.gate_lora_rank": 128},
    "lfm2": {**mixed(2, 0, 0, 2, 0), "shortconv.l_cache": 3, "attention.head_count": 8},
    "lfm2moe": {**MOE, **mixed(2, 0, 0, 2, 0), "shortconv.l_cache": 3, "leading_dense_block_count": 1},
    "falcon-h1": SSM,
    "granite": {},
    "granitehybrid": {**SSM, **mixed(2, 0, 0, 2)},
    "jamba": {**SSM, **mixed(2, 0, 0, 0)},
    "nemotron_h": {**SSM, **mixed(2, 0, 0, 0, 0), "feed_forward_length": (0, 0, 1024, 0, 1024)},
    "plamo2": {**SSM, **mixed(2, 0, 0, 2), "attention.head_count": (8, 0, 0, 8), "ssm.group_count": 0, "ssm.time_step_rank": 16,
               "attention.key_length": 64, "attention.value_length": 64},
    "kimi-linear": {**MOE, **MLA, **mixed(1, 0, 0, 1), "kda.head_dim": 64, "ssm.conv_kernel": 4},
    "phi2": {},
    "phi3": SWA,
    "command-r": {},
    "cohere2": {**SWA, "block_count": 9},
    "olmo2": {**SWA, "block_count": 6},
    "exaone4": {**SWA, "block_count": 64, "embedding_length": 128, "attention.head_count": 4, "attention.head_count_kv": 1},
    "smallthinker": {**MOE, **SWA, "block_count": 9},
    "plamo3": {**SWA, "block_count": 9, "attention.key_length": 64, "attention.value_length": 64},
    "glm4": {},
    "glm4moe": {**MOE, "leading_dense_block_count": 1, "nextn_predict_layers": 1, "block_count": 5},
    "starcoder2": {},
    "stablelm": {},
    "smollm3": {},
    "gpt2": {"attention.head_count_kv": 8},
    "falcon": {"attention.head_count_kv": 2},
    "grok": MOE,
    "openelm": {"attention.head_count": (8, 8, 4, 4), "attention.head_count_kv": (2, 2, 1, 4), "attention.key_length": 64,
                "attention.value_length": 64, "feed_forward_length": (512, 512, 768, 1024)},
    "minicpm": {},
    "internlm2": {},
    "olmoe": {**MOE, "expert_feed_forward_length": None, "attention.head_count_kv": 8},
    "bert": {"attention.causal": False},
    "nomic-bert": {"attention.causal": False},
}
"""Family -> what differs from `plain`. `None` leaves a key out."""
# fmt: on


# fmt: off
def plain() -> dict[str, Any]:
    return {
        "block_count": 4,
        "context_length": CTX,
        "embedding_length": 512,
        "feed_forward_length": 1024,
        "vocab_size": VOCABULARY,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "logit_scale": 1.0,
        "residual_scale": 1.0,
        "attention.max_alibi_bias": 8.0,
        "attention.clamp_kqv": 1.0,
        "use_parallel_residual": False,
        "embedding_scale": 1.0,
        "attention.group_norm_epsilon": 1e-5,
        "attention.group_norm_groups": 8,
        "attention.scale": 1.0,
    }

# fmt: on


def metadata(arch: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    said = {**plain(), **SHAPES[arch], **(more or {})}
    pairs = {f"{arch}.{key}": value for key, value in said.items() if value is not None}
    tokenizer = {"tokenizer.ggml.model": "none", "tokenizer.ggml.token_type_count": 2}
    return {"general.architecture": arch, "general.name": arch, **tokenizer, **pairs}


def make_arch(folder: Path, arch: str, *, name: str = "", tied: bool = False, more: Mapping[str, Any] | None = None) -> Path:
    """Write the file. `tied` leaves the output head out; `more` replaces metadata. Raises RuntimeError with llama.cpp's own words."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = metadata(arch, more)
    bare = folder / f"{name or arch}.keys"
    bare.write_bytes(header(pairs))
    found = find_spec("xllamacpp")
    assert found is not None and found.origin is not None
    library = Path(found.origin).parent / "xllamacpp.abi3.so"
    ran = subprocess.run([sys.executable, __file__, str(library), str(bare)], capture_output=True, text=True, check=False)
    bare.unlink()
    if ran.returncode:
        raise RuntimeError(f"{arch}: exit {ran.returncode}: {ran.stderr.strip()[-400:]}")
    # A tensor that several layers share is asked for by each of them, and is in the file once.
    listed = {name: tuple(dims) for name, dims in json.loads(ran.stdout) if not left_out(name, tied=tied)}
    tensors, end = [], 0
    for tensor, dims in listed.items():
        kind = kind_of(tensor, dims)
        tensors.append(Tensor(tensor, dims, kind, end))
        elements, size = BLOCK[kind]
        count = 1
        for length in dims:
            count *= length
        end += -(-(count // elements * size) // 32) * 32
    raw = header(pairs, tensors)
    path = folder / f"{name or arch}.gguf"
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + end)
    return path


def left_out(name: str, *, tied: bool) -> bool:
    """Tensors that llama.cpp takes where they are: the factors beside FP4 weights, a head of its own."""
    return name.endswith((".scale", ".input_scale")) or (tied and name == "output.weight")


def kind_of(name: str, dims: tuple[int, ...]) -> int:
    """Matrices are quantised as a quantiser would; vectors and what the graph wants as numbers stay F32."""
    if len(dims) < 2 or not name.endswith(".weight") or PLAIN.search(name):
        return F32
    if dims[0] % 256 == 0:
        return Q4_K
    return Q8_0 if dims[0] % 32 == 0 else F16


def list_tensors(library: str, keys: str) -> list[tuple[str, list[int]]]:
    """The tensors llama.cpp creates for a model of these keys, none of them allocated."""
    from modeld.runtime.probe_worker import ModelParams

    class TensorHead(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4)]

    class Named(ctypes.Structure):  # std::pair<std::string, ggml_tensor *>, the string as old builds of libstdc++ had it: one pointer
        _fields_ = [("name", ctypes.c_void_p), ("tensor", ctypes.POINTER(TensorHead))]

    class Vector(ctypes.Structure):
        _fields_ = [("first", ctypes.c_void_p), ("end", ctypes.c_void_p)]

    class InitParams(ctypes.Structure):
        _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]

    so = ctypes.CDLL(library)
    so.ggml_get_name.restype = ctypes.c_char_p
    so.ggml_get_name.argtypes = [ctypes.c_void_p]
    so.gguf_init_from_file.restype = ctypes.c_void_p
    so.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    so.llama_model_default_params.restype = ModelParams
    so.llama_model_init_from_user.restype = ctypes.c_void_p
    so.llama_model_init_from_user.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ModelParams]
    listed = so._Z29llama_internal_get_tensor_mapPK11llama_model
    listed.restype = ctypes.POINTER(Vector)
    listed.argtypes = [ctypes.c_void_p]
    params = so.llama_model_default_params()
    params.load_mtp = True
    params.no_alloc = True
    unused = ctypes.cast(so.llama_free, ctypes.c_void_p)  # the function that would fill the tensors: it must be one, and is not called
    model = so.llama_model_init_from_user(so.gguf_init_from_file(keys.encode(), InitParams(True, None)), unused, None, params)
    if not model:
        sys.exit(3)
    vector = listed(model).contents
    count = ((vector.end or 0) - (vector.first or 0)) // ctypes.sizeof(Named)
    found = []
    for named in (Named * count).from_address(vector.first):
        dims = list(named.tensor.contents.ne)
        while len(dims) > 1 and dims[-1] == 1:
            dims.pop()
        found.append((so.ggml_get_name(ctypes.cast(named.tensor, ctypes.c_void_p)).decode(), dims))
    return found


if __name__ == "__main__":
    json.dump(list_tensors(sys.argv[1], sys.argv[2]), sys.stdout)
