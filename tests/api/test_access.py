# SPDX-License-Identifier: GPL-3.0-only
"""Who may: tables of peers, Hosts and Origins."""

from __future__ import annotations

import pytest

from modeld.api.access import Access, AccessOptions, Cors, CorsOptions, is_loopback
from modeld.errors import BadRequest, Forbidden, ModeldError, WrongHost

OPTIONS = AccessOptions(allowed_hosts=("models.example", "[2001:db8::7]"), own_hosts=("0.0.0.0", "workbench", "192.168.1.9"))
HOST = (b"host", b"localhost:8080")


def outcome(
    *headers: tuple[bytes, bytes],
    peer: str | None = "127.0.0.1",
    local: str | None = "127.0.0.1",
    options: AccessOptions = OPTIONS,
    cors: CorsOptions | None = None,
) -> type[ModeldError] | None:
    try:
        Access(options, Cors(cors or CorsOptions())).check(peer, local, headers)
    except ModeldError as error:
        return type(error)
    return None


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", None])
def test_peers_on_this_machine(peer: str | None) -> None:
    assert outcome(HOST, peer=peer) is None


@pytest.mark.parametrize("peer", ["192.168.1.2", "::ffff:192.168.1.2", "2001:db8::1", "0.0.0.0", "", "unknown", "localhost"])
def test_peers_elsewhere_need_allow_remote(peer: str) -> None:
    assert outcome(HOST, peer=peer) is Forbidden
    assert outcome(HOST, peer=peer, options=AccessOptions(allow_remote=True)) is None


@pytest.mark.parametrize("name", [b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"])
@pytest.mark.parametrize("peer", ["127.0.0.1", None])
def test_a_request_that_was_passed_on_counts_as_remote(name: bytes, peer: str | None) -> None:
    assert outcome(HOST, (name, b""), peer=peer) is Forbidden
    assert outcome(HOST, (name, b""), peer=peer, options=AccessOptions(allow_remote=True)) is None


def test_the_refusal_names_the_way_out() -> None:
    with pytest.raises(Forbidden, match="--allow-remote"):
        Access(OPTIONS, Cors(CorsOptions())).check("10.0.0.1", None, [HOST])


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8080",
        "localhost.",
        "127.0.0.1:1",
        "127.1.2.3",
        "[::1]",
        "[::1]:8080",
        "[::ffff:127.0.0.1]:80",
        "workbench:8080",
        "WORKBENCH",
        "192.168.1.9",
        "models.example:443",
        "[2001:db8::7]:8080",
    ],
)
def test_hosts_that_are_ours(host: str) -> None:
    assert outcome((b"host", host.encode())) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "evil.localhost",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "evil.example#localhost",
        "localhost:80:80",
        "localhost:x",
        "localhost/",
        "0.0.0.0",
        "0",
        "2130706433",
        "127.1",
        "::1",
        "[::1",
        "[::]",
        "[::1]x",
        "192.168.1.10",
        "sub.models.example",
        "localhost localhost",
        "l\xf6calhost",
    ],
)
def test_hosts_that_are_not(host: str) -> None:
    assert outcome((b"host", host.encode("latin-1"))) is WrongHost


def test_the_address_a_connection_came_in_on_is_ours() -> None:
    remote = AccessOptions(allow_remote=True)
    assert outcome((b"host", b"10.0.0.5:8080"), peer="10.0.0.9", local="10.0.0.5", options=remote) is None
    assert outcome((b"host", b"10.0.0.5:8080"), peer="10.0.0.9", local="::ffff:10.0.0.5", options=remote) is None
    assert outcome((b"host", b"10.0.0.6:8080"), peer="10.0.0.9", local="10.0.0.5", options=remote) is WrongHost
    assert outcome((b"host", b"/run/x.sock"), peer=None, local="/run/x.sock", options=remote) is WrongHost


def test_a_request_of_http_1_0_may_have_no_host_but_never_two() -> None:
    assert outcome() is None
    assert outcome(HOST, HOST) is BadRequest


@pytest.mark.parametrize("origin", [b"http://localhost:8080", b"https://127.0.0.1", b"http://[::1]:3000", b"http://workbench"])
def test_origins_that_are_ours(origin: bytes) -> None:
    assert outcome(HOST, (b"origin", origin)) is None


@pytest.mark.parametrize(
    "origin",
    [b"null", b"", b"http://evil.example", b"https://localhost.evil.example", b"file://", b"http://", b"localhost", b"http://localhost/x"],
)
def test_origins_that_are_foreign(origin: bytes) -> None:
    assert outcome(HOST, (b"origin", origin)) is Forbidden


def test_origins_allowed_by_cors() -> None:
    page = (b"origin", b"https://page.example")
    assert outcome(HOST, page, cors=CorsOptions(True, ("https://Page.example/",))) is None
    assert outcome(HOST, page, cors=CorsOptions(True, ("*",))) is None
    assert outcome(HOST, page, cors=CorsOptions(True, ("https://other.example",))) is Forbidden
    assert outcome(HOST, page, cors=CorsOptions(False, ("*",))) is Forbidden


def test_what_cors_answers() -> None:
    page = "https://page.example"
    assert Cors(CorsOptions()).answer_headers(page) == []
    some = Cors(CorsOptions(True, (page,), ("GET",), ("x-a", "x-b")))
    assert some.answer_headers(None) == [(b"vary", b"Origin")]
    assert some.answer_headers("https://other.example") == [(b"vary", b"Origin")]
    assert (b"access-control-allow-origin", page.encode()) in some.answer_headers(page)
    assert (b"access-control-allow-headers", b"x-a, x-b") in some.preflight_headers(page)
    assert some.preflight_headers("https://other.example") == ()
    assert (b"access-control-allow-origin", b"*") in Cors(CorsOptions(True, ("*",))).answer_headers(page)


def test_the_exposure_in_words() -> None:
    assert "--allow-remote" in Access(AccessOptions(), Cors(CorsOptions())).describe()
    assert "any peer" in Access(AccessOptions(allow_remote=True), Cors(CorsOptions())).describe()


def test_a_unix_socket_is_this_machine() -> None:
    assert is_loopback(None)
