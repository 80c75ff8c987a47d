# SPDX-License-Identifier: GPL-3.0-only
"""Planted bugs about memory that is not what was predicted; rule: data only. They are looked for under pressure (pressure.py)."""

from __future__ import annotations

from typing import Final

from modeld.simulation.mutants import Judge, Mutant

MEMORY: Final = tuple(
    Mutant(name, file, old, new, means, judge=Judge.SQUEEZE)
    for name, file, old, new, means in (
        # --- measured -------------------------------------------------------------------------------------------------
        (
            "ledger_not_corrected",
            "accounting.py",
            "        book.ledger.correct(instance.id, after)\n",
            "",
            "what a model was measured to take is shown, and not held",
        ),
        (
            "measured_not_learned",
            "accounting.py",
            "            self._do.learn(instance, cost.key, said)\n",
            "",
            "the next launch is booked as if nothing had been measured",
        ),
        (
            "partial_reading_lowers",
            "accounting.py",
            "cost, may_fall = instance.cost, measured.complete and instance.spec.vram_mb is None",
            "cost, may_fall = instance.cost, instance.spec.vram_mb is None",
            "a reading in which something is missing counts as all that is held",
        ),
        (
            "declared_figure_lowered",
            "accounting.py",
            "measured.complete and instance.spec.vram_mb is None",
            "measured.complete",
            "the operator's own figure is lowered to what was measured",
        ),
        (
            "two_devices_added_up",
            "accounting.py",
            "marks = measured.peak(known.footprint)",
            "marks = measured.at_least(known.footprint)",
            "what a model took on one device is added to what it took on another one",
        ),
        # --- more is held than may be ---------------------------------------------------------------------------------
        (
            "nobody_relieves",
            "planning.py",
            "        if not short:\n            book.grown.clear()\n",
            "        if short or not short:\n            book.grown.clear()\n",
            "idle models stay beside one that grew, and memory is overbooked",
        ),
        (
            "relief_takes_all",
            "planning.py",
            "choose(pool, {device: mb for device, mb in can_come.items() if mb > 0}) or ()",
            "[one for one in pool if can_come]",
            "all that is idle goes when a little is short",
        ),
        (
            "what_comes_back_forgotten",
            "planning.py",
            "(mb := -free - room.coming.get(device, 0)) > 0",
            "(mb := -free) > 0",
            "more go although enough is on its way back",
        ),
        (
            "the_grown_one_goes",
            "planning.py",
            "if one.id != latest and not one.busy",
            "if not one.busy",
            "a model that took more than was booked is ended for it",
        ),
        # --- others ---------------------------------------------------------------------------------------------------
        (
            "others_ignored",
            "book.py",
            "total - self.foreign.settled_mb(device) - ",
            "total - ",
            "memory that other programs hold is booked",
        ),
        (
            "spike_believed",
            "foreign.py",
            "        if min(amounts) >= settled + STEP_MB:\n            self._settled[device] = min(amounts)\n",
            "        if amounts[-1] >= settled + STEP_MB:\n            self._settled[device] = amounts[-1]\n",
            "models go for what another program holds for a moment",
        ),
        # --- out of memory --------------------------------------------------------------------------------------------
        (
            "no_second_try",
            "bookings.py",
            "            return None\n        return shortage.told",
            "            return error\n        return shortage.told",
            "the line is refused when a load runs out of memory for the first time",
        ),
        (
            "tried_for_ever",
            "bookings.py",
            "again = book.second_try.pop(model, None) != instance.spec.fingerprint",
            "again = True",
            "a load that runs out of memory is tried again and again, and nobody hears of it",
        ),
        (
            "bound_forgotten",
            "bookings.py",
            "        self.learn(instance, cost.key, replace(known, least_bytes=least))\n",
            "        assert least\n",
            "a load that ran out of memory is tried again with as much as before",
        ),
        (
            "guess_refuses_for_good",
            "shortage.py",
            "        guess = min(guess, ",
            "        guess = max(guess, ",
            "a model that ran out of memory once is taken to need more than there is",
        ),
        (
            "death_teaches_nothing",
            "bookings.py",
            "            if ran_out:\n",
            "            if ran_out and not instance.need_mb:\n",
            "a model that dies of its first request is started with too little again and again",
        ),
        # --- dry passes -----------------------------------------------------------------------------------------------
        (
            "probe_blocks_everybody",
            "planning.py",
            "(model in book.probing and not due)",
            "(bool(book.probing) and not due)",
            "while llama.cpp is asked about one model no other one starts",
        ),
        (
            "probe_asked_again",
            "bookings.py",
            "        if key and book.probing.get(model) != key:\n",
            "        if key:\n",
            "llama.cpp is asked again about what it was asked already",
        ),
    )
)
