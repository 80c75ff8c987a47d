# SPDX-License-Identifier: GPL-3.0-only
from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from modeld.api.listen import Listener, bind
from modeld.api.protocol import ProtocolLimits
from modeld.errors import ConfigError


def reachable(family: socket.AddressFamily, address: object) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as one:
        try:
            one.connect(address)  # type: ignore[arg-type]
        except OSError:
            return False
        return True


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def test_no_host_is_every_interface_of_both_families(stack: ExitStack):
    (one,) = [stack.enter_context(each) for each in bind("", 0, None)]
    port = one.getsockname()[1]
    assert reachable(socket.AF_INET, ("127.0.0.1", port))
    if one.family is socket.AF_INET6:
        assert reachable(socket.AF_INET6, ("::1", port))


def test_one_address_is_one_address(stack: ExitStack):
    (one,) = [stack.enter_context(each) for each in bind("127.0.0.1", 0, None)]
    assert one.getsockname()[0] == "127.0.0.1"
    assert not one.getblocking()


def test_a_taken_port_and_a_foreign_address_say_what_to_do(stack: ExitStack):
    (one,) = [stack.enter_context(each) for each in bind("127.0.0.1", 0, None)]
    port = one.getsockname()[1]
    with pytest.raises(ConfigError, match=f'^addr "127.0.0.1:{port}": something listens there already; .*--addr$'):
        bind("127.0.0.1", port, None)
    with pytest.raises(ConfigError, match="no such address"):
        bind("192.0.2.1", 0, None)
    with pytest.raises(ConfigError, match="use an address of this machine"):
        bind("no.such.host.invalid", 0, None)


def test_a_socket_file_is_private_and_a_dead_one_is_replaced(tmp_path: Path, stack: ExitStack):
    path = tmp_path / "d.sock"
    (dead,) = bind("", 0, str(path))
    dead.close()  # leaves its file, as a killed daemon does
    (one,) = [stack.enter_context(each) for each in bind("", 0, str(path))]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert reachable(socket.AF_UNIX, str(path))
    with pytest.raises(ConfigError, match="unix:"):  # a living one is left alone
        bind("", 0, str(path))
    assert one.fileno() >= 0


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path):
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(ConfigError):
        bind("", 0, str(path))
    assert path.read_text() == "x"
    with pytest.raises(ConfigError):
        bind("", 0, str(tmp_path / "nowhere" / "d.sock"))


async def test_the_listener_serves_until_it_is_told_to_stop(tmp_path: Path):
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("nobody asks")

    path = tmp_path / "d.sock"
    listener = Listener(app, ProtocolLimits(), shutdown_seconds=1)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(listener.serve(sockets=bind("", 0, str(path))))
        while not listener.started:  # noqa: ASYNC110 - uvicorn has a flag, not an event
            await asyncio.sleep(0)
        assert reachable(socket.AF_UNIX, str(path))
        listener.stop_accepting()
        await serving
    assert not reachable(socket.AF_UNIX, str(path))


BOTH = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
]


def without_ipv6(monkeypatch: pytest.MonkeyPatch, code: int) -> list[socket.socket]:
    """Make every IPv6 socket fail as on a machine that lacks it: while it is made, or bound to an address nobody has."""
    made: list[socket.socket] = []

    class Some(socket.socket):
        def __init__(self, family: int = -1, *rest: int, **more: int):
            if family == socket.AF_INET6 and code == errno.EAFNOSUPPORT:
                raise OSError(code, os.strerror(code))
            super().__init__(family, *rest, **more)
            made.append(self)

        def bind(self, address: tuple[str, int], /):
            if self.family == socket.AF_INET6:
                raise OSError(code, os.strerror(code))
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Some)
    return made


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_name_is_served_where_one_of_its_families_is_missing(monkeypatch: pytest.MonkeyPatch, stack: ExitStack, code: int):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH)
    without_ipv6(monkeypatch, code)
    (one,) = [stack.enter_context(each) for each in bind("localhost", 0, None)]
    assert one.getsockname()[0] == "127.0.0.1"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH[:1])
    with pytest.raises(ConfigError, match="no such address"):
        bind("::1", 0, None)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH[1:])
    (every,) = [stack.enter_context(each) for each in bind("", 0, None)]
    assert every.family is socket.AF_INET


def test_a_name_is_refused_when_one_of_its_addresses_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH[::-1])
    made = without_ipv6(monkeypatch, errno.EADDRINUSE)
    with pytest.raises(ConfigError, match="something listens there already"):
        bind("localhost", 0, None)
    assert [one.fileno() for one in made] == [-1, -1]


def test_a_host_that_is_no_name_is_refused():
    with pytest.raises(ConfigError, match="not a host name"):
        bind("a..b", 0, None)
