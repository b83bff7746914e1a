#!/usr/bin/env bash
# Runs one job as several processes on this machine, like a job on several hosts (for tests).
#   bash launch/local_multiprocess.sh 4 2 train --gin_file=RUN.gin    # 4 processes × 2 CPU devices
#   bash launch/local_multiprocess.sh --dry-run 4 2 train …           # only prints the commands
# Exit code: the first non-zero one. SIGTERM, SIGHUP and Ctrl-C go to every process.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

dry_run=false
if [ "${1:-}" = "--dry-run" ]; then
    dry_run=true
    shift
fi
if [ $# -lt 3 ]; then
    echo "usage: launch/local_multiprocess.sh [--dry-run] PROCESSES DEVICES_OF_EACH VERB …" >&2
    exit 2
fi
count="$1" devices="$2"
for number in "$count" "$devices"; do
    if ! [[ "$number" =~ ^[1-9][0-9]*$ ]]; then
        echo "gkd: error: $number is no number of processes or devices: use 1 or more" >&2
        exit 2
    fi
done
shift 2
python="${PYTHON:-$root/.venv/bin/python}"
port="${GKD_PORT:-$((20000 + RANDOM % 20000))}"

export JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=$devices"
export GKD_COORDINATOR="127.0.0.1:$port" GKD_PROCESSES="$count"
children=()
stop() { for child in "${children[@]}"; do kill -TERM "$child" 2>/dev/null || true; done; }
trap stop TERM INT HUP
for ((number = 0; number < count; number++)); do
    if $dry_run; then
        echo "JAX_PLATFORMS=cpu XLA_FLAGS=$XLA_FLAGS GKD_COORDINATOR=$GKD_COORDINATOR" \
            "GKD_PROCESSES=$count GKD_PROCESS_ID=$number$(printf ' %q' "$python" -m gkd "$@")"
        continue
    fi
    GKD_PROCESS_ID="$number" "$python" -m gkd "$@" &
    children+=("$!")
done
result=0
for child in ${children[@]+"${children[@]}"}; do
    while true; do # a signal ends `wait` early
        code=0
        wait "$child" || code=$?
        kill -0 "$child" 2>/dev/null || break
    done
    if [ "$result" = 0 ]; then result="$code"; fi
done
exit "$result"
