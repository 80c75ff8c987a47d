# SPDX-License-Identifier: GPL-3.0-only
"""`modeld why`: why a model or a request is where it is; rule: prints the daemon's own sentences, and guesses none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from modeld.cli.options import client_options, daemon_address
from modeld.config.settings import plain_id

PATH = "/status?explain=1"
NEAR_MAX = 3


def _why(config: str | None, addr: str | None, as_json: bool, name: str | None) -> None:
    from modeld.cli import client
    from modeld.errors import ModeldError

    address = daemon_address(addr, config)
    answer = client.get(address, PATH)
    if not isinstance(answer.get("why"), dict) or not isinstance(answer.get("waiting"), list):
        raise ModeldError(f"what answers at {address} is not modeld, or an older one that cannot explain itself")
    reasons = {str(model): str(text) for model, text in answer["why"].items()}
    waiting = [item for item in answer["waiting"] if isinstance(item, dict)]
    if name is not None:
        reasons, waiting = chosen(name, reasons, waiting, client.get(address, "/models"))
    if as_json:
        click.echo(json.dumps({"why": reasons, "waiting": waiting}, indent=2))
    else:
        click.echo(told(reasons, waiting))


def chosen(
    name: str, reasons: dict[str, str], waiting: list[dict[str, Any]], listed: dict[str, Any]
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What is said of the model or the request that `name` stands for; `listed` is GET /models. Raises ModeldError with the nearest names.

    A model is named as in a request: id, id without .gguf, alias, in any case. A request is named by its id, or by what its client sent as
    X-Request-Id: the part before the last hyphen.
    """
    requests = [item for item in waiting if name in (item.get("request_id"), client_id(item))]
    model = _model(name, _names(listed, [*reasons, *(str(item.get("model_id")) for item in waiting)]))
    if model is None and not requests:
        raise _unknown(name, listed, waiting)
    if model is None:
        return {}, requests
    return {model: reasons.get(model) or _idle(model, listed)}, [
        item for item in waiting if item in requests or item.get("model_id") == model
    ]


def client_id(item: dict[str, Any]) -> str:
    """The X-Request-Id of a waiting request: its id without the number that the daemon adds."""
    whole = str(item.get("request_id", ""))
    return whole.rpartition("-")[0] or whole


def told(reasons: dict[str, str], waiting: list[dict[str, Any]]) -> str:
    """The sentences, models first, then who waits. One that does not begin with whom it is about gets that in front."""
    from modeld.cli import client

    lines = [client.plain(text if text.startswith(model) else f"{model}: {text}") for model, text in sorted(reasons.items())]
    for item in waiting:
        request, text = str(item.get("request_id", "?")), str(item.get("why", ""))
        place = f"{item.get('priority', '?')}, number {item.get('position', '?')} for {item.get('model_id', '?')}"
        lines.append(client.plain(text if text.startswith(request) else f"{request} ({place}): {text}"))
    return "\n".join(lines) or "nothing is loaded, and nobody waits"


def _models(listed: dict[str, Any]) -> list[dict[str, Any]]:
    found = listed.get("models")
    return [item for item in found if isinstance(item, dict) and item.get("id")] if isinstance(found, list) else []


def _idle(model: str, listed: dict[str, Any]) -> str:
    broken = next((item.get("unavailable") for item in _models(listed) if item["id"] == model), None)
    return f"cannot be served: {broken}" if broken else "not loaded, and nobody waits for it"


def _names(listed: dict[str, Any], seen: Iterable[str]) -> dict[str, str]:
    """name -> model id, for every name a model has; an id before an id without its ending, that before an alias."""
    models = _models(listed)
    ids = dict.fromkeys([*(str(item["id"]) for item in models), *seen])
    names = {one: one for one in ids}
    for one in ids:
        names.setdefault(plain_id(one), one)
    for item in models:
        for alias in item.get("aliases") or ():
            names.setdefault(str(alias), item["id"])
    return names


def _model(name: str, names: dict[str, str]) -> str | None:
    folded = {model for spelling, model in names.items() if spelling.casefold() == name.casefold()}
    return names.get(name) or (folded.pop() if len(folded) == 1 else None)


def _unknown(name: str, listed: dict[str, Any], waiting: list[dict[str, Any]]) -> Exception:
    import difflib

    from modeld.cli import client
    from modeld.config.values import quoted
    from modeld.errors import ModeldError

    known = list(
        dict.fromkeys([*_names(listed, ()), *(client_id(item) for item in waiting), *(str(item.get("request_id")) for item in waiting)])
    )
    spelled = {one.casefold(): one for one in known}
    near = [spelled[one] for one in difflib.get_close_matches(name.casefold(), spelled, n=NEAR_MAX)]
    hint = f"; did you mean {' or '.join(quoted(client.plain(one)) for one in near)}?" if near else ""
    return ModeldError(f"{quoted(name)} is neither a model here nor a request that waits{hint}")


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models and waiting requests of the daemon that is asked; nothing when there is none."""
    from modeld.cli import client
    from modeld.errors import ModeldError

    try:
        address = daemon_address(ctx.params.get("addr"), ctx.params.get("config"))
        names = [*_names(client.get(address, "/models"), ()).values()]
        waiting = client.get(address, PATH).get("waiting")
    except ModeldError:
        return []
    names += [str(item.get("request_id")) for item in waiting if isinstance(item, dict)] if isinstance(waiting, list) else []
    return [CompletionItem(one) for one in dict.fromkeys(names) if one.startswith(incomplete)]


command = click.Command(
    name="why",
    callback=_why,
    params=[*client_options(), click.Argument(["name"], metavar="[MODEL|REQUEST-ID]", required=False, shell_complete=_complete)],
    help=(
        "Say why a model is loaded or not, and why requests wait.\n\nMODEL is an id, an id without .gguf, or an alias. REQUEST-ID is what "
        "the client sent as X-Request-Id, or the daemon's own id. Without either, everything is told."
    ),
)
