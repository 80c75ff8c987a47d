# SPDX-License-Identifier: GPL-3.0-only
"""Which layers of a model keep what, read from its metadata as llama.cpp reads it; rule: a family that is not listed is never certain.

llama.cpp decides per family (`load_arch_hparams` in src/models/*.cpp and `llama_model::create_memory`); the tables below say the same.
For each layer, in this order:

  1. families without a cache keep nothing;
  2. blocks of next-token prediction behind the trunk are not loaded;
  3. recurrent layers keep a state: all, those without key/value heads, or those between full-attention layers;
  4. the other layers keep keys and values, within a window where the family has one and the pattern says so;
  5. latent attention (MLA) keeps the key row alone; an indexer adds one small key row.

What a family not listed in any table gets is full attention on every layer: never less than what a window would take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modeld.catalog.gguf import Header, Scalar
from modeld.core.model import AttentionLayers, MemoryShape, RecurrentLayers, Widths

LAYERS_MAX: Final = 4096
NUMBER_MAX: Final = 1 << 20
BYTES_MAX: Final = (1 << 63) - 1
"""Weights are stored in the header cache as 64-bit numbers."""

Metadata = Mapping[str, Scalar | tuple[Scalar, ...]]

ENCODERS: Final = frozenset(
    (
        *("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert"),
        *("gemma-embedding", "llama-embed", "t5encoder"),
    )
)
"""Families that only encode: llama.cpp computes no next token for them (their graphs have no output head)."""
NO_CACHE: Final = (ENCODERS - {"llama-embed", "t5encoder"}) | {"dream", "llada", "llada-moe", "rnd1", "wavtokenizer-dec"}
"""Families for which llama.cpp makes no attention cache (`llama_model::create_memory`)."""


@dataclass(frozen=True, slots=True)
class Window:
    """How a family's window is found. `size` 0 = the header's, which may also switch it off; otherwise the size where the header has none.

    pattern      every so manieth layer sees everything, where the header has no pattern of its own; 0 = the header must have one
    dense_first  the first of each group sees everything, not the last
    fixed        `size` holds whatever the header says
    always       the family has a window also where the header names none
    """

    pattern: int
    size: int = 0
    dense_first: bool = False
    fixed: bool = False
    always: bool = False


WINDOWS: Final[Mapping[str, Window]] = {
    "gemma2": Window(2, 4096, always=True),
    "gemma3": Window(6),
    "gemma3n": Window(5),
    "gemma4": Window(0),
    "gpt-oss": Window(2),
    "cohere2": Window(4),
    "cohere2moe": Window(4, dense_first=True),
    "llama4": Window(4, 8192, fixed=True, always=True),
    "olmo2": Window(4),
    "exaone4": Window(4, 4096, always=True),
    "exaone-moe": Window(4, 128, always=True),
    "afmoe": Window(4),
    "mellum": Window(4),
    "plamo3": Window(8),
    "smallthinker": Window(4, 4096, dense_first=True, fixed=True),
    "laguna": Window(4, dense_first=True),
    "mimo2": Window(0),
    "step35": Window(0),
}
EXAONE4_LAYERS: Final = 64
"""Only the model of so many layers has a window (exaone4.cpp)."""

RECURRENT: Final = frozenset(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"))
"""Every layer recurs, none attends."""
BOTH: Final = frozenset(("falcon-h1",))
"""Every layer does both."""
HEADLESS_RECUR: Final = frozenset(("jamba", "lfm2", "lfm2moe", "granitehybrid", "plamo2", "kimi-linear", "nemotron_h", "nemotron_h_moe"))
"""A layer without key/value heads recurs."""
INTERVALS: Final = frozenset(("qwen3next", "qwen35", "qwen35moe", "minimax-01"))
"""A list says which layers recur, or all but every n-th do."""
INTERVAL_DEFAULT: Final = {"minimax-01": 8}
FEED_FORWARD_ALONE: Final = frozenset(("nemotron_h", "nemotron_h_moe"))
"""A layer with a feed-forward network keeps nothing: each does one thing."""
LATENT: Final = frozenset(("deepseek2", "deepseek32", "glm-dsa", "kimi-linear", "mistral4"))
INDEXED: Final = frozenset(("deepseek32", "glm-dsa"))
SHARED_AFTER: Final = {"gemma3n": 20}
"""Layers from here on use the cache of an earlier one."""
DOUBLED: Final = frozenset(("gemma3n", "gemma4"))
"""Where the token table is the output head too, llama.cpp has it twice wherever the two lie: it makes the head's copy first."""
SIDE_FIXED: Final = {"gemma3n": 256}
"""Length of the per-layer embeddings where llama.cpp does not look at the header."""
NO_FLASH: Final = frozenset(("grok",))
SKIPS_PREDICTION: Final = frozenset(
    (
        *("bailingmoe2", "bailingmoe3", "cohere2moe", "deepseek2", "deepseek32", "deepseek4", "dots3note", "exaone-moe", "exaone4"),
        *("glm-dsa", "glm4moe", "glm4", "glm5-next", "hy-v3", "mimo2", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next"),
        *("qwen4exp", "step35"),
    )
)
"""Blocks that predict further tokens are left in the file."""

CERTAIN: Final = frozenset(
    (
        *("llama", "llama4", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe", "gemma", "gemma2", "gemma3"),
        *("gemma3n", "gemma4", "gpt-oss", "deepseek2", "deepseek32", "mamba", "mamba2", "rwkv6", "rwkv7", "lfm2", "lfm2moe", "falcon-h1"),
        *("granite", "granitehybrid", "jamba", "nemotron_h", "plamo2", "plamo3", "kimi-linear", "phi2", "phi3", "command-r", "cohere2"),
        *("olmo2", "olmoe", "exaone4", "smallthinker", "glm4", "glm4moe", "starcoder2", "stablelm", "smollm3", "gpt2", "falcon", "grok"),
        *("openelm", "minicpm", "internlm2", "bert", "nomic-bert"),
    )
)
"""Families whose figures the grid compares with llama.cpp's own."""


@dataclass(frozen=True, slots=True)
class _Layers:
    """The numbers most rules need. `trunk` layers are loaded, `all` with those of next-token prediction."""

    data: Metadata
    family: str
    all: int
    trunk: int
    heads: tuple[int, ...]
    heads_kv: tuple[int, ...]
    embedding: int

    def number(self, key: str, default: int = 0) -> int:
        return _number(self.data.get(f"{self.family}.{key}"), default)


def memory_shape(header: Header) -> MemoryShape:
    """What the first (or only) file of a model says about its memory; `weights_bytes` is that of this file alone."""
    family = header.metadata.get("general.architecture")
    family = family if isinstance(family, str) else ""
    layers = _layers(header.metadata, family)
    attention = _attention(layers) if family not in NO_CACHE else []
    longest = max((_rows(layers, index, windowed)[1] for index, windowed in enumerate(_windowed(layers))), default=0)
    return MemoryShape(
        weights_bytes=loaded_bytes(header),
        tied_bytes=tied_bytes(header),
        table_bytes=min(header.tensor_bytes.get("token_embd.weight", 0), BYTES_MAX),
        head_bytes=min(header.tensor_bytes.get("output.weight", 0), BYTES_MAX),
        attention=tuple(AttentionLayers(count, *kind) for kind, count in Counter(attention).items()),
        recurrent=_recurrent(layers),
        value_elements_max=0 if _latent(layers) else longest,
        no_flash=family in NO_FLASH,
        certain=family in CERTAIN and header.extents_known,
        layers=layers.trunk,
        heads_kv=max(layers.heads_kv, default=0) if family not in NO_CACHE else 0,
        key_length=_per_head(layers, "key_length"),
        value_length=_per_head(layers, "value_length"),
        widths=_widths(layers, vocabulary(header)),
    )


def vocabulary(header: Header) -> int:
    """How many tokens the model knows; 0 = unknown."""
    listed = header.array_lengths.get("tokenizer.ggml.tokens", 0)
    return listed if 0 < listed <= NUMBER_MAX else _number(header.metadata.get(f"{header.metadata.get('general.architecture')}.vocab_size"))


def trunk_blocks(header: Header) -> int:
    """How many of the blocks are loaded, where the last ones are not; 0 = all are."""
    family = header.metadata.get("general.architecture")
    if family not in SKIPS_PREDICTION or not _number(header.metadata.get(f"{family}.nextn_predict_layers")):
        return 0
    return _layers(header.metadata, str(family)).trunk


def loaded_bytes(header: Header) -> int:
    """Bytes of the tensors of one file that are loaded; 0 when one has a type unknown here."""
    blocks = trunk_blocks(header)
    total = sum(header.tensor_bytes.values()) + sum(size for number, size in header.block_bytes.items() if not blocks or number < blocks)
    if header.metadata.get("general.architecture") in DOUBLED and "output.weight" not in header.tensor_bytes:
        total += header.tensor_bytes.get("token_embd.weight", 0)
    return min(total, BYTES_MAX) if header.extents_known else 0


def tied_bytes(header: Header) -> int:
    """Bytes of the token table where the model has no output head of its own."""
    family = header.metadata.get("general.architecture")
    if family in ENCODERS or family in DOUBLED or "output.weight" in header.tensor_bytes:
        return 0
    return min(header.tensor_bytes.get("token_embd.weight", 0), BYTES_MAX)


def _layers(data: Metadata, family: str) -> _Layers:
    count = min(_number(data.get(f"{family}.block_count")), LAYERS_MAX)
    heads = _per_layer(data.get(f"{family}.attention.head_count"), count)
    heads_kv = _per_layer(data.get(f"{family}.attention.head_count_kv"), count) or heads
    trunk = max(0, count - _number(data.get(f"{family}.nextn_predict_layers")))
    return _Layers(data, family, count, trunk, heads, heads_kv, _number(data.get(f"{family}.embedding_length")))


def _widths(layers: _Layers, tokens: int) -> Widths:
    """The widest of each kind, over all layers."""
    number = layers.number
    dense = max(_per_layer(layers.data.get(f"{layers.family}.feed_forward_length"), layers.all), default=0)
    used = number("expert_used_count")
    heads = max(layers.heads, default=0)
    recurrent_heads = heads if layers.family == "kimi-linear" else 0
    return Widths(
        embedding=layers.embedding,
        feed_forward=max(dense, number("expert_shared_feed_forward_length")),
        experts=used,
        expert=(number("expert_feed_forward_length") or dense) if used else 0,
        heads=heads,
        head=max(_per_head(layers, "key_length"), number("attention.key_length_swa")) + number("attention.key_length_mla"),
        inner=number("ssm.inner_size") or number("kda.head_dim") * recurrent_heads,
        side=SIDE_FIXED.get(layers.family, number("embedding_length_per_layer_input")) * layers.all,
        vocabulary=tokens,
        indexer=number("attention.indexer.head_count"),
    )


def _per_head(layers: _Layers, key: str) -> int:
    """Elements per head; llama.cpp's default is the embedding divided by the heads of the first layer."""
    first = next(iter(layers.heads), 0)
    return layers.number(f"attention.{key}", layers.embedding // first if first else 0)


def _attention(layers: _Layers) -> list[tuple[int, int, int]]:
    """(key elements, value elements, window) of each row of cache."""
    if layers.family in RECURRENT or not layers.heads_kv:
        return []
    recurs, windowed = _recurs(layers), _windowed(layers)
    kept = min(layers.trunk, _own_caches(layers))
    found = []
    for index in range(kept):
        if (recurs[index] and layers.family not in BOTH) or _feeds_forward(layers, index):
            continue
        key, value = _rows(layers, index, windowed[index])
        found.append((key, 0 if _latent(layers) else value, _window(layers) if windowed[index] else 0))
    if layers.family in INDEXED:
        found += [(layers.number("attention.indexer.key_length"), 0, 0)] * _indexed(layers)
    return [row for row in found if row[0]]


def _rows(layers: _Layers, index: int, windowed: bool) -> tuple[int, int]:
    """Elements of a cell's key row and value row in one layer."""
    if index >= len(layers.heads_kv):
        return 0, 0
    first = next(iter(layers.heads), 0)
    key, value = _per_head(layers, "key_length"), _per_head(layers, "value_length")
    if windowed:
        key, value = layers.number("attention.key_length_swa", key), layers.number("attention.value_length_swa", value)
    if not first and layers.family != "plamo2":  # llama.cpp takes a model whose first layer has no heads for one without attention
        key = value = 0
    return key * layers.heads_kv[index], value * layers.heads_kv[index]


def _window(layers: _Layers) -> int:
    """Tokens of the family's window; 0 = it has none."""
    rule = WINDOWS.get(layers.family)
    said = layers.data.get(f"{layers.family}.attention.sliding_window")
    if layers.family in ("lfm2", "lfm2moe"):
        return _number(said) if layers.family == "lfm2" else 0
    if rule is None or (said is None and not rule.always) or (said == 0 and not (rule.always and not rule.fixed)):
        return 0
    if layers.family == "exaone4" and layers.trunk != EXAONE4_LAYERS:
        return 0
    return rule.size if rule.fixed or said is None else _number(said)


def _windowed(layers: _Layers) -> list[bool]:
    """For each layer, whether it looks back a window only."""
    rule, flat = WINDOWS.get(layers.family), [False] * layers.all
    if not _window(layers):
        return flat
    if rule is None:  # lfm2: all that attend
        return [not recurs for recurs in _recurs(layers)]
    said = layers.data.get(f"{layers.family}.attention.sliding_window_pattern")
    if isinstance(said, tuple):
        return [bool(item) for item in said[: layers.all]] + flat[len(said) :]
    pattern = _number(said, rule.pattern)
    if pattern == 0:
        return [index < layers.trunk and rule.pattern > 0 for index in range(layers.all)]
    full = 0 if rule.dense_first else pattern - 1
    return [index < layers.trunk and index % pattern != full for index in range(layers.all)]


def _own_caches(layers: _Layers) -> int:
    """The first layers have a cache of their own, so many."""
    if layers.family == "gemma4":
        return max(0, layers.all - layers.number("attention.shared_kv_layers"))
    return SHARED_AFTER.get(layers.family, layers.all)


def _recurs(layers: _Layers) -> list[bool]:
    """For each layer, whether it recurs."""
    family = layers.family
    if family in RECURRENT or family in BOTH:
        return [True] * layers.all
    if family in HEADLESS_RECUR:
        return [not heads for heads in layers.heads_kv] + [False] * (layers.all - len(layers.heads_kv))
    if family in INTERVALS:
        said = layers.data.get(f"{family}.attention.recurrent_layers")
        if isinstance(said, tuple) and len(said) >= layers.all:
            return [bool(item) for item in said[: layers.all]]
        every = layers.number("full_attention_interval") or INTERVAL_DEFAULT.get(family, 4)
        return [index < layers.trunk and bool((index + 1) % every) for index in range(layers.all)]
    return [False] * layers.all


def _recurrent(layers: _Layers) -> tuple[RecurrentLayers, ...]:
    """The layers that recur, all of one size."""
    recurs = _recurs(layers)
    count = sum(recurs[index] and not _feeds_forward(layers, index) for index in range(layers.trunk))
    conv, state = _state(layers)
    return (RecurrentLayers(count, conv, state),) if count and (conv or state) else ()


def _state(layers: _Layers) -> tuple[int, int]:
    """Elements of the convolution's memory and of the state, in one layer of one slot (`n_embd_r`, `n_embd_s`)."""
    heads = next(iter(layers.heads), 0)
    if size := layers.number("wkv.head_size") if layers.family in RECURRENT else 0:
        return layers.number("token_shift_count", 2) * layers.embedding, layers.embedding * size
    if layers.family in ("lfm2", "lfm2moe"):
        return layers.embedding * max(0, layers.number("shortconv.l_cache") - 1), 0
    kernel = layers.number("ssm.conv_kernel")
    if layers.family == "kimi-linear":
        size = layers.number("kda.head_dim")
        return 3 * (kernel - 1 if kernel else 3) * heads * size, size * size * heads
    if layers.family == "minimax-01":
        size = layers.number("attention.key_length", layers.embedding // heads if heads else 0)
        return 0, size * size * heads
    inner, depth = layers.number("ssm.inner_size"), layers.number("ssm.state_size")
    # The first generation has one group that is not convolved with the rest.
    groups = layers.number("ssm.group_count") if layers.family not in ("mamba", "jamba") else 0
    return max(0, kernel - 1) * (inner + 2 * groups * depth), depth * inner


def _feeds_forward(layers: _Layers, index: int) -> bool:
    if layers.family not in FEED_FORWARD_ALONE:
        return False
    lengths = _per_layer(layers.data.get(f"{layers.family}.feed_forward_length"), layers.all)
    return bool(lengths and lengths[index])


def _latent(layers: _Layers) -> bool:
    """Whether the model keeps one compressed row (MLA): only where the header gives both lengths, neither of them 0."""
    if layers.family not in LATENT:
        return False
    return bool(layers.number("attention.key_length_mla") and layers.number("attention.value_length_mla"))


def _indexed(layers: _Layers) -> int:
    """How many layers have an indexer of their own."""
    if layers.family == "glm-dsa":
        said = layers.data.get(f"{layers.family}.attention.indexer.types")
        if isinstance(said, tuple):
            return sum(bool(item) for item in said[: layers.trunk])
    return layers.trunk


def _per_layer(value: Scalar | tuple[Scalar, ...] | None, layers: int) -> tuple[int, ...]:
    """One number per layer from a scalar or an array of at least that length; empty when it is neither."""
    if isinstance(value, tuple):
        numbers: Sequence[int] = [_number(item) for item in value[:layers]]
        return tuple(numbers) if len(numbers) == layers else ()
    return (_number(value),) * layers if value is not None else ()


def _number(value: Scalar | tuple[Scalar, ...] | None, default: int = 0) -> int:
    return value if type(value) is int and 0 <= value <= NUMBER_MAX else default
