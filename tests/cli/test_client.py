# SPDX-License-Identifier: GPL-3.0-only
"""Asking the daemon over TCP and Unix sockets, and what is said when nobody, or somebody else, answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modeld.cli import client
from modeld.config import ListenAddress
from modeld.errors import ModeldError

Serve = Callable[..., ListenAddress]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """serve(answer, unix=False): a server that gives one raw answer to one connection; joined at the end."""
    threads: list[threading.Thread] = []
    requests: list[bytes] = []
    sockets: list[socket.socket] = []

    def start(answer: bytes, *, unix: bool = False) -> ListenAddress:
        server = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        server.bind(str(tmp_path / "s") if unix else ("127.0.0.1", 0))
        server.listen()
        server.settimeout(10)
        sockets.append(server)

        def once() -> None:
            peer, _ = server.accept()
            with peer:
                peer.settimeout(10)
                requests.append(peer.recv(65536))
                peer.sendall(answer)

        threads.append(threading.Thread(target=once))
        threads[-1].start()
        return ListenAddress(unix_path=str(tmp_path / "s")) if unix else ListenAddress("", server.getsockname()[1])

    yield start
    for thread in threads:
        thread.join(10)
    for server in sockets:
        server.close()
    assert all(request.startswith(b"GET /status HTTP/1.1\r\n") for request in requests)


def reply(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize("unix", [False, True])
def test_an_answer_comes_back(serve: Serve, unix: bool) -> None:
    assert client.get(serve(reply(b'{"state": "running"}'), unix=unix), "/status") == {"state": "running"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(b"hello"), "is not modeld"),
        (reply(b"[1]"), "is not modeld"),
        (b"SSH-2.0-x\r\n", "is not modeld"),
        (b"", "is not modeld"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "left in the middle"),
        (reply(b'{"error": "only \\u001b[31mlocal", "code": 403}', "403 Forbidden"), "refused: only \ufffd[31mlocal"),
        (reply(b'{"detail": 1}', "500 X"), "refused: status 500"),
    ],
)
def test_what_is_wrong_is_one_line(serve: Serve, answer: bytes, words: str) -> None:
    with pytest.raises(ModeldError) as caught:
        client.get(serve(answer), "/status")
    assert words in caught.value.message


def test_nobody_is_there(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = ListenAddress("127.0.0.1", unused.getsockname()[1])
        with pytest.raises(ModeldError, match=r"no daemon at 127\.0\.0\.1:\d+ \(Connection refused\)"):
            client.get(address, "/status")
    with pytest.raises(ModeldError, match="No such file"):
        client.get(ListenAddress(unix_path=str(tmp_path / "none")), "/status")
    with pytest.raises(ModeldError, match="port 0"):
        client.get(ListenAddress("", 0), "/status")


def test_a_table_for_a_terminal() -> None:
    text = client.table(("A", "N"), [("x\x1b[2J", 5), (None, 1000)])
    assert text.splitlines() == ["A         N", "x\ufffd[2J     5", "-      1000"]
    assert client.table(("A",), []) == "A"
