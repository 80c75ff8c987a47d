# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from makegguf import ARRAY, BOOL, F32, F64, I8, I16, I32, I64, STRING, U8, U16, U32, U64, Tensor, Typed, header, make_gguf, model_pairs
from makegguf import vocabulary as make_vocabulary
from modeld.catalog import gguf
from modeld.catalog.gguf import GgufError, GgufFault, parse_bytes, parse_header, read_header
from modeld.catalog.tensor_types import file_type_name


def fault_of(data: bytes, file_size: int | None = None) -> GgufFault:
    with pytest.raises(GgufError) as caught:
        parse_bytes(data, file_size)
    assert "/" not in str(caught.value).replace("input/output", "")
    return caught.value.fault


def parse_in_steps(data: bytes, step: int, file_size: int | None = None):
    """Drive the parser with short reads, as a slow disk or a signal may give them."""
    parser = parse_header(len(data) if file_size is None else file_size)
    try:
        need = next(parser)
        while True:
            need = parser.send(data[need.offset : need.offset + min(need.size, step)])
    except StopIteration as stop:
        return stop.value


@pytest.mark.parametrize("version", [2, 3])
def test_values_of_every_type_are_read(version):
    pairs = {
        "a.u8": Typed(U8, 200),
        "a.i8": Typed(I8, -5),
        "a.u16": Typed(U16, 65_535),
        "a.i16": Typed(I16, -300),
        "a.u32": Typed(U32, 1 << 31),
        "a.i32": Typed(I32, -(1 << 31)),
        "a.f32": Typed(F32, 0.5),
        "a.bool": Typed(BOOL, True),
        "a.text": "naïve",
        "a.u64": Typed(U64, 1 << 63),
        "a.i64": Typed(I64, -(1 << 63)),
        "a.f64": Typed(F64, 0.1),
        "a.numbers": Typed(ARRAY, [1, 2, 3], of=I16),
        "a.flags": Typed(ARRAY, [True, False], of=BOOL),
        "a.words": Typed(ARRAY, ["x", "", "yz"], of=STRING),
        "a.none": Typed(ARRAY, [], of=U8),
    }
    got = parse_bytes(header(pairs, version=version))
    wanted = {key: tuple(item.value) if item.type == ARRAY else item.value for key, item in pairs.items() if isinstance(item, Typed)}
    assert dict(got.metadata) == wanted | {"a.text": "naïve"}
    assert got.array_lengths == {"a.numbers": 3, "a.flags": 2, "a.words": 3, "a.none": 0}
    assert (got.version, got.tensor_count, got.alignment, got.extents_known) == (version, 0, 32, True)
    assert got.data_end == len(header(pairs, version=version))


@pytest.mark.parametrize("step", [1, 3, 7, 64, 1 << 20])
def test_reads_of_any_size_give_the_same_header(step):
    data = header(model_pairs(vocab=5000, extra={"a.list": list(range(40))}), [Tensor(dims=(64, 3)), Tensor("b", (32,), 3, 192)])
    data += b"\0" * 1000
    whole = parse_bytes(data)
    stepwise = parse_in_steps(data, step)
    assert (stepwise.metadata, stepwise.array_lengths, stepwise.data_end) == (whole.metadata, whole.array_lengths, whole.data_end)


def test_big_arrays_and_long_strings_are_skipped_but_what_follows_is_read():
    pairs = {
        "a.big": Typed(ARRAY, [0] * 5000, of=U32),
        "a.tokens": Typed(ARRAY, raw=make_vocabulary(5000)),
        "a.fat": Typed(ARRAY, ["x" * 40_000, "y" * 40_000, "z"], of=STRING),
        "a.long": "l" * 70_000,
        "z.last": 7,
    }
    got = parse_bytes(header(pairs))
    assert dict(got.metadata) == {"z.last": 7}
    assert got.array_lengths == {"a.big": 5000, "a.tokens": 5000, "a.fat": 3}


@pytest.mark.parametrize(
    ("kind", "dims", "size"),
    [
        (0, (3, 5), 60),
        (1, (7,), 14),
        (2, (64, 2), 72),
        (3, (32,), 20),
        (12, (256, 3), 432),
        (30, (), 2),
        (39, (32, 2, 2, 2), 136),
        (24, (0, 9), 0),
    ],
)
def test_the_size_a_file_must_have_follows_from_its_tensors(kind, dims, size):
    data = header({}, [Tensor(dims=dims, type=kind, offset=64)])
    got = parse_bytes(data + b"\0" * (64 + size))
    assert (got.data_start, got.data_end, got.extents_known) == (len(data), len(data) + 64 + size, True)
    assert fault_of(data + b"\0" * (64 + size - 1)) is GgufFault.INCOMPLETE


