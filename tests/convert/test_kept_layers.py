"""A model of some of another's layers: it computes what the whole does without the others."""

import copy
import dataclasses
import functools
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from gkd.checkpoints import load_hf, save_hf
from gkd.checkpoints.tensors import as_tensors, nest, read_numpy, tensor_names
from gkd.cli import command_line
from gkd.convert.kept_layers import keep_layers
from gkd.models import teacher_forced_logits
from gkd.models.t5 import T5, T5Config
from gkd.runs import model_loading
from tests.decoders.models import PATTERNED, parameters_of

CONFIG = T5Config(
    vocab_size=40, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_encoder_layers=4,
    num_decoder_layers=3,
)  # fmt: skip
CONFIGS = {
    "t5": CONFIG,
    "t5 1.0": dataclasses.replace(CONFIG, mlp_activations=("relu",), logits_via_embedding=True),
    "umt5": dataclasses.replace(CONFIG, relative_bias_per_layer=True, family="umt5"),
}
KEEP = ("--keep_encoder_layers=0,2,3", "--keep_decoder_layers=1,2")
REMOVED = ("encoder/layers_1/", "decoder/layers_0/")
# What a block adds to the residual stream: T5X's names of its last kernels.
LAST = ("attention/out/kernel", "self_attention/out/kernel", "mlp/wo/kernel",
        "encoder_decoder_attention/out/kernel")  # fmt: skip


@functools.cache
def random_params(config):
    """Every parameter drawn at random, also those that a new model has at 1 or near 0."""
    tokens = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(T5(config).init, jax.random.PRNGKey(0), tokens, tokens)["params"]
    draws = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: draws.normal(size=leaf.shape, scale=0.4).astype(np.float32),
        nn.meta.unbox(shapes),
    )


def logits(config, params):
    draws = np.random.default_rng(1)
    source, target = draws.integers(2, 40, (2, 7)), draws.integers(2, 40, (2, 5))
    return apply(config)({"params": params}, source, target)


@functools.cache
def apply(config):
    return jax.jit(T5(config).apply)


def without(params, removed):
    """The same model, whose removed layers add nothing: their last kernels are 0."""
    named = tensor_names(params)
    zeroed = [name for name in named if name.startswith(removed) and name.endswith(LAST)]
    assert len(zeroed) == 2 + 3
    return nest(named | {name: np.zeros_like(named[name]) for name in zeroed})


def convert(*arguments, code=0):
    assert command_line.main(["convert", *map(str, arguments)]) == code


def opened(config, params):
    tensors = as_tensors(params)
    return model_loading.formats.Checkpoint(epath.Path("nowhere"), "gkd", config, tensors)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_kept_layers_compute_what_the_whole_does_without_the_others(name):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    want = logits(config, without(params, REMOVED))
    assert np.abs(want - logits(config, params)).max() > 0.1  # the removed layers matter
    kept = keep_layers(opened(config, params), "0,2,3", "1,2")
    assert (kept.config.num_encoder_layers, kept.config.num_decoder_layers) == (3, 2)
    got = logits(kept.config, read_numpy(kept.tensors))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_from_and_to_every_format(tmp_path, capfd):
    """Hugging Face → Hugging Face, and → run → T5X: the same parameters."""
    save_hf(tmp_path / "whole", CONFIG, random_params(CONFIG))
    convert(tmp_path / "whole", tmp_path / "a", "--to=huggingface", *KEEP)
    assert "3 of 4 encoder layers and 2 of 3 decoder layers" in capfd.readouterr().err
    convert(tmp_path / "whole", tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "b", "--to=t5x", *KEEP)
    want = keep_layers(opened(CONFIG, random_params(CONFIG)), "0,2,3", "1,2")
    for folder in "ab":
        again = model_loading.open_model("MODEL", str(tmp_path / folder))
        assert again.config == want.config
        jax.tree.map(
            np.testing.assert_array_equal, read_numpy(again.tensors), read_numpy(want.tensors)
        )


