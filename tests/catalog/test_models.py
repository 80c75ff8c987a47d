# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makegguf import make_gguf, make_split
from modeld.catalog import headers
from modeld.catalog.launch import usable_cpu_count
from modeld.catalog.models import Catalog, ModelOverride, ModelTable, PartialOptions
from modeld.core.model import AttentionLayers, Degrade, LaunchOptions, MemoryShape, ModelId, ModelKind, ModelSpec, Priority, Widths
from modeld.errors import UnknownModel


def scan(models_dir, overrides=None, cache=None) -> ModelTable:
    """One scan; `overrides` is {the operator's spelling: ModelOverride}."""
    said = overrides or {}
    return Catalog(models_dir, lambda name: said.get(name, ModelOverride()), cache, said).scan()


def table(*ids: str, **aliases: tuple[str, ...]) -> ModelTable:
    """A table without files; `aliases` by id with `_` for `.`."""
    return ModelTable({ModelId(key): ModelSpec(ModelId(key), key, aliases=aliases.get(key.replace(".", "_"), ())) for key in ids})


def unknown(models: ModelTable, name: str) -> str:
    with pytest.raises(UnknownModel) as caught:
        models.resolve(name)
    assert caught.value.message.isprintable()
    return caught.value.message


# --- what a scan gives ------------------------------------------------------------------------------------------------


