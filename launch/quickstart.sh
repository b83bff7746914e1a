#!/usr/bin/env bash
# The main job in one command: trains a teacher and a student, distils, prints a table.
# Makes or reuses .venv first. Arguments go to the quickstart: bash launch/quickstart.sh --help
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

bash "$root/launch/setup.sh"
cd "$root"
exec .venv/bin/python -m gkd.quickstart.quickstart "$@"
