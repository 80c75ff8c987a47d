#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-only
# Prints the Python to build the virtual environment with; rule: only one that really runs, is 3.11 or newer and can make one.
# $PYTHON, when set, is the only candidate. A version manager's shim may exist and still refuse to run, hence the trial.
set -eu

trial='import sys
if sys.version_info < (3, 11): sys.exit("it is Python %d.%d" % sys.version_info[:2])
try:
    import ensurepip, ssl, venv
except ImportError as e: sys.exit("it lacks the module %s" % e.name)
print(sys.executable)'
reasons=""

for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
    command -v "$candidate" >/dev/null 2>&1 || { reasons="$reasons
  $candidate: not found"; continue; }
    if found=$("$candidate" -c "$trial" 2>&1); then
        echo "$found"
        exit 0
    fi
    reasons="$reasons
  $candidate: $(echo "$found" | head -n 1)"
done

cat >&2 <<END
modeld needs Python 3.11 or newer with its venv module. Tried:$reasons
Install one (Debian and Ubuntu: apt install python3 python3-venv; Fedora: dnf install python3), or name yours: make ... PYTHON=/path/to/python3
END
exit 1
