# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from makegguf import Tensor, header, make_gguf, model_pairs
from modeld.catalog.gguf import parse_bytes
from modeld.catalog.headers import LABEL_CHARS_MAX, Facts, HeaderCache, facts_of, header_hash, printable
from modeld.catalog.layers import memory_shape


def test_facts_are_what_the_catalogue_needs(tmp_path):
    pairs = model_pairs("qwen3", name=" A\nname\x1b[2J ", file_type=15, ctx=4096)
    read = parse_bytes(header(pairs))
    facts = facts_of(read)
    assert facts == Facts(
        family="qwen3",
        name="A�name�[2J",
        quant="Q4_K_M",
        ctx_train=4096,
        embedding_length=64,
        format_version=3,
        memory=memory_shape(read),
        header_hash=header_hash(read),
    )


@pytest.mark.parametrize(
    ("said", "pooling"), [(0, "none"), (1, "mean"), (2, "cls"), (3, "last"), (4, "rank"), (5, ""), (-1, ""), (True, ""), ("mean", "")]
)
def test_pooling_is_told_in_llama_cpps_words(said, pooling):
    assert facts_of(parse_bytes(header(model_pairs(extra={"llama.pooling_type": said})))).pooling == pooling


@pytest.mark.parametrize(
    ("template", "has", "tools"),
    [("{{ x }}", True, False), ("{% if tools %}", True, True), (" ", False, False), (None, False, False), (7, False, False)],
)
def test_a_chat_template_is_noticed_and_whether_it_knows_tools(template, has, tools):
    facts = facts_of(parse_bytes(header(model_pairs(extra={"tokenizer.chat_template": template}))))
    assert (facts.has_chat_template, facts.takes_tools) == (has, tools)


def test_a_template_for_tools_alone_counts():
    said = {"tokenizer.chat_template": "x", "tokenizer.chat_template.tool_use": "y"}
    assert facts_of(parse_bytes(header(model_pairs(extra=said)))).takes_tools


def test_weights_words_and_widths_are_counted():
    pairs = model_pairs(vocab=70, extra={"general.size_label": "1.7B\n" + "x" * 99, "llama.attention.causal": False})
    tensors = [Tensor("a", (64, 3)), Tensor("b", (32,), offset=192)]
    facts = facts_of(parse_bytes(header(pairs, tensors) + bytes(224)))
    assert (facts.parameters, facts.vocabulary, facts.embedding_length, facts.causal) == (224, 70, 64, False)
    assert facts.size_label.startswith("1.7B") and len(facts.size_label) == LABEL_CHARS_MAX and facts.size_label.isprintable()


def test_what_decides_memory_makes_the_hash_and_nothing_else_does():
    def hashed(pairs, *tensors):
        return header_hash(parse_bytes(header(pairs, tensors or [Tensor()]) + bytes(4096)))

    plain = hashed(model_pairs())
    assert len(plain) == 32 and int(plain, 16)
    same = [model_pairs(name="Other"), model_pairs(vocab=70), model_pairs(extra={"llama.rope.freq_base": 5e5, "tokenizer.x": 3})]
    assert {hashed(pairs) for pairs in same} == {plain}
    others = [
        *(hashed(pairs) for pairs in (model_pairs(layers=3), model_pairs(heads_kv=(2, 1)), model_pairs("qwen2"), model_pairs(ctx=4096))),
        *(hashed(model_pairs(), tensor) for tensor in (Tensor("output.weight"), Tensor(dims=(64,)), Tensor(dims=(32,), type=3))),
        hashed(model_pairs(), Tensor(), Tensor("b", offset=32)),
    ]
    assert len({plain, *others}) == 1 + len(others)


def test_odd_types_in_a_header_are_as_if_absent():
    facts = facts_of(parse_bytes(header({"general.architecture": 7, "general.name": [1], "general.file_type": "3"})))
    assert facts == Facts(format_version=3, header_hash=facts.header_hash)
    assert facts_of(parse_bytes(header(model_pairs(ctx=1 << 40)))).ctx_train == 0


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path):
    path = make_gguf(tmp_path / "a.gguf", name="One")
    cache = HeaderCache(tmp_path / "state" / "headers.json")

    def name(cache) -> str:
        return cache.facts(str(path), path.stat()).name

    assert [name(cache), name(cache), cache.files_read] == ["One", "One", 1]
    assert cache.keep({str(path)}) == ""
    again = HeaderCache(tmp_path / "state" / "headers.json")
    assert [name(again), again.files_read] == ["One", 0]
    os.utime(path, ns=(0, 5))
    assert [name(again), again.files_read] == ["One", 1]
    status = path.stat()
    make_gguf(tmp_path / "b.gguf", name="Two").rename(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    # The same size and mtime, but another inode.
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert [name(again), again.files_read] == ["Two", 2]


def test_a_broken_file_is_remembered_but_a_forbidden_one_is_tried_again(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"nonsense")
    cache = HeaderCache(None)
    for _ in range(2):
        assert cache.facts(str(broken), broken.stat()).reason == "is not a GGUF file"
    assert cache.files_read == 1
    for _ in range(2):
        assert cache.facts(str(tmp_path / "gone.gguf"), broken.stat()).reason.startswith("cannot be read")
    assert cache.files_read == 3
    assert cache.keep(set()) == ""


def test_only_what_is_still_there_is_kept_and_nothing_is_written_without_need(tmp_path):
    store = tmp_path / "headers.json"
    files = [make_gguf(tmp_path / f"{letter}.gguf") for letter in "ab"]
    cache = HeaderCache(store)
    for path in files:
        cache.facts(str(path), path.stat())
    cache.keep({str(path) for path in files})
    before = store.stat()
    cache.keep({str(path) for path in files})
    assert (store.stat().st_ino, store.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    cache.keep({str(files[0])})
    assert list(json.loads(store.read_text())["entries"]) == [str(files[0])]
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".gguf", ".json")] == []


TORN = [b"", b"{", b"[]", b"\xff\xfe", b'{"format":1,"entries":{"a":[1]}}', b'{"format":99,"entries":{}}', b"[" * 99_999]


@pytest.mark.parametrize("content", TORN, ids=range(len(TORN)))
def test_a_torn_cache_is_ignored_and_replaced(tmp_path, content):
    """F72."""
    store = tmp_path / "headers.json"
    store.write_bytes(content)
    path = make_gguf(tmp_path / "a.gguf")
    cache = HeaderCache(store)
    assert cache.facts(str(path), path.stat()).family == "llama"
    assert cache.keep({str(path)}) == ""
    again = HeaderCache(store)
    again.facts(str(path), path.stat())
    assert again.files_read == 0


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path):
    """F72."""
    (tmp_path / "file").write_text("")
    path = make_gguf(tmp_path / "a.gguf")
    cache = HeaderCache(tmp_path / "file" / "headers.json")
    assert cache.facts(str(path), path.stat()).family == "llama"
    note = cache.keep({str(path)})
    assert note.startswith("the header cache could not be written")
    assert str(tmp_path) not in note


def test_a_full_disk_leaves_the_old_cache(tmp_path, monkeypatch):
    """F72."""
    store = tmp_path / "headers.json"
    path = make_gguf(tmp_path / "a.gguf")
    cache = HeaderCache(store)
    cache.facts(str(path), path.stat())
    cache.keep({str(path)})
    old = store.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert "No space left" in cache.keep(set())
    assert store.read_bytes() == old
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.gguf", "headers.json"]


def test_printable_text_has_no_control_characters():
    assert printable("a\0b\x1b\n\ud800ü😀") == "a�b���ü😀"
    assert len(printable("x" * 999)) == 200
