"""A layer's parts: norms by hand, parameters by family, stacked layers and rematerialisation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decoders.blocks import embed, norm, rotations
from gkd.decoders.decoder_only import DecoderConfig
from gkd.decoders.rotary import Rope
from gkd.models import teacher_forced_logits
from gkd.models.t5 import stack_layers, unstack_layers
from tests.decoders.models import PATTERNED, TINY, parameters_of


def test_norms_multiply_by_the_scale_or_by_one_more():
    x, scale = np.array([[3.0, 4.0]], np.float32), np.array([2.0, 0.5], np.float32)
    wanted = x / np.sqrt(12.5 + 0.25)
    plain = dataclasses.replace(TINY, norm_epsilon=0.25)
    offset = dataclasses.replace(plain, unit_offset_norms=True)
    np.testing.assert_allclose(
        norm(plain, jnp.array(x), jnp.array(scale)), wanted * scale, rtol=1e-6
    )
    got = norm(offset, jnp.array(x), jnp.array(scale))
    np.testing.assert_allclose(got, wanted * (1 + scale), rtol=1e-6)


def test_embeddings_are_scaled_by_the_root_of_the_width_and_padding_is_no_error():
    table = jnp.arange(12.0).reshape(3, 4)
    scaled = dataclasses.replace(TINY, emb_dim=4, scale_embeddings=True)
    assert embed(scaled, table, jnp.array([2, -1])).tolist() == [[16, 18, 20, 22], [0, 2, 4, 6]]


def test_layers_with_a_window_have_positions_of_their_own():
    config = dataclasses.replace(TINY, head_dim=4, rope=Rope(100.0), local_rope=Rope(4.0))
    whole, local = rotations(config, jnp.array([[3]]))
    np.testing.assert_allclose(whole[0], np.cos([[[3.0, 0.3]]]), atol=1e-6)
    np.testing.assert_allclose(local[0], np.cos([[[3.0, 1.5]]]), atol=1e-6)


def test_published_sizes_have_their_published_numbers_of_parameters():
    """Qwen3-0.6B has 0.44B parameters outside its table (its model card)."""
    shapes = DecoderConfig().parameter_shapes()
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    table = int(np.prod(shapes["token_embedder/embedding"]))
    assert round((total - table) / 1e9, 2) == 0.44 and round(total / 1e9, 1) == 0.6


@pytest.mark.parametrize("config", [TINY, PATTERNED])
def test_stacked_and_rematerialised_layers_have_the_same_loss_and_gradient(config):
    params = parameters_of(config)
    tokens = jnp.array([[3, 4, 7, 8, 9], [5, 6, 2, 0, 0]]), jnp.array([[4, 1, 0], [9, 3, 1]])

    def loss(config, params):
        logits = teacher_forced_logits(config, params, *tokens, jnp.array([5, 3]))
        return jnp.mean(jax.nn.log_softmax(logits)[..., 3] ** 2)

    def run(params, **execution):
        config_ = config.with_execution(**execution)
        return jax.jit(jax.value_and_grad(lambda p: loss(config_, p)))(params)

    wanted = run(params)
    value, gradient = run(stack_layers(params), stacked_layers=True)
    again = run(params, remat=True)
    for found in ((value, unstack_layers(gradient)), again):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


def test_initial_parameters_are_boxed_with_their_axes_and_have_the_listed_shapes():
    for stacked in (False, True):
        config = dataclasses.replace(PATTERNED, stacked_layers=stacked, logits_via_embedding=False)
        boxed = jax.eval_shape(config.build().init, jax.random.PRNGKey(0))
        names = {}
        for path, box in jax.tree_util.tree_leaves_with_path(
            boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
        ):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            assert len(box.names) == box.value.ndim
            names[name] = box.value.shape
        if stacked:
            assert names["decoder/layers/mlp/wo/kernel"] == (3, 20, 16)
        else:
            assert names == config.parameter_shapes()
