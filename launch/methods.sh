#!/usr/bin/env bash
# Every method of the paper beside the others at a size for two cores: one start, the same updates,
# three seeds, a table of means and intervals. Run again, it goes on where it stood.
#   bash launch/methods.sh arithmetic
#   GKD_DATA=/path/to/data bash launch/methods.sh translation    # needs tatoeba_en_de in there
#   GKD_DATA=/path/to/data bash launch/methods.sh summaries      # needs debian_synopsis in there
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
task="${1:-}"
cd "$root"

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

case "$task" in
    arithmetic) ;;
    translation) fields=en,de file=tatoeba_en_de/train.jsonl ;;
    summaries) fields=document,summary file=debian_synopsis/train.jsonl.gz ;;
    *) fail "task '$task': choose arithmetic, translation or summaries" ;;
esac
runs="runs/small_$task"
configs="configs/runs/small_$task"
[ -z "${file:-}" ] || [ -f "${GKD_DATA:-}/$file" ] ||
    fail "GKD_DATA=${GKD_DATA:-} has no $file: set it to the folder that holds it"

bash launch/setup.sh
gkd() { .venv/bin/python -m "$@"; }

if [ -n "${file:-}" ] && [ ! -f "$runs/vocabulary.model" ]; then
    gkd gkd.data.train_sentencepiece "$runs/vocabulary.model" 2000 "$fields" "$file"
fi
for run in teacher start; do
    gkd gkd train --gin_file="$configs/$run.gin"
done
# SeqKD's data: the teacher's greedy outputs for the prompts that the student sees.
gkd gkd infer --model "$runs/teacher" --step best --task "$configs/student.gin" --split train \
    --output "$runs/teacher_outputs.jsonl" --input_length 64 --max_length 24 --batch_size 64
gkd gkd sweep --gin_file="configs/sweeps/small_$task.gin"
gkd gkd sweep --gin_file="configs/sweeps/small_$task.gin" "--gin.ACTION='table'"
