# SPDX-License-Identifier: GPL-3.0-only
"""Tiny models with random weights that the real llama.cpp loads; rule: the same seed gives the same bytes, each is far below 1 MB.

make_embedder(path)   a BERT whose pooling is `mean`: `/v1/embeddings` answers vectors of WIDTH numbers
make_reranker(path)   a BERT with a head of one number, pooling `rank`: `/v1/rerank` answers scores
make_decoder(path)    a llama with pooling `last`, such as Qwen3 Embedding is: it embeds, and has an attention cache

What they say means nothing: texts of the same words give the same vector, and that is all there is to know.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH = 32
"""Elements of a vector."""
CTX = 512
LAYERS = 2
HEADS = 2
INNER = 64
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
_BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *("\u2581" + letter for letter in LETTERS), *LETTERS]
_LLAMA_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *LETTERS]


def make_embedder(path: Path, *, seed: int = 1, pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN, ctx: int = CTX) -> Path:
    """A BERT that embeds. `pooling` None leaves the key out; `ctx` is the longest text in tokens."""
    return _write_bert(path, np.random.default_rng(seed), pooling, head=False, ctx=ctx)


def make_reranker(path: Path, *, seed: int = 2) -> Path:
    """A BERT that scores a text against a question."""
    return _write_bert(path, np.random.default_rng(seed), gguf.PoolingType.RANK, head=True)


def make_decoder(path: Path, *, seed: int = 3, pooling: gguf.PoolingType | None = gguf.PoolingType.LAST) -> Path:
    """A llama, with or without a pooling."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, pooling)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("llama")
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    kinds += [gguf.TokenType.NORMAL] * (len(_LLAMA_TOKENS) - len(kinds))
    writer.add_token_list(_LLAMA_TOKENS)
    writer.add_token_scores([0.0] * len(_LLAMA_TOKENS))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd.weight": (len(_LLAMA_TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        square = {f"blk.{layer}.attn_{part}.weight": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        norms = {f"blk.{layer}.{part}_norm.weight": (WIDTH,) for part in ("attn", "ffn")}
        inner = {f"blk.{layer}.ffn_{part}.weight": (INNER, WIDTH) for part in ("gate", "up")}
        shapes |= square | norms | inner | {f"blk.{layer}.ffn_down.weight": (WIDTH, INNER)}
    return _finish(writer, shapes, random, path)


def _write_bert(path: Path, random: np.random.Generator, pooling: gguf.PoolingType | None, *, head: bool, ctx: int = CTX) -> Path:
    writer = gguf.GGUFWriter(path, "bert")
    _describe(writer, pooling, ctx)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(_BERT_TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * (len(_BERT_TOKENS) - 5))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_mask_token_id(4)
    shapes = {"token_embd.weight": (len(_BERT_TOKENS), WIDTH), "position_embd.weight": (ctx, WIDTH), "token_types.weight": (2, WIDTH)}
    shapes |= _norm("token_embd_norm")
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= {f"blk.{layer}.{part}.weight": (WIDTH, WIDTH), f"blk.{layer}.{part}.bias": (WIDTH,)}
        shapes |= {f"blk.{layer}.ffn_up.weight": (INNER, WIDTH), f"blk.{layer}.ffn_up.bias": (INNER,)}
        shapes |= {f"blk.{layer}.ffn_down.weight": (WIDTH, INNER), f"blk.{layer}.ffn_down.bias": (WIDTH,)}
        shapes |= _norm(f"blk.{layer}.attn_output_norm") | _norm(f"blk.{layer}.layer_output_norm")
    if head:
        shapes |= {"cls.weight": (WIDTH, WIDTH), "cls.bias": (WIDTH,), "cls.output.weight": (1, WIDTH), "cls.output.bias": (1,)}
    return _finish(writer, shapes, random, path)


def _describe(writer: gguf.GGUFWriter, pooling: gguf.PoolingType | None, ctx: int = CTX) -> None:
    writer.add_name("Tiny")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(ctx)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    if pooling is not None:
        writer.add_pooling_type(pooling)


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def _finish(writer: gguf.GGUFWriter, shapes: dict[str, tuple[int, ...]], random: np.random.Generator, path: Path) -> Path:
    """Random matrices; norms are ones and biases noughts, so that no layer loses what the one before has said."""
    for name, shape in shapes.items():
        if name.endswith("norm.weight"):
            data = np.ones(shape, np.float32)
        elif len(shape) == 1:
            data = np.zeros(shape, np.float32)
        else:
            data = random.normal(0, 0.3, shape).astype(np.float32)
        writer.add_tensor(name, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
