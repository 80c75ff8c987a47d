# SPDX-License-Identifier: GPL-3.0-only
"""Reads the header of a GGUF file; rule: trust no length, keep only what is small, never read more than READ_BYTES_MAX.

The parser does no I/O. `parse_header(file_size)` is a generator: it yields a `Need` (offset, bytes wanted), is sent what the file
holds there (less only at the end of the file), and returns a `Header`. `read_header(path)` drives it with pread; not mmap, because
a file that is truncated while it is mapped ends the process with SIGBUS.

Layout (little endian): magic, version u32, tensor count u64, pair count u64; the pairs (key string, type u32, value); the tensor
records (name, dimension count u32, dimensions u64, ggml type u32, offset u64); padding to `general.alignment`; tensor data. A string
is a u64 length and its bytes, an array a u32 element type, a u64 count and the elements. Each step here costs a few bytes of header
and each jump past the window one bounded read, so the read limit also bounds the time.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from struct import Struct
from struct import error as struct_error
from typing import Final, NamedTuple

from modeld.catalog.tensor_types import BLOCKS

READ_BYTES_MAX: Final = 64 << 20
"""Bytes read of one file, at most. A 262k-token vocabulary with merges needs about 16 MiB."""
FIRST_READ_BYTES: Final = 64 << 10
READ_BYTES: Final = 1 << 20
PAIRS_MAX: Final = 1 << 16
TENSORS_MAX: Final = 1 << 16
KEY_BYTES_MAX: Final = 65_535
STRING_KEPT_BYTES_MAX: Final = 64 << 10
"""Longer strings are skipped, not kept."""
ARRAY_KEPT_MAX: Final = 4096
"""Arrays with more elements are skipped; their length is kept."""
NAME_BYTES_MAX: Final = 1024
DIMENSIONS_MAX: Final = 4
DIGEST_BYTES: Final = 16
ALIGNMENT_DEFAULT: Final = 32
TENSOR_PADDING: Final = 32
NAMED: Final = frozenset((b"token_embd.weight", b"output.weight"))
"""Tensors whose sizes are told apart: together they say whether the token table is the output head, too."""
_BLOCK: Final = b"blk."
_BLOCK_DIGITS_MAX: Final = 4
ALIGNMENT_MAX: Final = 1 << 20
OFFSET_MAX: Final = (1 << 63) - 1

Scalar = int | float | bool | str

_U32 = Struct("<I")
_U64 = Struct("<Q")
_SCALARS: Final[Mapping[int, Struct]] = {
    0: Struct("<B"),
    1: Struct("<b"),
    2: Struct("<H"),
    3: Struct("<h"),
    4: _U32,
    5: Struct("<i"),
    6: Struct("<f"),
    7: Struct("<?"),
    10: _U64,
    11: Struct("<q"),
    12: Struct("<d"),
}
_RECORDS: Final = tuple(Struct(f"<{dimensions}QI") for dimensions in range(DIMENSIONS_MAX + 1))
"""What follows the name and the number of dimensions of a tensor: the lengths and the type."""
RUN: Final = 256
SHORT_BYTES_MAX: Final = 127
_RUN: Final = re.compile(
    b"(?>(?:%s){%d})" % (b"|".join(re.escape(bytes([size])) + b"\0{7}.{%d}" % size for size in range(SHORT_BYTES_MAX + 1)), RUN), re.DOTALL
)
"""So many short strings of an array: what reads them one by one takes three times as long."""
_STRING: Final = 8
_ARRAY: Final = 9


class GgufFault(StrEnum):
    """What is wrong with a file."""

    NOT_GGUF = "not_gguf"
    BIG_ENDIAN = "big_endian"
    VERSION = "version"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    INCOMPLETE = "incomplete"
    UNREADABLE = "unreadable"


class GgufError(ValueError):
    """The file cannot be used. The text is plain, holds no path, and is safe to show."""

    def __init__(self, fault: GgufFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class Need(NamedTuple):
    """The parser's request: the bytes at `offset`, at least one and at most `size` of them."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says.

    metadata        scalars, strings up to STRING_KEPT_BYTES_MAX bytes, arrays up to ARRAY_KEPT_MAX elements (as tuples)
    array_lengths   number of elements of every array, kept or not
    data_start      offset of the tensor data, bytes
    data_end        the file has at least so many bytes
    extents_known   False when a tensor has a type unknown here; data_end is a lower bound then
    bytes_read      how much of the file was read to learn this
    elements        numbers in all tensors together: the weights of this file
    tensor_bytes    of the tensors outside the repeated blocks, by name where it is in NAMED, the rest under ""; each padded
    block_bytes     of the tensors named `blk.N.…`, by N; each padded to TENSOR_PADDING as ggml pads it in host memory
    tensors_digest  over name, lengths and type of each tensor, in their order
    """

    version: int
    metadata: Mapping[str, Scalar | tuple[Scalar, ...]]
    array_lengths: Mapping[str, int]
    tensor_count: int
    alignment: int
    data_start: int
    data_end: int
    extents_known: bool
    bytes_read: int
    elements: int = 0
    tensor_bytes: Mapping[str, int] = field(default_factory=dict)
    block_bytes: Mapping[int, int] = field(default_factory=dict)
    tensors_digest: bytes = b""

    @property
    def split_no(self) -> int:
        """Which part of a split model this is, from 0."""
        return _count(self.metadata.get("split.no"), 0)

    @property
    def split_count(self) -> int:
        """How many parts the model has; 1 when it is not split."""
        return max(1, _count(self.metadata.get("split.count"), 1))


def parse_header(file_size: int) -> Generator[Need, bytes, Header]:
    """Parse the header of a file of `file_size` bytes. Yields `Need`, is sent bytes, returns the Header. Raises GgufError."""
    window = _Window(file_size)
    magic = yield from window.take(4)
    if magic != b"GGUF":
        raise GgufError(GgufFault.NOT_GGUF, "is not a GGUF file")
    version = yield from window.number(_U32)
    _check_version(version)
    tensor_count = yield from window.number(_U64)
    pair_count = yield from window.number(_U64)
    if tensor_count > TENSORS_MAX or pair_count > PAIRS_MAX:
        raise GgufError(GgufFault.TOO_LARGE, f"claims {tensor_count} tensors and {pair_count} metadata entries, more than any model has")
    metadata: dict[str, Scalar | tuple[Scalar, ...]] = {}
    lengths: dict[str, int] = {}
    seen: set[bytes] = set()
    for _ in range(pair_count):
        key = yield from window.string(KEY_BYTES_MAX, "a metadata key")
        if key in seen:
            raise _corrupt("a metadata key occurs twice")
        seen.add(key)
        yield from _read_value(window, key.decode("utf-8", "replace"), metadata, lengths)
    alignment = _alignment(metadata)
    sums = _Sums()
    yield from _read_tensors(window, tensor_count, alignment, sums)
    data_start = -(-window.position // alignment) * alignment
    data_end = data_start + sums.extent if tensor_count else window.position
    if file_size < data_end:
        raise _incomplete(file_size, data_end)
    return Header(
        version, metadata, lengths, tensor_count, alignment, data_start, data_end, sums.known, window.bytes_read, sums.elements,
        sums.named, sums.blocks, sums.digest.digest(),
    )  # fmt: skip


def read_header(path: str | Path) -> Header:
    """Read the header of the file at `path`: a regular file, or a link to one. Raises GgufError, also when it cannot be read."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise GgufError(GgufFault.UNREADABLE, "is not a regular file")
        parser = parse_header(status.st_size)
        need = next(parser)
        while True:
            need = parser.send(os.pread(descriptor, need.size, need.offset))
    except StopIteration as stop:
        header: Header = stop.value
        return header
    except OSError as error:
        raise _unreadable(error) from error
    finally:
        os.close(descriptor)


