# SPDX-License-Identifier: GPL-3.0-only
"""Asks the running daemon; rule: one request, a bounded answer, and one plain line when it does not work."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from modeld.config.values import ListenAddress
from modeld.errors import ModeldError

TIMEOUT_SECONDS = 5.0
QUIET_SECONDS_MAX = 60.0
"""A stream of events that says nothing for so long, not even that it is still there, has lost its daemon."""
LINE_BYTES_MAX = 1 << 20
ANSWER_BYTES_MAX = 32 << 20
BAR_CELLS = 24
_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104  compared with, not bound


class NoDaemon(ModeldError):
    """Nobody answers there."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(address: ListenAddress, path: str) -> dict[str, Any]:
    """The daemon's answer, a JSON object. Raises ModeldError: nobody there, not modeld, or the error the daemon gave."""
    return _answer(address, "GET", path, TIMEOUT_SECONDS)


def post(address: ListenAddress, path: str) -> dict[str, Any]:
    """The same for what changes something; it may take as long as a load. Raises ModeldError."""
    return _answer(address, "POST", path, None)


def follow(address: ListenAddress, path: str) -> Iterator[bytes]:
    """The lines of an answer that goes on, until the daemon ends it. Raises ModeldError."""
    with closing(_open(address, "GET", path, QUIET_SECONDS_MAX)) as connection:
        try:
            response = connection.getresponse()
            if response.status != 200:
                raise ModeldError(_refusal(address, response.status, _object(response.read(ANSWER_BYTES_MAX))))
            while line := response.readline(LINE_BYTES_MAX):
                yield line
        except TimeoutError:
            raise ModeldError(f"the daemon at {address} does not answer any more") from None
        except (OSError, http.client.HTTPException):
            raise ModeldError(f"what answers at {address} is not modeld, or it left in the middle") from None


def _answer(address: ListenAddress, method: str, path: str, timeout: float | None) -> dict[str, Any]:
    status, body = _ask(address, method, path, timeout)
    answer = _object(body)
    if answer is None:
        raise ModeldError(f"what answers at {address} is not modeld")
    if status not in (200, 202):
        raise ModeldError(_refusal(address, status, answer))
    return answer


def _refusal(address: ListenAddress, status: int, answer: dict[str, Any] | None) -> str:
    error = (answer or {}).get("error")
    return f"the daemon at {address} refused: {plain(error if isinstance(error, str) else f'status {status}')}"


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _ask(address: ListenAddress, method: str, path: str, timeout: float | None) -> tuple[int, bytes]:
    with closing(_open(address, method, path, timeout)) as connection:
        try:
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES_MAX)
            if response.length:  # read(n) does not complain when the sender leaves early
                raise http.client.IncompleteRead(b"")
        except TimeoutError:
            raise ModeldError(f"the daemon at {address} does not answer within {timeout:g} s") from None
        except (OSError, http.client.HTTPException):
            raise ModeldError(f"what answers at {address} is not modeld, or it left in the middle") from None
        return response.status, body


def _open(address: ListenAddress, method: str, path: str, timeout: float | None) -> http.client.HTTPConnection:
    """A connection on which the request is sent. Raises ModeldError."""
    if address.unix_path is None and address.port == 0:
        raise ModeldError("addr has port 0, which stands for any free port; name the daemon's own with --addr")
    problem: Exception | None = None
    for connection in _connections(address, timeout):
        try:
            connection.connect()
        except OSError as error:
            problem = problem or error
            connection.close()
            continue
        try:
            connection.request(method, path, headers={"Accept": "*/*", "Connection": "close"})
        except (OSError, http.client.HTTPException):
            connection.close()
            raise ModeldError(f"what answers at {address} is not modeld, or it left in the middle") from None
        return connection
    why = (problem.strerror if isinstance(problem, OSError) else None) or str(problem or "no address")
    raise NoDaemon(f"no daemon at {address} ({plain(why)}); start one with `modeld serve`, or name its address with --addr")


def _connections(address: ListenAddress, timeout: float | None) -> Iterable[http.client.HTTPConnection]:
    if address.unix_path is not None:
        yield _UnixConnection(address.unix_path, timeout)
        return
    for host in ("127.0.0.1", "::1") if address.host in _EVERYWHERE else (address.host,):
        yield http.client.HTTPConnection(host, address.port, timeout=timeout)


def plain(text: object) -> str:
    """Text for a terminal: names come from files of others, and must not carry control sequences."""
    return "".join(char if char.isprintable() else "�" for char in str(text))


def bar(size: float, most: float, cells: int = BAR_CELLS) -> str:
    """A bar of at most `cells` characters; something that is not nothing shows at least one."""
    if size <= 0 or most <= 0:
        return ""
    return "█" * max(1, min(cells, round(cells * size / most)))


def mib(size: int) -> str:
    """Bytes in MiB with one digit behind the point."""
    return f"{size / (1 << 20):,.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under a head, two spaces apart; numbers to the right."""
    given = [list(row) for row in rows]
    numeric = [bool(given) and all(isinstance(row[column], int) for row in given) for column in range(len(head))]
    texts = [list(head), *([plain("-" if cell is None else cell) for cell in row] for row in given)]
    wide = [max(len(row[column]) for row in texts) for column in range(len(head))]
    cells = [[cell.rjust(wide[i]) if numeric[i] else cell.ljust(wide[i]) for i, cell in enumerate(row)] for row in texts]
    return "\n".join("  ".join(row).rstrip() for row in cells)
