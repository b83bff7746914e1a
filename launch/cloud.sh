# What tpu_vm.sh and gke_xpk.sh share; they source it.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
mounts=/buckets # on every host: gs://NAME/path is /buckets/NAME/path, see gkd/configuration/buckets.py
dry_run=false
stopping=false

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

say() {
    echo "gkd: $1" >&2
}

need() { # NAMES of variables that must be set
    local name
    for name in "$@"; do
        [ -n "${!name:-}" ] || fail "set $name (see the top of launch/$(basename "$0"))"
    done
}

call() { # one command; or printed, so that a shell would read it as it is run
    if $dry_run; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

check() { # keep|ship|both VERB …: refuses what would be lost, or does not go along
    local bucket
    bucket="$(${PYTHON:-python3} "$root/launch/check_command.py" "$@")" || exit 2
    if [ -n "$bucket" ]; then BUCKETS="${BUCKETS:-} gs://$bucket"; fi
}

relative() { # WORDS, into `words`: gin files of this clone as the hosts' clone has them
    words=()
    local word
    for word in "$@"; do
        case "$word" in
            "--gin_file=$root/"* | "--task=$root/"*) word="${word%%=*}=${word#*="$root/"}" ;;
            "$root/"*.gin) word="${word#"$root/"}" ;;
        esac
        words+=("$word")
    done
}

archive() { # OPTIONS of `git archive`: what git has of this checkout
    if ! $dry_run && [ -n "$(git -C "$root" status --porcelain --untracked-files=no)" ]; then
        say "warning: what is not committed does not go along"
    fi
    call git -C "$root" archive "$@" HEAD
}

named_buckets() { # the buckets that WORDS, GKD_ENVIRONMENT and BUCKETS name
    { grep -oE 'gs://[a-z0-9][a-z0-9._-]+' <<<"$* ${GKD_ENVIRONMENT:-} ${BUCKETS:-}" || true; } |
        cut -c6- | sort -u
}

# The run's environment is on command lines and in descriptions of workloads: it can keep no secret.
names='\<[a-z0-9_]*(token|secret|password|credential|api_?key)[a-z0-9_]*='
secret="$(grep -oiE "$names" <<<"${GKD_ENVIRONMENT:-}" || true)"
[ -z "$secret" ] || fail "GKD_ENVIRONMENT sets ${secret%%=*}, and what it holds is printed and \
stored: give the hosts' service account the access instead"

if [ "${1:-}" = "--dry-run" ]; then
    dry_run=true
    shift
fi
