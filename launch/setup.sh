#!/usr/bin/env bash
# Creates or reuses .venv with the exact versions of constraints.txt, from any directory.
# Installs again only if a requirements file or the Python changed; a stamp inside .venv records
# the installed versions. PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
stamp="$venv/gkd-requirements.sha256"

fail() {
    echo "gkd: error: $1" >&2
    exit 1
}

is_suitable() { # running it is the only proof: a version manager's shim may stand for nothing
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if command -v "$candidate" >/dev/null && is_suitable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

requirements_hash() { # by Python: sha256sum is not on every system
    "$venv/bin/python" - "$root" <<'PYTHON'
import hashlib
import pathlib
import sys

content = sys.version.encode()
for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
    content += pathlib.Path(sys.argv[1], name).read_bytes()
print(hashlib.sha256(content).hexdigest())
PYTHON
}

if ! { [ -x "$venv/bin/python" ] && is_suitable "$venv/bin/python"; }; then
    python="$(find_python)" || fail "Python 3.11, 3.12 or 3.13 is needed and not on the PATH: \
install one (Debian, Ubuntu: apt install python3.11 python3.11-venv) or set PYTHON=/path/to/python"
    echo "gkd: making $venv with $python" >&2
    "$python" -m venv --clear "$venv" >/dev/null ||
        fail "$python -m venv $venv failed: on Debian or Ubuntu install python3-venv"
fi

wanted="$(requirements_hash)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "gkd: installing the requirements into $venv (once; a few minutes)" >&2
    rm -f "$stamp"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$root/requirements.txt" --requirement "$root/requirements-dev.txt" \
        --constraint "$root/constraints.txt" ||
        fail "pip could not install the requirements; its message is above"
    # `import gkd` from any directory, without building a package.
    "$venv/bin/python" -c 'import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "gkd.pth").write_text(sys.argv[1] + "\n")' "$root"
    echo "$wanted" >"$stamp"
fi
