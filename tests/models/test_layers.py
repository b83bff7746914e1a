"""Layers of T5: relative positions and their biases."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models import layers
from gkd.models.layers import (
    Attention,
    RelativeBias,
    attend_in_blocks,
    for_rows,
    query_block,
    relative_position_bucket,
)


@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_a_bias_of_all_rows_has_the_sum_of_their_gradients(platform, monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, **branches: branches[platform](x))
    values = np.random.default_rng(0).standard_normal((2, 5, 4, 3, 7)).astype("float32")
    bias, rows = jnp.asarray(values[0]), values[1]
    weighted = jax.grad(lambda bias: (for_rows(bias, 5) * rows).sum())(bias[:1])
    assert for_rows(bias[:1], 5).shape == rows.shape
    np.testing.assert_allclose(weighted, rows.astype("float64").sum(0, keepdims=True), rtol=1e-5)
    two, rows = bias[:2], values[1, :4]  # two rows each
    np.testing.assert_array_equal(for_rows(two, 4), values[0, [0, 0, 1, 1]])
    weighted = jax.grad(lambda bias: (for_rows(bias, 4) * rows).sum())(two)
    np.testing.assert_allclose(weighted, [rows[:2].sum(0), rows[2:].sum(0)], rtol=1e-5)


def test_blocks_divide_the_queries():
    assert [query_block(n) for n in (1, 511, 512, 1024, 544, 1018)] == [1, 511, 128, 128, 68, 1018]


@pytest.mark.parametrize("pooled", [False, True])
def test_attention_in_blocks_has_the_values_and_gradients_of_the_whole(pooled, monkeypatch):
    """In float64, against the textbook's formula; with T5X's dropout too, against the whole."""
    rows, queries, heads, dim = 2, 12, 3, 4
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, rows, queries, heads, dim)).astype("float32")
    by_distance = random.standard_normal((heads, 2 * queries - 1)).astype("float32")  # from -11
    distance = np.arange(queries) - np.arange(queries)[:, None]  # [Q, K]
    padding = np.where(random.random((rows, 1, 1, queries)) < 0.3, -1e10, 0).astype("float32")
    padding[..., 0] = 0

    def attend_to(query, key, value, biases):
        weights = layers.attention_weights(query, key, biases)
        return layers.attend(weights, value), weights.mean(1) if pooled else None

    def window(by_distance):
        size = query_block(queries)
        columns = np.arange(2 * queries - size) - np.arange(size)[:, None] - (queries - size)
        return by_distance[None, :, columns + queries - 1]

    def blocked(query, key, value, by_distance):
        biases = [window(by_distance), jnp.asarray(padding)]
        mixed, weights = attend_in_blocks(attend_to, query, key, value, biases)
        return jnp.sum(jnp.sin(mixed)) + (jnp.sum(weights**2) if pooled else 0)

    def textbook(query, key, value, by_distance):
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) + by_distance[:, distance + queries - 1]
        weights = jax.nn.softmax(scores + padding, -1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return jnp.sum(jnp.sin(mixed)) + (jnp.sum(weights.mean(1) ** 2) if pooled else 0)

    arguments = query, key, value, by_distance
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, "float64") for x in arguments]
        want, gradients = jax.value_and_grad(textbook, argnums=range(4))(*wide)
    for name, value in {"BLOCKED_FROM": 12, "LARGEST_BLOCK": 4, "SMALLEST_BLOCK": 2}.items():
        monkeypatch.setattr(layers, name, value)
    got, found = jax.jit(jax.value_and_grad(blocked, argnums=range(4)))(*arguments)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(found, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_dropout_of_attention_in_blocks_is_that_of_the_whole(monkeypatch):
    """And it drops: the mean over many masks is what is computed without dropout."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 12, 8)), "float32")
    bias = RelativeBias(2, bidirectional=True)
    table = bias.init(jax.random.PRNGKey(0), 12)

    def attention(seed=1, deterministic=False):
        rngs = {"params": jax.random.PRNGKey(0), "dropout": jax.random.PRNGKey(seed)}
        module = Attention(2, 4, jnp.float32, 0.5, deterministic)
        return module.init_with_output(rngs, x, x, bias.apply(table, 12))[0]

    whole, plain = attention(), attention(deterministic=True)
    mean = jax.vmap(attention)(jnp.arange(1000)).mean(0)
    spread = np.abs(whole - plain).mean()
    assert spread > 0.1 * np.abs(plain).mean() and np.abs(mean - plain).mean() < spread / 10
    for name, value in {"BLOCKED_FROM": 12, "LARGEST_BLOCK": 4, "SMALLEST_BLOCK": 2}.items():
        monkeypatch.setattr(layers, name, value)
    assert query_block(12) == 4
    np.testing.assert_allclose(attention(), whole, rtol=1e-5, atol=1e-6)


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
