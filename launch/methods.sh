#!/usr/bin/env bash
# Compares all methods of the paper at a size for two cores: one SFT initialisation, equal numbers of
# updates, three seeds, a table of means and intervals. A further call continues. More arguments are
# passed to the sweep: bash launch/methods.sh arithmetic --gin.MAX_PARALLEL=2
#   bash launch/methods.sh arithmetic
#   GKD_DATA=/path/to/data bash launch/methods.sh translation    # needs tatoeba_en_de in there
#   GKD_DATA=/path/to/data bash launch/methods.sh summaries      # needs debian_synopsis in there
#   bash launch/methods.sh opsd    # self-distillation; or hint, opsdl, oisd, ssopd
#   bash launch/methods.sh lengths_arithmetic    # batches of similar lengths; or lengths_summaries
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
task="${1:-}"
sweep="small_$task"
cd "$root"

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

case "$task" in
    arithmetic) ;;
    hint | opsd | opsdl | oisd | ssopd) sweep="self_distillation_$task" ;;
    translation) fields=en,de file=tatoeba_en_de/train.jsonl ;;
    summaries) fields=document,summary file=debian_synopsis/train.jsonl.gz ;;
    lengths_arithmetic) sweep=length_buckets_arithmetic ;;
    lengths_summaries)
        sweep=length_buckets_summaries task=summaries
        fields=document,summary file=debian_synopsis/train.jsonl.gz
        ;;
    *) fail "task '$task': choose arithmetic, translation, summaries, hint, opsd, opsdl, oisd, ssopd, lengths_arithmetic or lengths_summaries" ;;
esac
vocabulary="runs/small_$task/vocabulary.model"
[ -z "${file:-}" ] || [ -f "${GKD_DATA:-}/$file" ] ||
    fail "GKD_DATA=${GKD_DATA:-} has no $file: set it to the folder that holds it"

bash launch/setup.sh
gkd() { .venv/bin/python -m "$@"; }

if [ -n "${file:-}" ] && [ ! -f "$vocabulary" ]; then
    gkd gkd.data.train_sentencepiece "$vocabulary" 2000 "$fields" "$file"
fi
gkd gkd sweep --gin_file="configs/sweeps/$sweep.gin" "${@:2}"
gkd gkd sweep --gin_file="configs/sweeps/$sweep.gin" "${@:2}" "--gin.ACTION='table'"
