# SPDX-License-Identifier: GPL-3.0-only
"""What was measured, probed and seen of memory goes into the book; rule: the ledger says what is, the next prediction what was.

1  A footprint is a high-water mark: it raises what the instance holds, and is what the next launch with the same key is taken to need. It
   lowers what the instance holds where nothing is missing in it, the operator declared no figure and no earlier launch took more. That it
   ran out of memory once is settled by the first one after a request: the launch has come through, and this is what it takes, whatever
   was guessed.
   What only grows while requests come (a prompt cache) is held for it from the start, whatever was measured.
2  A probe or its failure lets the one model start that waited for it.
3  What other programs hold shrinks the room, as far as it lasts (foreign.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from modeld.core.book import Book
from modeld.core.bookings import Bookings
from modeld.core.estimate import growth_bytes
from modeld.core.footprint import Footprint, Learned, When, as_vector, in_short
from modeld.core.instance import Instance
from modeld.core.lifecycle import State
from modeld.core.messages import FootprintMeasured, FootprintProbed, FootprintsLearned, MemorySeen, ProbeFailed, Remember
from modeld.core.model import HOST


class Accounting:
    """Takes the events about memory."""

    def __init__(self, book: Book, bookings: Bookings) -> None:
        self._book = book
        self._do = bookings

    def take(self, event: FootprintMeasured | FootprintProbed | ProbeFailed | FootprintsLearned | MemorySeen, now: float) -> None:
        """Book it."""
        match event:
            case FootprintMeasured():
                self._measured(event)
            case FootprintProbed() | ProbeFailed():
                self._answered(event)
            case FootprintsLearned():
                self._learned(event)
            case MemorySeen():
                self._seen(event, now)
            case _:
                assert_never(event)

    def _measured(self, event: FootprintMeasured) -> None:  # 1
        """The child of an instance was looked at."""
        instance = self._book.instances.get(event.instance)
        if instance is None or instance.external or instance.state not in (State.LOADING, State.READY, State.DRAINING):
            return
        seen = replace(event.footprint, complete=event.footprint.complete and instance.state is not State.LOADING)  # more is to come
        seen = seen.with_growth(growth_bytes(instance.cost))
        measured = instance.measured = seen.at_least(instance.measured)
        cost, may_fall = instance.cost, measured.complete and instance.spec.vram_mb is None
        if cost is not None and cost.key and measured.complete:
            known = self._book.known.learned.get(cost.key) or Learned(instance.model)
            marks = measured.peak(known.footprint)
            loads = known.loads + (event.when is When.READY)
            is_settled = event.when is not When.READY and seen.complete
            least = min(known.least_bytes, marks.total_bytes) if is_settled else known.least_bytes
            said = Learned(instance.model, marks, least, cost.total_bytes, cost.source, loads, in_short(instance.spec.options))
            self._do.learn(instance, cost.key, said)
            may_fall = may_fall and marks.total_bytes == measured.total_bytes and (is_settled or not least)
        self._correct(instance, measured, may_fall=may_fall)

    def _correct(self, instance: Instance, measured: Footprint, *, may_fall: bool) -> None:
        """The ledger holds what the instance takes."""
        book, before = self._book, instance.need_mb
        after = as_vector(measured, before, HOST, one_pool=book.limits.one_pool)
        if not may_fall:
            after = {device: max(before.get(device, 0), after.get(device, 0)) for device in dict.fromkeys([*before, *after])}
        if after == before:
            return
        if any(mb > before.get(device, 0) for device, mb in after.items()):
            book.grown_total += not instance.grew
            instance.grew = True
            book.grown.pop(instance.id, None)
            book.grown[instance.id] = None
        book.ledger.correct(instance.id, after)
        instance.need_mb = after
        self._do.replan = True
        if book.is_pinned(instance):
            book.forget_memory()
            self._do.look_for_misfits = True

    def _answered(self, event: FootprintProbed | ProbeFailed) -> None:  # 2
        """llama.cpp was asked. When it did not answer the formula stands, until the catalogue changes."""
        book, model = self._book, event.model
        if isinstance(event, FootprintProbed):
            probe = book.known.probes[event.key] = event.probe.with_points_of(book.known.probes.get(event.key))
            if not event.probe.points:
                book.unprobed[event.key] = "it did not say what it computes in"
            if (spec := book.models.get(model)) is not None:
                self._do.out.append(Remember(event.key, spec.header_hash, probe=probe))
                book.forget_header(spec.header_hash)
        else:
            book.unprobed[event.key] = event.reason
        if book.probing.get(model) == event.key:
            del book.probing[model]
        self._do.unchecked[model] = None  # what is known now may ask for another launch, whose probe is another one
        self._do.look_for_misfits = self._do.replan = True

    def _learned(self, event: FootprintsLearned) -> None:
        """What earlier runs remembered. What this run has learned already stands."""
        known = self._book.known
        known.learned.update({key: one for key, one in event.learned.items() if key not in known.learned})
        known.probes.update({key: one for key, one in event.probes.items() if key not in known.probes})
        self._book.forget_memory(needs=True)
        self._do.look_for_misfits = self._do.replan = True

    def _seen(self, event: MemorySeen, now: float) -> None:  # 3
        """The machine was looked at."""
        book = self._book
        for device, memory in event.devices.items():
            moved = book.foreign.observe(device, memory.foreign_mb, now)
            if book.totals_mb.get(device) != memory.total_mb or moved:
                book.totals_mb[device] = memory.total_mb
                self._do.replan = True
