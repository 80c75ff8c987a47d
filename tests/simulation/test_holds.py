# SPDX-License-Identifier: GPL-3.0-only
"""The invariant pins can fail: a pin too many, one refused for nothing, a word that is not kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modeld.core.messages import ModelTableReplaced, PinChanged
from modeld.core.model import HOST, LOCAL, DeviceId, ModelId
from modeld.simulation.seen import Violation
from simulation.tale import Tale, spec

A, B = ModelId("a"), ModelId("b")
PINS = frozenset({"pins"})


def breaks(tell: Callable[[], object]) -> bool:
    """Does the story break the invariant?"""
    try:
        tell()
    except Violation as violation:
        assert violation.name == "pins"
        return True
    return False


def story(b_mb: int, **more: object) -> Tale:
    return Tale(spec("a", 100), spec("b", b_mb), checks=PINS, **more).at(0, PinChanged(A, True))  # type: ignore[arg-type]


def refused(tale: Tale, *, is_refused: bool = True) -> Tale:
    """Who asked just now was told that the next pin is one too many."""
    tale.outside.pin_refused = is_refused
    return tale


def test_a_pin_too_many() -> None:
    assert not breaks(lambda: story(150).at(1, PinChanged(B, True)))
    assert breaks(lambda: story(151).at(1, PinChanged(B, True)))
    assert breaks(lambda: story(150, margin_mb=1).at(1, PinChanged(B, True)))
    assert not breaks(lambda: story(151).at(1, PinChanged(A, False)).at(2, PinChanged(B, True)))


def test_a_pin_refused_for_nothing() -> None:
    assert not breaks(lambda: refused(story(151)).at(1, PinChanged(B, True)))
    assert breaks(lambda: refused(story(150)).at(1, PinChanged(B, True)))


def test_with_several_devices_only_the_sum_is_judged() -> None:
    two = {DeviceId("local/gpu0"): 125, DeviceId("local/gpu1"): 125}
    assert not breaks(lambda: refused(story(150, budget_mb=two)).at(1, PinChanged(B, True)))
    assert breaks(lambda: story(151, budget_mb=two).at(1, PinChanged(B, True)))


def test_host_memory_counts() -> None:
    def host(limit_mb: int) -> Tale:
        models = (spec("a", 10, host_mb=60), spec("b", 10, host_mb=60))
        return Tale(*models, checks=PINS, budget_mb={LOCAL: 100, HOST: limit_mb}).at(0, PinChanged(A, True))

    assert not breaks(lambda: host(120).at(1, PinChanged(B, True)))
    assert breaks(lambda: host(119).at(1, PinChanged(B, True)))


def test_pinned_again_is_no_question() -> None:
    """A budget that was lowered since does not unpin what is pinned."""
    tale = story(500).at(1, PinChanged(A, True))
    assert tale.outside.pins == {A: True}


@pytest.mark.parametrize("pinned", [frozenset(), frozenset({A, B})])
def test_a_word_that_is_not_kept(pinned: frozenset[ModelId]) -> None:
    tale = story(100)
    tale.mirror.pinned = pinned
    assert breaks(lambda: tale.at(1, ModelTableReplaced(tale.models)))


def test_a_pin_that_was_refused_and_is_there_all_the_same() -> None:
    tale = refused(story(200))
    tale.mirror.pinned = frozenset({A, B})
    assert breaks(lambda: tale.at(1, PinChanged(B, True)))


def test_a_word_about_what_is_not_there() -> None:
    assert not breaks(lambda: story(100).at(1, PinChanged(ModelId("nobody"), True)))
