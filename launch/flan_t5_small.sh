#!/usr/bin/env bash
# Distils a pretrained FLAN-T5-small into 4 + 2 of its 8 + 8 layers on package descriptions: the teacher's
# fine-tuning, the student's layers and SFT initialisation, every method with three seeds, a table. A further
# call continues. Hours on two cores. More arguments are passed to the sweep.
#   GKD_DATA=/path/to/data GKD_VOCABULARY=/path/to/spiece.model bash launch/flan_t5_small.sh /path/to/flan_t5_small
# where /path/to/data/debian_synopsis holds train.jsonl.gz and val.jsonl.gz, and /path/to/flan_t5_small is
# the model's folder in Hugging Face's format.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
model="${1:-}"

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

[ -f "$model/config.json" ] || fail "$model has no config.json: name the pretrained model's folder"
model="$(cd "$model" && pwd)"
cd "$root"
[ -f "${GKD_DATA:-}/debian_synopsis/train.jsonl.gz" ] ||
    fail "GKD_DATA=${GKD_DATA:-} has no debian_synopsis/train.jsonl.gz: set it to the folder that holds it"
[ -f "${GKD_VOCABULARY:-}" ] ||
    fail "GKD_VOCABULARY=${GKD_VOCABULARY:-} is no file: set it to T5's sentencepiece model"

bash launch/setup.sh
gkd() { .venv/bin/python -m gkd "$@"; }

mkdir -p runs/public
[ -e runs/public/flan_t5_small ] || ln -s "$model" runs/public/flan_t5_small
gkd sweep --gin_file=configs/sweeps/flan_t5_small.gin "${@:2}"
gkd sweep --gin_file=configs/sweeps/flan_t5_small.gin "--gin.ACTION='table'"