def test_a_tensor_of_an_unknown_type_gives_a_lower_bound_and_no_error():
    data = header({}, [Tensor("a", (7,), 9999, 64), Tensor("b", (32,), 24, 0)])
    got = parse_bytes(data + b"\0" * 64)
    assert (got.extents_known, got.data_end) == (False, len(data) + 64)
    assert fault_of(data + b"\0" * 63) is GgufFault.INCOMPLETE


def test_alignment_moves_the_data():
    pairs = {"general.alignment": 4096}
    data = header(pairs, [Tensor(offset=4096)], alignment=4096)
    got = parse_bytes(data + b"\0" * 5000)
    assert (got.alignment, got.data_start, got.data_end) == (4096, 4096, 8192 + 32)


BAD = {
    "empty": (b"", GgufFault.INCOMPLETE),
    "three bytes": (b"GGU", GgufFault.INCOMPLETE),
    "zeros": (bytes(4096), GgufFault.NOT_GGUF),
    "a zip": (b"PK\3\4" + bytes(100), GgufFault.NOT_GGUF),
    "magic alone": (b"GGUF", GgufFault.INCOMPLETE),
    "version 0": (header(version=0), GgufFault.VERSION),
    "version 1": (header(version=1), GgufFault.VERSION),
    "version 4": (header(version=4), GgufFault.VERSION),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), GgufFault.BIG_ENDIAN),
    "2**63 pairs": (header(pair_count=1 << 63), GgufFault.TOO_LARGE),
    "2**63 tensors": (header(tensor_count=1 << 63), GgufFault.TOO_LARGE),
    "pairs missing": (header(pair_count=1), GgufFault.INCOMPLETE),
    "tensors missing": (header(tensor_count=1), GgufFault.INCOMPLETE),
    "a key of 2**63 bytes": (header(pair_count=1) + struct.pack("<Q", 1 << 63), GgufFault.CORRUPT),
    "a value of 2**63 bytes": (header({"a": Typed(STRING, raw=struct.pack("<Q", 1 << 63))}), GgufFault.INCOMPLETE),
    "a value of 2**64-1 bytes": (header({"a": Typed(STRING, raw=b"\xff" * 8)}), GgufFault.INCOMPLETE),
    "an array of 2**63": (header({"a": Typed(ARRAY, raw=struct.pack("<IQ", U64, 1 << 63))}), GgufFault.INCOMPLETE),
    "2**63 strings": (header({"a": Typed(ARRAY, raw=struct.pack("<IQ", STRING, 1 << 63))}), GgufFault.INCOMPLETE),
    "a token of 2**64-1 bytes": (header({"a": Typed(ARRAY, raw=struct.pack("<IQ", STRING, 5000) + b"\xff" * 8)}), GgufFault.INCOMPLETE),
    "a nested array": (header({"a": Typed(ARRAY, raw=struct.pack("<IQIQ", ARRAY, 1, ARRAY, 1))}), GgufFault.CORRUPT),
    "an unknown type": (header({"a": Typed(13, raw=bytes(8))}), GgufFault.CORRUPT),
    "an unknown element type": (header({"a": Typed(ARRAY, raw=struct.pack("<IQ", 99, 1))}), GgufFault.CORRUPT),
    "a key twice": (header([("a", 1), ("a", 2)]), GgufFault.CORRUPT),
    "alignment 0": (header({"general.alignment": 0}), GgufFault.CORRUPT),
    "alignment 3": (header({"general.alignment": 3}), GgufFault.CORRUPT),
    "alignment 2**31": (header({"general.alignment": 1 << 31}), GgufFault.CORRUPT),
    "alignment as text": (header({"general.alignment": "32"}), GgufFault.CORRUPT),
    "alignment as bool": (header({"general.alignment": True}), GgufFault.CORRUPT),
    "5 dimensions": (header({}, [Tensor(dims=(1,) * 5)]), GgufFault.CORRUPT),
    "2**32-1 dimensions": (header(tensor_count=1) + struct.pack("<QI", 0, (1 << 32) - 1), GgufFault.CORRUPT),
    "dimensions that overflow to 0": (header({}, [Tensor(dims=(1 << 32, 1 << 32))]), GgufFault.CORRUPT),
    "an offset of 2**63": (header({}, [Tensor(offset=1 << 63)]), GgufFault.CORRUPT),
    "an unaligned offset": (header({}, [Tensor(offset=33)]) + bytes(999), GgufFault.CORRUPT),
    "half a block": (header({}, [Tensor(dims=(33,), type=3)]) + bytes(999), GgufFault.CORRUPT),
    "a name of 1 MiB": (header({}, [Tensor(name="n" * (1 << 20))]), GgufFault.CORRUPT),
    "a tensor of an exabyte": (header({}, [Tensor(dims=(1 << 60,))]), GgufFault.INCOMPLETE),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bomb_or_a_broken_file_gives_a_typed_error(name):
    """F66, F67."""
    data, fault = BAD[name]
    assert fault_of(data) is fault
    with pytest.raises(GgufError):
        parse_in_steps(data, 5)


