#!/usr/bin/env bash
# A run on a Cloud TPU slice: every host of it runs the same command; a preempted one is made again.
#   export TPU_NAME=gkd TPU_ZONE=us-west4-a TPU_TYPE=v5litepod-16 TPU_VERSION=v2-alpha-tpuv5-lite
#   bash launch/tpu_vm.sh all train --gin_file=configs/runs/xsum/small.gin \
#       '--gin.MODEL_DIR="gs://my-bucket/small"'
# The buckets that the command names are mounted on every host; MODEL_DIR belongs into one. `all`
# makes the slice, installs, runs and follows the log, goes on after a preemption, and deletes the
# slice at the end; Ctrl-C or SIGTERM to it lets the run save first. The single actions: create,
# install, run VERB …, logs, stop (the run saves), status, delete. `--dry-run` first only prints the
# commands. Also: TPU_SPOT=1, TPU_QUEUED=1 (a queued resource), TPU_PROJECT, RESTARTS=20,
# BUCKETS="gs://… …" (that gin files name), GKD_ENVIRONMENT="NAME=VALUE …" for the run
# (GKD_VOCABULARY=gs://…; no secrets).
# Exit code of `run` and `all`: the run's (0 done, 1 failed, 2 wrong configuration, 75 stopped).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"
stopped=75 lost=76 # the run's exit codes, when it saved, and when a process was lost
silent=255         # the slice does not answer
pause="${GKD_RETRY_SECONDS:-60}"
gcsfuse=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v3.7.1/gcsfuse_3.7.1_amd64.deb
action="${1:-}"
shift || true
need TPU_NAME TPU_ZONE
where=("$TPU_NAME" "--zone=$TPU_ZONE" ${TPU_PROJECT:+"--project=$TPU_PROJECT"} --quiet)

tpu() { # ACTION ARGUMENTS of `gcloud compute tpus tpu-vm`
    call gcloud compute tpus tpu-vm "$1" "${where[@]}" "${@:2}"
}

queue() { # ACTION ARGUMENTS of `gcloud compute tpus queued-resources`
    call gcloud compute tpus queued-resources "$1" "${where[@]}" "${@:2}"
}

on() { # WORKERS COMMAND on hosts of the slice
    tpu ssh "--worker=$1" "--command=$2"
}

request() { # a slice; it exists when this returns, or the request is in the queue
    need TPU_TYPE TPU_VERSION
    local type="--accelerator-type=$TPU_TYPE"
    if [ -n "${TPU_QUEUED:-}" ]; then
        queue create "--node-id=$TPU_NAME" "$type" "--runtime-version=$TPU_VERSION" \
            ${TPU_SPOT:+--spot}
    else
        tpu create "$type" "--version=$TPU_VERSION" ${TPU_SPOT:+--spot}
    fi
}

granted() { # waits for a request in the queue
    local state=""
    while [ -n "${TPU_QUEUED:-}" ] && ! $dry_run && ! $stopping; do
        state="$(queue describe '--format=value(state.state)')" || return
        case "$state" in
            ACTIVE) return ;;
            FAILED | SUSPEND*) return 1 ;;
        esac
        sleep "$pause"
    done
}

create() {
    request && granted
}

delete() {
    if [ -n "${TPU_QUEUED:-}" ]; then queue delete --force; else tpu delete; fi
}

status() {
    tpu describe '--format=value(state)'
}

install() { # what git has of this checkout, its requirements and libtpu
    local file="${TMPDIR:-/tmp}/gkd-$$.tar.gz" setup="bash gkd/launch/setup.sh"
    archive --format=tar.gz "--output=$file" &&
        call gcloud compute tpus tpu-vm scp "$file" "$TPU_NAME:gkd.tar.gz" "${where[@]:1}" \
            --worker=all || return
    call rm -f "$file"
    # Ubuntu 22.04 has Python 3.10 until asked for more; a new host may still be installing updates.
    local python="sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y"
    on all "rm -rf gkd/gkd gkd/configs && mkdir -p gkd && tar -xzf gkd.tar.gz -C gkd && \
{ $setup || { sudo apt-get -qq update && { $python python3.11-venv || $python python3-venv; } && \
$setup; }; } && \
gkd/.venv/bin/python -m pip install --quiet 'jax[tpu]' --constraint gkd/constraints.txt"
}

# A host's command for BUCKETS. Nothing is cached: another host may have written meanwhile.
mount_all() {
    local bucket
    [ $# -eq 0 ] || echo -n "{ command -v gcsfuse >/dev/null || \
{ curl -fsSLo /tmp/gcsfuse.deb $gcsfuse && sudo dpkg -i /tmp/gcsfuse.deb; }; } && "
    for bucket in "$@"; do
        echo -n "{ mountpoint -q $mounts/$bucket || { sudo mkdir -p $mounts/$bucket && \
sudo chown \$(id -u) $mounts/$bucket && gcsfuse --implicit-dirs --rename-dir-limit=100000 \
--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 $bucket $mounts/$bucket; }; } && "
    done
}

