#!/usr/bin/env bash
# Runs a command on all hosts of a Cloud TPU slice; a preempted slice is created again.
#   export TPU_NAME=gkd TPU_ZONE=us-west4-a TPU_TYPE=v5litepod-16 TPU_VERSION=v2-alpha-tpuv5-lite
#   bash launch/tpu_vm.sh all train --gin_file=configs/runs/xsum/small.gin \
#       '--gin.MODEL_DIR="gs://my-bucket/small"'
# The buckets in the command are mounted on every host. `all` creates the slice, installs, runs
# and follows the log, continues after a preemption, and deletes the slice at the end; Ctrl-C or SIGTERM
# to it lets the run save first. It refuses a MODEL_DIR (output, …) outside of a bucket, which would be
# deleted too (KEEP_NOTHING=1 allows it), gin files that are not committed, and a slice of that name
# that another command created; it does not delete a slice that does not respond. The single actions: create,
# install, run VERB …, logs, stop (the run saves), status, delete (the run saves first). `--dry-run`
# first only prints the commands. Also: TPU_SPOT=1, TPU_QUEUED=1 (a queued resource), TPU_PROJECT,
# RESTARTS=20, BUCKETS="gs://… …" (that gin files name), GKD_ENVIRONMENT="NAME=VALUE …" for the run
# (GKD_VOCABULARY=gs://…; no secrets).
# Exit code of `run` and `all`: the run's (0 done, 1 failed, 2 wrong configuration, 75 stopped), 255
# where the slice does not answer.
[ "${BASH_VERSINFO[0]}" -ge 4 ] || { echo "gkd: error: bash is older than 4: install a newer one" >&2 && exit 2; }
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"
stopped=75 lost=76 # the run's exit codes, when it saved, and when a process was lost
silent=255         # the slice does not answer
pause="${GKD_RETRY_SECONDS:-60}"
signature="" # of the command that made the slice: `all` goes on with no other's
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

state() { # READY or the like; gone; unknown where there is no answer
    local answer errors
    errors="$(mktemp)"
    if answer="$(status 2>"$errors")"; then
        echo "${answer:-unknown}"
    elif grep -qiE 'not[_ ]found' "$errors"; then
        echo gone
    else
        echo unknown
    fi
    rm -f "$errors"
}

# The run is a child of the shell whose number is in run.pid, and which writes run.code at its end.
ended="tail --pid=\$(cat run.pid) -f /dev/null"
ask="{ [ -e run.pid ] && pkill -TERM -P \$(cat run.pid); }"

install() { # what git has of this checkout, its requirements and libtpu
    local file="${TMPDIR:-/tmp}/gkd-$$.tar.gz" setup="bash gkd/launch/setup.sh"
    archive --format=tar.gz "--output=$file" &&
        call gcloud compute tpus tpu-vm scp "$file" "$TPU_NAME:gkd.tar.gz" "${where[@]:1}" \
            --worker=all || return
    call rm -f "$file"
    # Ubuntu 22.04 has Python 3.10 until asked for more; a new host may still be installing updates.
    local python="sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y"
    on all "{ ! { cd gkd 2>/dev/null && $ask; } || timeout 600 $ended || true; } && \
cd && rm -rf gkd/gkd gkd/configs && mkdir -p gkd && tar -xzf gkd.tar.gz -C gkd && \
${signature:+echo $signature >gkd.launch && }\
{ $setup || { sudo apt-get -qq update && { $python python3.11-venv || $python python3-venv; } && \
$setup; }; } && \
gkd/.venv/bin/python -m pip install --quiet 'jax[tpu]' --constraint gkd/constraints.txt"
}

# A host's command for BUCKETS. Nothing is cached: another host may have written meanwhile.
mount_all() {
    local bucket
    [ $# -eq 0 ] || echo -n "{ command -v gcsfuse >/dev/null || \
{ curl -fsSLo /tmp/gcsfuse.deb $gcsfuse && \
sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y /tmp/gcsfuse.deb; }; } && "
    for bucket in "$@"; do
        echo -n "{ mountpoint -q $mounts/$bucket || { sudo mkdir -p $mounts/$bucket && \
sudo chown \$(id -u) $mounts/$bucket && gcsfuse --implicit-dirs --rename-dir-limit=100000 \
--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 $bucket $mounts/$bucket; }; } && "
    done
}

