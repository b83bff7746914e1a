"""The forms of logits against float64 NumPy products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.distill.logits import (
    DenseLogits,
    ProjectedLogits,
    dense,
    hidden_gradient,
    kernel_gradient,
    logits_shape,
    take_block,
)
from gkd.models.interface import Head
from tests.distill import references

HIDDEN, KERNEL = references.normal(0, 4, 6, 8), references.normal(1, 8, 11)
SCALE = 8**-0.5
PRODUCT = SCALE * HIDDEN.astype(np.float64) @ KERNEL.astype(np.float64)


def projected(transposed, hidden=HIDDEN):
    kernel = KERNEL.T if transposed else KERNEL
    return ProjectedLogits(jnp.array(hidden), Head(jnp.array(kernel), SCALE, transposed))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_block_of_projected_logits_equals_the_product(transposed):
    logits = projected(transposed)
    assert logits_shape(logits) == (4, 6, 11)
    np.testing.assert_allclose(dense(logits), PRODUCT, rtol=1e-5, atol=1e-5)
    block = take_block(logits, 2, 3, jnp.ones((4, 3), bool))
    np.testing.assert_allclose(dense(block), PRODUCT[:, 2:5], rtol=1e-5, atol=1e-5)


def test_dense_logits_become_float32():
    values = references.normal(2, 2, 3, 5)
    logits = DenseLogits(jnp.array(values, jnp.bfloat16))
    assert logits_shape(logits) == (2, 3, 5)
    assert dense(logits).dtype == jnp.float32
    np.testing.assert_allclose(dense(logits), values, rtol=2**-8)


@pytest.mark.parametrize("form", [lambda x: DenseLogits(x), lambda x: projected(False, x)])
def test_dropped_positions_become_zero_logits_whatever_they_held(form):
    hidden = HIDDEN.copy()
    hidden[1, 4], hidden[2, 3] = np.nan, np.inf
    keep = np.ones((4, 3), bool)
    keep[1, 2] = keep[2, 1] = False
    block = np.asarray(dense(take_block(form(jnp.array(hidden)), 2, 3, jnp.array(keep))))
    np.testing.assert_array_equal(block[~keep], 0.0)
    assert (block[keep] != 0).all() and np.isfinite(block).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_the_transposed_products(transposed, groups):
    gradient = references.normal(3, 4, 6, 11)
    block = projected(transposed)
    expected = SCALE * np.einsum("ntv,ev->nte", *map(np.float64, (gradient, KERNEL)))
    np.testing.assert_allclose(hidden_gradient(block, jnp.array(gradient)), expected, atol=1e-5)
    actual = np.asarray(kernel_gradient(block, jnp.array(gradient), groups))
    grouped = [x.reshape(groups, -1, *x.shape[1:]).astype(float) for x in (HIDDEN, gradient)]
    expected = SCALE * np.einsum("gnte,gntv->gev", *grouped)
    if transposed:
        expected = expected.swapaxes(1, 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, precision", [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_every_product_states_its_precision(dtype, precision):
    block = projected(False, HIDDEN.astype(jnp.dtype(dtype)))
    gradient = jnp.ones((4, 6, 11))
    products = (
        lambda: dense(block),
        lambda: hidden_gradient(block, gradient),
        lambda: kernel_gradient(block, gradient, 2),
    )
    for product in products:
        stated = [
            equation.params["precision"]
            for equation in jax.make_jaxpr(product)().jaxpr.eqns
            if equation.primitive.name == "dot_general"
        ]
        assert stated == [(jax.lax.Precision[precision],) * 2]
