#!/usr/bin/env bash
# Runs the paper's claims at a size for two cores and decides each: holds, does not hold, inconclusive.
# A further call continues. More arguments are passed to the sweeps.
#   bash launch/claims.sh                    # all of them, within two hours
#   bash launch/claims.sh length             # one: length, divergences, modes, data_fraction or privileged_teacher
#   bash launch/claims.sh length --gin.MAX_PARALLEL=1
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
all=(length divergences modes data_fraction privileged_teacher)
claims=("${all[@]}")
if [ $# -gt 0 ] && [[ "$1" != --* ]]; then
    [ -f "configs/sweeps/claims/$1.gin" ] || {
        echo "gkd: error: claim '$1': choose ${all[*]}" >&2
        exit 2
    }
    claims=("$1")
    shift
fi

bash launch/setup.sh
sweep() { .venv/bin/python -m gkd sweep --gin_file="configs/sweeps/claims/$1.gin" "${@:2}"; }

for claim in "${claims[@]}"; do
    sweep "$claim" --gin.MAX_PARALLEL=2 "$@"
done
for claim in "${claims[@]}"; do
    echo
    sweep "$claim" "$@" "--gin.ACTION='verdict'"
done
