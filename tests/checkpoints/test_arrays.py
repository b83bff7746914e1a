"""The arrays of a step folder: their shapes, their differences, and reading a part of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.checkpoints import arrays
from gkd.checkpoints.store import CheckpointStore
from gkd.distill import optimizers, train_step
from gkd.errors import InvalidFile
from gkd.models.t5 import T5Config, as_seq2seq, stack_layers
from tests.random_params import random_params


def struct(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_differences_are_listed_up_to_five_and_then_counted():
    saved = {"a": struct(2, 3), "b": struct(4), "left": struct(1)}
    wanted = {"a": struct(3, 2), "b": struct(4, dtype=np.int32), "missing": struct()}
    assert arrays.describe_differences(saved, saved, compare_types=True) is None
    assert arrays.describe_differences(saved, wanted, compare_types=True) == (
        "a has float32[2, 3], wanted float32[3, 2]; b has float32[4], wanted int32[4]; "
        "missing is missing; left is left over"
    )
    assert "b has" not in arrays.describe_differences(saved, wanted, compare_types=False)
    many = {str(i): struct() for i in range(8)}
    assert arrays.describe_differences({}, many, False).endswith(
        "4 is missing; and 3 more differences"
    )


def test_a_part_of_the_state_is_read_without_the_rest(tmp_path, make_state):
    with_store = CheckpointStore(tmp_path / "checkpoints")
    with_store.save(3, make_state(3))
    with_store.close()
    folder = tmp_path / "checkpoints" / "3"
    kernel = arrays.read_saved_shapes(folder)["params"]["encoder"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((16, 8), np.float32)
    wanted = {"params": {"encoder": {"kernel": np.zeros((16, 8), np.float32)}}}
    got = arrays.read_arrays(folder, wanted)["params"]["encoder"]["kernel"]
    np.testing.assert_array_equal(got, make_state(3).params["encoder"]["kernel"])
    assert isinstance(got, np.ndarray)


OPTIMIZERS = {
    "adafactor": optimizers.adafactor(1e-2, max_norm=1.0, min_dim_size_to_factor=4),
    "adamw": optimizers.adamw(1e-2),
}


@functools.cache
def trained(name, stacked):
    """A state after two updates with its own moving average."""
    config = T5Config(
        vocab_size=8, emb_dim=8, num_heads=1, head_dim=4, mlp_dim=8, num_encoder_layers=1,
        num_decoder_layers=2,
    )  # fmt: skip
    optimizer, params = OPTIMIZERS[name], random_params(as_seq2seq(config))

    @jax.jit
    def update(state):
        gradient = jax.tree.map(lambda x: jnp.sin(10 * x), state.params)
        updates, moments = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=moments)

    params = stack_layers(params) if stacked else params
    return update(update(train_step.init_state(params, optimizer, 0, True)))


@pytest.mark.parametrize("to_stacks", [True, False], ids=["stacks", "apart"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_layers_are_restored_in_the_form_that_is_wanted(optimizer, to_stacks, tmp_path):
    saved, wanted = (trained(optimizer, stacked) for stacked in (not to_stacks, to_stacks))
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(2, saved)
    found = store.restore(wanted).state
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)
    deeper = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]), x.dtype, sharding=x.sharding)
        if x.ndim > 1 else x, wanted,
    )  # fmt: skip
    with pytest.raises(InvalidFile, match="does not fit this run"):
        store.restore(deeper)
    store.close()
