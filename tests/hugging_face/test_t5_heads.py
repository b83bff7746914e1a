"""Tied and own heads, scaled or not: transformers 5's own logits, and both versions' rules."""

import itertools
import json
import logging
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gkd.checkpoints import load_hf, load_t5x, save_hf, save_t5x
from gkd.checkpoints.t5x_format import open_t5x
from gkd.models.t5 import head_of
from tests.checkpoints.head_models import logits_of, model_of

TABLE, HEAD = "shared.weight", "lm_head.weight"
RESAVED = ["mt5_tiny", "t5v10_tiny", "t5v11_tiny", "umt5_tiny"]  # by transformers 5.23


@pytest.mark.parametrize("name", ["fresh_mt5", "fresh_t5v11"])
def test_a_tied_head_of_transformers_5_is_not_scaled(shared, name):
    folder = shared / "cases" / "transformers5" / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    arrays = np.load(folder / "golden.npz")
    config, params = load_hf(folder)
    got = logits_of(config, params, arrays["ids"], arrays["dec"])
    np.testing.assert_allclose(got, arrays["logits"], atol=1e-4)
    assert config.logits_via_embedding and not config.scales_logits


@pytest.mark.parametrize("name", [*(f"t5_hf5_{name}" for name in RESAVED), "t5_hf5_noshared"])
def test_directories_resaved_by_transformers_5(shared, name):
    folder = shared / "golden" / "hf5" / name
    arrays = np.load(folder / "golden.npz")
    got = logits_of(*load_hf(folder), arrays["input_ids"], arrays["decoder_input_ids"])
    written = arrays["decoder_attention_mask"] > 0
    np.testing.assert_allclose(got[written], arrays["logits"][written], atol=1e-4)


def effective_head(tensors, raw, version):
    """The matrix that transformers 4 or 5 applies to the last hidden states, in float64 [V, E]."""
    family, said = raw["model_type"], raw["tie_word_embeddings"]
    table, head = np.float64(tensors[TABLE]), np.float64(tensors.get(HEAD, tensors[TABLE]))
    if version == 4:  # modeling_*.py of 4.57: one switch for both
        assert said or HEAD in tensors, "transformers 4 would draw the head at random"
        head, scaled = (table, True) if said else (head, False)
    else:  # 5.23
        scaled = {"t5": raw.get("scale_decoder_outputs"), "mt5": False, "umt5": True}[family]
    return head * raw["d_model"] ** -0.5 if scaled else head


@pytest.mark.parametrize("family", ["t5relu", "t5", "mt5", "umt5"])
@pytest.mark.parametrize("tied, scaled", itertools.product((True, False), repeat=2))
def test_what_is_written_is_one_model_to_transformers_4_and_5(
    family, tied, scaled, tmp_path, caplog
):
    config, params = model_of(family, tied, scaled)
    with caplog.at_level(logging.WARNING):
        save_hf(tmp_path / "hf", config, params)
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    table = params["token_embedder"]["embedding"]
    head = np.float64(table if tied else params["decoder"]["logits_dense"]["kernel"].T)
    wanted = head * 24**-0.5 if scaled else head
    np.testing.assert_allclose(effective_head(tensors, raw, 4), wanted, rtol=1e-6)
    if family == "umt5" and not (tied and scaled):  # which no config.json can say to version 5
        assert "transformers 5 divides the logits of every umT5" in caplog.text
    else:
        np.testing.assert_allclose(effective_head(tensors, raw, 5), wanted, rtol=1e-6)
        assert caplog.text == ""
    np.testing.assert_array_equal(tensors[TABLE], table)

    again, values = load_hf(tmp_path / "hf")
    np.testing.assert_allclose(our_head(again, values), wanted, rtol=1e-6)
    if scaled == (tied and family != "mt5") or (tied and not scaled):
        assert again == config
    save_t5x(tmp_path / "t5x", config, params)
    theirs = open_t5x(tmp_path / "t5x").config
    assert theirs.scale_logits is None  # T5X scales tied heads and no others
    np.testing.assert_allclose(our_head(theirs, load_t5x(tmp_path / "t5x")), wanted, rtol=1e-6)


def our_head(config, params):
    """The matrix that our model applies to the last hidden states, [V, E]."""
    head = head_of(config, params)
    return np.float64(head.kernel if head.transposed else head.kernel.T) * head.scale


