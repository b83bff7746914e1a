#!/usr/bin/env bash
# Runs the test suite, after making or reusing .venv. Arguments go to pytest:
#   bash launch/test.sh tests/distill -k forward_kl
#   bash launch/test.sh -m slow
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

bash "$root/launch/setup.sh"
cd "$root"
exec .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile "$@"
