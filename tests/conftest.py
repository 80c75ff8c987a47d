# SPDX-License-Identifier: GPL-3.0-only
"""What holds for all tests: assertions inside play.py, which tests of several folders import, tell what differed."""

import pytest

pytest.register_assert_rewrite("core.play")
