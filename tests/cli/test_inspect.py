# SPDX-License-Identifier: GPL-3.0-only
"""`modeld inspect`: one object a line for programs, a page for people, one sentence for what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from makegguf import Tensor, header, make_gguf, make_split, model_pairs
from modeld.cli import inspect, probing, run
from modeld.cli.inspect import KEYS
from modeld.core.footprint import Known
from modeld.core.model import ModelSpec

MIB = 1 << 20
Inspect = Callable[..., tuple[int, str, str]]


@pytest.fixture
def look(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inspect:
    """look(words...): exit code, output, error lines; llama.cpp is not asked unless a test says so."""
    monkeypatch.setattr(probing, "ask", lambda spec: (Known(), ""))

    def go(*words: object) -> tuple[int, str, str]:
        code = run(["inspect", *map(str, words)])
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return go


def objects(out: str) -> list[dict[str, Any]]:
    """One JSON object a line, nothing else."""
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two layers of two key/value heads of 16: 256 bytes a cell in f16."""
    return make_gguf(tmp_path / "tiny.Q4_1.gguf", size_bytes=3 * MIB, ctx=4096, layers=2, embd=64, heads=4, heads_kv=2)


def test_the_object_has_the_keys_in_their_order(look: Inspect, tiny: Path) -> None:
    code, out, err = look(tiny, "--json")
    assert (code, err) == (0, "")
    (told,) = objects(out)
    assert tuple(told) == KEYS == (
        *("id", "path", "arch", "family", "quant", "params", "file_bytes", "ctx_train", "ctx", "parallel"),
        *("weights_bytes", "kv_bytes", "compute_bytes", "host_bytes", "total_bytes", "source"),
    )  # fmt: skip
    assert (told["id"], told["path"], told["arch"], told["family"], told["quant"]) == (
        "tiny.Q4_1.gguf",
        str(tiny),
        "llama",
        "llama",
        "Q4_1",
    )
    assert (told["file_bytes"], told["ctx_train"], told["ctx"], told["parallel"]) == (3 * MIB, 4096, 4096, 4)
    assert (told["kv_bytes"], told["source"]) == (4096 * 256, "formula")
    assert told["total_bytes"] == sum(told[key] for key in ("weights_bytes", "kv_bytes", "compute_bytes", "host_bytes"))


