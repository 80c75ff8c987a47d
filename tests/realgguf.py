# SPDX-License-Identifier: GPL-3.0-only
"""The sizes of models people run, as `archgguf.make_arch(folder, family, name=…, more=…)` takes them; rule: a public configuration each.

The files are sparse: a model of 70 billion weights takes some tens of kilobytes on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archgguf import make_arch


# fmt: off
def dense(layers: int, width: int, inner: int, heads: int, heads_kv: Any, vocabulary: int, head: int = 0) -> dict[str, Any]:
    """What every decoder says. `head` is the length of a head where it is not width / heads."""
    said = {"block_count": layers, "embedding_length": width, "feed_forward_length": inner, "attention.head_count": heads,
            "attention.head_count_kv": heads_kv, "vocab_size": vocabulary}
    if head:
        said |= {"attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head}
    return said


def experts(count: int, used: int, inner: int, shared: int = 0) -> dict[str, Any]:
    return {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": inner,
            "expert_shared_count": 1 if shared else None, "expert_shared_feed_forward_length": shared or None}


def ssm(inner: int, state: int, rank: int, groups: int = 0) -> dict[str, Any]:
    return {"ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank, "ssm.group_count": groups}


def mla(q_rank: int | None, first: int) -> dict[str, Any]:
    return {"attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
            "attention.kv_lora_rank": 512, "attention.q_lora_rank": q_rank, "rope.dimension_count": 64, "leading_dense_block_count": first}


def every(nth: int, layers: int, heads: int, start: int = 0) -> tuple[int, ...]:
    """Heads on every `nth` layer from `start` on."""
    return tuple(heads if index % nth == start else 0 for index in range(layers))


MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama-3.1-8b": ("llama", dense(32, 4096, 14336, 32, 8, 128256)),
    "llama-3.1-70b": ("llama", dense(80, 8192, 28672, 64, 8, 128256)),
    "llama-3.2-3b": ("llama", dense(28, 3072, 8192, 24, 8, 128256)),
    "mistral-small-24b": ("llama", dense(40, 5120, 32768, 32, 8, 131072, 128)),
    "mixtral-8x7b": ("llama", {**dense(32, 4096, 14336, 32, 8, 32000), "expert_count": 8, "expert_used_count": 2}),
    "llama-4-scout": ("llama4", {**dense(48, 5120, 16384, 40, 8, 202048), **experts(16, 1, 8192, 8192), "interleave_moe_layer_step": 1}),
    "qwen2.5-7b": ("qwen2", dense(28, 3584, 18944, 28, 4, 152064)),
    "qwen2.5-14b": ("qwen2", dense(48, 5120, 13824, 40, 8, 152064)),
    "qwen2-57b-a14b": ("qwen2moe", {**dense(28, 3584, 18944, 28, 4, 151936), **experts(64, 8, 2560, 20480)}),
    "qwen3-4b": ("qwen3", dense(36, 2560, 9728, 32, 8, 151936, 128)),
    "qwen3-8b": ("qwen3", dense(36, 4096, 12288, 32, 8, 151936, 128)),
    "qwen3-30b-a3b": ("qwen3moe", {**dense(48, 2048, 6144, 32, 4, 151936, 128), **experts(128, 8, 768)}),
    "qwen3-next-80b": ("qwen3next", {**dense(48, 2048, 5120, 16, 2, 151936, 256), **experts(512, 10, 512, 512), **ssm(4096, 128, 32, 16)}),
    "qwen3.5-27b": ("qwen35", {**dense(64, 5120, 17408, 24, 4, 248320, 256), **ssm(6144, 128, 48, 16)}),
    "qwen3.5-35b-a3b": ("qwen35moe", {**dense(40, 2048, 5120, 16, 2, 248320, 256), **experts(256, 8, 512, 512), **ssm(4096, 128, 32, 16),
                        "attention.recurrent_layers": None, "full_attention_interval": 4}),
    "gemma-7b": ("gemma", dense(28, 3072, 24576, 16, 16, 256000, 256)),
    "gemma-2-9b": ("gemma2", {**dense(42, 3584, 14336, 16, 8, 256000, 256), "attention.sliding_window": 4096}),
    "gemma-3-4b": ("gemma3", dense(34, 2560, 10240, 8, 4, 262144, 256)),
    "gemma-3-27b": ("gemma3", dense(62, 5376, 21504, 32, 16, 262144, 128)),
    "gemma-3n-e4b": ("gemma3n", {**dense(35, 2048, 16384, 8, 2, 262400, 256), "attention.sliding_window": 512,
                     "embedding_length_per_layer_input": 256}),
    "gpt-oss-20b": ("gpt-oss", {**dense(24, 2880, 2880, 64, 8, 201088, 64), **experts(32, 4, 2880)}),
    "gpt-oss-120b": ("gpt-oss", {**dense(36, 2880, 2880, 64, 8, 201088, 64), **experts(128, 4, 2880)}),
    "deepseek-v2-lite": ("deepseek2", {**dense(27, 2048, 10944, 16, 1, 102400), **experts(64, 6, 1408, 2816), **mla(None, 1),
                         "expert_shared_count": 2}),
    "deepseek-v3": ("deepseek2", {**dense(61, 7168, 18432, 128, 1, 129280), **experts(256, 8, 2048, 2048), **mla(1536, 3)}),
    "deepseek-v3.2": ("deepseek32", {**dense(61, 7168, 18432, 128, 1, 129280), **experts(256, 8, 2048, 2048), **mla(1536, 3),
                      "attention.indexer.head_count": 64, "attention.indexer.key_length": 128}),
    "mamba-2.8b": ("mamba", {**dense(64, 2560, 0, 0, None, 50280), **ssm(5120, 16, 160)}),
    "mamba2-codestral-7b": ("mamba2", {**dense(64, 4096, 0, 0, None, 32768), **ssm(8192, 128, 128, 8)}),
    "rwkv6-7b": ("rwkv6", dense(32, 4096, 14336, 0, None, 65536)),
    "rwkv7-2.9b": ("rwkv7", dense(32, 2560, 10240, 0, None, 65536)),
    "lfm2-2.6b": ("lfm2", {**dense(30, 2048, 10752, 32, every(4, 30, 8), 65536)}),
    "lfm2-8b-a1b": ("lfm2moe", {**dense(24, 2048, 7168, 32, every(4, 24, 8), 65536), **experts(32, 4, 1792),
                    "leading_dense_block_count": 2}),
    "falcon-h1-7b": ("falcon-h1", {**dense(44, 3072, 12288, 12, 2, 130048, 128), **ssm(3072, 256, 24, 1)}),
    "granite-4-h-small": ("granitehybrid", {**dense(40, 4096, 768, 32, every(10, 40, 8), 100352), **experts(72, 10, 768, 1536),
                          **ssm(8192, 128, 128, 1)}),
    "granite-3.3-8b": ("granite", dense(40, 4096, 12800, 32, 8, 49159)),
    "jamba-mini-52b": ("jamba", {**dense(32, 4096, 14336, 32, every(8, 32, 8), 65536), **ssm(8192, 16, 256), "expert_count": 16,
                       "expert_used_count": 2}),
    "nemotron-h-8b": ("nemotron_h", {**dense(52, 4096, 0, 32, every(13, 52, 8), 131072, 128), **ssm(8192, 128, 128, 8),
                      "feed_forward_length": tuple(21504 if index % 2 and index % 13 else 0 for index in range(52))}),
    "plamo2-8b": ("plamo2", {**dense(32, 4096, 16384, every(2, 32, 32), every(2, 32, 4), 100000, 128), **ssm(8192, 64, 64)}),
    "kimi-linear-48b": ("kimi-linear", {**dense(27, 2304, 9216, 32, every(4, 27, 1), 163840), **experts(256, 8, 1024, 1024), **mla(None, 1),
                        "kda.head_dim": 128}),
    "phi-2": ("phi2", dense(32, 2560, 10240, 32, 32, 51200)),
    "phi-3.5-mini": ("phi3", {**dense(32, 3072, 8192, 32, 32, 32064), "attention.sliding_window": 262144}),
    "phi-4": ("phi3", {**dense(40, 5120, 17920, 40, 10, 100352), "attention.sliding_window": 0}),
    "command-r-35b": ("command-r", dense(40, 8192, 22528, 64, 64, 256000)),
    "command-r7b": ("cohere2", {**dense(32, 4096, 14336, 32, 8, 256000), "attention.sliding_window": 4096}),
    "olmo2-13b": ("olmo2", dense(40, 5120, 13824, 40, 40, 100352)),
    "olmo3-7b": ("olmo2", {**dense(32, 4096, 11008, 32, 32, 100352), "attention.sliding_window": 4096}),
    "exaone-4-32b": ("exaone4", {**dense(64, 5120, 27392, 40, 8, 102400), "attention.sliding_window": 4096}),
    "smallthinker-21b": ("smallthinker", {**dense(52, 2560, 768, 28, 4, 151936, 128), **experts(64, 6, 768)}),
    "glm-4-9b": ("glm4", dense(40, 4096, 13696, 32, 2, 151552)),
    "glm-4.5-air": ("glm4moe", {**dense(47, 4096, 10944, 96, 8, 151552, 128), **experts(128, 8, 1408, 1408)}),
    "starcoder2-15b": ("starcoder2", dense(40, 6144, 24576, 48, 4, 49152)),
    "stablelm-12b": ("stablelm", dense(40, 5120, 13824, 32, 8, 100352)),
    "smollm3-3b": ("smollm3", dense(36, 2048, 11008, 16, 4, 128256)),
    "falcon-7b": ("falcon", dense(32, 4544, 18176, 71, 1, 65024)),
    "grok-1": ("grok", {**dense(64, 6144, 32768, 48, 8, 131072), **experts(8, 2, 32768)}),
    "minicpm-2b": ("minicpm", dense(40, 2304, 5760, 36, 36, 122753)),
    "internlm2-7b": ("internlm2", dense(32, 4096, 14336, 32, 8, 92544)),
    "olmoe-7b": ("olmoe", {**dense(16, 2048, 1024, 16, 16, 50304), **experts(64, 8, 1024)}),
}
"""Name -> family and what its header says."""
# fmt: on
TIED = frozenset(("llama-3.2-3b", "qwen3-4b", "gemma-7b", "gemma-2-9b", "gemma-3-4b", "gemma-3-27b", "gemma-3n-e4b", "command-r-35b"))


def make_real(folder: Path, name: str) -> Path:
    """Write the sparse file of one of MODELS."""
    family, more = MODELS[name]
    return make_arch(folder, family, name=name, tied=name in TIED, more=more)
