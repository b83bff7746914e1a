#!/usr/bin/env bash
# Distils a pretrained model into some of its own layers: teacher, student's layers, SFT initialisation, every method
# with several seeds; a table, a verdict, a report page, and a student in Hugging Face's format, whose outputs are
# compared with the run's. A further call continues. Hours on two cores. More arguments are passed to the sweep.
#   GKD_DATA=/path/to/data GKD_VOCABULARY=/path/to/spiece.model bash launch/pretrained.sh flan_t5_small /path/to/model
#   GKD_DATA=/path/to/data bash launch/pretrained.sh smollm2_135m /path/to/model
# where /path/to/model is the model's folder in Hugging Face's format. The data: debian_synopsis, and gsm8k for SmolLM2.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
name="${1:-}" model="${2:-}"
sweep="--gin_file=configs/sweeps/$name.gin" runs="runs/$name"

fail() {
    echo "gkd: error: $1" >&2
    exit 2
}

files=(debian_synopsis/train.jsonl.gz)
case "$name" in
    flan_t5_small) task=student lengths=(--input_length=128 --max_length=24) ;;
    smollm2_135m) task=prompts lengths=(--input_length=192 --max_length=64) files+=(gsm8k/train.jsonl) ;;
    *) fail "model '$name': choose flan_t5_small or smollm2_135m" ;;
esac
[ -f "$model/config.json" ] || fail "$model has no config.json: name the pretrained model's folder"
model="$(cd "$model" && pwd)"
cd "$root"
for file in "${files[@]}"; do
    [ -f "${GKD_DATA:-}/$file" ] || fail "GKD_DATA=${GKD_DATA:-} has no $file: set it to the folder that holds it"
done
if [ "$name" = smollm2_135m ]; then
    export GKD_VOCABULARY="$model"
fi
[ -e "${GKD_VOCABULARY:-}" ] || fail "GKD_VOCABULARY=${GKD_VOCABULARY:-} is no file: set it to T5's sentencepiece model"

bash launch/setup.sh
gkd() { .venv/bin/python -m gkd "$@"; }

mkdir -p runs/public
[ -e "runs/public/$name" ] || ln -sfn "$model" "runs/public/$name"
[ "runs/public/$name" -ef "$model" ] ||
    fail "runs/public/$name is another folder than $model: the runs there have begun from it; move $runs and it away"
gkd sweep "$sweep" "${@:3}"
gkd sweep "$sweep" "${@:3}" "--gin.ACTION='table'"
gkd sweep "$sweep" "${@:3}" "--gin.ACTION='verdict'"
gkd report "$runs/methods"
student="$runs/methods/gkd_forward_kl/0"
[ -d "$runs/hugging_face" ] || gkd convert "$student" "$runs/hugging_face"
for source in "$student" "$runs/hugging_face"; do
    gkd infer "--model=$source" "--task=configs/runs/$name/$task.gin" --split=validation "${lengths[@]}" \
        "--output=$runs/outputs/$(basename "$(dirname "$source")")_$(basename "$source").jsonl"
done
cmp "$runs/outputs"/*.jsonl && echo "$runs/hugging_face writes the same outputs as $student"
