#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-only
# Compiles the hash-pinned requirement files; rule: one set of versions for every supported Python and machine, and no address of any index in it.
# Arguments go to uv (for example --upgrade). uv is a tool of whoever renews the lock, not a dependency: $UV, or the one on PATH.
set -eu
cd "$(dirname "$0")/.."

uv=${UV:-}
if [ -z "$uv" ]; then
    for candidate in uv .venv/bin/uv; do
        if "$candidate" --version >/dev/null 2>&1; then uv=$candidate; break; fi
    done
fi
[ -n "$uv" ] || { echo "make lock needs uv: install it (for example with pipx install uv), or name it: make lock UV=/path/to/uv" >&2; exit 1; }

compile() {
    output=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-config --no-strip-extras \
        --annotation-style line --output-file "$output" "$@"
    echo "$output: $(grep -c '^[A-Za-z0-9]' "$output") packages"
}

compile requirements/run.txt pyproject.toml "$@"
compile requirements/build.txt requirements/build.in --constraint requirements/run.txt "$@"
compile requirements/dev.txt requirements/dev.in --constraint requirements/run.txt --constraint requirements/build.txt "$@"
