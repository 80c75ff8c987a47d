# SPDX-License-Identifier: GPL-3.0-only
"""modeld: every GGUF model on this machine at one address, inside a memory budget.

A request travels like this, and each folder does one part of it:

    cli/       turns words on a command line into settings; `serve` is the default verb
    app.py     wires everything once; start-up, reload and shutdown in order
    config.py  the only reader of configuration: flags > environment > file > defaults
    api/       HTTP in, bytes out: dialects, who may, the relay
    catalog/   which models lie on disk, what their headers say
    core/      decides: who waits, who is evicted, who is refused. Plain functions, no clock, no I/O
    runtime/   acts: child processes, sockets, timers. Every ending becomes one event for core
    errors.py  everything we can say no with

Decide in `core`, act in `runtime`, translate in `api`. docs/architecture.md has the whole picture.
"""

__version__ = "0.1.0"
