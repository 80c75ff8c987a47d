# SPDX-License-Identifier: GPL-3.0-only
"""Assertions inside play.py tell what differed."""

import pytest

pytest.register_assert_rewrite("core.play")
