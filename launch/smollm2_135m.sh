#!/usr/bin/env bash
# Distils SmolLM2-135M-Instruct into its own first 10 of 30 layers: the teacher's answers, the student's SFT
# initialisation on them, supervised distillation and GKD with three seeds, a table, and the first student in
# Hugging Face's format. A further call continues. Hours on two cores. More arguments are passed to the sweep.
#   GKD_DATA=/path/to/data bash launch/smollm2_135m.sh /path/to/smollm2_135m
# where /path/to/data has gsm8k and debian_synopsis, and /path/to/smollm2_135m is the model's folder in
# Hugging Face's format.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
runs=runs/smollm2_135m

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

[ -f "${1:-}/config.json" ] || fail "${1:-} has no config.json: name the model's folder"
model="$(cd "$1" && pwd)"
cd "$root"
for name in gsm8k/train.jsonl debian_synopsis/train.jsonl.gz; do
    [ -f "${GKD_DATA:-}/$name" ] || fail "GKD_DATA=${GKD_DATA:-} has no $name: set it to the folder that holds it"
done
export GKD_VOCABULARY="$model"

bash launch/setup.sh
gkd() { .venv/bin/python -m gkd "$@"; }

mkdir -p runs/public
[ -e runs/public/smollm2_135m ] || ln -s "$model" runs/public/smollm2_135m
gkd sweep --gin_file=configs/sweeps/smollm2_135m.gin "${@:2}"
gkd sweep --gin_file=configs/sweeps/smollm2_135m.gin "--gin.ACTION='table'"
[ -d "$runs/hugging_face" ] || gkd convert "$runs/methods/gkd_forward_kl/0" "$runs/hugging_face"