def test_a_folded_scale_keeps_its_precision(tmp_path):
    config, params = model_of("mt5", True, True)
    half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params)
    save_hf(tmp_path / "hf", config, half)
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    assert tensors[TABLE].dtype == ml_dtypes.bfloat16 and tensors[HEAD].dtype == np.float32
    wanted = np.float64(half["token_embedder"]["embedding"]) * 24**-0.5
    np.testing.assert_allclose(tensors[HEAD], wanted, rtol=1e-6)


# (family, fields of config.json, head: absent, equal or own) -> (tied, scaled) or the error.
FIVE, FOUR = {"transformers_version": "5.3.0"}, {"transformers_version": "4.30.0"}
TIE, NO_TIE = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
READINGS = [
    ("t5", {}, "absent", (True, True)),
    ("t5", TIE, "absent", (True, True)),
    ("t5", {**FOUR, **NO_TIE}, "own", (False, False)),
    ("t5", NO_TIE, "equal", (True, False)),
    ("t5", TIE, "equal", (True, True)),
    ("t5", {**FOUR, **TIE}, "own", "set tie_word_embeddings to false if"),
    ("t5", {}, "own", "set tie_word_embeddings to false if"),
    ("t5", NO_TIE, "absent", "missing: decoder/logits_dense/kernel"),
    ("t5", {**FIVE, **TIE, "scale_decoder_outputs": True}, "own", (False, True)),
    ("t5", {**FIVE, **TIE, "scale_decoder_outputs": False}, "own", (False, False)),
    ("t5", {**FIVE, **TIE, "scale_decoder_outputs": False}, "equal", (True, False)),
    ("t5", {**TIE, "scale_decoder_outputs": False}, "absent", (True, False)),
    ("t5", {**FIVE, **TIE}, "absent", (True, True)),
    ("t5", {**FIVE, **NO_TIE}, "absent", (True, False)),
    ("mt5", {}, "own", (False, False)),
    ("mt5", TIE, "own", (False, False)),
    ("mt5", {**FOUR, **TIE}, "own", "set tie_word_embeddings to false if"),
    ("umt5", TIE, "own", (False, False)),
    ("mt5", {}, "absent", "missing: decoder/logits_dense/kernel"),
    ("mt5", {**FOUR, **TIE}, "absent", (True, True)),
    ("mt5", {**FIVE, **TIE}, "absent", (True, False)),
    ("mt5", {**FIVE, **TIE}, "own", (False, False)),
    ("mt5", {"transformers_version": "5.0.0.dev0", **TIE}, "absent", (True, False)),
    ("umt5", {}, "own", (False, False)),
    ("umt5", {}, "absent", (True, True)),
    ("umt5", {**FIVE, **TIE}, "absent", (True, True)),
    ("umt5", {**FIVE, **TIE}, "own", (False, False)),
]


@pytest.mark.parametrize("family, fields, head, wanted", READINGS)
def test_tying_is_read_from_the_tensors_and_the_scale_from_flag_family_and_version(
    family, fields, head, wanted, tmp_path
):
    config, params = model_of(family, False, False)
    save_hf(tmp_path, config, params)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["tie_word_embeddings"], raw["dropout_rate"]
    raw.pop("scale_decoder_outputs", None)
    (tmp_path / "config.json").write_text(json.dumps({**raw, **fields}))
    tensors = load_file(tmp_path / "model.safetensors")
    if head == "absent":
        del tensors[HEAD]
    elif head == "equal":
        tensors[HEAD] = tensors[TABLE].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted) as caught:
            load_hf(tmp_path)
        assert "\n" not in str(caught.value)
        return
    read, values = load_hf(tmp_path)
    assert (read.logits_via_embedding, read.scales_logits) == wanted
    assert read.dropout_rate == 0.1  # transformers' default
    if not wanted[0]:
        np.testing.assert_array_equal(values["decoder"]["logits_dense"]["kernel"].T, tensors[HEAD])


def test_a_resaved_checkpoint_is_the_one_it_was_made_from(shared, tmp_path):
    """The same weights as transformers 4 wrote them: same parameters, same architecture."""
    for name in RESAVED:
        old, new = shared / "golden" / "hf" / name, shared / "golden" / "hf5" / f"t5_hf5_{name}"
        (config, params), (resaved, values) = load_hf(old), load_hf(new)
        assert config == resaved
        jax.tree.map(np.testing.assert_array_equal, params, values)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        save_hf(tmp_path / "out", resaved, values)
        assert load_hf(tmp_path / "out")[0] == config
