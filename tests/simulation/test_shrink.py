# SPDX-License-Identifier: GPL-3.0-only
"""A story that fails is made small: what does not matter is left out, and the same thing still fails."""

from __future__ import annotations

from modeld.core.model import ModelId
from modeld.simulation import generate
from modeld.simulation.seen import Violation
from modeld.simulation.shrink import shrink, violation_of
from modeld.simulation.story import Story, as_json, from_json


def complaint(story: Story) -> Violation | None:
    """Stands for a run: fails whenever r5 comes and the second start of its model has a fate."""
    asked = {ask.request: ask.model for ask in story.workload.asks}
    fates = {(fate.model, fate.start) for fate in story.faults.children}
    known = {model.id for model in story.workload.models}
    if "r5" in asked and asked["r5"] in known and any(model == asked["r5"] for model, _ in fates):
        return Violation("made_up", "as told", story.seed, 1e9)
    return None


def rough_story() -> Story:
    return next(story for seed in range(50) if complaint(story := generate.story(seed)) is not None)


def test_only_what_matters_is_left() -> None:
    story = rough_story()
    violation = complaint(story)
    assert violation is not None
    small = shrink(story, violation, 20.0, complaint)
    assert complaint(small) is not None
    assert [ask.request for ask in small.workload.asks] == ["r5"]
    assert len(small.workload.models) == len(small.faults) == 1


def test_another_violation_does_not_count() -> None:
    story = rough_story()

    def find(candidate: Story) -> Violation | None:
        found = complaint(candidate)
        whole = len(candidate.workload.asks) == len(story.workload.asks)
        return found if found is None or whole else Violation("another", "", candidate.seed, 1e9)

    violation = complaint(story)
    assert violation is not None
    assert shrink(story, violation, 20.0, find).workload.asks == story.workload.asks


def test_no_time_is_no_work() -> None:
    story = rough_story()
    violation = complaint(story)
    assert violation is not None
    assert shrink(story, violation, 0.0, complaint) == story


def test_a_model_that_is_not_asked_for_is_nothing_to_run() -> None:
    story = generate.story(0)
    assert violation_of(Story(0, story.workload.__class__("none", (), ()))) is None
    assert all(fate.model != ModelId("") for fate in story.faults.acts)


def test_what_is_written_down_is_what_is_read() -> None:
    for seed in range(12):
        story = generate.story(seed)
        assert from_json(as_json(story)) == story
