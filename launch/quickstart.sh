#!/usr/bin/env bash
# Trains a teacher and a student, distils the student, and prints a table.
# Creates or reuses .venv first. Arguments are passed to the quickstart: bash launch/quickstart.sh --help
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

bash "$root/launch/setup.sh"
cd "$root"
exec .venv/bin/python -m gkd.quickstart.quickstart "$@"