def parse_bytes(data: bytes, file_size: int | None = None) -> Header:
    """Parse a header that lies in memory. `file_size` is the size of the whole file, by default that of `data`. Raises GgufError."""
    parser = parse_header(len(data) if file_size is None else file_size)
    try:
        need = next(parser)
        while True:
            need = parser.send(data[need.offset : need.offset + need.size])
    except StopIteration as stop:
        header: Header = stop.value
        return header


class _Window:
    """The stretch of the file that is in memory, and the position in the file. Jumping forward reads nothing."""

    __slots__ = ("_buffer", "_file_size", "_start", "bytes_read", "position")

    def __init__(self, file_size: int) -> None:
        self._buffer = b""
        self._start = 0
        self._file_size = file_size
        self.position = 0
        self.bytes_read = 0

    def want(self, size: int) -> Generator[Need, bytes, int]:
        """Make `size` bytes at the position available; return where they lie in the buffer."""
        at = self.position - self._start
        if at + size <= len(self._buffer):
            return at
        if self.position + size > self._file_size:
            raise GgufError(GgufFault.INCOMPLETE, "is incomplete: it ends inside its header")
        pieces = [self._buffer[at:]] if at < len(self._buffer) else []
        have = sum(map(len, pieces))
        while have < size:
            if self.bytes_read >= READ_BYTES_MAX:
                raise GgufError(GgufFault.TOO_LARGE, f"has a header of more than {READ_BYTES_MAX >> 20} MiB")
            ask = READ_BYTES if self.bytes_read else FIRST_READ_BYTES
            piece = yield Need(self.position + have, min(ask, READ_BYTES_MAX - self.bytes_read))
            if not piece:
                raise GgufError(GgufFault.INCOMPLETE, "is incomplete: it ends inside its header")
            self.bytes_read += len(piece)
            pieces.append(piece)
            have += len(piece)
        self._buffer = b"".join(pieces)
        self._start = self.position
        return 0

    def take(self, size: int) -> Generator[Need, bytes, bytes]:
        at = yield from self.want(size)
        self.position += size
        return self._buffer[at : at + size]

    def number(self, form: Struct) -> Generator[Need, bytes, int]:
        at = yield from self.want(form.size)
        self.position += form.size
        value: int = form.unpack_from(self._buffer, at)[0]
        return value

    def string(self, limit: int, what: str) -> Generator[Need, bytes, bytes]:
        size = yield from self.number(_U64)
        if size > limit:
            raise _corrupt(f"{what} has {size} bytes")
        return (yield from self.take(size))

    def skip(self, size: int) -> None:
        """Jump over `size` bytes. A jump past the end of the file ends here, so the position stays a small number."""
        self.position += size
        if self.position > self._file_size:
            raise GgufError(GgufFault.INCOMPLETE, "is incomplete: it ends inside its header")

    def skip_strings(self, count: int) -> Generator[Need, bytes, None]:
        """Jump over `count` strings: the hot loop, once per token of a vocabulary."""
        unpack = _U64.unpack_from
        while count:
            at = yield from self.want(8)
            buffer = self._buffer
            inside = True
            while count and inside:
                while count >= RUN and (run := _RUN.match(buffer, at)):
                    at, count = run.end(), count - RUN
                left = few = min(count, RUN)
                try:
                    for left in range(few, 0, -1):  # noqa: B007  how many were left is read after the loop was cut short
                        at += unpack(buffer, at)[0] + 8
                    left = 0
                except (struct_error, OverflowError):
                    inside = False  # the next length lies outside the buffer: skip() below says whether it lies outside the file, too
                count -= few - left
            self.position = self._start
            self.skip(at)


