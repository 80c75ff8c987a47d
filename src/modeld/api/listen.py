# SPDX-License-Identifier: GPL-3.0-only
"""The listening sockets, and uvicorn's server without its signals; rule: bound before anything is started, given up first at the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import uvicorn

from modeld.api.protocol import ProtocolLimits, TurnAway, make_protocol, plain_refusal
from modeld.errors import ConfigError

BACKLOG: Final = 1024
TICK_SECONDS: Final = 1.0
"""How often uvicorn renews its Date header."""
_NOT_HERE: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""What one address of a name may say while another one is fine: `localhost` is also ::1 on a machine without IPv6."""


def bind(host: str, port: int, unix_path: str | None) -> list[socket.socket]:
    """Listening sockets for an address; `host` "" is every interface, IPv6 and IPv4. Raises ConfigError, which names the address."""
    if unix_path is not None:
        return [_bind_unix(Path(unix_path))]
    if not host:
        try:
            return [_bind_any(port)]
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise ConfigError(f'addr ":{port}": {_why(error)}') from error
        # A machine without IPv6.
        host = "0.0.0.0"  # noqa: S104 - asked for; who is served is decided by api.access
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ConfigError(f'addr "{shown}": {reason}; use an address of this machine, or :{port} for all') from error
    return _bind_each(list(dict.fromkeys((item[0], item[4]) for item in found)), shown)


def _bind_each(wanted: list[tuple[socket.AddressFamily, Any]], shown: str) -> list[socket.socket]:
    """All of them, or at least one while the others are only not of this machine."""
    bound: list[socket.socket] = []
    refused: OSError | None = None
    for family, address in wanted:
        try:
            bound.append(_bind_tcp(family, address))
        except OSError as error:
            refused = error
            if error.errno not in _NOT_HERE:
                break
    if refused is not None and (not bound or refused.errno not in _NOT_HERE):
        for one in bound:
            one.close()
        raise ConfigError(f'addr "{shown}": {_why(refused)}') from refused
    return bound


def _bind_any(port: int) -> socket.socket:
    both = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:
        both.close()
        raise
    return _listen(both, ("::", port))


def _bind_tcp(family: socket.AddressFamily, address: Any) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    if family is socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return _listen(one, address)


def _listen(one: socket.socket, address: Any) -> socket.socket:
    """Raises OSError; the socket is closed then."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind(address)
        one.listen(BACKLOG)
    except OSError:
        one.close()
        raise
    one.setblocking(False)
    return one


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "something listens there already; stop it, or choose another port with --addr"
        case errno.EACCES:
            return "not allowed to listen there; ports below 1024 need a privilege, choose another with --addr"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return "this machine has no such address; use :PORT for all of its addresses"
        case _:
            return f"{error.strerror or error}; choose another address with --addr"


def _bind_unix(path: Path) -> socket.socket:
    """A socket file of mode 0600. One that nobody listens on any more is replaced, anything else is left alone."""
    try:
        if stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f'addr "unix:{path}": {error.strerror}') from error
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        one.bind(str(path))
        one.listen(BACKLOG)
    except OSError as error:
        one.close()
        raise ConfigError(f'addr "unix:{path}": {error.strerror or error}') from error
    finally:
        os.umask(mask)
    one.setblocking(False)
    return one


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


class Listener(uvicorn.Server):
    """uvicorn without its own signal handling (it would raise the signal again: exit 143) and without its 0.1 s poll."""

    def __init__(self, app: Any, limits: ProtocolLimits, shutdown_seconds: float, turn_away: TurnAway = plain_refusal) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=make_protocol(limits, turn_away),
                ws="none",
                loop="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, int(shutdown_seconds)),
            )
        )
        self._leave = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def main_loop(self) -> None:
        while not self.should_exit:
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._leave.wait()

    def stop_accepting(self) -> None:
        """No new connection from now on; `serve` returns when the present ones have ended, or after the time allowed."""
        for server in getattr(self, "servers", []):
            server.close()
        self.should_exit = True
        self._leave.set()
