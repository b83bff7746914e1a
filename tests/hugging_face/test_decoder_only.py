"""Folders of decoder-only models: forms of config.json, a lossless round trip, refusals."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gkd.checkpoints import load_hf, save_hf
from gkd.checkpoints.tensors import tensor_names
from gkd.decoders.rotary import Rope
from tests.decoders.golden import DECODERS


@pytest.fixture(params=DECODERS)
def folder(shared, request):
    return shared / "golden" / "decoders" / request.param


@pytest.fixture
def source(shared, tmp_path):
    """A writable copy of a folder with rope scaling."""
    return shutil.copytree(shared / "golden" / "decoders" / "llama_tiny", tmp_path / "source")


def changed(folder, **values):
    raw = json.loads((folder / "config.json").read_text())
    raw |= values
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_both_forms_of_the_config_are_one_architecture(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    shutil.copy(folder / "config_hf4.json", other / "config.json")
    config, _ = load_hf(folder)
    assert load_hf(other)[0] == config
    assert config.context_length == json.loads((folder / "config.json").read_text())[
        "max_position_embeddings"
    ]  # fmt: skip


def test_a_round_trip_keeps_every_byte_and_the_architecture(folder, tmp_path):
    config, params = load_hf(folder)
    save_hf(tmp_path / "new", config, params)
    assert (tmp_path / "new/model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    again, read = load_hf(tmp_path / "new")
    assert dataclasses.asdict(again) == dataclasses.asdict(config)
    written = tensor_names(read)
    for name, value in tensor_names(params).items():
        assert written[name].tobytes() == value.tobytes()


def test_a_tied_head_in_the_file_is_kept_and_one_that_differs_refused(shared, tmp_path):
    source = shutil.copytree(shared / "golden/decoders/qwen3_tiny", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    config, params = load_hf(source)
    assert config.logits_via_embedding
    save_hf(tmp_path / "new", config, params)
    assert "lm_head.weight" in load_file(tmp_path / "new/model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head.weight is tied .* but differs"):
        load_hf(source)


def test_the_generation_config_names_the_ends(source):
    assert load_hf(source)[0].end_ids == (1, 125)
    (source / "generation_config.json").write_text('{"eos_token_id": [9, 8, 9]}')
    assert load_hf(source)[0].end_ids == (9, 8)
    (source / "generation_config.json").unlink()
    changed(source, eos_token_id=7)
    assert load_hf(source)[0].end_ids == (7,)


def test_defaults_are_those_of_transformers(source):
    """Published files leave out what is a default."""
    raw = json.loads((source / "config.json").read_text())
    for name in (
        "head_dim",
        "rope_parameters",
        "tie_word_embeddings",
        "rms_norm_eps",
        "hidden_act",
    ):
        del raw[name]
    (source / "config.json").write_text(json.dumps(raw))
    config, _ = load_hf(source)
    assert config.head_dim == 8 and config.rope == Rope(10000.0) and config.norm_epsilon == 1e-6
    assert not config.logits_via_embedding and config.mlp_activation == "silu"


@pytest.mark.parametrize(
    "values, words",
    [
        ({"model_type": "mamba"}, r"model_type is 'mamba': choose one of 'gemma3_text', 'llama'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, r"'yarn'.*default.*llama3"),
        ({"rope_parameters": {"rope_type": "linear"}}, r"'linear' with factor None"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, r"llama3 needs original_max"),
        ({"rope_parameters": "x"}, r"rope_parameters"),
        ({"attention_bias": True}, r"attention_bias is true"),
        ({"hidden_act": "relu2"}, r"activation 'relu2'"),
        ({"eos_token_id": None}, r"eos_token_id"),
        ({"eos_token_id": ["x"]}, r"eos_token_id"),
        ({"layer_types": ["full_attention"]}, r"layer_types needs 3"),
        ({"layer_types": ["sliding_attention"] * 3}, r"no sliding_window"),
        ({"hidden_size": "32"}, r"hidden_size"),
        ({"num_hidden_layers": 4}, r"missing: decoder/layers_3"),
        ({"intermediate_size": 65}, r"wrong shape: decoder/layers_0/mlp/w"),
        ({"num_key_value_heads": 3}, r"do not divide"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(source, values, words):
    if "eos_token_id" in values:
        (source / "generation_config.json").unlink()
    with pytest.raises(ValueError, match=words) as caught:
        load_hf(changed(source, **values))
    assert "\n" not in str(caught.value)


def test_missing_and_surplus_tensors_are_named(source):
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.extra.weight"] = np.zeros(2, np.float32)
    del tensors["model.norm.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: decoder/decoder_norm/scale") as caught:
        load_hf(source)
    assert "extra.weight" in str(caught.value)
