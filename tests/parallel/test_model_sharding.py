"""Constraints of activations: the specs in the lowered program, and none without a mesh."""

import jax
import jax.numpy as jnp
import pytest

from gkd.parallel import mesh as meshes
from gkd.parallel.model_sharding import UNSHARDED, ModelSharding

AXES = ("batch", "length", "activation_embed")


@pytest.mark.parametrize("rows, shards", [(8, 4), (6, 1)])
def test_rows_are_constrained_to_the_data_axis_that_divides_them(rows, shards):
    sharding = meshes.model_sharding(meshes.make_mesh(data=4, model=2))
    x = jnp.ones((rows, 2, 3))
    placed = jax.jit(lambda x: sharding.constrain(x, AXES))(x)
    assert placed.sharding.shard_shape(x.shape) == (rows // shards, 2, 3)


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((8, 2, 3))
    assert UNSHARDED.constrain(x, AXES) is x
    assert ModelSharding(rules=(("batch", "data"),)).mesh_axis("batch") is None


def test_a_sharding_reads_no_ambient_mesh():
    """A surrounding mesh of JAX changes nothing; the explicit one is used."""
    own = meshes.make_mesh(data=2, model=1, devices=jax.devices()[:2])
    sharding = meshes.model_sharding(own)
    with jax.set_mesh(meshes.make_mesh()):
        assert UNSHARDED.mesh_axis("batch") is None
        assert sharding.mesh_axis("batch") == "data" and sharding.mesh.size == 2


def test_logical_axes_without_a_mesh_axis_are_not_sharded():
    sharding = meshes.model_sharding(meshes.make_mesh(), meshes.rules_for(fully_sharded=True))
    assert [sharding.mesh_axis(name) for name in ("heads", "embed", "length", "unknown")] == [
        "model", "data", None, None,
    ]  # fmt: skip
