#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-only
# Makes .venv hold what `run` (the daemon) or `dev` (also checks and tests) needs; rule: done is what a fingerprint says, never a folder's existence.
# .venv/.installing exists while pip works: a run that was cut short leaves it, and the next one starts from nothing.
set -eu

kind=${1:?usage: venv.sh run|dev}
cd "$(dirname "$0")/.."
venv=$PWD/.venv
bin=$venv/bin
log=$venv/install.log
# Settings of the caller that would send packages elsewhere or mix in foreign ones.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV || true
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

case $kind in
run) files="requirements/run.txt requirements/build.txt" ;;
dev) files="requirements/run.txt requirements/build.txt requirements/dev.txt" ;;
*) echo "venv.sh: run or dev, not $kind" >&2; exit 2 ;;
esac

interpreter() { "$1" -c 'import os, sys; print(sys.version.split()[0], os.path.realpath(sys._base_executable))' 2>/dev/null || echo none; }

fingerprint() { { interpreter "$bin/python"; cat $files pyproject.toml; } | cksum; }

usable() {
    [ ! -e "$venv/.installing" ] || return 1
    # In a moved clone the scripts in bin/ still name the old place.
    grep -qF "$bin/python" "$bin/pip" 2>/dev/null || return 1
    "$bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 1
    [ -z "${PYTHON:-}" ] || [ "$(interpreter "$PYTHON")" = "$(interpreter "$bin/python")" ]
}

heartbeat=
quiet_end() {
    [ -z "$heartbeat" ] || kill "$heartbeat" 2>/dev/null || true
    heartbeat=
}
trap quiet_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# step TEXT COMMAND...: one line, the command's output into the log, a sign of life every 5 s, and the log's end when it fails.
step() {
    echo "$1"
    shift
    (
        seconds=0
        while sleep 5 </dev/null >/dev/null 2>&1; do
            seconds=$((seconds + 5))
            echo "  ... $seconds s: $(tail -n 1 "$log" 2>/dev/null | tr '\r' '\n' | tail -n 1 | cut -c 1-110)"
        done
    ) &
    heartbeat=$!
    if ! "$@" >"$log" 2>&1 </dev/null; then
        quiet_end
        tail -n 25 "$log" >&2
        echo "This step failed; the whole output is in .venv/install.log. The next make starts .venv from nothing." >&2
        exit 1
    fi
    quiet_end
}

if usable && [ "$(cat "$venv/.done-$kind" 2>/dev/null)" = "$(fingerprint)" ]; then
    exit 0
fi

if ! usable; then
    python=$(PYTHON="${PYTHON:-}" sh scripts/find-python.sh)
    rm -rf "$venv"
    mkdir "$venv"
    : >"$venv/.installing"
    step "Making .venv with $("$python" -V)" "$python" -m venv "$venv"
fi

: >"$venv/.installing"
rm -f "$venv/.done-run" "$venv/.done-dev"
set --
count=0
for file in $files; do
    set -- "$@" -r "$file"
    count=$((count + $(grep -c '^[A-Za-z0-9]' "$file")))
done
# Wheels only: a source build of the engine needs a C++ compiler and many minutes, so a missing wheel is said at once.
step "Installing $count packages, checked against their hashes" "$bin/python" -m pip install --progress-bar off --require-hashes --only-binary :all: "$@"
# Editable: the tree is what runs, so that a pull or an edit needs no second installation. No index: the build tool is here already.
step "Installing modeld" "$bin/python" -m pip install --progress-bar off --no-index --no-deps --no-build-isolation --editable .

if ! "$bin/python" -c 'import xllamacpp' 2>"$log"; then
    echo "Warning: the embedded engine does not load here: $(tail -n 1 "$log")" >&2
    if grep -q libgomp "$log"; then
        echo "         It needs the GNU OpenMP library (Debian and Ubuntu: apt install libgomp1; Fedora: dnf install libgomp)." >&2
    fi
fi
fingerprint >"$venv/.done-run"
if [ "$kind" = dev ]; then
    fingerprint >"$venv/.done-dev"
    files="requirements/run.txt requirements/build.txt"
    fingerprint >"$venv/.done-run"
fi
rm -f "$venv/.installing"