def test_a_model_is_described_by_its_header(tmp_path):
    path = make_gguf(tmp_path / "tiny-x.gguf", size_bytes=8192, arch="qwen3", name="Tiny X", file_type=15, ctx=4096, layers=2, heads_kv=1)
    found = scan(tmp_path)
    spec = found.models[ModelId("tiny-x.gguf")]
    weights = -(-spec.parameters // 32) * 32
    assert spec == ModelSpec(
        id=ModelId("tiny-x.gguf"),
        path=str(path),
        parts=(str(path),),
        size_bytes=8192,
        fingerprint=spec.fingerprint,
        name="Tiny X",
        family="qwen3",
        quant="Q4_K_M",
        ctx_train=4096,
        memory=MemoryShape(
            weights_bytes=weights,
            attention=(AttentionLayers(2, 16, 16),),
            value_elements_max=16,
            certain=True,
            layers=2,
            heads_kv=1,
            key_length=16,
            value_length=16,
            tied_bytes=weights,
            table_bytes=weights,
            widths=Widths(embedding=64, heads=4, head=16),
        ),
        header_hash=spec.header_hash,
        options=LaunchOptions(ctx=4096, threads=usable_cpu_count()),
        parameters=spec.parameters,
        embedding_length=64,
        format_version=3,
        modified_unix=path.stat().st_mtime,
    )
    assert 7000 < spec.parameters < 8192  # one tensor of bytes, beside the header
    assert len(spec.fingerprint) == 16 and len(spec.header_hash) == 32
    assert found.notes == ()


@pytest.mark.parametrize(
    ("file_name", "quant"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("model.Q8_0.gguf", "Q8_0"),
        ("x-iq3_xxs.gguf", "IQ3_XXS"),
        ("x-IQ4_NL.gguf", "IQ4_NL"),
        ("x-UD-Q2_K_XL.gguf", "Q2_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("x.f16.gguf", "F16"),
        ("x-BF16.gguf", "BF16"),
        ("Qwen3-8B.gguf", ""),
        ("q4ever.gguf", ""),
    ],
)
def test_without_file_type_and_name_the_file_name_tells(tmp_path, file_name, quant):
    make_gguf(tmp_path / file_name, name=None, file_type=None)
    (spec,) = scan(tmp_path).models.values()
    assert (spec.quant, spec.name) == (quant, file_name.removesuffix(".gguf"))


def test_models_are_listed_in_id_order(tmp_path):
    for name in ("b.gguf", "a/c.gguf", "B.gguf", "z/a.gguf"):
        make_gguf(tmp_path / name)
    assert list(scan(tmp_path).models) == ["B.gguf", "a.gguf", "b.gguf", "c.gguf"]


def test_all_models_of_one_name_get_their_relative_path(tmp_path):
    for name in ("x.gguf", "a/x.gguf", "b/x.gguf", "b/y.gguf"):
        make_gguf(tmp_path / name)
    found = scan(tmp_path)
    assert list(found.models) == ["a/x.gguf", "b/x.gguf", "x.gguf", "y.gguf"]
    assert (found.resolve("a/x"), found.resolve("x.gguf"), found.resolve("y")) == ("a/x.gguf", "x.gguf", "y.gguf")


def test_a_file_that_is_replaced_or_changed_has_another_fingerprint(tmp_path):
    path = make_gguf(tmp_path / "a.gguf")

    def fingerprint() -> str:
        return scan(tmp_path).models[ModelId("a.gguf")].fingerprint

    seen = [fingerprint(), fingerprint()]
    assert seen[0] == seen[1]
    os.utime(path, ns=(0, 7))
    seen.append(fingerprint())
    make_gguf(tmp_path / "new").replace(path)
    os.utime(path, ns=(0, 7))
    seen.append(fingerprint())
    make_gguf(tmp_path / "mmproj-a.gguf", arch="clip")
    seen.append(fingerprint())
    assert len(set(seen)) == 4


# --- broken files -----------------------------------------------------------------------------------------------------


def test_broken_files_are_listed_with_the_reason_and_stop_nothing(tmp_path):
    """F66, F70, F74."""
    good = make_gguf(tmp_path / "good.gguf", size_bytes=5 << 20)
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("version https://git-lfs")
    (tmp_path / "half.gguf").write_bytes(good.read_bytes()[: 3 << 20])
    (tmp_path / "gone.gguf").symlink_to("nowhere")
    make_gguf(tmp_path / "nothing.gguf", arch="")
    found = scan(tmp_path)
    assert {spec.id: spec.unavailable for spec in found.models.values()} == {
        "empty.gguf": "empty.gguf is incomplete: it ends inside its header",
        "gone.gguf": "gone.gguf is a link to a file that does not exist",
        "good.gguf": None,
        "half.gguf": "half.gguf is incomplete: 3 of 5 MiB are here; copy it again if it does not grow",
        "nothing.gguf": "nothing.gguf names no model family in its header",
        "text.gguf": "text.gguf is not a GGUF file",
    }
    assert found.resolve("half") == "half.gguf"


def test_a_file_that_is_still_being_copied_becomes_available_when_it_is_whole(tmp_path):
    whole = make_gguf(tmp_path / "elsewhere", size_bytes=1 << 20).read_bytes()
    catalog = Catalog(tmp_path, lambda _: ModelOverride(), None)
    path = tmp_path / "a.gguf"
    states = []
    for size in (10, 4000, (1 << 20) - 1, 1 << 20):
        path.write_bytes(whole[:size])
        states.append(catalog.scan().models[ModelId("a.gguf")].unavailable)
    assert [state is None for state in states] == [False, False, False, True]
    assert all("incomplete" in state for state in states[:3])


def test_a_missing_or_unreadable_folder_is_an_empty_table_with_a_note(tmp_path):
    found = scan(tmp_path / "absent")
    assert (dict(found.models), found.notes) == ({}, ("the models folder cannot be read: No such file or directory",))


def test_names_that_cannot_be_shown_are_listed_as_unavailable(tmp_path):
    for raw in (b"a\xff.gguf", b"a\xfe.gguf"):
        with open(os.path.join(os.fsencode(tmp_path), raw), "wb"):
            pass
    found = scan(tmp_path)
    assert list(found.models) == ["a�.gguf", "a�.gguf~2"]
    assert all("rename it" in spec.unavailable for spec in found.models.values())


# --- split models -----------------------------------------------------------------------------------------------------


def test_the_parts_of_a_split_file_are_one_model(tmp_path):
    parts = make_split(tmp_path, "big-Q4_K_M", 3, size_bytes=9000, name="Big")
    found = scan(tmp_path)
    (spec,) = found.models.values()
    assert (spec.id, spec.name, spec.path, spec.unavailable) == ("big-Q4_K_M.gguf", "Big", str(parts[0]), None)
    assert spec.parts == tuple(map(str, parts))
    assert spec.size_bytes == sum(path.stat().st_size for path in parts)
    for name in ("big-Q4_K_M", "big-Q4_K_M-00001-of-00003.gguf", "big-Q4_K_M-00001-of-00003"):
        assert found.resolve(name) == spec.id


@pytest.mark.parametrize(
    ("count", "without", "reason"),
    [
        (3, {2}, "part big-00002-of-00003.gguf is missing"),
        (3, {1}, "part big-00001-of-00003.gguf is missing"),
        (3, {1, 3}, "parts big-00001-of-00003.gguf, big-00003-of-00003.gguf are missing"),
        (7, {2, 3, 4, 5, 6}, "parts big-00002-of-00007.gguf, big-00003-of-00007.gguf, big-00004-of-00007.gguf and 2 more are missing"),
    ],
)
def test_a_missing_part_is_named(tmp_path, count, without, reason):
    """F71."""
    make_split(tmp_path, "big", count, without=without)
    (spec,) = scan(tmp_path).models.values()
    assert (spec.id, spec.unavailable) == ("big.gguf", reason)


def test_a_broken_or_foreign_part_makes_the_model_unavailable(tmp_path):
    """F66: each part is checked by itself."""
    cut = make_split(tmp_path, "cut", 2, size_bytes=9000)[1]
    os.truncate(cut, 8000)
    make_split(tmp_path, "odd", 2)
    make_gguf(tmp_path / "odd-00002-of-00002.gguf", split=(1, 5))
    make_gguf(tmp_path / "renamed.gguf", split=(0, 2))
    reasons = {key: spec.unavailable for key, spec in scan(tmp_path).models.items()}
    assert reasons == {
        "cut.gguf": "cut-00002-of-00002.gguf is incomplete: 8000 of 9000 bytes are here; copy it again if it does not grow",
        "odd.gguf": "odd-00002-of-00002.gguf says it is part 2 of 5; its name must say the same",
        "renamed.gguf": "renamed.gguf says it is part 1 of 2; its name must say the same",
    }


def test_a_split_model_beside_a_whole_file_keeps_its_first_parts_name(tmp_path):
    make_split(tmp_path / "d", "big", 2)
    make_gguf(tmp_path / "d" / "big.gguf")
    assert list(scan(tmp_path).models) == ["d/big-00001-of-00002.gguf", "d/big.gguf"]


def test_impossible_part_numbers_are_ordinary_names(tmp_path):
    for name in ("a-00004-of-00003.gguf", "a-00000-of-00002.gguf", "a-1-of-2.gguf"):
        make_gguf(tmp_path / name)
    assert {spec.unavailable for spec in scan(tmp_path).models.values()} == {None}
    assert len(scan(tmp_path).models) == 3


# --- projectors -------------------------------------------------------------------------------------------------------


def attached(models_dir) -> dict[str, str | None]:
    return {key: spec.mmproj and spec.mmproj.rpartition("/")[2] for key, spec in scan(models_dir).models.items()}


def test_a_projector_belongs_to_the_only_model_of_its_folder(tmp_path):
    make_gguf(tmp_path / "v" / "Vision-Q4_0.gguf")
    make_gguf(tmp_path / "v" / "mmproj-model-f16.gguf", arch="clip")
    make_gguf(tmp_path / "other.gguf")
    assert attached(tmp_path) == {"Vision-Q4_0.gguf": "mmproj-model-f16.gguf", "other.gguf": None}


def test_among_several_models_the_longest_common_name_decides(tmp_path):
    for name in ("gemma-3-4b-it-Q4_0.gguf", "gemma-3-4b-it-Q8_0.gguf", "gemma-3-12b-it-Q4_0.gguf", "llama.gguf"):
        make_gguf(tmp_path / name)
    make_gguf(tmp_path / "mmproj-gemma-3-4b-it-f16.gguf", arch="clip")
    make_gguf(tmp_path / "MMPROJ-gemma-3-12b-it.gguf", arch="clip")
    assert attached(tmp_path) == {
        "gemma-3-4b-it-Q4_0.gguf": "mmproj-gemma-3-4b-it-f16.gguf",
        "gemma-3-4b-it-Q8_0.gguf": "mmproj-gemma-3-4b-it-f16.gguf",
        "gemma-3-12b-it-Q4_0.gguf": "MMPROJ-gemma-3-12b-it.gguf",
        "llama.gguf": None,
    }


def test_a_projector_without_a_telling_name_belongs_to_all_quants_of_the_one_model_in_its_folder(tmp_path):
    make_gguf(tmp_path / "seer-7b-Q4_0.gguf")
    make_gguf(tmp_path / "seer-7b-Q8_0.gguf")
    make_gguf(tmp_path / "mmproj-F32.gguf", arch="clip", file_type=0, size_bytes=9000)
    make_gguf(tmp_path / "mmproj-BF16.gguf", arch="clip", file_type=32)
    make_gguf(tmp_path / "mmproj-F16.gguf", arch="clip", file_type=1)
    assert attached(tmp_path) == {"seer-7b-Q4_0.gguf": "mmproj-F16.gguf", "seer-7b-Q8_0.gguf": "mmproj-F16.gguf"}


def test_a_projector_of_another_model_is_attached_to_nobody(tmp_path):
    """It would keep a healthy model from loading."""
    make_gguf(tmp_path / "a.gguf")
    make_gguf(tmp_path / "qwen2-coder-7b.gguf")
    make_gguf(tmp_path / "mmproj-Qwen2-VL-7B-f16.gguf", arch="clip")
    make_gguf(tmp_path / "mmproj-F16.gguf", arch="clip", file_type=1)
    assert attached(tmp_path) == {"a.gguf": None, "qwen2-coder-7b.gguf": None}
    notes = Catalog(tmp_path, lambda _: ModelOverride(), None).scan().notes
    assert sum("belongs to no model: no name there matches its own" in note for note in notes) == 2


def test_the_only_model_of_a_folder_below_gets_its_projector(tmp_path):
    (tmp_path / "vision").mkdir()
    make_gguf(tmp_path / "vision" / "model-Q4_0.gguf")
    make_gguf(tmp_path / "vision" / "mmproj-seer.gguf", arch="clip")
    assert attached(tmp_path) == {"model-Q4_0.gguf": "mmproj-seer.gguf"}


def test_a_projector_by_its_header_is_not_listed_either(tmp_path):
    make_gguf(tmp_path / "a.gguf")
    make_gguf(tmp_path / "a-vision.gguf", arch="clip")
    assert attached(tmp_path) == {"a.gguf": "a-vision.gguf"}


def test_a_broken_or_lonely_projector_is_a_note(tmp_path):
    make_gguf(tmp_path / "alone" / "mmproj-x.gguf", arch="clip")
    make_gguf(tmp_path / "a.gguf")
    (tmp_path / "mmproj-a.gguf").write_bytes(b"junk" * 99)
    found = scan(tmp_path)
    assert attached(tmp_path) == {"a.gguf": None}
    assert found.notes == (
        'projector "mmproj-x.gguf" belongs to no model: there is none in its folder',
        'projector "mmproj-a.gguf" is not a GGUF file',
    )


# --- settings and aliases ---------------------------------------------------------------------------------------------


def test_settings_reach_their_model_in_either_spelling(tmp_path):
    make_gguf(tmp_path / "a.gguf")
    make_gguf(tmp_path / "b.gguf")
    make_gguf(tmp_path / "c.gguf")
    options = PartialOptions(ctx=1000, parallel=2)
    said = ModelOverride(options, ("fast",), 77, True, 9.0, preload=True, priority=Priority.BATCH, degrade=(Degrade.CTX,))
    found = scan(tmp_path, {"a": said, "b.gguf": ModelOverride(vram_mb=5)})
    a = found.models[ModelId("a.gguf")]
    assert (a.options.ctx, a.options.parallel, a.options.batch, a.aliases) == (1000, 2, 512, ("fast",))
    assert (a.vram_mb, a.pinned, a.ttl_seconds, a.preload, a.priority) == (77, True, 9.0, True, Priority.BATCH)
    assert a.degrade == (Degrade.CTX,)
    assert [found.models[ModelId(key)].vram_mb for key in ("b.gguf", "c.gguf")] == [5, None]
    assert found.resolve("fast") == "a.gguf"
    assert found.notes == ()


def test_settings_for_a_model_that_is_not_there_are_a_note(tmp_path):
    make_gguf(tmp_path / "a.gguf")
    said = {"nope": ModelOverride(), "a.gguf": ModelOverride(vram_mb=1), "a": ModelOverride(vram_mb=2)}
    found = scan(tmp_path, said)
    assert found.models[ModelId("a.gguf")].vram_mb == 1
    assert found.notes == (
        'settings for "a" are ignored: "a.gguf" names the same model',
        'settings are given for model "nope", which is not in the models folder',
    )


def test_an_alias_never_takes_an_id_and_the_first_model_keeps_a_shared_one(tmp_path):
    for name in ("a.gguf", "b.gguf", "c.gguf"):
        make_gguf(tmp_path / name)
    said = {
        "a": ModelOverride(aliases=("shared", "mine", "mine", "a.gguf")),
        "b": ModelOverride(aliases=("shared", "a", "c.gguf", "own")),
    }
    found = scan(tmp_path, said)
    assert found.models[ModelId("a.gguf")].aliases == ("shared", "mine")
    assert found.models[ModelId("b.gguf")].aliases == ("own",)
    assert (found.resolve("shared"), found.resolve("a"), found.resolve("c.gguf")) == ("a.gguf", "a.gguf", "c.gguf")
    assert found.notes == (
        'alias "shared" of b.gguf is ignored: it is a name of a.gguf',
        'alias "a" of b.gguf is ignored: it is the id of a.gguf',
        'alias "c.gguf" of b.gguf is ignored: it is the id of c.gguf',
    )


# --- names ------------------------------------------------------------------------------------------------------------


def test_exact_names_go_before_names_in_another_case():
    models = table("Model.gguf", "model.gguf", "Other.GGUF", Model_gguf=("Fast",))
    assert models.resolve("model.gguf") == "model.gguf"
    assert models.resolve("Model") == "Model.gguf"
    assert models.resolve("fast") == "Model.gguf"
    assert models.resolve("other") == "Other.GGUF"
    assert models.resolve("OTHER.gguf") == "Other.GGUF"
    # Two differ only in case: no guess.
    assert '"Model.gguf"' in unknown(models, "MODEL")


def test_a_name_that_two_ids_share_without_their_suffix_is_unknown():
    models = table("a.GGUF", "a.gguf")
    assert models.resolve("a.gguf") == "a.gguf"
    unknown(models, "a")


def test_an_unknown_name_gets_near_matches():
    models = table("qwen2.5-7b-instruct-q4_k_m.gguf", "llama-3.2-1b.gguf", "llama-3.2-3b.gguf", "phi.gguf", phi_gguf=("small",))
    assert unknown(models, "phy") == 'model "phy" is not here; did you mean "phi.gguf"? GET /models lists all'
    assert "qwen2.5-7b-instruct-q4_k_m.gguf" in unknown(models, "qwen")
    assert '"llama-3.2-1b.gguf" or "llama-3.2-3b.gguf"' in unknown(models, "LLaMA")
    assert '"small"' in unknown(models, "smal")
    assert unknown(models, "zzz") == 'model "zzz" is not here. GET /models lists all'
    assert unknown(table(), "a") == 'model "a" is not here; the models folder holds no model yet'
    assert unknown(table(*(f"model-{index}.gguf" for index in range(9))), "model").count(".gguf") == 3


HOSTILE = ["", "\0", "a\0.gguf", "../a.gguf", "/etc/passwd", "%2e%2e/a", "a\n\x1b[2J", "\ud800", "a" * 10_000, "\uff0e\uff0e/a", 'x"y\\']


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_simply_unknown(name):
    """F69: names are look-up keys, and are echoed short and printable."""
    message = unknown(table("a.gguf", "b.gguf"), name)
    assert len(message) < 400
    message.encode()


def test_the_search_for_near_matches_is_bounded(monkeypatch):
    from modeld.catalog import models as module

    asked = []
    monkeypatch.setattr(module, "get_close_matches", lambda word, names, n: asked.append((len(word), len(names))) or [])
    unknown(table(*(f"m{index}.gguf" for index in range(1000))), "x" * 500)
    assert asked == [(128, module.NEAR_SEARCH_MAX)]


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_what_the_header_says_is_what_a_model_is_started_for(tmp_path):
    make_gguf(tmp_path / "writes.gguf")
    make_gguf(tmp_path / "embeds.gguf", arch="bert", ctx=512, extra={"bert.pooling_type": 2})
    make_gguf(tmp_path / "scores.gguf", arch="qwen3", ctx=4096, extra={"qwen3.pooling_type": 4})
    make_gguf(tmp_path / "long.gguf", arch="nomic-bert", ctx=8192, extra={"nomic-bert.pooling_type": 1})
    found = scan(tmp_path).models
    assert {spec.id: (spec.kind.value, spec.pooling, spec.options.batch, spec.options.ubatch, spec.logits) for spec in found.values()} == {
        "embeds.gguf": ("embed", "cls", 512, 512, False),
        "long.gguf": ("embed", "mean", 2048, 2048, False),
        "scores.gguf": ("rerank", "rank", 512, 512, True),
        "writes.gguf": ("generate", "", 512, 512, True),
    }


def test_the_operators_kind_wins(tmp_path):
    make_gguf(tmp_path / "a.gguf", arch="qwen3", extra={"qwen3.pooling_type": 3})
    make_gguf(tmp_path / "b.gguf")
    said = {"a": ModelOverride(kind=ModelKind.GENERATE), "b": ModelOverride(kind=ModelKind.EMBED)}
    found = scan(tmp_path, said)
    assert [(spec.kind.value, spec.pooling) for spec in found.models.values()] == [("generate", ""), ("embed", "last")]


def test_a_projector_gives_eyes_or_ears(tmp_path):
    for name, says in {"eyes": {}, "ears": {"clip.has_audio_encoder": True}, "both": {}}.items():
        both = {"clip.has_vision_encoder": True, "clip.has_audio_encoder": True}
        make_gguf(tmp_path / name / f"{name}.gguf")
        make_gguf(tmp_path / name / f"mmproj-{name}.gguf", arch="clip", extra=both if name == "both" else says)
    make_gguf(tmp_path / "none.gguf")
    assert {spec.id: spec.modalities for spec in scan(tmp_path).models.values()} == {
        "both.gguf": ("text", "image", "audio"),
        "ears.gguf": ("text", "audio"),
        "eyes.gguf": ("text", "image"),
        "none.gguf": ("text",),
    }


def test_what_clients_want_to_know_comes_from_the_header(tmp_path):
    template = "{% if tools %}{{ tools }}{% endif %}"
    said = {"general.size_label": "7B", "tokenizer.chat_template": template}
    parts = make_split(tmp_path, "big", 2, size_bytes=9000, extra=said, vocab=50)
    (spec,) = scan(tmp_path).models.values()
    assert (spec.size_label, spec.has_chat_template, spec.takes_tools, spec.vocabulary) == ("7B", True, True, 50)
    alone = make_gguf(tmp_path / "other" / "alone.gguf", size_bytes=9000, split=(0, 1), extra=said, vocab=50)
    single = scan(alone.parent).models[ModelId("alone.gguf")].parameters
    assert len(parts) == 2 and spec.parameters > single + 8000  # the weights of all parts together


# --- Ollama's names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("b:latest", "b.gguf"),
        ("b.gguf:latest", "b.gguf"),
        ("B:Latest", "b.gguf"),
        ("nick:latest", "b.gguf"),
        ("b:latest:latest", "b.gguf"),
        ("tiny:Q4_K_M", "tiny-Q4_K_M.gguf"),
        ("tiny:q4_k_m", "tiny-Q4_K_M.gguf"),
        ("Tiny:q8_0", "tiny.q8_0.gguf"),
        ("tiny:Q8_0", "tiny.q8_0.gguf"),
        ("tiny:Q8_0:latest", "tiny.q8_0.gguf"),
        ("u:UD-Q2_K_XL", "u-UD-Q2_K_XL.gguf"),
        ("d/x:F16", "d/x.f16.gguf"),
        ("called:latest", "called:latest.gguf"),
    ],
)
def test_names_with_a_tag_are_understood(name, model):
    ids = ("b.gguf", "tiny-Q4_K_M.gguf", "tiny.q8_0.gguf", "u-UD-Q2_K_XL.gguf", "d/x.f16.gguf", "called.gguf", "called:latest.gguf")
    assert table(*ids, b_gguf=("nick",)).resolve(name) == model


