#!/usr/bin/env bash
# A run on GKE as an xpk workload (a JobSet that Kubernetes starts again after a preemption).
#   export GKE_CLUSTER=my-cluster GKE_ZONE=us-west4-a TPU_TYPE=v5litepod-256 GKD_IMAGE=…/gkd:latest
#   bash launch/gke_xpk.sh image                        # build the Dockerfile and push it
#   bash launch/gke_xpk.sh run gkd-large train --gin_file=configs/runs/xsum/large.gin …
#   bash launch/gke_xpk.sh logs gkd-large               # also: list, delete gkd-large
# `--dry-run` first only prints the commands. Also: GKE_PROJECT, SLICES=2, RESTARTS=20,
# GKD_ENVIRONMENT="NAME=VALUE …". Keep MODEL_DIR on a bucket that the cluster mounts (Cloud Storage FUSE).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

call() {
    if $dry_run; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

need() {
    local name
    for name in "$@"; do
        [ -n "${!name:-}" ] || fail "set $name (see the top of launch/gke_xpk.sh)"
    done
}

dry_run=false
if [ "${1:-}" = "--dry-run" ]; then
    dry_run=true
    shift
fi
action="${1:-}"
shift || true

if [ "$action" = image ]; then
    need GKD_IMAGE
    call docker build "--tag=$GKD_IMAGE" "$root"
    call docker push "$GKD_IMAGE"
    exit
fi
need GKE_CLUSTER GKE_ZONE
where=("--cluster=$GKE_CLUSTER" "--zone=$GKE_ZONE" ${GKE_PROJECT:+"--project=$GKE_PROJECT"})
workload="${1:-}"
if [ "$action" != list ]; then
    [ -n "$workload" ] || fail "$action which workload? e.g. $action gkd-large"
    shift
fi

case "$action" in
    run)
        need TPU_TYPE GKD_IMAGE
        [ $# -gt 0 ] || fail "run what? e.g. run $workload train --gin_file=FILE"
        command="${GKD_ENVIRONMENT:+env $GKD_ENVIRONMENT }$(printf '%q ' python -m gkd "$@")"
        call xpk workload create "${where[@]}" "--workload=$workload" "--tpu-type=$TPU_TYPE" \
            "--num-slices=${SLICES:-1}" "--docker-image=$GKD_IMAGE" \
            "--max-restarts=${RESTARTS:-20}" "--command=$command"
        ;;
    logs)
        call kubectl logs --follow --all-containers "--selector=jobset.sigs.k8s.io/jobset-name=$workload" \
            --max-log-requests=1000
        ;;
    list) call xpk workload list "${where[@]}" ;;
    delete) call xpk workload delete "${where[@]}" "--workload=$workload" ;;
    *) fail "action ${action:-missing}: use image, run, logs, list or delete" ;;
esac
