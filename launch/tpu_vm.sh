#!/usr/bin/env bash
# A run on a Cloud TPU slice: every host of it runs the same command; a preempted one is made again.
#   export TPU_NAME=gkd TPU_ZONE=us-west4-a TPU_TYPE=v5litepod-16 TPU_VERSION=v2-alpha-tpuv5-lite
#   export BUCKET=gs://my-bucket            # appears as ~/bucket on every host: keep MODEL_DIR there
#   bash launch/tpu_vm.sh all train --gin_file=configs/runs/xsum/small.gin '--gin.MODEL_DIR="bucket/a"'
# Actions: create, install, run VERB …, logs, status, delete; `all VERB …` does create, install and run,
# again after each preemption, and then deletes. `--dry-run` first only prints the commands.
# Also: TPU_SPOT=1, TPU_PROJECT, GKD_ENVIRONMENT="NAME=VALUE …" for the run (GKD_VOCABULARY, GKD_DATA).
# Exit code of `run` and `all`: the run's (0 done, 1 failed, 2 wrong configuration).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
stopped=75 # after SIGTERM, all saved

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

dry_run=false
if [ "${1:-}" = "--dry-run" ]; then
    dry_run=true
    shift
fi
action="${1:-}"
shift || true
for name in TPU_NAME TPU_ZONE; do
    [ -n "${!name:-}" ] || fail "set $name (see the top of launch/tpu_vm.sh)"
done
where=("$TPU_NAME" "--zone=$TPU_ZONE" ${TPU_PROJECT:+"--project=$TPU_PROJECT"})

call() { # one command, printed so that a shell would read it as it is run
    if $dry_run; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

tpu() { # ACTION ARGUMENTS of `gcloud compute tpus tpu-vm`
    local what="$1"
    shift
    call gcloud compute tpus tpu-vm "$what" "${where[@]}" "$@"
}

on() { # WORKERS COMMAND on hosts of the slice
    tpu ssh "--worker=$1" "--command=$2"
}

create() {
    for name in TPU_TYPE TPU_VERSION; do
        [ -n "${!name:-}" ] || fail "set $name (see the top of launch/tpu_vm.sh)"
    done
    tpu create "--accelerator-type=$TPU_TYPE" "--version=$TPU_VERSION" ${TPU_SPOT:+--spot}
}

install() { # what git has of this checkout, its requirements and libtpu
    local archive="${TMPDIR:-/tmp}/gkd-$$.tar.gz"
    call git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
    call gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:gkd.tar.gz" "${where[@]:1}" \
        --worker=all
    call rm -f "$archive"
    on all "mkdir -p gkd && tar -xzf gkd.tar.gz -C gkd && bash gkd/launch/setup.sh && \
gkd/.venv/bin/python -m pip install --quiet 'jax[tpu]' --constraint gkd/constraints.txt"
    if [ -n "${BUCKET:-}" ]; then
        on all "mkdir -p gkd/bucket && { mountpoint -q gkd/bucket || \
gcsfuse --implicit-dirs --rename-dir-limit=100000 $(printf '%q' "${BUCKET#gs://}") gkd/bucket; }"
    fi
}

run() { # detached, so that a lost connection does not end it; its exit code stays in run.code
    [ $# -gt 0 ] || fail "run what? e.g. run train --gin_file=FILE"
    local command environment=""
    command="$(printf '%q ' .venv/bin/python -m gkd "$@")"
    if [ -n "${GKD_ENVIRONMENT:-}" ]; then environment="env $GKD_ENVIRONMENT "; fi
    local detached="$environment$command>run.log 2>&1; echo \$? >run.code"
    on all "cd gkd && rm -f run.code && : >run.log && \
{ nohup bash -c $(printf '%q' "$detached") >/dev/null 2>&1 & echo \$! >run.pid; }"
    logs
    finished_code
}

logs() { # the first host's, until the run ends
    on 0 "cd gkd && tail -n +1 -f --pid=\$(cat run.pid) run.log" || true
}

finished_code() { # the run's exit code; 255 where the slice does not answer
    if $dry_run; then
        on 0 "cat gkd/run.code"
        return 0
    fi
    local code
    code="$(on 0 "cat gkd/run.code")" || return 255
    return "$code"
}

status() {
    tpu describe '--format=value(state)'
}

delete() {
    tpu delete --quiet
}

all() {
    local code
    while true; do
        create
        install
        code=0
        run "$@" || code=$?
        $dry_run && break
        if [ "$code" != "$stopped" ] && [ "$(status || echo gone)" = READY ]; then break; fi
        echo "gkd: the slice was preempted: it is made again and the run continues" >&2
        delete || true
        sleep "${GKD_RETRY_SECONDS:-60}"
    done
    delete
    return "$code"
}

case "$action" in
    create | install | run | logs | status | delete | all) "$action" "$@" ;;
    *) fail "action ${action:-missing}: use create, install, run, logs, status, delete or all" ;;
esac
