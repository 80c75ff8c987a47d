# SPDX-License-Identifier: GPL-3.0-only
"""What people see of /status."""

from __future__ import annotations

from modeld.cli.status import bar, endings, summary

ANSWER = {
    "instances": [
        {"model_id": "a.gguf", "state": "ready", "last_used_unix": 100, "est_vram_mb": 300, "queue_len": 2, "inflight": 4, "pid": 7},
        {
            "model_id": "b\x1b]0;x.gguf",
            "state": "loading",
            "last_used_unix": None,
            "est_vram_mb": 9,
            "queue_len": 0,
            "inflight": 0,
            "pid": None,
        },
    ],
    "budget_mb": 1000,
    "used_est_mb": 309,
    "margin_mb": 50,
    "uptime_seconds": 3700.5,
    "server_time_unix": 190,
    "evictions_total": 1,
    "loads_total": 3,
    "state": "ready",
    "last_error": "b: out of memory",
}


def test_summary() -> None:
    lines = summary(":8080", ANSWER).splitlines()
    assert lines[0] == "modeld at :8080: ready, up 1h1m40s"
    assert lines[1] == "memory: 309 of 1000 MiB, 50 of them kept free; loads: 3; evictions: 1"
    assert lines[2] == "last error: b: out of memory"
    assert lines[4].split() == ["a.gguf", "ready", "300", "-", "4", "2", "7", "1m30s"]
    assert lines[5].split() == ["b\ufffd]0;x.gguf", "loading", "9", "-", "0", "0", "-", "-"]


def test_the_memory_of_devices_and_what_was_given_up() -> None:
    loaded = {
        "model_id": "a.gguf",
        "state": "ready",
        "est_vram_mb": 510,
        "source": "probed",
        "predicted_bytes": 1000,
        "measured_bytes": 1021,
    }
    started = {
        "model_id": "b.gguf",
        "state": "loading",
        "est_vram_mb": 90,
        "source": "formula",
        "predicted_bytes": 1,
        "measured_bytes": None,
    }
    given_up = {"degraded": ["llama_ctx 8192 -> 4096", "x\x1b[2J"]}
    devices = [
        {
            "id": "local/CUDA0",
            "budget_mb": 1600,
            "total_mb": 9000,
            "used_mb": 651,
            "room_mb": 1500,
            "free_mb": 849,
            "committed_mb": 500,
            "reserved_mb": 150,
            "releasing_mb": 1,
            "foreign_mb": 7500,
        },
        {"id": "local/host", "budget_mb": 0, "total_mb": 0, "used_mb": 7, "room_mb": None, "free_mb": None, "foreign_mb": 0},
        {"id": "of an older daemon", "budget_mb": 5, "used_mb": 1},
    ]
    lines = summary(":1", {"instances": [loaded | given_up, started], "devices": devices}).splitlines()
    assert lines[2:] == [
        "MODEL   STATE    MIB  SOURCE          RUNNING  WAITING  PID  IDLE",
        "a.gguf  ready    510  probed, +2.1 %        0        0  -    -",
        "b.gguf  loading   90  formula               0        0  -    -",
        "a.gguf is degraded: llama_ctx 8192 -> 4096, x\ufffd[2J",
        "",
        "DEVICE       MEMORY                            USED  FREE  OTHERS  BUDGET",
        "local/CUDA0  ██████████▓▓▓▒░░················   651  849     7500  1600",
        "local/host   -                                    7  -          0  none",
        "(█ loaded, ▓ loading, ▒ coming back, ░ margin and others; MiB)",
    ]


def test_a_bar_is_never_longer_than_its_device() -> None:
    full = {"committed_mb": 900, "reserved_mb": 900, "barred_mb": 1}
    assert bar(full, 1000) == "█" * 29 + "▓" * 3
    assert (bar({}, 1000), bar(full, 0)) == ("·" * 32, "-")


def test_nothing_loaded_and_nothing_said() -> None:
    assert summary(":1", {"instances": []}).splitlines() == [
        "modeld at :1: unknown, up 0s",
        "memory: 0 MiB, no budget; loads: 0; evictions: 0",
        "nothing is loaded",
    ]


def test_endings_show_reason_code_and_log() -> None:
    ended = {"model_id": "a.gguf", "unix": 90, "code": -9, "reason": "killed by the system", "log_tail": ["loading", "b\x1b[31mad"]}
    text = endings({"server_time_unix": 100, "exits": [ended, "nonsense", {"model_id": "b.gguf"}]})
    assert text.splitlines()[0] == "a.gguf, 10s ago: killed by the system (exit code -9)"
    assert text.splitlines()[1] == "    loading"
    assert "\x1b" not in text
    assert "b.gguf" in text
    assert endings({}) == "no model server has ended yet"


def test_who_waits_and_for_how_long() -> None:
    queues = [
        {
            "model_id": "a.gguf",
            "length": 3,
            "oldest_wait_seconds": 4.14,
            "by_class": {"interactive": 1, "batch": 2},
            "due_in_seconds": 5.86,
            "estimate_seconds": 12,
        },
        {
            "model_id": "b.gguf",
            "length": 1,
            "oldest_wait_seconds": 11,
            "by_class": {"normal": 1},
            "due_in_seconds": 0,
            "estimate_seconds": 3.5,
        },
        {"model_id": "c.gguf", "length": 9, "oldest_wait_seconds": 0.5, "by_class": {}, "due_in_seconds": None, "estimate_seconds": 0},
        {"model_id": "d\x1b[2J", "length": 2},
    ]
    instance = {"model_id": "c.gguf", "state": "draining", "closed_for": "b.gguf", "est_vram_mb": 9}
    lines = summary(":1", {"instances": [instance], "queues": queues}).splitlines()
    assert lines[3].startswith("c.gguf  draining for b.gguf ")
    assert lines[4:] == [
        "",
        "WAITING FOR  REQUESTS  CLASSES                 OLDEST  ROOM          ESTIMATE",
        "a.gguf              3  1 interactive, 2 batch  4.1 s   due in 5.9 s  12.0 s",
        "b.gguf              1  1 normal                11.0 s  due           3.5 s",
        "c.gguf              9  -                       0.5 s   -             0.0 s",
        "d\ufffd[2J               2  -                       -       -             -",
    ]
    assert "WAITING FOR" not in summary(":1", {"instances": [], "queues": []})
