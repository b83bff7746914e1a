#!/usr/bin/env bash
# Runs a command on GKE as an xpk workload (a JobSet that Kubernetes restarts after a preemption).
#   export GKE_CLUSTER=my-cluster GKE_ZONE=us-west4-a
#   export TPU_TYPE=v5litepod-256 GKD_IMAGE=…/gkd:latest
#   bash launch/gke_xpk.sh image                     # build the image from the last commit, and push it
#   bash launch/gke_xpk.sh attach gs://my-bucket     # once per cluster and bucket
#   bash launch/gke_xpk.sh run gkd-large train --gin_file=configs/runs/xsum/large.gin \
#       '--gin.MODEL_DIR="gs://my-bucket/large"'
#   bash launch/gke_xpk.sh logs gkd-large            # also: wait gkd-large, list, delete gkd-large
# The buckets in the command are mounted. `all NAME VERB …` does run, wait and delete (for
# sweeps); Ctrl-C or SIGTERM to it deletes the workload, which saves first. A MODEL_DIR (output, …)
# outside of a bucket is refused, as it is lost with its pod (KEEP_NOTHING=1 allows it), and so are gin
# files that are not committed (and so not in the image), and an existing workload of that name. A first `--dry-run` only prints the commands. Also: GKE_PROJECT, SLICES=2, RESTARTS=20,
# BUCKETS="gs://… …" (that gin files name), GKD_ENVIRONMENT="NAME=VALUE …" (no secrets).
# Exit code of `wait` and `all`: 0 done, 1 failed (see the log) or not to be followed, 75 stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"
action="${1:-}"
shift || true

image() {
    need GKD_IMAGE
    if $dry_run; then
        printf '%s| ' "$(archive --format=tar)"
    fi
    local build=(docker build "--tag=$GKD_IMAGE" -)
    if $dry_run; then call "${build[@]}"; else archive --format=tar | "${build[@]}"; fi
    call docker push "$GKD_IMAGE"
}

storage() { # what xpk calls a BUCKET
    tr '_.' '--' <<<"$1"
}

attach() { # nothing is cached: another host may have written meanwhile
    local bucket
    bucket="$(BUCKETS='' GKD_ENVIRONMENT='' named_buckets "$workload")"
    [ -n "$bucket" ] || fail "attach which bucket? e.g. attach gs://my-bucket"
    call xpk storage attach "$(storage "$bucket")" "${where[@]}" --type=gcsfuse \
        "--bucket=$bucket" "--mount-point=$mounts/$bucket" --readonly=false --size=1 \
        --auto-mount=false "--mount-options=implicit-dirs,rename-dir-limit=100000,\
metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"
}

run() { # OPTIONS of xpk -- VERB …
    local options=() command bucket
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    need TPU_TYPE GKD_IMAGE
    [ $# -gt 0 ] || fail "run what? e.g. run $workload train --gin_file=FILE"
    check both "$@"
    relative "$@"
    set -- "${words[@]}"
    for bucket in $(named_buckets "$@"); do
        options+=("--storage=$(storage "$bucket")")
    done
    # `exec`: SIGTERM goes to the process that xpk starts. 75 and 76 are for another start, which
    # xpk would otherwise take for a failure of the whole.
    command="exec ${GKD_ENVIRONMENT:+env $GKD_ENVIRONMENT }$(printf '%q ' python -m gkd "$@")"
    # "n": xpk asks whether to overwrite a workload of that name, which may be somebody else's.
    call xpk workload create "${where[@]}" "--workload=$workload" "--tpu-type=$TPU_TYPE" \
        "--num-slices=${SLICES:-1}" "--docker-image=$GKD_IMAGE" \
        "--max-restarts=${RESTARTS:-20}" --restart-on-exit-codes=75,76 \
        --termination-grace-period-seconds=300 ${options[@]+"${options[@]}"} "--command=$command" <<<n
}

await() { # the workload's end: 0 done, 1 failed or deleted; 2 where it cannot be followed
    local code child tries=5
    while true; do
        call xpk workload list "${where[@]}" "--wait-for-job-completion=$workload" &
        child=$!
        while true; do # a signal ends `wait` early
            code=0
            wait "$child" || code=$?
            kill -0 "$child" 2>/dev/null || break
        done
        if $stopping || [ "$code" = 0 ] || [ "$code" = 125 ]; then break; fi
        tries=$((tries - 1)) # 124 after xpk's week; all else is the network's
        [ "$tries" -gt 0 ] || return 2
        sleep "${GKD_RETRY_SECONDS:-60}"
    done
    [ "$code" = 0 ]
}

delete() {
    call xpk workload delete "${where[@]}" "--workload=$workload" --quiet
}

all() {
    local code=0
    trap 'stopping=true; say "the workload is deleted; it saves first"; delete || true' TERM INT HUP
    run -- "$@" || return
    say "the log: bash launch/gke_xpk.sh logs $workload"
    await || code=$?
    trap - TERM INT HUP
    if $stopping; then return 75; fi
    if [ "$code" = 2 ]; then # it may go on
        say "workload $workload could not be followed: it is left as it is; \
bash launch/gke_xpk.sh wait $workload"
        return 1
    fi
    delete || say "warning: workload $workload could not be deleted"
    return "$code"
}

if [ "$action" = image ]; then
    image
    exit
fi
need GKE_CLUSTER GKE_ZONE
where=("--cluster=$GKE_CLUSTER" "--zone=$GKE_ZONE" ${GKE_PROJECT:+"--project=$GKE_PROJECT"})
workload="${1:-}"
if [ "$action" != list ]; then
    [ -n "$workload" ] || fail "${action:-do what with} which workload? e.g. run gkd-large train …"
    shift
fi
case "$action" in
    run) run -- "$@" ;;
    wait) await || exit 1 ;;
    logs)
        call kubectl logs --follow --all-containers --tail=-1 --max-log-requests=1000 \
            "--selector=jobset.sigs.k8s.io/jobset-name=$workload"
        ;;
    list) call xpk workload list "${where[@]}" ;;
    all | attach | delete) "$action" "$@" ;;
    *) fail "action ${action:-missing}: use image, attach, run, wait, all, logs, list or delete" ;;
esac
