# SPDX-License-Identifier: GPL-3.0-only
"""The model's name in a multipart upload."""

from __future__ import annotations

import pytest

from modeld.api.upload import model_of
from modeld.errors import BadRequest

TYPE = b"multipart/form-data; boundary=xx"


def body(*parts: tuple[str, bytes]) -> bytes:
    head = b"--xx\r\nContent-Disposition: form-data; "
    return b"".join(head + name.encode() + b"\r\n\r\n" + data + b"\r\n" for name, data in parts) + b"--xx--\r\n"


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([('name="file"; filename="a.wav"', b"\x00\r\n--x"), ('name="model"', b"tiny")], "tiny"),
        ([('name="model"', " tiny\u00e9 ".encode())], "tiny\u00e9"),
        ([('name="model"; filename="model"', b"tiny")], None),
        ([('name="model"', b"")], None),
        ([('name="file"; filename="a"', b'name="model"\r\n\r\nx')], None),
        ([], None),
        ([('name="model"', b"a"), ('name="model"', b"b")], "b"),
    ],
)
def test_the_field(parts: list[tuple[str, bytes]], name: str | None) -> None:
    assert model_of(TYPE, body(*parts)) == name


def test_a_long_name_is_not_collected() -> None:
    assert len(model_of(TYPE, body(('name="model"', b"a" * 1_000_000))) or "") < 5000


@pytest.mark.parametrize(
    ("media", "raw"),
    [
        (b"multipart/form-data", body()),
        (TYPE, b""),
        (TYPE, b"hello"),
        (TYPE, b'--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny'),
        (TYPE, body(('name="model"', b"\xff"))),
    ],
)
def test_what_is_no_upload(media: bytes, raw: bytes) -> None:
    with pytest.raises(BadRequest):
        model_of(media, raw)
