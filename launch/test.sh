#!/usr/bin/env bash
# Runs the test suite, after creating or reusing .venv. Arguments are passed to pytest:
#   bash launch/test.sh tests/distill -k forward_kl
#   bash launch/test.sh -m slow
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

bash "$root/launch/setup.sh"
cd "$root"
# In order: sorted by their number of tests, the longest files would come last, on one core.
exec .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"
