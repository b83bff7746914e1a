#!/usr/bin/env bash
# Translation of real text with T5's own vocabulary: a teacher, SFT of a student, supervised KD and
# on-policy GKD, then a table. A further call continues.
#   GKD_DATA=/path/to/data GKD_VOCABULARY=/path/to/spiece.model bash launch/translation.sh
# where /path/to/data/tatoeba_en_de holds train.jsonl and val.jsonl. GKD_RUNS=/path holds the four run
# directories; arguments are passed to all four runs. Relative paths start at the repository:
#   GKD_RUNS=runs/second_seed … bash launch/translation.sh --gin.SEED=1
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
task=tatoeba_en_de
runs="${GKD_RUNS:-runs/$task}"
cd "$root"

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

[ -f "${GKD_DATA:-}/$task/train.jsonl" ] ||
    fail "GKD_DATA=${GKD_DATA:-} has no $task/train.jsonl: set it to the folder that holds $task"
[ -f "${GKD_VOCABULARY:-}" ] ||
    fail "GKD_VOCABULARY=${GKD_VOCABULARY:-} is no file: set it to T5's sentencepiece model"
case "$runs" in *[\'\"\\]*) fail "GKD_RUNS=$runs: choose a name without quotes" ;; esac

bash launch/setup.sh

train() { # the run file's name, then overrides
    echo "gkd: $1 → $runs/$1" >&2
    .venv/bin/python -m gkd train --gin_file="configs/runs/$task/$1.gin" \
        "--gin.MODEL_DIR='$runs/$1'" "${@:2}"
}

models=("--gin.STUDENT='$runs/start'" "--gin.TEACHER='$runs/teacher'")
train teacher "$@"
train start "$@"
train supervised_kd "${models[@]}" "$@"
train gkd "${models[@]}" "$@"

.venv/bin/python - "$runs" <<'PYTHON'
import json
import pathlib
import sys

names = {
    "teacher": "teacher",
    "start": "student's start (SFT)",
    "supervised_kd": "supervised KD (λ=0)",
    "gkd": "on-policy GKD (λ=1)",
}
runs = {name: json.loads(pathlib.Path(sys.argv[1], name, "summary.json").read_text()) for name in names}
start = runs["start"]["evaluation"]["bleu"]
print("\n| model | parameters | steps | seconds per step | BLEU | gain over SFT |")
print("| --- | ---: | ---: | ---: | ---: | ---: |")
for name, title in names.items():
    run = runs[name]
    bleu, seconds = run["evaluation"]["bleu"], run["seconds_per_step"]
    gain = f"{bleu - start:+.2f}" if name in ("supervised_kd", "gkd") else ""
    seconds = "" if seconds is None else f"{seconds:.2f}"
    print(f"| {title} | {run['parameters']:,} | {run['steps']} | {seconds} | {bleu:.2f} | {gain} |")
PYTHON
