# SPDX-License-Identifier: GPL-3.0-only
"""Who may: exposure, Host and Origin rules, CORS; rule: decide from the connection and the raw headers, before anything is routed.

Until keys exist, who may is a matter of where a request comes from:
1. The peer is on this machine: a loopback address (also mapped into IPv6) or a unix socket. A request that brings Forwarded,
   X-Forwarded-* or X-Real-IP was passed on by somebody else and counts as remote. Remote ones need `allow_remote`, else 403.
2. The Host is this machine by a name that no foreign web page can take: loopback, the address the connection came in on (which must be a
   literal address, so that no DNS answer can point there), the bound address, this host's name, or one of `allowed_hosts`; else 421.
   A request without Host (HTTP/1.0 only) passes, because no browser sends one.
3. An Origin, if any, is one of ours (its host passes rule 2) or allowed by the CORS settings; else 403. `null` is foreign.
Routes of scope "open" (health checks) are answered to anybody under any Host: they say one fixed word.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from modeld.api.route import Header
from modeld.errors import BadRequest, Forbidden, WrongHost

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+)(?::[0-9]{0,5})?")
_ORIGIN = re.compile(r"https?://(?P<host>[^/?#@\s]+)")
_PASSED_ON = (b"forwarded", b"x-real-ip")
_KNOWN_HOSTS_MAX = 256
_EXPOSED = b"x-request-id, retry-after, x-modeld-degraded"
"""Headers of an answer that a page may read."""


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """allow_remote   serve peers that are not on this machine
    allowed_hosts  further names for the Host header, without port
    own_hosts      the bound address and this host's name
    """

    allow_remote: bool = False
    allowed_hosts: tuple[str, ...] = ()
    own_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CorsOptions:
    """Which web pages of other origins may read answers. `origins` may hold "*"."""

    enabled: bool = False
    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("GET", "POST")
    headers: tuple[str, ...] = ("content-type", "authorization", "x-request-id", "x-modeld-priority", "x-modeld-timeout")


class Cors:
    """The CORS answers."""

    def __init__(self, options: CorsOptions) -> None:
        self._options = options
        self._origins = frozenset(origin.lower().rstrip("/") for origin in options.origins)

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin may use the daemon."""
        return self._options.enabled and ("*" in self._origins or origin.lower() in self._origins)

    def answer_headers(self, origin: str | None) -> list[Header]:
        """What every answer carries while CORS is on."""
        if not self._options.enabled:
            return []
        headers: list[Header] = [(b"vary", b"Origin")]
        if origin is not None and self.allows(origin):
            shown = b"*" if "*" in self._origins else origin.encode("latin-1")
            headers += [(b"access-control-allow-origin", shown), (b"access-control-expose-headers", _EXPOSED)]
        return headers

    def preflight_headers(self, origin: str) -> tuple[Header, ...]:
        """What the answer to an allowed preflight adds to `answer_headers`; nothing for any other."""
        if not self.allows(origin):
            return ()
        return (
            (b"access-control-allow-methods", ", ".join(self._options.methods).encode("latin-1")),
            (b"access-control-allow-headers", ", ".join(self._options.headers).encode("latin-1")),
            (b"access-control-max-age", b"600"),
        )


class Access:
    """The three rules above."""

    def __init__(self, options: AccessOptions, cors: Cors) -> None:
        self._options = options
        self._cors = cors
        names = {_bare(name) for name in (*options.allowed_hosts, *options.own_hosts) if name}
        # Bound to every address is no name to be called by: pages have used 0.0.0.0 to reach local servers.
        self._names = frozenset(name for name in names if not _is_wildcard(name))
        # Clients send the same few Hosts again and again; the bound keeps a scanner from filling the memory.
        self._is_ours = lru_cache(maxsize=_KNOWN_HOSTS_MAX)(self._judge_host)

    def describe(self) -> str:
        """The exposure in one line, for the start-up message and /status."""
        if self._options.allow_remote:
            return "any peer that reaches the address is served (allow_remote)"
        return "only peers on this machine are served; --allow-remote opens it"

    def check(self, peer: str | None, local: str | None, headers: Iterable[Header]) -> None:
        """Raise Forbidden (peer, Origin), WrongHost or BadRequest (several Hosts); return when the request may go on.

        peer    IP address of the peer, None for a unix socket
        local   the address the connection came in on, None for a unix socket
        """
        hosts: list[bytes] = []
        origin: bytes | None = None
        passed_on = False
        for name, value in headers:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origin = value
            elif name in _PASSED_ON or name.startswith(b"x-forwarded-"):
                passed_on = True
        if not self._options.allow_remote and (passed_on or not is_loopback(peer)):
            raise Forbidden(
                "only requests from this machine are served (one that brings X-Forwarded headers counts as remote); "
                "start modeld with --allow-remote to serve others"
            )
        if len(hosts) > 1:
            raise BadRequest("a request must carry one Host header")
        if hosts and not self._is_ours(hosts[0].decode("latin-1"), local):
            raise WrongHost("this Host is not served here; add its name to allowed_hosts")
        if origin is not None and not self._is_known_origin(origin.decode("latin-1"), local):
            raise Forbidden("requests from web pages of this Origin are refused; allow it with cors_enabled and cors_allowed_origins")

    def _is_known_origin(self, origin: str, local: str | None) -> bool:
        match = _ORIGIN.fullmatch(origin)
        return self._cors.allows(origin) or (match is not None and self._is_ours(match["host"], local))

    def _judge_host(self, value: str, local: str | None) -> bool:
        match = _HOST.fullmatch(value.strip())
        if match is None:
            return False
        host = _bare(match["host"])
        return (
            host == "localhost"
            or host in self._names
            or is_loopback(host)
            or (local is not None and _is_address(local) and host == _bare(local))
        )


@lru_cache(maxsize=_KNOWN_HOSTS_MAX)
def is_loopback(address: str | None) -> bool:
    """Whether an IP address is of this machine; None stands for a unix socket and is."""
    if address is None:
        return True
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


def _is_address(text: str | None) -> bool:
    try:
        return text is not None and bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _is_wildcard(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_unspecified


def _bare(host: str) -> str:
    """Lower case, without brackets, zone and the root's dot; an IPv4 address mapped into IPv6 as IPv4."""
    host = host.strip("[]").partition("%")[0].lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)
