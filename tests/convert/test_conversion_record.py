"""The record of a conversion, by which a later one is compared with it."""

import json

import numpy as np

from gkd.checkpoints import save_hf
from gkd.checkpoints.tensors import as_tensors
from gkd.cli import command_line
from gkd.convert.conversion_record import conversion_changes
from gkd.models.t5 import T5Config

CONFIG = T5Config(
    vocab_size=40, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_encoder_layers=2,
    num_decoder_layers=2,
)  # fmt: skip


def parsed(*words):
    return command_line.parse_arguments(["convert", *map(str, words)]).arguments


def save(folder, seed):
    draws = np.random.default_rng(seed)
    params = {
        name: draws.normal(size=shape).astype(np.float32)
        for name, shape in CONFIG.parameter_shapes().items()
    }
    save_hf(folder, CONFIG, as_tensors(params))


def test_a_conversion_differs_by_its_arguments_and_by_its_sources_content(tmp_path):
    hf, run, out = tmp_path / "hf", tmp_path / "run", tmp_path / "out"
    save(hf, 0)
    assert command_line.main(["convert", str(hf), str(run)]) == 0
    words = (run, out, "--to=huggingface", "--keep_decoder_layers=0")
    assert command_line.main(["convert", *map(str, words)]) == 0
    assert conversion_changes(out, parsed(*words)) == []
    assert conversion_changes(run, parsed(hf, run)) == []
    other = (*words[:3], "--keep_decoder_layers=0,1", "--dtype=bfloat16")
    assert conversion_changes(out, parsed(*other)) == [
        "dtype None → 'bfloat16'", "keep_decoder_layers '0' → '0,1'",
    ]  # fmt: skip
    # The run is made again, at the same path.
    for path in (hf, run):
        path.rename(f"{path}.before")
    assert conversion_changes(out, parsed(*words)) == []  # moved
    save(hf, 1)
    assert command_line.main(["convert", str(hf), str(run)]) == 0
    step = run / "checkpoints" / "0"
    assert conversion_changes(out, parsed(*words)) == [f"SOURCE {step} has been trained again"]
    # Of an earlier version; damaged.
    record = out / "conversion.json"
    assert json.loads(record.read_text())["source"] == str(step)
    record.write_text("{")
    assert conversion_changes(out, parsed(*other)) == []
    record.unlink()
    assert conversion_changes(out, parsed(*other)) == []


def test_the_record_is_the_only_file_that_a_written_model_has_more(tmp_path):
    save(tmp_path / "hf", 0)
    words = ["convert", str(tmp_path / "hf"), str(tmp_path / "copy"), "--to=huggingface"]
    assert command_line.main(words) == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert written.pop("conversion.json")
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