# The run is a child of the shell whose number is in run.pid, and which writes run.code at its end.
ended="tail --pid=\$(cat run.pid) -f /dev/null"
ask="{ [ -e run.pid ] && pkill -TERM -P \$(cat run.pid); }"

run() { # detached, so that a lost connection does not end it; one that goes on there ends first
    [ $# -gt 0 ] || fail "run what? e.g. run train --gin_file=FILE"
    local command detached buckets
    mapfile -t buckets < <(named_buckets "$@")
    command="$(printf '%q ' env "GKD_BUCKETS=$mounts" PYTHONUNBUFFERED=1)${GKD_ENVIRONMENT:-} "
    command+="$(printf '%q ' .venv/bin/python -m gkd "$@")"
    detached="$command>run.log 2>&1; echo \$? >run.code"
    on all "cd gkd && \
{ ! $ask || timeout 600 $ended || pkill -KILL -P \$(cat run.pid) || true; } && \
$(mount_all ${buckets[@]+"${buckets[@]}"})rm -f run.code && : >run.log && \
{ nohup bash -c $(printf '%q' "$detached") </dev/null >/dev/null 2>&1 & echo \$! >run.pid; }" || return
    follow
}

logs() { # [LINES] of the first host's, and what follows until the run ends
    on 0 "cd gkd && tail -n ${1:-+1} -f --pid=\$(cat run.pid) run.log" &
    local child=$!
    while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal ends `wait` early
}

follow() { # until the run ends; its exit code
    local answer lines=+1 tries=5
    while true; do
        logs "$lines"
        lines=0 # again only after a lost connection
        answer="$(on 0 "cd gkd && if kill -0 \$(cat run.pid) 2>/dev/null; then echo runs; \
else cat run.code 2>/dev/null || echo $lost; fi")" || answer=""
        if $dry_run; then
            echo "$answer"
            return
        fi
        case "${answer##*$'\n'}" in
            runs) tries=5 ;;
            "" | *[!0-9]*) # no answer: the slice is gone, or the network is for a while
                tries=$((tries - 1))
                [ "$tries" -gt 0 ] && [ "$(status || echo READY)" = READY ] || return "$silent" ;;
            *) return "${answer##*$'\n'}" ;;
        esac
        sleep "$((pause < 10 ? pause : 10))"
    done
}

stop() {
    on all "cd gkd && $ask || true"
}

obtain() { # a slice that is ready; waits while there is no capacity
    local errors state
    errors="$(mktemp)"
    while ! $stopping; do
        if ! $dry_run; then
            state="$(status 2>/dev/null || true)"
            if [ "$state" = READY ]; then break; fi
            if [ -n "$state$TPU_QUEUED" ]; then delete >/dev/null 2>&1 || true; fi
        fi
        if { request 2>&1 >&3 | tee "$errors" >&2; } 3>&1; then
            granted && break
            say "the request in the queue failed: it is made again"
            continue
        fi
        grep -qiE 'capacity|resource_exhausted|stockout' "$errors" || $stopping || return 1
        say "no capacity: the slice is asked for again in $pause s"
        sleep "$pause"
    done
    rm -f "$errors"
}

all() {
    local code restarts=0 TPU_QUEUED="${TPU_QUEUED:-}"
    trap 'stopping=true; say "the run saves, then the slice is deleted"; stop || true' TERM INT HUP
    while true; do
        code=0
        { obtain && { $stopping || install || { sleep "$pause" && install; }; }; } || code=1
        if $stopping; then
            code=$stopped
            break
        elif [ "$code" = 0 ]; then
            run "$@" || code=$?
        fi
        if $stopping && [ "$code" -gt 2 ]; then code=$stopped; fi # also where nothing had begun
        if $dry_run || $stopping; then break; fi
        if [ "$(status 2>/dev/null || echo gone)" != READY ]; then
            [ "$code" -gt 2 ] || break # it ended, or could not be made
            say "the slice was preempted: it is made again and the run continues"
        elif [ "$code" = "$stopped" ] || [ "$code" = "$lost" ]; then
            restarts=$((restarts + 1))
            [ "$restarts" -le "${RESTARTS:-20}" ] || break
            say "the run was interrupted (exit code $code): it continues"
        else
            break
        fi
        sleep "$pause"
    done
    trap - TERM INT HUP
    delete || say "warning: $TPU_NAME could not be deleted: look whether it still exists"
    return "$code"
}

case "$action" in
    create | install | run | logs | stop | status | delete | all) "$action" "$@" ;;
    *) fail "action ${action:-missing}: use create, install, run, logs, stop, status, delete or all" ;;
esac
