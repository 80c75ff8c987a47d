# SPDX-License-Identifier: GPL-3.0-only
"""The reader of server-sent events: the same events however the input is cut, and a buffer that never grows without end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.api.sse import Event, SseReader

STORY = b"\xef\xbb\xbf: hi\n\ndata: a\ndata:b\r\n\r\nevent: x\nid: 1\n\nerror: {}\ndata:  c\n\ndata: [DONE]\n\ndata: never ends"
EVENTS = [Event(b"a\nb"), Event(b"{}", failed=True), Event(b" c"), Event(b"[DONE]")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(STORY)), max_size=10))
def test_the_same_events_however_it_is_cut(cuts: list[int]) -> None:
    reader = SseReader()
    ends = [0, *sorted(cuts), len(STORY)]
    seen = [event for a, b in pairwise(ends) for event in reader.feed(STORY[a:b])]
    assert seen == EVENTS
    assert not reader.too_large


@pytest.mark.parametrize("piece", [b"x" * 100, b"data: x\n" * 10])
def test_what_never_ends_is_dropped_at_the_cap(piece: bytes) -> None:
    reader = SseReader(event_bytes_max=1000)
    assert [event for _ in range(100) for event in reader.feed(piece)] == []
    assert reader.too_large
    assert reader.feed(b"\n\ndata: a\n\n") == []


def test_the_cap_is_for_one_event() -> None:
    reader = SseReader(event_bytes_max=100)
    assert len([event for _ in range(50) for event in reader.feed(b"data: " + b"y" * 90 + b"\n\n")]) == 50
