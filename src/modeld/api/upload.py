# SPDX-License-Identifier: GPL-3.0-only
"""The one thing that is read of a multipart upload: the model's name; rule: the upload itself is handed on as it came."""

from __future__ import annotations

from typing import Final

from modeld.errors import BadRequest

NAME_BYTES_MAX: Final = 2048


def model_of(content_type: bytes, body: bytes) -> str | None:
    """The value of the field `model`, None when there is none. Raises BadRequest for what is no multipart body."""
    # Imported by the first upload: most daemons never get one.
    from python_multipart.exceptions import MultipartParseError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("the Content-Type names no boundary between the parts of the body")
    reader = _Reader()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": reader.begin,
            "on_header_field": reader.header_field,
            "on_header_value": reader.header_value,
            "on_header_end": reader.header_end,
            "on_headers_finished": lambda: reader.headers_done(parse_options_header),
            "on_part_data": reader.data,
            "on_part_end": reader.end,
            "on_end": reader.finish,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise BadRequest(f"the body is not valid multipart/form-data: {error}") from None
    if not reader.finished:
        raise BadRequest("the body is not valid multipart/form-data: it has no end")
    try:
        return None if reader.model is None else reader.model.decode().strip() or None
    except UnicodeDecodeError:
        raise BadRequest("model: it is not valid UTF-8") from None


class _Reader:
    """Collects the part named `model`, and nothing of the others."""

    def __init__(self) -> None:
        self.model: bytes | None = None
        self.finished = False
        self._name = self._value = b""
        self._disposition = b""
        self._wanted = False
        self._got = b""

    def begin(self) -> None:
        self._name = self._value = self._disposition = self._got = b""
        self._wanted = False

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def headers_done(self, parse: object) -> None:
        options = parse(self._disposition)[1]  # type: ignore[operator]
        self._wanted = options.get(b"name") == b"model" and b"filename" not in options

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted and len(self._got) <= NAME_BYTES_MAX:
            self._got += data[start : min(end, start + NAME_BYTES_MAX + 1)]

    def end(self) -> None:
        if self._wanted:
            self.model = self._got
        self._wanted = False

    def finish(self) -> None:
        self.finished = True
