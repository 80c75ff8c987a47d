# SPDX-License-Identifier: GPL-3.0-only
"""The real scheduler on a virtual clock, under seeded workloads and faults; rule: it uses core's one door and knows no runtime."""
