#!/usr/bin/env bash
# Distils a pretrained FLAN-T5-small into 4 + 2 of its 8 + 8 layers on package descriptions: the teacher's
# fine-tuning, the student's layers and SFT initialisation, every method with three seeds, a table. A further
# call continues. Hours on two cores. More arguments are passed to the sweep.
#   GKD_DATA=/path/to/data GKD_VOCABULARY=/path/to/spiece.model bash launch/flan_t5_small.sh /path/to/flan_t5_small
# where /path/to/data/debian_synopsis holds train.jsonl.gz and val.jsonl.gz, and /path/to/flan_t5_small is a
# directory in Hugging Face's format, or google/flan-t5-small, a model on the Hub.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
model="${1:-}"
runs=runs/flan_t5_small

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

[ -n "$model" ] || fail "name the pretrained model: a Hugging Face directory, or google/flan-t5-small"
case "$model" in *[\'\"\\]*) fail "the model's name is $model: choose one without quotes" ;; esac
[ ! -d "$model" ] || model="$(cd "$model" && pwd)"
cd "$root"
[ -f "${GKD_DATA:-}/debian_synopsis/train.jsonl.gz" ] ||
    fail "GKD_DATA=${GKD_DATA:-} has no debian_synopsis/train.jsonl.gz: set it to the folder that holds it"
[ -f "${GKD_VOCABULARY:-}" ] ||
    fail "GKD_VOCABULARY=${GKD_VOCABULARY:-} is no file: set it to T5's sentencepiece model"

bash launch/setup.sh
gkd() { .venv/bin/python -m gkd "$@"; }

gkd train --gin_file=configs/runs/flan_t5_small/teacher.gin "--gin.STUDENT='$model'"
[ -d "$runs/layers" ] ||
    gkd convert "$runs/teacher" "$runs/layers" --keep_encoder_layers=0,2,5,7 --keep_decoder_layers=0,7
gkd train --gin_file=configs/runs/flan_t5_small/start.gin
gkd sweep --gin_file=configs/sweeps/flan_t5_small.gin "${@:2}"
gkd sweep --gin_file=configs/sweeps/flan_t5_small.gin "--gin.ACTION='table'"
