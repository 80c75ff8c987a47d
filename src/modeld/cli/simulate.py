# SPDX-License-Identifier: GPL-3.0-only
"""`modeld simulate`: what the scheduler would do with a recorded or a shipped workload; rule: touches no daemon, no model and no clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from modeld.simulation.workload import Workload

LIST, ALL = "list", "all"
SETTINGS = {"policy": "eviction"}
"""Flags that are named otherwise than the setting they stand for."""


def _simulate(trace: str | None, workload: str | None, plot: str | None, as_json: bool, scale: float, seed: int, **settings: Any) -> None:
    from modeld.errors import ConfigError
    from modeld.simulation import plot as drawing

    if trace is not None and workload is not None:
        raise click.UsageError("name a --trace or a --workload, not both")
    if plot is not None and workload == ALL:
        raise click.UsageError("--plot draws one workload; name it")
    if trace is None and workload in (None, LIST):
        click.echo(_list())
        return
    if plot is not None and (missing := drawing.missing()):
        raise click.UsageError(missing)
    try:
        found = _workloads(trace, workload, seed, scale)
        given = [_set(one, settings) for one in found]
    except ConfigError as error:
        raise click.UsageError(error.message) from None
    _report(given, seed=seed, as_json=as_json, both=workload == ALL and settings["policy"] is None, plot=plot)


def _report(given: list[Workload], *, seed: int, as_json: bool, both: bool, plot: str | None) -> None:
    from modeld.core.model import EvictionPolicy
    from modeld.simulation import plot as drawing
    from modeld.simulation import report

    runs = [report.with_limits(one, policy=policy) for one in given for policy in (EvictionPolicy if both else [one.limits.eviction])]
    found = [report.compare(one, seed=seed) for one in runs]
    if as_json:
        data = [report.as_data(one) for one in found]
        click.echo(json.dumps(data if len(given) > 1 else data[0], indent=2))
    else:
        click.echo(report.summary_text(found) if len(given) > 1 else report.as_text(found[0]))
    if plot is not None:
        drawing.draw(found[0].history, Path(plot))
        click.echo(f"drawn: {plot}", err=True)


def _list() -> str:
    from modeld.simulation import shipped

    wide = max(map(len, shipped.names()))
    lines = [f"  {name.ljust(wide)}  {shipped.summary(name)}" for name in shipped.names()]
    return "\n".join(["Workloads for --workload:", *lines, f"  {ALL.ljust(wide)}  a line for each of them and each policy"])


def _workloads(trace: str | None, name: str | None, seed: int, scale: float) -> list[Workload]:
    """What is to be run. Raises ConfigError."""
    from modeld.config.values import nearest, quoted
    from modeld.errors import ConfigError
    from modeld.simulation import shipped

    if trace is not None:
        from modeld.simulation.tracefile import read_trace

        return [read_trace(Path(trace))]
    if name == ALL:
        return [shipped.shipped(one, seed=seed, scale=scale) for one in shipped.names()]
    if name is None or name not in shipped.names():
        known = [*shipped.names(), LIST, ALL]
        raise ConfigError(f"--workload {quoted(name)} is not known{nearest(str(name), known)}  (modeld simulate lists all)")
    return [shipped.shipped(name, seed=seed, scale=scale)]


def _set(workload: Workload, settings: Mapping[str, Any]) -> Workload:
    """The workload under the flags that were given. Raises ConfigError."""
    from dataclasses import replace

    from modeld.core.estimate import need
    from modeld.core.model import LOCAL
    from modeld.errors import ConfigError
    from modeld.simulation.clairvoyant import room_mb
    from modeld.simulation.report import with_limits

    values = {key: _value(key, text) for key, text in settings.items() if text is not None}
    changed = with_limits(
        workload,
        policy=values.get("policy"),
        fairness_wait_seconds=values.get("fairness_wait"),
        min_residency_seconds=values.get("min_residency"),
    )
    if "budget_mb" in values:
        changed = replace(changed, limits=replace(changed.limits, budget_mb={LOCAL: values["budget_mb"]}, margin_mb=0))
    room = room_mb(changed.limits)
    asked = {ask.model for ask in changed.asks}
    sizes = {model.id: need(model.spec).total_mb for model in changed.models if model.id in asked}
    if room is not None and (smallest := min(sizes, key=lambda model: sizes[model])) and sizes[smallest] > room:
        raise ConfigError(f"a budget of {room} MB holds none of the models: the smallest, {smallest}, needs {sizes[smallest]} MB")
    return changed


def _value(key: str, text: str) -> Any:
    """A flag that stands for a setting, read as that setting is. Raises ConfigError."""
    from modeld.config.settings import SIZE_MB_MAX, TABLE
    from modeld.config.values import Context, Unacceptable, integer, quoted
    from modeld.errors import ConfigError

    kind = integer(0, SIZE_MB_MAX, "MiB") if key == "budget_mb" else TABLE[SETTINGS.get(key, key)].kind
    try:
        return kind.parse(text, Context({}, Path(), text=True))
    except Unacceptable as error:
        raise ConfigError(f"--{key.replace('_', '-')}: {quoted(text)} {error}") from None


command = click.Command(
    name="simulate",
    callback=_simulate,
    params=[
        click.Option(["--trace"], metavar="FILE", help="A trace that a daemon wrote (setting trace_file)."),
        click.Option(["--workload"], metavar="NAME", help="A workload that comes with modeld; `list` shows them, `all` compares all."),
        click.Option(["--budget-mb"], metavar="MB", help="Memory of the machine.  [default: that of the workload]"),
        click.Option(["--policy"], metavar="lru|cost", help="Who gives way first.  [default: that of the workload]"),
        click.Option(["--fairness-wait"], metavar="DURATION", help="As the setting fairness_wait.  [default: that of the workload]"),
        click.Option(["--min-residency"], metavar="DURATION", help="As the setting min_residency.  [default: that of the workload]"),
        click.Option(["--seed"], type=click.IntRange(min=0), default=0, help="Another draw of the same workload.  [default: 0]"),
        click.Option(
            ["--scale"], type=click.FloatRange(min=0.1, max=100), default=1.0, help="A longer (or shorter) shipped workload.  [default: 1]"
        ),
        click.Option(["as_json", "--json"], is_flag=True, help="Print JSON."),
        click.Option(["--plot"], metavar="FILE.png", help="Draw who was loaded and who waited, over time."),
    ],
    help="Run a workload through modeld's scheduler on a virtual clock, beside strict first come first served and a clairvoyant.",
)
