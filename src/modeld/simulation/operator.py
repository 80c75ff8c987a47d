# SPDX-License-Identifier: GPL-3.0-only
"""What an operator does to a running daemon, turned into events; rule: it keeps the table and the settings it last gave out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modeld.core.messages import Event, LoadRequested, ModelTableReplaced, PinChanged, SettingsReplaced, ShutdownRequested, UnloadRequested
from modeld.core.model import EvictionPolicy, Limits, ModelId, ModelSpec
from modeld.simulation.faults import Act, Deed


class Operator:
    """The catalogue and the settings as they are now."""

    def __init__(self, limits: Limits, models: Mapping[ModelId, ModelSpec]) -> None:
        self._limits = limits
        self._first = limits
        self._models = dict(models)
        self._removed: dict[ModelId, ModelSpec] = {}

    def event(self, act: Act) -> Event:
        """What the daemon is told."""
        match act.deed:
            case Deed.LOAD:
                return LoadRequested(act.model)
            case Deed.PRELOAD:
                return LoadRequested(act.model, may_evict=False)
            case Deed.UNLOAD:
                return UnloadRequested(act.model)
            case Deed.HOLD | Deed.LET_GO:
                return PinChanged(act.model, act.deed is Deed.HOLD)
            case Deed.SHUTDOWN:
                return ShutdownRequested()
            case Deed.REPLACE | Deed.REMOVE | Deed.RESTORE | Deed.PIN | Deed.UNPIN | Deed.SLOTS:
                self._change(act)
                return ModelTableReplaced(dict(self._models))
            case _:
                self._limits = self._settings(act)
                return SettingsReplaced(self._limits)

    def _change(self, act: Act) -> None:
        spec = self._models.get(act.model)
        if act.deed is Deed.RESTORE and act.model in self._removed:
            self._models[act.model] = self._removed.pop(act.model)
        if spec is None:
            return
        match act.deed:
            case Deed.REMOVE:
                self._removed[act.model] = self._models.pop(act.model)
            case Deed.REPLACE:
                self._models[act.model] = replace(spec, fingerprint=spec.fingerprint + "+")
            case Deed.PIN | Deed.UNPIN:
                self._models[act.model] = replace(spec, pinned=act.deed is Deed.PIN)
            case Deed.SLOTS:
                self._models[act.model] = replace(spec, options=replace(spec.options, parallel=max(1, int(act.number))))
            case _:
                pass

    def _settings(self, act: Act) -> Limits:
        limits, number = self._limits, act.number
        match act.deed:
            case Deed.BUDGET_SHARE:
                return replace(limits, budget_mb={device: int(budget * number) for device, budget in self._first.budget_mb.items()})
            case Deed.FAIRNESS_WAIT:
                return replace(limits, fairness_wait_seconds=number)
            case Deed.MIN_RESIDENCY:
                return replace(limits, min_residency_seconds=number)
            case Deed.PREEMPT_AFTER:
                return replace(limits, preempt_after_seconds=None if number < 0 else number)
            case _:
                return replace(limits, eviction=EvictionPolicy.COST if number > 0 else EvictionPolicy.LRU)
