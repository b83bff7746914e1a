"""A small training state with every kind of leaf that a run saves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.distill.types import TrainState


def build_state(number: int) -> TrainState:
    """A state whose arrays all depend on `number`."""
    random = np.random.default_rng(number)
    params = {
        "encoder": {"kernel": jnp.asarray(random.normal(size=(16, 8)), jnp.float32)},
        "decoder": {
            "layers_0": {"kernel": jnp.asarray(random.normal(size=(8, 32)), jnp.bfloat16)},
            "norm": {"scale": jnp.asarray(random.normal(size=(8,)), jnp.float32)},
        },
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState(
        step=jnp.int32(number),
        params=params,
        opt_state=optimizer.init(params),
        seed=jnp.asarray([number, 7], jnp.uint32),
        skipped=jnp.int32(2),
        skipped_in_a_row=jnp.int32(0),
    )


def assert_same_bits(tree, expected) -> None:
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        leaf, wanted = np.asarray(leaf), np.asarray(wanted)
        assert leaf.dtype == wanted.dtype and leaf.shape == wanted.shape
        assert leaf.tobytes() == wanted.tobytes()


@pytest.fixture
def make_state():
    """The function that builds a state from a number."""
    return build_state


@pytest.fixture
def same_bits():
    """The comparison of two trees, bit for bit."""
    return assert_same_bits
