# SPDX-License-Identifier: GPL-3.0-only
"""20,000 headers with something wrong in them: each gives a typed error, or an answer all the way to what the model would cost.

The seed is fixed; a failure names the number of the header, from which it can be made again.
"""

from __future__ import annotations

import random
import resource
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from archgguf import SHAPES, metadata
from makegguf import ARRAY, BOOL, F32, I32, I64, STRING, U32, U64, Tensor, Typed, header, vocabulary
from modeld.catalog.gguf import GgufError, parse_bytes
from modeld.catalog.headers import facts_of
from modeld.core.compute import lattice
from modeld.core.estimate import need
from modeld.core.model import FlashAttention, KvType, LaunchOptions, ModelId, ModelKind, ModelSpec

HEADERS = 20_000
CHUNKS = 4
SECONDS_MAX = 1.0
GROWN_KIB_MAX = 64 << 10
NUMBERS = (0, 1, 2, 7, 255, 4096, 1 << 16, (1 << 20) - 1, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
TENSORS = [Tensor("token_embd.weight", (64, 4), 8, 0), Tensor("blk.0.ffn_up.weight", (256, 3), 12, 288), Tensor("blk.1.x", (32,), 3, 736)]
WRONG = [b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 40), struct.pack("<Q", 1 << 63), struct.pack("<I", ARRAY), b"\x08\0\0\0", b"GGUF"]


def wrong_value(dice: random.Random) -> Any:
    """Something that may stand where a number or a list of numbers is expected."""
    numbers = [dice.choice(NUMBERS) for _ in range(dice.choice((0, 1, 4, 5, 64)))]
    return dice.choice(
        (
            dice.choice(NUMBERS),
            Typed(U64, dice.getrandbits(64)),
            Typed(I64, -dice.getrandbits(62)),
            Typed(I32, -1),
            Typed(F32, dice.choice((0.0, -1.5, 3e38, float("inf"), float("nan")))),
            Typed(BOOL, True),
            "text",
            Typed(STRING, "x" * dice.choice((0, 300, 70_000))),
            Typed(ARRAY, numbers, of=U32),
            Typed(ARRAY, [True] * dice.choice((0, 4, 5000)), of=BOOL),
            Typed(ARRAY, ["a", "b"], of=STRING),
            Typed(ARRAY, raw=vocabulary(dice.choice((1, 300)))),
        )
    )


def with_wrong_values(dice: random.Random) -> bytes:
    """A real family's keys, a few with values that make no sense, and one too many."""
    family = dice.choice(list(SHAPES))
    pairs = metadata(family) | {f"{family}.nextn_predict_layers": dice.choice(NUMBERS)} if dice.random() < 0.3 else metadata(family)
    for key in dice.sample(list(pairs), dice.randint(1, 4)):
        pairs[key] = wrong_value(dice)
    kinds = [dice.choice((0, 1, 3, 8, 12, 39, 77)) for _ in TENSORS]
    tensors = [Tensor(one.name, one.dims, kind, one.offset) for one, kind in zip(TENSORS, kinds, strict=True)]
    return header(pairs, dice.choice((TENSORS, tensors))) + bytes(1200)


BASES = [header(metadata(family), TENSORS) + bytes(1200) for family in ("llama", "gemma3", "deepseek2", "qwen3next", "lfm2", "nemotron_h")]


def with_wrong_bytes(dice: random.Random) -> bytes:
    """Bytes overwritten, inserted and removed anywhere, or the end cut off."""
    raw = bytearray(dice.choice(BASES))
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(raw))
        raw[at : at + dice.choice((0, 1, 1, 4, 8, 12))] = dice.choice((dice.randbytes(dice.randint(0, 9)), dice.choice(WRONG)))
    return bytes(raw[: dice.randrange(len(raw))] if dice.random() < 0.1 else raw)


MAKERS: tuple[Callable[[random.Random], bytes], ...] = (with_wrong_values, with_wrong_bytes)


def answer(raw: bytes, dice: random.Random) -> str:
    """ "error", or "answer" where the header was read; then all that follows from it is worked out."""
    try:
        read = parse_bytes(raw)
    except GgufError as error:
        assert str(error)
        return "error"
    facts = facts_of(read)
    options = LaunchOptions(
        ctx=dice.choice((1, 4096, 1 << 20, (1 << 31) - 1)),
        parallel=dice.choice((1, 4, 64)),
        kv_unified=dice.random() < 0.5,
        flash_attn=dice.choice(list(FlashAttention)),
        kv_type=dice.choice(list(KvType)),
    )
    spec = ModelSpec(
        ModelId("a"),
        "a",
        size_bytes=len(raw),
        memory=facts.memory,
        header_hash=facts.header_hash,
        kind=dice.choice(list(ModelKind)),
        options=options,
        embedding_length=facts.embedding_length,
        vocabulary=facts.vocabulary,
    )
    cost = need(spec)
    assert cost.total_mb >= 0 and all(part.bytes >= 0 for part in cost.parts)
    assert lattice(spec)[0] == options
    assert len(facts.header_hash) == 32
    return "answer"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_wrong_header_gives_a_typed_error_or_an_answer(chunk: int):
    answer(BASES[0], random.Random(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {"error": 0, "answer": 0}
    for number in range(chunk * HEADERS // CHUNKS, (chunk + 1) * HEADERS // CHUNKS):
        dice = random.Random(number)
        raw = MAKERS[number % len(MAKERS)](dice)
        started = time.process_time()
        try:
            told[answer(raw, dice)] += 1
        except Exception as error:
            raise AssertionError(f"header {number}") from error
        assert time.process_time() - started <= SECONDS_MAX, f"header {number}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= GROWN_KIB_MAX
    assert min(told.values()) > HEADERS // CHUNKS // 20, told