def _check_version(version: int) -> None:
    if version in (2, 3):
        return
    if version and version & 0xFFFF == 0:
        raise GgufError(GgufFault.BIG_ENDIAN, "is a big-endian GGUF file; convert it to little endian")
    raise GgufError(GgufFault.VERSION, f"has GGUF version {version}; versions 2 and 3 can be read, convert the model anew")


def _read_value(
    window: _Window, key: str, metadata: dict[str, Scalar | tuple[Scalar, ...]], lengths: dict[str, int]
) -> Generator[Need, bytes, None]:
    """Read or skip one value."""
    kind = yield from window.number(_U32)
    if kind == _ARRAY:
        yield from _read_array(window, key, metadata, lengths)
    elif kind == _STRING:
        size = yield from window.number(_U64)
        if size <= STRING_KEPT_BYTES_MAX:
            metadata[key] = (yield from window.take(size)).decode("utf-8", "replace")
        else:
            window.skip(size)
    elif (form := _SCALARS.get(kind)) is not None:
        metadata[key] = yield from window.number(form)
    else:
        raise _corrupt(f"a metadata value has the unknown type {kind}")


def _read_array(
    window: _Window, key: str, metadata: dict[str, Scalar | tuple[Scalar, ...]], lengths: dict[str, int]
) -> Generator[Need, bytes, None]:
    """Keep a small array, skip a big one. llama.cpp loads no nested arrays, so a file that has one is broken."""
    kind = yield from window.number(_U32)
    count = yield from window.number(_U64)
    lengths[key] = count
    if kind == _STRING:
        if count > ARRAY_KEPT_MAX:
            yield from window.skip_strings(count)
            return
        texts: list[str] | None = []
        kept = 0
        for _ in range(count):
            size = yield from window.number(_U64)
            kept += size
            if texts is None or kept > STRING_KEPT_BYTES_MAX:
                texts = None
                window.skip(size)
            else:
                texts.append((yield from window.take(size)).decode("utf-8", "replace"))
        if texts is not None:
            metadata[key] = tuple(texts)
    elif (form := _SCALARS.get(kind)) is not None:
        if count > ARRAY_KEPT_MAX:
            window.skip(count * form.size)
        else:
            raw = yield from window.take(count * form.size)
            metadata[key] = tuple(value for (value,) in form.iter_unpack(raw))
    else:
        raise _corrupt("a metadata array is nested" if kind == _ARRAY else f"a metadata array has the unknown element type {kind}")


