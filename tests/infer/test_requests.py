"""Outputs whose numbers overflow."""

from gkd.checkpoints import save_hf
from tests.infer.inference import CONFIG


def test_a_model_whose_numbers_overflow(run, model, tmp_path):
    norm = {"scale": model["decoder"]["decoder_norm"]["scale"] * 3e38}
    broken = {**model, "decoder": {**model["decoder"], "decoder_norm": norm}}
    save_hf(tmp_path / "broken", CONFIG, broken)
    assert run(run.write("in.txt", ["a"]), model=tmp_path / "broken") == 1
    run.refused("input 0 gives NaN log-probabilities")
