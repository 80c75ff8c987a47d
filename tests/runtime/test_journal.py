# SPDX-License-Identifier: GPL-3.0-only
"""The journal keeps what led to a crash: not the timers and looks that came to nothing."""

from __future__ import annotations

from modeld.core.messages import CheckProgress, Grant, LeaseReleased, LoadProgressed, ProgressChecked, Wakeup
from modeld.core.model import InstanceId, RequestId
from modeld.runtime.journal import Journal

ONE = InstanceId("1/a")
GRANT = Grant(RequestId("r1"), ONE)


def test_what_changed_nothing_is_left_out() -> None:
    journal = Journal()
    journal.record(1.0, Wakeup(), [])
    journal.record(2.0, Wakeup(), [CheckProgress(ONE)])
    journal.record(3.0, ProgressChecked(ONE, {RequestId("r1"): 2.5}), [])
    journal.record(4.0, LoadProgressed(ONE, 0.5), [])
    assert journal.lines() == []
    journal.record(5.0, Wakeup(), [CheckProgress(ONE), GRANT])
    journal.record(6.0, ProgressChecked(ONE, {}), [GRANT])
    journal.record(7.0, LeaseReleased(RequestId("r1")), [])
    assert [line.split()[0] for line in journal.lines()] == ["5.000", "6.000", "7.000"]


def test_the_oldest_steps_make_room() -> None:
    journal = Journal(keep=2)
    for at in range(3):
        journal.record(at, LeaseReleased(RequestId(f"r{at}")), [GRANT])
    assert len(journal) == 2
    assert journal.lines()[0] == "1.000 LeaseReleased(request='r1', tokens=0, moved_at=None) -> Grant(request='r1', instance='1/a')"
