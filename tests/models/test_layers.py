"""Layers of T5: relative positions and their biases."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models.layers import RelativeBias, for_rows, relative_position_bucket


@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_a_bias_of_all_rows_has_the_sum_of_their_gradients(platform, monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, **branches: branches[platform](x))
    values = np.random.default_rng(0).standard_normal((2, 5, 4, 3, 7)).astype("float32")
    bias, rows = jnp.asarray(values[0]), values[1]
    weighted = jax.grad(lambda bias: (for_rows(bias, 5) * rows).sum())(bias[:1])
    assert for_rows(bias[:1], 5).shape == rows.shape
    np.testing.assert_allclose(weighted, rows.astype("float64").sum(0, keepdims=True), rtol=1e-5)


def test_relative_biases_are_float32_whatever_the_parameters_are():
    module = RelativeBias(2, bidirectional=True)
    params = nn.meta.unbox(module.init(jax.random.PRNGKey(0), 4))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert module.apply(half, 4).dtype == jnp.float32


def test_relative_buckets_match_the_published_table():
    # Decoder: 0…15 exact, then logarithmic to 31 at distance 128 and beyond (arXiv 1910.10683).
    distances = np.array([0, 1, 15, 16, 19, 32, 64, 112, 113, 127, 128, 1000])
    got = relative_position_bucket(-distances, bidirectional=False)
    np.testing.assert_array_equal(got, [0, 1, 15, 16, 17, 21, 26, 30, 31, 31, 31, 31])
    assert relative_position_bucket(np.array([3]), bidirectional=False)[0] == 0  # the future
    np.testing.assert_array_equal(
        relative_position_bucket(np.array([-3, 3, -500, 500]), bidirectional=True),
        [3, 19, 15, 31],
    )
