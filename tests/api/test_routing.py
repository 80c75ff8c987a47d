# SPDX-License-Identifier: GPL-3.0-only
"""Paths: exact first, then patterns; what is encoded never means another route."""

from __future__ import annotations

import pytest

from modeld.api.route import Call, Dialect, Reply, Route, Scope
from modeld.api.routing import RouteTable
from modeld.errors import InvariantError


async def answer(call: Call) -> Reply:
    return Reply(200)


def route(path: str, method: str = "GET", dialect: Dialect = Dialect.NATIVE) -> Route:
    return Route(method, path, Scope.READ, "", answer, dialect)


TABLE = RouteTable(
    [
        route("/models"),
        route("/models/{id}/load", "POST", Dialect.LLAMA),
        route("/upstream/{model}/{rest}"),
        route("/v1/models/{model}", dialect=Dialect.OPENAI),
    ]
)


@pytest.mark.parametrize(
    ("asked", "path", "values"),
    [
        ("/models", "/models", {}),
        ("/models/a/load", "/models/{id}/load", {"id": "a"}),
        ("/models/a%2Fb.gguf/load", "/models/{id}/load", {"id": "a/b.gguf"}),
        ("/models/%2e%2e/load", "/models/{id}/load", {"id": ".."}),
        ("/models/a/b/load", "", {}),
        ("/models//load", "", {}),
        ("/models/a/load/", "", {}),
        ("/models/a%2Fload", "", {}),
        ("/models%2Fa/load", "", {}),
        ("/v1/models/%ff", "/v1/models/{model}", {"model": "\ufffd"}),
        ("/upstream/a/", "/upstream/{model}/{rest}", {"model": "a", "rest": ""}),
        ("/upstream/a/slots/0%20x", "/upstream/{model}/{rest}", {"model": "a", "rest": "slots/0%20x"}),
        ("/upstream/a", "", {}),
        ("/nothing", "", {}),
    ],
)
def test_what_a_path_means(asked: str, path: str, values: dict[str, str]) -> None:
    found = TABLE.match(asked)
    assert (found.path, found.values) == (path, values)
    assert bool(found.methods) == bool(path)


def test_the_dialect_is_that_of_the_route_whatever_the_method() -> None:
    assert TABLE.match("/models/a/load").dialect("GET") is Dialect.LLAMA
    assert TABLE.match("/v1/nothing").dialect("GET") is Dialect.OPENAI


def test_two_routes_of_one_method_and_path_are_a_mistake() -> None:
    RouteTable([route("/a/{id}"), route("/a/{id}", "POST")])
    for path in ("/a", "/a/{id}"):
        with pytest.raises(InvariantError):
            RouteTable([route(path), route(path)])
