# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import pytest

from modeld.catalog import tensor_types
from modeld.catalog.tensor_types import file_type_name


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "F32"),
        (1, "F16"),
        (3, "Q4_1"),
        (7, "Q8_0"),
        (15, "Q4_K_M"),
        (1024 + 15, "Q4_K_M"),
        (30, "IQ4_XS"),
        (32, "BF16"),
        (38, "MXFP4_MOE"),
        (5, ""),
        (-1, ""),
    ],
)
def test_file_types_have_llama_cpps_names(number, name):
    assert file_type_name(number) == name


def test_the_tables_agree_with_the_gguf_package():
    constants = pytest.importorskip("gguf.constants", reason="needs the gguf package")
    theirs = {int(kind): tuple(size) for kind, size in constants.GGML_QUANT_SIZES.items()}
    assert {kind: size for kind, size in theirs.items() if kind in tensor_types.BLOCKS} == dict(tensor_types.BLOCKS)
    names = {int(item): item.name.removeprefix("MOSTLY_").removeprefix("ALL_") for item in constants.LlamaFileType}
    assert {
        number: name for number, name in names.items() if number in tensor_types.FILE_TYPES and tensor_types.FILE_TYPES[number] != name
    } == {}