@pytest.mark.parametrize("name", [":latest", "x:latest", "m:Q4_0", "tiny", "tiny:Q5_0", "tiny:", "tiny:latest", "latest"])
def test_a_tag_that_is_no_models_or_could_be_two_models_is_unknown(name):
    unknown(table("tiny-Q4_K_M.gguf", "m-Q4_0.gguf", "m.Q4_0.gguf"), name)


def test_a_name_of_its_own_is_stronger_than_a_tag():
    models = table("m-Q4_0.gguf", "other.gguf", other_gguf=("m:Q4_0", "m-Q4_0:latest"))
    assert (models.resolve("m:Q4_0"), models.resolve("m-Q4_0:latest")) == ("other.gguf", "other.gguf")
    assert models.ollama_name(models.models[ModelId("m-Q4_0.gguf")]) == "m-Q4_0.gguf:latest"


def test_a_wrong_tag_has_near_matches():
    assert "tiny-Q4_K_M.gguf" in unknown(table("tiny-Q4_K_M.gguf", "zebra.gguf"), "tiny:q5_0")


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct:Q4_1"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b:MXFP4"),
        ("Qwen3-8B.gguf", "Qwen3-8B:latest"),
        ("q4_0.gguf", "q4_0:latest"),
        ("gpt", "gpt:latest"),
    ],
)
def test_the_name_in_ollamas_lists(model, shown):
    models = table(model)
    assert models.ollama_name(models.models[ModelId(model)]) == shown


