# Functions shared by tpu_vm.sh and gke_xpk.sh, which source this file.
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

call() { # runs one command, or with --dry-run prints it, quoted for a shell
    if $dry_run; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

check() { # keep|ship|both VERB …: refuses results that would be lost and files that are not shipped
    local bucket
    bucket="$(${PYTHON:-python3} "$root/launch/check_command.py" "$@")" || exit 2
    if [ -n "$bucket" ]; then BUCKETS="${BUCKETS:-} gs://$bucket"; fi
}

relative() { # WORDS, into `words`: paths of gin files relative to the clone, as on the hosts
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

archive() { # OPTIONS of `git archive`: the committed files of this checkout
    if ! $dry_run && [ -n "$(git -C "$root" status --porcelain --untracked-files=no)" ]; then
        say "warning: uncommitted changes are not shipped"
    fi
    call git -C "$root" archive "$@" HEAD
}

named_buckets() { # lists the buckets in WORDS, GKD_ENVIRONMENT and BUCKETS
    { grep -oE 'gs://[a-z0-9][a-z0-9._-]+' <<<"$* ${GKD_ENVIRONMENT:-} ${BUCKETS:-}" || true; } |
        cut -c6- | sort -u
}

# The run's environment appears on command lines and in descriptions of workloads: no secrets there.
names='\<[a-z0-9_]*(token|secret|password|credential|api_?key)[a-z0-9_]*='
secret="$(grep -oiE "$names" <<<"${GKD_ENVIRONMENT:-}" || true)"
[ -z "$secret" ] || fail "GKD_ENVIRONMENT sets ${secret%%=*}, and what it holds is printed and \
stored: give the hosts' service account the access instead"

if [ "${1:-}" = "--dry-run" ]; then
    dry_run=true
    shift
fi
