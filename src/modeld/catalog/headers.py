# SPDX-License-Identifier: GPL-3.0-only
"""What the catalogue needs of each header, remembered by path, size, mtime and inode; rule: the cache may vanish or be torn at any time.

Reading a header with a big vocabulary takes tens of milliseconds, a folder of 200 such files seconds; from here it takes microseconds.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from modeld.catalog import gguf
from modeld.catalog.gguf import GgufError, GgufFault, Header, Scalar
from modeld.catalog.layers import memory_shape, trunk_blocks, vocabulary
from modeld.catalog.tensor_types import file_type_name
from modeld.core.model import MemoryShape

FORMAT: Final = 6
"""Raised whenever `Facts` changes its meaning; a file of another format is read anew."""
CACHE_BYTES_MAX: Final = 64 << 20
TOKENS_MAX: Final = (1 << 31) - 1
"""Longest context that fits llama.cpp's 32-bit numbers."""
POOLINGS: Final = ("none", "mean", "cls", "last", "rank")
"""llama.cpp's words for `{family}.pooling_type`, by its number."""
PARAMETERS_MAX: Final = (1 << 63) - 1
LABEL_CHARS_MAX: Final = 40
HASH_BYTES: Final = 16
_TEMPLATE: Final = "tokenizer.chat_template"


class Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file's header in short. `reason` is empty, or a predicate such as "is not a GGUF file"; then nothing else is known.

    memory    that of this file alone, as is `header_hash`; the parts of a split model are put together with the next three
    has_head  this part holds the output head
    trunk     only so many blocks are loaded; 0 = all
    blocks    bytes by number of the block, of a split model only: the first part alone knows how long the trunk is
    """

    reason: str = ""
    family: str = ""
    name: str = ""
    quant: str = ""
    ctx_train: int = 0
    split_no: int = 0
    split_count: int = 1
    f16: bool = False
    pooling: str = ""
    causal: bool = True
    vision: bool = False
    audio: bool = False
    parameters: int = 0
    size_label: str = ""
    embedding_length: int = 0
    vocabulary: int = 0
    has_chat_template: bool = False
    takes_tools: bool = False
    format_version: int = 0
    memory: MemoryShape = MemoryShape()
    header_hash: str = ""
    has_head: bool = False
    trunk: int = 0
    blocks: dict[int, int] = {}


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    size: int
    mtime_ns: int
    inode: int
    facts: Facts


class _CacheFile(msgspec.Struct, frozen=True):
    format: int
    entries: dict[str, _Entry]


class HeaderCache:
    """Facts by file. `path` None keeps them in memory only. One thread at a time."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: dict[str, _Entry] = {}
        self._changed = False
        self.files_read = 0
        if path is not None:
            self._entries = _load(path)

    def facts(self, path: str, status: os.stat_result) -> Facts:
        """Facts of the file at `path`, whose status is `status`. Never raises: what is wrong with the file is in `reason`."""
        entry = self._entries.get(path)
        if entry is not None and (entry.size, entry.mtime_ns, entry.inode) == (status.st_size, status.st_mtime_ns, status.st_ino):
            return entry.facts
        self.files_read += 1
        try:
            facts = facts_of(gguf.read_header(path))
        except GgufError as error:
            facts = Facts(reason=str(error))
            if error.fault is GgufFault.UNREADABLE:
                return facts  # permissions and disks change without a trace in size or mtime
        self._entries[path] = _Entry(status.st_size, status.st_mtime_ns, status.st_ino, facts)
        self._changed = True
        return facts

    def keep(self, paths: set[str]) -> str:
        """Forget all files but `paths`, and write what changed. Returns a note when that failed, else an empty text."""
        gone = self._entries.keys() - paths
        for path in gone:
            del self._entries[path]
        if self._path is None or not (self._changed or gone):
            return ""
        try:
            _save(self._path, _CacheFile(FORMAT, self._entries))
        except (OSError, UnicodeError) as error:
            return f"the header cache could not be written: {getattr(error, 'strerror', None) or 'a folder name is not valid UTF-8'}"
        self._changed = False
        return ""


def facts_of(header: Header) -> Facts:
    """Pick what the catalogue needs."""
    data = header.metadata
    family = _text(data.get("general.architecture"))
    file_type = data.get("general.file_type")
    pooling = data.get(f"{family}.pooling_type")
    template = data.get(_TEMPLATE)
    return Facts(
        family=family,
        name=_text(data.get("general.name")),
        quant=file_type_name(file_type) if type(file_type) is int else "",
        ctx_train=_number(data.get(f"{family}.context_length"), TOKENS_MAX),
        split_no=header.split_no,
        split_count=header.split_count,
        f16=file_type == 1,
        pooling=POOLINGS[pooling] if type(pooling) is int and 0 <= pooling < len(POOLINGS) else "",
        causal=data.get(f"{family}.attention.causal") is not False,
        vision=data.get("clip.has_vision_encoder") is True,
        audio=data.get("clip.has_audio_encoder") is True,
        parameters=min(header.elements, PARAMETERS_MAX),
        size_label=_text(data.get("general.size_label"))[:LABEL_CHARS_MAX],
        embedding_length=_number(data.get(f"{family}.embedding_length"), TOKENS_MAX),
        vocabulary=vocabulary(header),
        has_chat_template=isinstance(template, str) and bool(template.strip()),
        takes_tools=f"{_TEMPLATE}.tool_use" in data or (isinstance(template, str) and "tools" in template),
        format_version=header.version,
        memory=memory_shape(header),
        header_hash=header_hash(header),
        has_head="output.weight" in header.tensor_bytes,
        trunk=trunk_blocks(header),
        blocks=dict(header.block_bytes) if header.split_count > 1 else {},
    )


def header_hash(header: Header) -> str:
    """32 hexadecimal digits over what decides memory: the family's numbers and words, and name, size and type of each tensor.

    Left out is what may differ between two files that take the same: names, texts, the vocabulary, and numbers with a fraction.
    """
    family = _text(header.metadata.get("general.architecture"))
    digest = hashlib.blake2b(f"{family} {header.tensor_count} ".encode(), digest_size=HASH_BYTES)
    for key, value in sorted(header.metadata.items()):
        if key.startswith(f"{family}.") and not isinstance(value, float):
            digest.update(f"{key}={value!r};".encode("utf-8", "replace"))
    digest.update(header.tensors_digest)
    return digest.hexdigest()


def printable(text: str, length: int = 200) -> str:
    """`text` without control characters and lone surrogates, cut to `length`: safe in JSON, logs and terminals."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:length])


def _number(value: Scalar | tuple[Scalar, ...] | None, most: int) -> int:
    return value if type(value) is int and 0 <= value <= most else 0


def _text(value: Scalar | tuple[Scalar, ...] | None) -> str:
    return printable(value).strip() if isinstance(value, str) else ""


def _load(path: Path) -> dict[str, _Entry]:
    try:
        with path.open("rb") as file:
            raw = file.read(CACHE_BYTES_MAX + 1)
        content = msgspec.json.decode(raw, type=_CacheFile)
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}  # absent, unreadable or torn: the files themselves still know
    return content.entries if content.format == FORMAT and len(raw) <= CACHE_BYTES_MAX else {}


def _save(path: Path, content: _CacheFile) -> None:
    """Write beside the target and rename, so that a full disk or a crash leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(content))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
