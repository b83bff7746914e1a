"""Folders of T5Gemma and T5Gemma 2: forms of config.json, lossless round trips, refusals."""

import json
import shutil

import pytest
from safetensors.numpy import load_file

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


def test_of_t5gemma_2_all_but_its_images_is_kept(shared, tmp_path):
    source = shared / "golden/t5gemma/t5gemma2_tiny"
    config, params = load_hf(source)
    assert (config.version, config.family, config.start_id) == (2, "t5gemma2", 2)
    assert config.encoder.layer_windows == (6, 6, 0) and config.decoder.layer_windows == (5, 5, 0)
    assert config.decoder.local_rope.theta == 1e4 and config.decoder.rope.theta == 1e6
    save_hf(tmp_path / "new", config, params)
    written, given = (load_file(f / "model.safetensors") for f in (tmp_path / "new", source))
    of_images = ("vision_tower", "multi_modal_projector", "eoi_embedding")
    wanted = {name for name in given if not any(word in name for word in of_images)}
    assert set(written) == wanted and len(wanted) < len(given)
    assert all(written[name].tobytes() == given[name].tobytes() for name in wanted)
    again, _ = load_hf(tmp_path / "new")
    assert again.describe() == config.describe()


def test_t5gemma_2_without_a_text_model_is_refused(shared, tmp_path):
    source = shutil.copytree(shared / "golden/t5gemma/t5gemma2_tiny", tmp_path / "source")
    raw = json.loads((source / "config.json").read_text())
    del raw["encoder"]["text_config"]
    (source / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="encoder has no text_config"):
        load_hf(source)


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