@pytest.mark.parametrize(
    ("words", "kv_bytes"),
    [
        (["--ctx", "1024"], 1024 * 256),
        (["--ctx", "1000"], 1024 * 256),
        (["--ctx", "1000", "--parallel", "3", "--no-unified"], 1536 * 256),
        (["--ctx", "1000", "--parallel", "3", "--unified"], 1024 * 256),
        (["--ctx", "1024", "--kv-type", "q8_0"], 1024 * 256 * 34 // 64),
        (["--ctx", "1024", "--kv-type", "Q4_0", "--flash-attn", "on"], 1024 * 256 * 18 // 64),
        (["--ctx", "1024", "--kv-type", "f32", "--flash-attn", "off", "--ubatch", "64", "--ngl", "0"], 1024 * 512),
    ],
)
def test_the_launch_decides_the_cache(look: Inspect, tiny: Path, words: list[str], kv_bytes: int) -> None:
    code, out, err = look(tiny, "--json", *words)
    assert (code, err) == (0, "")
    assert objects(out)[0]["kv_bytes"] == kv_bytes


def test_each_file_has_its_line_and_what_is_wrong_has_its_own(look: Inspect, tiny: Path, tmp_path: Path) -> None:
    other = make_gguf(tmp_path / "other.gguf", arch="qwen3")
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF")
    code, out, err = look("--json", tiny, torn, tmp_path, tmp_path / "none.gguf", other)
    assert code == 1
    assert [told["id"] for told in objects(out)] == ["tiny.Q4_1.gguf", "other.gguf"]
    assert err.splitlines() == [
        f"modeld: {torn} is incomplete: it ends inside its header",
        f"modeld: {tmp_path} is a folder: name a file in it",
        f"modeld: {tmp_path / 'none.gguf'} does not exist",
    ]


def test_a_split_model_is_one(look: Inspect, tmp_path: Path) -> None:
    paths = make_split(tmp_path, "big", 3, size_bytes=5000)
    (told,) = objects(look("--json", paths[1])[1])
    assert (told["id"], told["path"], told["file_bytes"]) == ("big.gguf", str(paths[0]), 15_000)


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["--ctx", "0"], 'modeld: --ctx: "0" is not a whole number of tokens from 16 to'),
        (["--ctx", "-1"], 'modeld: --ctx: "-1" is not a whole number'),
        (["--ctx", "99999999999999999999"], 'modeld: --ctx: "99999999999999999999" is not a whole number'),
        (["--ctx", "much"], 'modeld: --ctx: "much" is not a whole number'),
        (["--ctx", "max"], 'modeld: --ctx: "max" depends on a budget'),
        (["--ctx", "max:4096"], 'modeld: --ctx: "max:4096" depends on a budget'),
        (["--parallel", "0"], 'modeld: --parallel: "0" is not'),
        (["--ubatch", "0"], 'modeld: --ubatch: "0" is not'),
        (["--ngl", "-2"], 'modeld: --ngl: "-2" is not'),
        (["--kv-type", "q9_0"], 'modeld: --kv-type: "q9_0" is not one of'),
        (["--flash-attn", "maybe"], 'modeld: --flash-attn: "maybe" is not one of'),
        (["--cxt", "5"], "modeld: config error: flag --cxt is not known; did you mean --ctx?"),
    ],
)
def test_flags_that_make_no_sense_cost_one_line(look: Inspect, tiny: Path, words: list[str], start: str) -> None:
    code, out, err = look(tiny, "--json", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(start)


@pytest.mark.parametrize(("kv_type", "code"), [("q8_0", 1), ("iq4_nl", 1), ("f16", 0), ("bf16", 0)])
def test_what_llama_cpp_refuses_is_refused(look: Inspect, tiny: Path, kv_type: str, code: int) -> None:
    done, out, err = look(tiny, "--json", "--flash-attn", "off", "--kv-type", kv_type)
    assert (done, len(out.splitlines())) == (code, 1 - code)
    assert ("without flash attention (--flash-attn off)" in err) == bool(code)


def test_a_family_without_flash_attention_says_so(look: Inspect, tmp_path: Path) -> None:
    grok = make_gguf(tmp_path / "grok.gguf", arch="grok")
    code, _, err = look(grok, "--kv-type", "q8_0")
    assert code == 1
    assert "the family runs without it" in err


def test_no_file_is_a_mistake(look: Inspect) -> None:
    code, out, err = look()
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_people_are_told_what_it_is_and_what_it_costs(look: Inspect, tmp_path: Path) -> None:
    pairs = model_pairs("gemma3", name="Gem", ctx=8192, layers=12, heads=4, heads_kv=2, extra={
        "gemma3.attention.sliding_window": 1024, "tokenizer.chat_template": "{{ tools }}",
    })  # fmt: skip
    raw = header(pairs, [Tensor(dims=(1 << 20,)), Tensor("output.weight", dims=(64,), offset=1 << 20)])
    path = tmp_path / "Gem-4B.gguf"
    path.write_bytes(raw + bytes((1 << 20) + 64))
    make_gguf(tmp_path / "mmproj-Gem-4B.gguf", arch="clip", size_bytes=2 * MIB)
    code, out, err = look(path, "--ctx", "4096", "--ngl", "3")
    assert (code, err) == (0, "")
    for words in (
        "gemma3, 1.05M parameters, Q4_1, 1.0 MiB in 1 file",
        "generate; takes text, image; chat template, calls tools",
        "12: 10 attention over 1024 tokens, 2 full attention",
        "trained for 8192; here 4096 over 4 slots, one cache for all",
        "3 layers on the device",
        "mmproj-Gem-4B.gguf",
    ):
        assert words in out
    rows = {line.split("  ")[1]: line for line in out.splitlines() if line.startswith("  ")}
    assert "1.0   header, to the byte" in rows["weights on host"]
    assert "2.0   formula, a bound" in rows["projector"]
    assert rows["sum"].split()[-1] == "formula"


def test_a_family_that_was_never_compared_is_flagged(look: Inspect, tmp_path: Path) -> None:
    assert "header; this family was never compared" in look(make_gguf(tmp_path / "a.gguf", arch="novel"))[1]


def test_llama_cpp_is_asked_once_for_each_file_unless_told_not_to(look: Inspect, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def ask(spec: ModelSpec) -> tuple[Known, str]:
        asked.append((spec.id, spec.options.ctx))
        return Known(), "llama.cpp gave no answer: it \x1b[31m timed out"

    monkeypatch.setattr(probing, "ask", ask)
    code, out, err = look(tiny, "--json", "--ctx", "1024")
    assert (code, asked, len(objects(out))) == (0, [("tiny.Q4_1.gguf", 1024)], 1)
    assert err == "modeld: tiny.Q4_1.gguf: llama.cpp gave no answer: it \ufffd[31m timed out\n"
    look(tiny, "--json", "--no-probe")
    assert len(asked) == 1


def test_numbers_of_parameters_are_said_as_people_say_them() -> None:
    said = [inspect.parameters(count) for count in (0, 512, 134_515_008, 8_030_261_248, 1_000_000_000_000)]
    assert said == ["unknown number of parameters", "512 parameters", "135M parameters", "8.03B parameters", "1T parameters"]


def test_files_and_folders_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.gguf", "b.txt", "sub/c.GGUF"):
        (tmp_path / name).touch()

    def completed(words: str) -> list[str]:
        for name, text in (("_MODELD_COMPLETE", "bash_complete"), ("COMP_WORDS", f"modeld inspect {words}"), ("COMP_CWORD", "2")):
            monkeypatch.setenv(name, text)
        assert run([]) == 0
        return [line.removeprefix("plain,") for line in capsys.readouterr().out.splitlines() if line]

    assert completed(f"{tmp_path}/") == [f"{tmp_path}/a.gguf", f"{tmp_path}/sub/"]
    assert completed(f"{tmp_path}/sub/") == [f"{tmp_path}/sub/c.GGUF"]
    assert completed(f"{tmp_path}/none/") == []
