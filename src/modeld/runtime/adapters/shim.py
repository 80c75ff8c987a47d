# SPDX-License-Identifier: GPL-3.0-only
"""The last step before a program becomes a child: `python -I -S shim.py PARENT_PID -- PROGRAM ARG…`; rule: standard library only.

Here, in the child, and not in a hook that runs between fork and exec of the daemon (which would make every spawn slow and unsafe).
Run as a file; importing it starts nothing.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys

EXIT_CANNOT_RUN = 126
EXIT_NOT_FOUND = 127
MARK = "modeld: cannot run the program: "
"""Begin of the one log line that tells a failed exec from a program that ends with the same code."""

_PR_SET_PDEATHSIG = 1


def bind_to_parent(parent: int) -> None:
    """Die with `parent`, by SIGKILL; leave no core file. Ends the process when the parent is gone already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(EXIT_CANNOT_RUN)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(argv: list[str]) -> int:
    """Become the program. Returns an exit code only when that failed."""
    parent, _dashes, *command = argv
    bind_to_parent(int(parent))
    # Python ignores these two, and what is ignored stays ignored in the next program.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(command[0], command)  # noqa: S606 - that is the purpose; no shell
    except OSError as error:
        sys.stderr.write(f"{MARK}{error.strerror}\n")
        return EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