def test_every_cut_of_a_good_file_is_incomplete():
    """F66: a file that is still being copied."""
    good = header(model_pairs(extra={"a.list": [1, 2], "a.words": ["x", "y"]}), [Tensor()]) + bytes(32)
    parse_bytes(good)
    assert {fault_of(good[:size]) for size in range(len(good))} == {GgufFault.INCOMPLETE}


def test_a_vocabulary_of_262k_tokens_is_skipped_in_few_reads():
    data = header(model_pairs(vocab=262_144, extra={"z.last": 1}))
    asked = []
    parser = parse_header(len(data))
    try:
        need = next(parser)
        while True:
            asked.append(need)
            need = parser.send(data[need.offset : need.offset + need.size])
    except StopIteration as stop:
        got = stop.value
    assert got.array_lengths["tokenizer.ggml.tokens"] == 262_144
    assert "tokenizer.ggml.tokens" not in got.metadata
    assert got.metadata["z.last"] == 1
    assert len(asked) <= 7
    # The scores (1 MiB of plain numbers) are jumped over.
    assert got.bytes_read < len(data)


@pytest.mark.parametrize("count", [4097, 255 * 17, 5000])
@pytest.mark.parametrize("step", [64, 1 << 20])
def test_short_and_long_strings_are_jumped_over_alike(count, step):
    """Lengths around those that are skipped many at a time, also where a read ends inside such a run."""
    sizes = [0, 1, 126, 127, 128, 255, 256, 300] + [1 + index % 90 for index in range(count - 8)]
    strings = b"".join(struct.pack("<Q", size) + b"\0" * size for size in sizes)
    tokens = Typed(ARRAY, raw=struct.pack("<IQ", STRING, count) + strings)
    got = parse_in_steps(header({"a.tokens": tokens, "z.last": 7}), step)
    assert (got.array_lengths["a.tokens"], got.metadata["z.last"]) == (count, 7)


def test_plain_numbers_are_jumped_over_without_reading_them():
    count = 1 << 40
    start = header({"a": Typed(ARRAY, raw=struct.pack("<IQ", F64, count))}, pair_count=2)
    after = header({"b": 7})[24:]
    parser = parse_header(len(start) + 8 * count + len(after))
    need = next(parser)
    need = parser.send(start)
    assert need.offset == len(start) + 8 * count
    with pytest.raises(StopIteration) as stop:
        parser.send(after)
    assert stop.value.value.metadata == {"b": 7}


