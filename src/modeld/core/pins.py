# SPDX-License-Identifier: GPL-3.0-only
"""May the operator pin this model, too; rule: it reads the book and returns the refusal as a value.

Pinned models are never evicted, so together they must have room: those that are loaded where they are, the others largest first, each on
the device where least is left over, a split one in what is left of all.
"""

from __future__ import annotations

from modeld.core.admission import gone
from modeld.core.book import Book
from modeld.core.lifecycle import State
from modeld.core.model import HOST, DeviceId, ModelId
from modeld.errors import CannotEverFit, ModeldError

NAMED_MAX = 8
"""So many of the pinned models are named in a refusal."""


def pin_refusal(book: Book, model: ModelId) -> ModeldError | None:
    """Why `model` cannot be pinned beside those that are, or None: it can, or is already."""
    spec = book.models.get(model)
    if (absent := gone(model, spec)) is not None:
        return absent
    if book.is_held(model):
        return None
    pins = [other for other, one in book.models.items() if book.is_held(other) and one.unavailable is None and not one.external]
    if spec is not None and spec.external:
        return None
    needs = {one: book.need(one).total_mb for one in [model, *pins]}
    room = [limit for device in book.devices if device != HOST and (limit := book.limit_mb(device)) is not None]
    if not book.places(model) or not _all_fit(book, needs):
        beside = ", ".join(f"{one} {needs[one]} MB" for one in pins[:NAMED_MAX]) + (", and more" if len(pins) > NAMED_MAX else "")
        return CannotEverFit(
            f'model "{model}" ({needs[model]} MB) cannot be pinned'
            + (f" beside the pinned {beside}" if pins else "")
            + f": together they need {sum(needs.values())} MB, {sum(room)} MB can be had (vram_budget_mb less vram_margin_mb); "
            "unpin another, or raise the budget"
        )
    return None


def _all_fit(book: Book, needs: dict[ModelId, int]) -> bool:
    """Whether there is a place for each of them at the same time, in MiB per model."""
    left: dict[DeviceId, int | None] = {device: book.limit_mb(device) for device in book.devices}
    absent: list[ModelId] = []
    for model in needs:
        instance = book.by_model.get(model)
        if instance is None or instance.state in (State.FAILED, State.STOPPING):
            absent.append(model)
            continue
        for device, amount in instance.need_mb.items():
            if not _take(left, device, amount):
                return False
    for model in sorted(absent, key=lambda one: (-needs[one], one)):
        spec = book.models[model]
        if HOST in left and not _take(left, HOST, book.need(model).host_mb):
            return False
        if not _seat(left, needs[model], split=spec.split):
            return False
    return True


def _seat(left: dict[DeviceId, int | None], need_mb: int, *, split: bool) -> bool:
    """Take room for one model: on one device, or over several."""
    devices = [device for device in left if device != HOST]
    if any(left[device] is None for device in devices):
        return True
    rooms = {device: room for device in devices if (room := left[device]) is not None}
    enough = [device for device in devices if rooms[device] >= need_mb]
    if enough:
        return _take(left, min(enough, key=lambda device: rooms[device]), need_mb)
    if not split or sum(max(0, room) for room in rooms.values()) < need_mb:
        return False
    for device in devices:
        share = min(need_mb, max(0, rooms[device]))
        _take(left, device, share)
        need_mb -= share
    return True


def _take(left: dict[DeviceId, int | None], device: DeviceId, amount_mb: int) -> bool:
    """False when there is not so much."""
    room = left.get(device)
    if room is None:
        return True
    left[device] = room - amount_mb
    return room >= amount_mb