def _alignment(metadata: Mapping[str, Scalar | tuple[Scalar, ...]]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
    if type(value) is not int or not 0 < value <= ALIGNMENT_MAX or value & (value - 1):
        raise _corrupt(f"its alignment is not a power of two up to {ALIGNMENT_MAX}")
    return value


class _Sums:
    """What is added up over the tensors."""

    __slots__ = ("blocks", "digest", "elements", "extent", "known", "named")

    def __init__(self) -> None:
        self.extent = 0  # end of the last tensor, from the start of the data
        self.known = True
        self.elements = 0
        self.digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.named: dict[str, int] = {}
        self.blocks: dict[int, int] = {}

    def add(self, name: bytes, size: int) -> None:
        size = -(-size // TENSOR_PADDING) * TENSOR_PADDING
        if name.startswith(_BLOCK):
            digits = name[len(_BLOCK) :].partition(b".")[0]
            if digits.isdigit() and len(digits) <= _BLOCK_DIGITS_MAX:
                number = int(digits)
                self.blocks[number] = self.blocks.get(number, 0) + size
                return
        key = name.decode() if name in NAMED else ""
        self.named[key] = self.named.get(key, 0) + size


def _read_tensors(window: _Window, count: int, alignment: int, sums: _Sums) -> Generator[Need, bytes, None]:
    """Read the tensor records and add them up."""
    for _ in range(count):
        name = yield from window.string(NAME_BYTES_MAX, "a tensor name")
        dimensions = yield from window.number(_U32)
        if not 0 <= dimensions <= DIMENSIONS_MAX:
            raise _corrupt(f"a tensor has {dimensions} dimensions")
        form = _RECORDS[dimensions]
        record = yield from window.take(form.size)
        *lengths, kind = form.unpack(record)
        elements, row = math.prod(lengths), lengths[0] if lengths else 1
        sums.digest.update(name + record)
        offset = yield from window.number(_U64)
        # Python's integers do not wrap, so one check after the product is enough: at most 2**256.
        if elements > OFFSET_MAX or offset > OFFSET_MAX:
            raise _corrupt("a tensor is impossibly large")
        if offset % alignment:
            raise _corrupt("a tensor is not aligned")
        sums.elements += elements
        block = BLOCKS.get(kind)
        if block is None:
            sums.known = False
            sums.extent = max(sums.extent, offset)
            continue
        if row % block[0]:
            raise _corrupt("a tensor's rows do not consist of whole blocks")
        size = elements // block[0] * block[1]
        sums.extent = max(sums.extent, offset + size)
        sums.add(name, size)


def _count(value: Scalar | tuple[Scalar, ...] | None, default: int) -> int:
    return value if type(value) is int and value >= 0 else default


def _corrupt(what: str) -> GgufError:
    return GgufError(GgufFault.CORRUPT, f"has a damaged header: {what}")


def _incomplete(have: int, need: int) -> GgufError:
    text = f"{have >> 20} of {need >> 20} MiB" if need >> 20 > have >> 20 else f"{have} of {need} bytes"
    return GgufError(GgufFault.INCOMPLETE, f"is incomplete: {text} are here; copy it again if it does not grow")


def _unreadable(error: OSError) -> GgufError:
    return GgufError(GgufFault.UNREADABLE, f"cannot be read: {os.strerror(error.errno) if error.errno else 'input/output error'}")
