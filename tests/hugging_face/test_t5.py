"""Wrong types, absurd sizes and deep nesting in a checkpoint's JSON: one line, with the file."""

import json
import shutil

import pytest

from gkd.checkpoints import formats, hashes
from gkd.cli import command_line

DEEP = "[" * 100_000 + "]" * 100_000
CONFIG = [
    ("feed_forward_proj", 3), ("feed_forward_proj", ["relu"]), ("feed_forward_proj", True),
    ("dense_act_fn", {}), ("dropout_rate", "0.1"), ("dropout_rate", True), ("dropout_rate", -1),
    ("dropout_rate", float("nan")), ("num_decoder_layers", "2"), ("num_decoder_layers", 10**7),
    ("num_layers", 10**7), ("num_layers", 2.0), ("num_heads", 0), ("d_kv", None),
    ("vocab_size", 10**15), ("d_model", []), ("tie_word_embeddings", "true"),
    ("scale_decoder_outputs", 1), ("transformers_version", 5), ("tokenizer_class", 7),
    ("model_type", ["t5"]), ("eos_token_id", [1]), ("layer_norm_epsilon", "x"),
]  # fmt: skip


@pytest.fixture
def source(shared, tmp_path):
    """A writable copy of a Hugging Face directory."""
    return shutil.copytree(shared / "golden" / "hf" / "t5v11_tiny", tmp_path / "source")


def refused(folder, *words):
    with pytest.raises(ValueError, match=str(folder)) as caught:
        formats.open_checkpoint(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name, value", CONFIG)
def test_a_field_of_config_json(name, value, source):
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, name: value}))
    refused(source, "config.json", name)


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "", "[]", "{", '{"d_kv":8,"d_kv":9}'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "index"])
def test_json_that_is_none(name, text, source):
    if name == "index":
        name = "model.safetensors.index.json"
        (source / "model.safetensors").unlink()
    (source / name).write_text(text)
    refused(source, name)


def test_fields_of_a_runs_description(source, tmp_path, capfd):
    assert command_line.main(["convert", str(source), str(tmp_path / "run")]) == 0
    step = tmp_path / "run" / "checkpoints" / "0"
    file = step / "description" / "metadata"
    saved = json.loads(file.read_text())
    model = saved["description"]["model"]
    wrong = {
        "num_heads": "4", "vocab_size": 10**15, "num_encoder_layers": 10**7, "dtype": [],
        "mlp_activations": "relu", "dropout_rate": None, "family": {}, "stacked_layers": 1,
        "scale_logits": "yes", "embedding_copies": "x", "nothing_known": 1,
    }  # fmt: skip
    cases = [(name, {"model": {**model, name: value}}) for name, value in wrong.items()]
    cases += [("model", {"model": 3}), ("model", {}), ("size", {"vocabulary": {"size": "x"}})]
    cases += [("vocabulary", {"vocabulary": [1]})]
    for name, change in cases:
        described = {**saved["description"], **change} if change else {}
        file.write_text(json.dumps({**saved, "description": described}))
        (step / "hashes.json").unlink()
        hashes.write_hashes(step)
        refused(tmp_path / "run", name)
    for text in (DEEP, "", "[]", '{"description": 1}'):
        file.write_text(text)
        (step / "hashes.json").unlink()
        hashes.write_hashes(step)
        refused(tmp_path / "run", str(step))
    for text in (DEEP, "", '{"files": {"a": 1}}', '{"files": {"../../x": {}}}', '{"files": []}'):
        (step / "hashes.json").write_text(text)
        refused(tmp_path / "run", "hashes.json cannot be read")
