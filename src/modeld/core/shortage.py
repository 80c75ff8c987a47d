# SPDX-License-Identifier: GPL-3.0-only
"""What follows for a model from having run out of memory; rule: it reads the book and returns values."""

from __future__ import annotations

from typing import Final

from modeld.core.book import Book
from modeld.core.estimate import Need
from modeld.core.footprint import MIB, mib
from modeld.core.instance import Instance
from modeld.core.model import HOST
from modeld.errors import OutOfMemory

MORE_AFTER_FAILURE: Final = 1.25
"""A launch that ran out of memory gets at least so many times what it had, when it is tried again."""


def least_bytes(book: Book, instance: Instance, cost: Need, asked_bytes: int) -> int:
    """What it takes at least: what it held and what it asked for in vain. What failed was hardly the last of it, so a guess is added.

    The guess is no more than all that the model could ever have: a guess alone must not refuse it for good.
    """
    measured = instance.measured
    least = asked_bytes + (measured.total_bytes if measured is not None else 0)
    was_corrected = measured is not None and measured.complete and instance.spec.vram_mb is None  # else it had what was reserved
    guess = int(max(0 if was_corrected else cost.total_bytes, least) * MORE_AFTER_FAILURE)
    limits = [limit for device, limit in book.capacity(instance.model).items() if device != HOST]
    if (most := [limit for limit in limits if limit is not None]) and len(most) == len(limits):
        on_host = max(0, cost.total_bytes - cost.total_mb * MIB)
        guess = min(guess, (sum(most) if instance.spec.split else max(most)) * MIB + on_host)
    return max(guess, least)


def was_there(book: Book, instance: Instance) -> bool:
    """Whether the machine had what was booked for it, by the last look. Else its failure says nothing about the model."""
    free = book.free_mb()
    return all(free.get(device, 0) >= 0 for device in instance.need_mb)


def told(book: Book, instance: Instance, cost: Need, error: OutOfMemory) -> OutOfMemory:
    """What everybody hears who waited for it: the numbers."""
    beside = ", ".join(f"{max(0, mb)} MB of {device}" for device, mb in book.free_mb().items())
    text = (
        f'model "{instance.model}" ran out of memory while it loaded, twice: '
        f"{sum(instance.need_mb.values())} MB ({cost.source}) were kept for it"
        + (f", it asked for {mib(error.asked_bytes)} MB at once" if error.asked_bytes else "")
        + (f", {beside} are free beside that" if beside else "")
        + "; use a smaller llama_ctx or model, or free memory that other programs hold"
    )
    return OutOfMemory(text, detail=error.detail, asked_bytes=error.asked_bytes)
