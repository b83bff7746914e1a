"""The K most probable ids against NumPy's sort, in blocks and with rows spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gkd.distill.logits import ProjectedLogits
from gkd.infer.most_probable_ids import most_probable_ids
from gkd.models.interface import Head
from gkd.parallel import mesh as meshes

VALID = np.arange(40) % 7 > 0
ROWS = PartitionSpec("data")


def logits_of(transposed):
    """Of 8 rows of 5 tokens; ids 8 and 9 are equals everywhere."""
    random = np.random.default_rng(0)
    hidden = random.normal(size=(8, 5, 6))
    kernel = random.normal(size=(6, 40))
    kernel[:, 9] = kernel[:, 8]
    logits = 2.0 * hidden @ kernel
    kernel = jnp.array(kernel.T if transposed else kernel, jnp.float32)
    head = Head(kernel, scale=2.0, transposed=transposed)
    return ProjectedLogits(jnp.array(hidden, jnp.float32), head), logits


@pytest.mark.parametrize(("size", "transposed"), [(2, True), (5, False), (None, False)])
def test_ids_and_log_probs_are_those_of_a_sort(size, transposed):
    logits, values = logits_of(transposed)
    values = np.where(VALID, values, -np.inf)
    log_probs = values - np.log(np.exp(values).sum(-1, keepdims=True))
    order = np.argsort(-np.round(log_probs, 9), axis=-1, kind="stable")[..., :34]
    ids, got = most_probable_ids(logits, jnp.array(VALID), 34, block_size=size)
    assert VALID.sum() == 34  # all that is usable
    np.testing.assert_array_equal(ids, order)
    wanted = np.take_along_axis(log_probs, order, axis=-1)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert (got.shape, got.dtype, ids.dtype) == ((8, 5, 34), jnp.float32, jnp.int32)


def test_rows_stay_on_their_devices():
    """As `infer` calls it; XLA's own top_k would gather all logits on each."""
    mesh = meshes.make_mesh()
    logits, _ = logits_of(False)
    wanted = most_probable_ids(logits, jnp.array(VALID), 3)

    def top_k(x, k):
        best = jax.shard_map(lambda x: jax.lax.top_k(x, k), in_specs=ROWS, out_specs=ROWS)
        return best(x)

    @jax.jit
    def found(hidden):
        return most_probable_ids(
            logits.replace(hidden=hidden), jnp.array(VALID), 3, top_k=top_k, data_shards=8
        )

    hidden = jax.device_put(logits.hidden, NamedSharding(mesh, ROWS))
    with jax.set_mesh(mesh):
        text = found.lower(hidden).compile().as_text()
        got = found(hidden)
    assert "all-gather" not in text and "TopK" in text
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert a.sharding.is_equivalent_to(NamedSharding(mesh, ROWS), 3)
