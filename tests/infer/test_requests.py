"""Outputs whose numbers overflow."""

import json

from gkd.checkpoints import save_hf
from tests.infer.inference import CONFIG


def test_a_model_whose_numbers_overflow(run, model, tmp_path):
    norm = {"scale": model["decoder"]["decoder_norm"]["scale"] * 3e38}
    broken = {**model, "decoder": {**model["decoder"], "decoder_norm": norm}}
    save_hf(tmp_path / "broken", CONFIG, broken)
    assert run(run.write("in.txt", ["a"]), model=tmp_path / "broken") == 1
    run.refused("input 0 gives NaN log-probabilities")


def test_fields_of_a_row_that_json_or_utf8_has_not(run):
    row = '{"input": "a", "n": NaN, "big": 1e400, "half": "\\ud83d", "rate": 1.50}'
    assert run(run.write("in.jsonl", [row])) == 0

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    line = (run.folder / "out.jsonl").read_text("utf-8")
    others = json.loads(line, parse_constant=refuse)
    assert (others["n"], others["big"], others["half"]) == (None, "1e400", "\ud83d")
    assert '"rate": 1.5' in line
