#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-only
# Serves the starter model on 127.0.0.1:8080 with debug logs; rule: everything it writes stays in .run/. Further flags are passed on.
set -eu
cd "$(dirname "$0")/.."
make --no-print-directory install
mkdir -p .run/models .run/state
exec .venv/bin/modeld serve --fetch-starter --addr 127.0.0.1:8080 --models-dir .run/models --state-dir .run/state --log-level debug "$@"
