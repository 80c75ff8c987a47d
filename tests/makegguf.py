# SPDX-License-Identifier: GPL-3.0-only
"""Makes small GGUF files, right and wrong ones; rule: plain bytes by the format's description, nothing of the reader under test.

make_gguf(path, arch="llama", size_bytes=1 << 30)     a sparse file that looks like a model
header(pairs={"general.architecture": "llama"})       the bytes of a header alone
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
TYPE_F32, TYPE_Q4_1, TYPE_I8 = 0, 3, 24


@dataclass(frozen=True)
class Typed:
    """A value with its GGUF type spelled out; for an ARRAY, `of` is the element type. `raw` replaces the encoded value."""

    type: int
    value: Any = None
    of: int = 0
    raw: bytes | None = None


@dataclass(frozen=True)
class Tensor:
    """One tensor record. `offset` counts from the start of the data."""

    name: str = "token_embd.weight"
    dims: Sequence[int] = (32,)
    type: int = TYPE_I8
    offset: int = 0


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _scalar(kind: int, value: Any) -> bytes:
    return string(value) if kind == STRING else struct.pack("<" + _FORMS[kind], value)


def _guess(value: Any) -> Typed:
    """bool, str, float; int -> u32 where it fits; a list by its first element."""
    match value:
        case Typed():
            return value
        case bool():
            return Typed(BOOL, value)
        case str() | bytes():
            return Typed(STRING, value)
        case float():
            return Typed(F32, value)
        case int():
            return Typed(U32 if 0 <= value < 1 << 32 else I64, value)
        case list() | tuple():
            return Typed(ARRAY, value, of=_guess(value[0]).type if value else U32)
    raise TypeError(type(value))


def value(item: Any) -> bytes:
    """Type number and encoded value."""
    typed = _guess(item)
    if typed.raw is not None:
        return struct.pack("<I", typed.type) + typed.raw
    if typed.type == ARRAY:
        elements = b"".join(_scalar(typed.of, element) for element in typed.value)
        return struct.pack("<IIQ", ARRAY, typed.of, len(typed.value)) + elements
    return struct.pack("<I", typed.type) + _scalar(typed.type, typed.value)


def tensor(record: Tensor) -> bytes:
    dims = b"".join(struct.pack("<Q", dim) for dim in record.dims)
    return string(record.name) + struct.pack("<I", len(record.dims)) + dims + struct.pack("<IQ", record.type, record.offset)


def header(
    pairs: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    pair_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A header, padded to where the data starts (without tensors: not padded). The counts can be made to lie."""
    items = list(pairs.items() if isinstance(pairs, Mapping) else pairs)
    out = magic + struct.pack("<I", version)
    out += struct.pack("<QQ", len(tensors) if tensor_count is None else tensor_count, len(items) if pair_count is None else pair_count)
    out += b"".join(string(key) + value(item) for key, item in items) + b"".join(map(tensor, tensors))
    return out + b"\0" * (-len(out) % alignment) if tensors else out


def model_pairs(
    arch: str = "llama",
    *,
    name: str | None = "Tiny",
    file_type: int | None = 3,
    ctx: int | None = 2048,
    layers: int | None = 2,
    embd: int | None = 64,
    heads: Any = 4,
    heads_kv: Any = 2,
    vocab: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of a plausible model; None leaves a key out, `extra` adds to it or replaces."""
    said = {
        "general.architecture": arch or None,
        "general.name": name,
        "general.file_type": file_type,
        f"{arch}.context_length": ctx,
        f"{arch}.block_count": layers,
        f"{arch}.embedding_length": embd,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": heads_kv,
    }
    if vocab:
        said["tokenizer.ggml.tokens"] = Typed(ARRAY, raw=vocabulary(vocab))
        said["tokenizer.ggml.scores"] = Typed(ARRAY, raw=struct.pack("<IQ", F32, vocab) + b"\0" * (4 * vocab))
    said |= extra or {}
    return {key: item for key, item in said.items() if item is not None}


def vocabulary(count: int) -> bytes:
    """An array of `count` strings of 1 to 14 bytes (without the leading type number of the pair)."""
    tokens = b"".join(string(b"t" * (1 + index * 7 % 14)) for index in range(count))
    return struct.pack("<IQ", STRING, count) + tokens


def make_gguf(path: Path, *, size_bytes: int = 4096, split: tuple[int, int] | None = None, **pairs: Any) -> Path:
    """Write a file that looks like a model: `model_pairs(**pairs)` and one tensor that fills up to `size_bytes` (sparse). Not loadable.

    `split` is (number from 0, count).
    """
    extra = dict(pairs.pop("extra", None) or {})
    if split:
        extra |= {"split.no": Typed(U16, split[0]), "split.count": Typed(U16, split[1])}
    said = model_pairs(extra=extra, **pairs)
    start = len(header(said, [Tensor()]))
    raw = header(said, [Tensor(dims=(max(size_bytes - start, 1),))])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(max(size_bytes, start + 1))
    return path


def make_split(folder: Path, base: str, count: int, *, without: Iterable[int] = (), size_bytes: int = 4096, **pairs: Any) -> list[Path]:
    """Write the parts of a split model, numbered from 1 in their names, except those in `without`. `pairs` are for the first one."""
    paths = []
    for number in range(1, count + 1):
        if number not in set(without):
            path = folder / f"{base}-{number:05d}-of-{count:05d}.gguf"
            paths.append(make_gguf(path, split=(number - 1, count), size_bytes=size_bytes, **(pairs if number == 1 else {})))
    return paths