PIECES = st.sampled_from(["m", "M", "-", ".", "_", ":", "/", "Q4_0", "q4_0", "UD-Q2_K", "latest", ":latest", ".gguf", ".GGUF"])
NAMES = st.lists(PIECES, min_size=1, max_size=6).map("".join)


@given(st.sets(NAMES, min_size=1, max_size=8), st.lists(NAMES, max_size=3))
def test_the_shown_name_leads_back_to_its_model_whatever_else_there_is(ids, aliases):
    first = min(ids)
    specs = {ModelId(key): ModelSpec(ModelId(key), key, aliases=tuple(aliases) if key == first else ()) for key in ids}
    models = ModelTable(specs)
    shown = {models.ollama_name(spec): key for key, spec in specs.items()}
    assert len(shown) == len(ids)
    assert {name: models.resolve(name) for name in shown} == shown


# --- scanning again ---------------------------------------------------------------------------------------------------


def test_changes_in_the_folder_are_seen_and_unchanged_headers_are_not_read_again(tmp_path, monkeypatch):
    models = tmp_path / "models"
    for index in range(20):
        make_gguf(models / f"m{index}.gguf", vocab=5000)
    cache = tmp_path / "state" / "headers.json"
    reads = []
    read_header = headers.gguf.read_header
    monkeypatch.setattr(headers.gguf, "read_header", lambda path: reads.append(path) or read_header(path))
    catalog = Catalog(models, lambda _: ModelOverride(), cache)
    first = catalog.scan()
    assert (len(first.models), len(reads)) == (20, 20)
    make_gguf(models / "new.gguf")
    (models / "m3.gguf").unlink()
    again = catalog.scan()
    assert (set(again.models) - set(first.models), set(first.models) - set(again.models)) == ({"new.gguf"}, {"m3.gguf"})
    assert len(reads) == 21
    # A new process reads the file of the cache.
    assert Catalog(models, lambda _: ModelOverride(), cache).scan() == again
    assert len(reads) == 21


def test_scans_from_two_threads_give_the_same_table(tmp_path):
    for index in range(10):
        make_gguf(tmp_path / f"m{index}.gguf")
    catalog = Catalog(tmp_path, lambda _: ModelOverride(), tmp_path / ".headers.json")
    tables: list[ModelTable] = []
    threads = [threading.Thread(target=lambda: tables.append(catalog.scan())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tables) == 4
    assert all(found == tables[0] for found in tables)
