"""Folders of T5Gemma: both forms of config.json, a lossless round trip, what is refused."""

import json
import shutil

import pytest

from gkd.checkpoints import load_hf, save_hf


@pytest.fixture
def source(shared, tmp_path):
    """A writable copy of the folder."""
    return shutil.copytree(shared / "golden/t5gemma/t5gemma_tiny", tmp_path / "source")


def test_both_forms_of_the_config_are_one_architecture(source):
    config, _ = load_hf(source)
    shutil.copy(source / "config_hf4.json", source / "config.json")
    assert load_hf(source)[0] == config
    assert (config.encoder.emb_dim, config.decoder.emb_dim, config.start_id) == (32, 24, 2)
    assert config.special_ids.ends == (311,) and config.decoder.logits_soft_cap == 30


def test_a_round_trip_keeps_every_byte_and_the_architecture(source, tmp_path):
    config, params = load_hf(source)
    save_hf(tmp_path / "new", config, params)
    written = (tmp_path / "new/model.safetensors").read_bytes()
    assert written == (source / "model.safetensors").read_bytes()
    again, _ = load_hf(tmp_path / "new")
    assert again.describe() == config.describe()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda raw: raw.pop("encoder"), "has no encoder"),
        (lambda raw: raw["decoder"].pop("hidden_size"), "decoder has no hidden_size"),
        (lambda raw: raw["encoder"].update(vocab_size=383), "one vocabulary"),
        (lambda raw: raw["encoder"].update(num_hidden_layers=4), "layer_types needs 4"),
        (lambda raw: raw.update(eos_token_id="x"), "eos_token_id"),
    ],
)
def test_what_does_not_fit_is_named(source, change, words):
    (source / "generation_config.json").unlink()
    raw = json.loads((source / "config.json").read_text())
    change(raw)
    (source / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=words):
        load_hf(source)
