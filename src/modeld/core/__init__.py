# SPDX-License-Identifier: GPL-3.0-only
"""Pure decisions: no clock, no asyncio, no file, no socket, no log. Time is an argument."""
