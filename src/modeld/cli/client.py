# SPDX-License-Identifier: GPL-3.0-only
"""Asks the running daemon; rule: one GET, five seconds, a bounded answer, and one plain line when it does not work."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from modeld.config.values import ListenAddress
from modeld.errors import ModeldError

TIMEOUT_SECONDS = 5.0
ANSWER_BYTES_MAX = 32 << 20
_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104  compared with, not bound


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(address: ListenAddress, path: str) -> dict[str, Any]:
    """The daemon's answer, a JSON object. Raises ModeldError: nobody there, not modeld, or the error the daemon gave."""
    if address.unix_path is None and address.port == 0:
        raise ModeldError("addr has port 0, which stands for any free port; name the daemon's own with --addr")
    status, body = _ask(address, path)
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ModeldError(f"what answers at {address} is not modeld")
    if status != 200:
        error = answer.get("error")
        raise ModeldError(f"the daemon at {address} refused: {plain(error if isinstance(error, str) else f'status {status}')}")
    return answer


def _ask(address: ListenAddress, path: str) -> tuple[int, bytes]:
    problem: Exception | None = None
    for connection in _connections(address):
        try:
            connection.connect()
        except OSError as error:
            problem = problem or error
            connection.close()
            continue
        try:
            connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES_MAX)
            if response.length:  # read(n) does not complain when the sender leaves early
                raise http.client.IncompleteRead(b"")
        except TimeoutError:
            raise ModeldError(f"the daemon at {address} does not answer within {TIMEOUT_SECONDS:g} s") from None
        except (OSError, http.client.HTTPException):
            raise ModeldError(f"what answers at {address} is not modeld, or it left in the middle") from None
        finally:
            connection.close()
        return response.status, body
    why = (problem.strerror if isinstance(problem, OSError) else None) or str(problem or "no address")
    raise ModeldError(f"no daemon at {address} ({plain(why)}); start one with `modeld serve`, or name its address with --addr")


def _connections(address: ListenAddress) -> Iterable[http.client.HTTPConnection]:
    if address.unix_path is not None:
        yield _UnixConnection(address.unix_path)
        return
    for host in ("127.0.0.1", "::1") if address.host in _EVERYWHERE else (address.host,):
        yield http.client.HTTPConnection(host, address.port, timeout=TIMEOUT_SECONDS)


def plain(text: object) -> str:
    """Text for a terminal: names come from files of others, and must not carry control sequences."""
    return "".join(char if char.isprintable() else "�" for char in str(text))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under a head, two spaces apart; numbers to the right."""
    given = [list(row) for row in rows]
    numeric = [bool(given) and all(isinstance(row[column], int) for row in given) for column in range(len(head))]
    texts = [list(head), *([plain("-" if cell is None else cell) for cell in row] for row in given)]
    wide = [max(len(row[column]) for row in texts) for column in range(len(head))]
    cells = [[cell.rjust(wide[i]) if numeric[i] else cell.ljust(wide[i]) for i, cell in enumerate(row)] for row in texts]
    return "\n".join("  ".join(row).rstrip() for row in cells)
