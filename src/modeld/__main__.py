# SPDX-License-Identifier: GPL-3.0-only
"""`python -m modeld`; rule: nothing but the way to the command line."""

from modeld.cli import main

if __name__ == "__main__":
    main()
