# SPDX-License-Identifier: GPL-3.0-only
"""Fixtures that every layer needs."""