@pytest.mark.parametrize("token_bytes", [0, 5, 70_000])
def test_reading_ends_at_the_limit(monkeypatch, token_bytes):
    """F67: endless string arrays, dense or sparse, cost at most the limit."""
    monkeypatch.setattr(gguf, "READ_BYTES_MAX", 1 << 20)
    token = struct.pack("<Q", token_bytes) + bytes(token_bytes)
    start = header({"a": Typed(ARRAY, raw=struct.pack("<IQ", STRING, 1 << 40))})
    parser = parse_header(1 << 60)
    read = 0
    need = next(parser)
    with pytest.raises(GgufError) as caught:
        while True:
            first = max(0, need.offset - len(start)) % len(token)
            piece = start[need.offset :] + (token * (need.size // len(token) + 2))[first:]
            piece = piece[: need.size]
            read += len(piece)
            need = parser.send(piece)
    assert caught.value.fault is GgufFault.TOO_LARGE
    assert read <= 1 << 20


@given(st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_mutation_gives_anything_but_a_header_or_a_typed_error(data):
    """F67: bytes overwritten, inserted and removed anywhere."""
    raw = bytearray(MUTATED)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        piece = data.draw(st.sampled_from(EVIL) | st.binary(max_size=9))
        cut = data.draw(st.integers(0, 12))
        raw[at : at + cut] = piece
    try:
        got = parse_bytes(bytes(raw))
    except GgufError as error:
        assert str(error)
    else:
        assert got.data_end <= len(raw)
        assert all(len(item) <= gguf.ARRAY_KEPT_MAX for item in got.metadata.values() if isinstance(item, tuple))


EVIL = [b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 40), struct.pack("<I", ARRAY)]
MUTATED = header(
    model_pairs(extra={"a.list": [1, 2, 3], "a.words": ["x", "yy"], "a.neg": -1}), [Tensor(), Tensor("b", (32, 2), 3, 32)]
) + bytes(99)


@given(st.binary(max_size=200), st.integers(0, 1 << 62))
@settings(max_examples=200, deadline=None)
def test_garbage_after_the_magic_never_surprises(tail, file_size):
    try:
        parse_bytes(b"GGUF\3\0\0\0" + tail, file_size)
    except GgufError as error:
        assert isinstance(error.fault, GgufFault)


def test_a_sparse_file_of_a_gigabyte_is_read_in_one_small_piece(tmp_path):
    got = read_header(make_gguf(tmp_path / "a.gguf", size_bytes=1 << 30))
    assert got.metadata["general.architecture"] == "llama"
    assert (got.data_end, got.bytes_read) == (1 << 30, gguf.FIRST_READ_BYTES)


def test_what_is_no_readable_file_is_unreadable(tmp_path):
    """F70, F74: a FIFO does not block."""
    os.mkfifo(tmp_path / "fifo.gguf")
    for name in ("fifo.gguf", "absent.gguf", "."):
        with pytest.raises(GgufError) as caught:
            read_header(tmp_path / name)
        assert caught.value.fault is GgufFault.UNREADABLE
        assert str(tmp_path) not in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read_is_incomplete(tmp_path, monkeypatch):
    path = make_gguf(tmp_path / "a.gguf")
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: b"")
    with pytest.raises(GgufError) as caught:
        read_header(path)
    assert caught.value.fault is GgufFault.INCOMPLETE


def test_an_input_output_error_is_named(tmp_path, monkeypatch):
    def broken(descriptor, size, offset):
        raise OSError(5, "Input/output error")

    path = make_gguf(tmp_path / "a.gguf")
    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(GgufError, match="Input/output error"):
        read_header(path)


def test_split_numbers_default_to_one_whole():
    assert (parse_bytes(header()).split_no, parse_bytes(header()).split_count) == (0, 1)
    odd = parse_bytes(header({"split.no": "x", "split.count": -3}))
    assert (odd.split_no, odd.split_count) == (0, 1)


def test_what_the_gguf_package_writes_is_read(tmp_path):
    package = pytest.importorskip("gguf", reason="needs the gguf package")
    numpy = pytest.importorskip("numpy", reason="needs numpy")
    path = tmp_path / "written.gguf"
    writer = package.GGUFWriter(path, "llama")
    writer.add_name("Written")
    writer.add_block_count(3)
    writer.add_token_list([f"token {index}" for index in range(6000)])
    writer.add_tensor("a", numpy.zeros((4, 32), numpy.float32))
    writer.add_tensor("b", numpy.zeros((5,), numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    got = read_header(path)
    assert (got.metadata["general.name"], got.metadata["llama.block_count"]) == ("Written", 3)
    assert (got.tensor_count, got.array_lengths["tokenizer.ggml.tokens"]) == (2, 6000)
    # The writer pads the last tensor, too.
    assert got.data_end <= path.stat().st_size < got.data_end + 32


def test_what_the_maker_writes_is_read_by_the_gguf_package(tmp_path):
    package = pytest.importorskip("gguf", reason="needs the gguf package")
    path = make_gguf(tmp_path / "made.gguf", vocab=50)
    theirs, ours = package.GGUFReader(path), read_header(path)
    assert theirs.data_offset == ours.data_start
    assert set(theirs.fields) == {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", *ours.metadata, *ours.array_lengths}


def test_the_starter_model_is_read():
    path = os.environ.get("MODELD_TEST_STARTER")
    if not path or not os.path.isfile(path):
        pytest.skip("MODELD_TEST_STARTER names no file; `make unit` sets it")
    got = read_header(path)
    assert (got.metadata["general.architecture"], got.metadata["llama.block_count"]) == ("llama", 30)
    assert got.data_end == os.path.getsize(path)
    assert file_type_name(got.metadata["general.file_type"]) == "Q4_1"
