# SPDX-License-Identifier: GPL-3.0-only
"""A planted bug applies exactly once, or says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modeld.simulation.mutants import Misplaced, Mutant

ONE = Mutant("one", "book.py", "a + b", "a - b", "a sum is a difference")


def test_a_mutation() -> None:
    assert ONE.planted("x = a + b\n") == "x = a - b\n"
    assert ONE.module == "modeld.core.book"


@pytest.mark.parametrize("source", ["", "x = a - b\n", "x = a + b\ny = a + b\n"])
def test_text_that_is_not_there_once(source: str) -> None:
    with pytest.raises(Misplaced, match=f"one: its text is found {source.count('a + b')} times"):
        ONE.planted(source)


def test_a_mutation_that_changes_nothing() -> None:
    with pytest.raises(Misplaced):
        replace(ONE, new=ONE.old).planted("x = a + b\n")