run() { # VERB …, detached, so that a lost connection does not end it; one that goes on there ends first
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

own() { # the slice of that name that exists: whether the same command made it
    local found
    $owned || { found="$(on 0 "cat gkd.launch 2>/dev/null || true")" &&
        [ "${found##*$'\n'}" = "$signature" ]; }
}

obtain() { # a slice that is ready and this command's; waits while there is no capacity
    local errors state tries=5
    errors="$(mktemp)"
    while ! $stopping; do
        state=gone
        if ! $dry_run; then state="$(state)"; fi
        case "$state" in
            READY) if own; then owned=true && break; fi ;;&
            unknown)
                tries=$((tries - 1))
                [ "$tries" -gt 0 ] || return 1
                sleep "$pause"
                continue
                ;;
            gone) if $owned && [ -n "$TPU_QUEUED" ]; then delete >/dev/null 2>&1 || true; fi ;;
            *)
                if ! $owned; then
                    say "slice $TPU_NAME exists already ($state), made by another command: choose \
another TPU_NAME, or delete it first"
                    return 2
                fi
                delete >/dev/null 2>&1 || true
                ;;
        esac
        if { request 2>&1 >&3 | tee "$errors" >&2; } 3>&1; then
            owned=true
            granted && break
            say "the request in the queue failed: it is made again"
            continue
        elif grep -qiE 'already[_ ]exists' "$errors" && ! $owned; then
            return 2 # made by another meanwhile: it is not this command's to delete
        fi
        owned=true # it may have been made all the same
        grep -qiE 'capacity|resource_exhausted|stockout' "$errors" || $stopping || return 1
        say "no capacity: the slice is asked for again in $pause s"
        sleep "$pause"
    done
    rm -f "$errors"
}

lock() { # of this machine, one launch at a time for a slice
    local folder="${XDG_CACHE_HOME:-$HOME/.cache}/gkd" other
    lock="$folder/slice-$TPU_ZONE-$TPU_NAME"
    mkdir -p "$folder"
    if ! (set -C && echo $$ >"$lock") 2>/dev/null; then
        other="$(cat "$lock")"
        case "$(ps -p "${other:-0}" -o args= 2>/dev/null)" in
            *tpu_vm.sh*) fail "slice $TPU_NAME is in use by another launch (process $other of this \
machine): wait for it, stop it, or choose another TPU_NAME" ;;
        esac
        echo $$ >"$lock"
    fi
    trap 'rm -f "$lock"' EXIT
}

all() {
    [ $# -gt 0 ] || fail "all of what? e.g. all train --gin_file=FILE"
    check both "$@"
    local code restarts=0 TPU_QUEUED="${TPU_QUEUED:-}" owned=false begun=false keep=false
    signature="$(printf '%q ' "$@" | cksum | tr ' ' -)"
    $dry_run || lock
    trap 'stopping=true; say "the run saves, then the slice is deleted"; stop || true' TERM INT HUP
    while true; do
        code=0
        obtain || code=$?
        if [ "$code" = 0 ] && ! $stopping; then
            begun=true
            { install || $stopping || { sleep "$pause" && install; }; } || code=1
            if [ "$code" = 0 ] && ! $stopping; then run "$@" || code=$?; fi
        elif [ "$code" != 0 ]; then
            begun=false # there is no slice that could have been preempted
        fi
        if [ "$code" = "$silent" ]; then
            case "$(state)" in # the run may go on there, and have something to save
                READY | unknown)
                    say "slice $TPU_NAME does not answer: it is left as it is; the same command continues"
                    keep=true
                    break
                    ;;
            esac
        fi
        if $stopping && { [ "$code" -gt 2 ] || ! $begun; }; then code=$stopped; fi
        if $dry_run || $stopping || ! $begun; then break; fi
        case "$code" in 0 | 2) break ;; esac
        case "$(state)" in
            READY | unknown)
                [ "$code" = "$stopped" ] || [ "$code" = "$lost" ] || break
                restarts=$((restarts + 1))
                [ "$restarts" -le "${RESTARTS:-20}" ] || break
                say "the run was interrupted (exit code $code): it continues"
                ;;
            *) say "the slice was preempted: it is made again and the run continues" ;;
        esac
        sleep "$pause"
    done
    if $keep || ! $owned; then return "$code"; fi
    case "$code" in
        0 | "$stopped") ;;
        *) on all "tail -n 20 gkd/run.log 2>/dev/null || true" >&2 || true ;; # it goes with the hosts
    esac
    trap - TERM INT HUP
    delete || say "warning: $TPU_NAME could not be deleted: look whether it still exists"
    return "$code"
}

end() { # deletes the slice; a run that goes on there saves first
    on all "cd gkd && { ! $ask || timeout 600 $ended; } || true" || true
    delete
}

case "$action" in
    delete) end ;;
    run)
        [ $# -gt 0 ] || fail "run what? e.g. run train --gin_file=FILE"
        check ship "$@"
        relative "$@"
        run "${words[@]}"
        ;;
    all)
        relative "$@"
        all "${words[@]}"
        ;;
    create | install | logs | stop | status) "$action" "$@" ;;
    *) fail "action ${action:-missing}: use create, install, run, logs, stop, status, delete or all" ;;
esac