def test_the_written_files_have_the_new_numbers(tmp_path):
    save_hf(tmp_path / "whole", CONFIG, random_params(CONFIG))
    convert(tmp_path / "whole", tmp_path / "small", "--to=huggingface", *KEEP)
    written = json.loads((tmp_path / "small" / "config.json").read_text())
    assert (written["num_layers"], written["num_decoder_layers"]) == (3, 2)
    whole, small = (load_hf(tmp_path / folder)[1] for folder in ("whole", "small"))
    pairs = {"encoder": (0, 2, 3), "decoder": (1, 2)}
    for side, numbers in pairs.items():
        for new, old in enumerate(numbers):
            before, after = whole[side][f"layers_{old}"], small[side][f"layers_{new}"]
            jax.tree.map(np.testing.assert_array_equal, after, before)
    # Hugging Face has the shared bias in the first layer of the file, whichever that was.
    bias = "relpos_bias"
    jax.tree.map(np.testing.assert_array_equal, small["decoder"][bias], whole["decoder"][bias])


def test_one_side_alone():
    config = keep_layers(opened(CONFIG, random_params(CONFIG)), None, "2").config
    assert (config.num_encoder_layers, config.num_decoder_layers) == (4, 1)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ("0,4", "there is no layer 4, the layers are 0 to 3"),
        ("0,1,1", "layer 1 is there twice"),
        ("2,0", "give the layers in ascending order, 0 before 2"),
        ("0,-1", "give the numbers of the layers from 0, separated by commas, such as 0,3"),
        ("0;1", "give the numbers of the layers from 0, separated by commas, such as 0,3"),
        ("0,,1", "separated by commas"),
        ("٢", "separated by commas"),
        ("9" * 400, "separated by commas"),
        ("half", "separated by commas"),
    ],
)
def test_other_numbers_are_one_line(numbers, words, tmp_path, capfd):
    save_hf(tmp_path / "whole", CONFIG, random_params(CONFIG))
    convert(tmp_path / "whole", tmp_path / "x", f"--keep_encoder_layers={numbers}", code=1)
    error = capfd.readouterr().err
    assert error.startswith(f"gkd: error: keep_encoder_layers is {numbers!r}: ")
    assert words in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


def test_an_empty_list_of_layers_is_refused(tmp_path, capfd):
    convert(tmp_path, tmp_path / "x", "--keep_encoder_layers=", code=2)
    assert "keep_encoder_layers is ''" in capfd.readouterr().err


def test_adapters_and_other_models_keep_all_layers(tmp_path, capfd):
    save_hf(tmp_path / "whole", CONFIG, random_params(CONFIG))
    convert(tmp_path / "whole", tmp_path / "x", "--to=peft", KEEP[0], code=1)
    assert "--to peft writes the adapters of all layers" in capfd.readouterr().err
    other = copy.copy(opened(CONFIG, random_params(CONFIG)))
    object.__setattr__(other, "config", types.SimpleNamespace())
    with pytest.raises(ValueError, match="a SimpleNamespace has no layers that can be chosen"):
        keep_layers(other, "0", None)


def test_nothing_is_read_to_choose_layers():
    def read():
        raise AssertionError("read")

    tensors = {
        name: dataclasses.replace(tensor, read=read)
        for name, tensor in as_tensors(random_params(CONFIG)).items()
    }
    kept = keep_layers(opened(CONFIG, tensors), "0,2", None)
    assert (
        kept.tensors["encoder/layers_1/mlp/wo/kernel"] is tensors["encoder/layers_2/mlp/wo/kernel"]
    )
    assert len(tensors) - len(kept.tensors) == 2 * 9


def test_a_decoder_only_model_keeps_each_layers_window():
    """Layers 1, 2 and 4 of a pattern of 3, 0; the rest computes as if the others did nothing."""
    whole = dataclasses.replace(PATTERNED, num_layers=5)
    params = parameters_of(whole)
    kept = keep_layers(opened(whole, params), None, "1,2,4")
    assert kept.config.windows == tuple(whole.windows[i] for i in (1, 2, 4))
    silent = jax.tree.map(jnp.copy, params)
    for i in (0, 3):  # norms of 1 + scale: −1 makes a block's result 0
        layer = silent["decoder"][f"layers_{i}"]
        for name in ("post_self_attention_layer_norm", "post_mlp_layer_norm"):
            layer[name]["scale"] = jnp.full(16, -1.0)
    tokens = jnp.array([[3, 4, 7, 8, 9]]), jnp.array([[5, 6, 2]]), jnp.array([5])
    got = teacher_forced_logits(kept.config, read_numpy(kept.tensors), *tokens)
    np.testing.assert_allclose(got, teacher_forced_logits(whole, silent, *tokens), atol=1e-5)
    with pytest.raises(ValueError, match="decoder-only model: give keep_decoder_layers"):
        keep_layers(opened(whole, params), "0", None)
