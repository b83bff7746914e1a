"""Sharding of a model's rows over chips whose number does not divide its attention heads."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from gkd.parallel.model_sharding import UNSHARDED, ModelSharding


@dataclasses.dataclass(frozen=True)
class RowSharding:
    """The sharding of a model's rows inside its layers; made by `row_sharding`.

    Attributes:
      sharding: the model's mesh.
      batch: the mesh axis of the batch outside the layers.
      spread_over: the mesh axes of the rows inside the layers; () where they stay on the batch's.
    """

    sharding: ModelSharding = UNSHARDED
    batch: str | None = None
    spread_over: tuple[str, ...] = ()

    def spread(self, x: Array) -> Array:
        """Shards `x` [rows, …] over all chips: the layout of attention and of the residual."""
        return self._placed(x, self.spread_over)

    def gather(self, x: Array) -> Array:
        """Gathers spread rows along the heads' axis: the input layout of column-sharded kernels.

        Both layouts are constrained, here and in `scatter`, so that gradients take the same route.
        """
        return self._placed(self.spread(x), self.batch)

    def scatter(self, x: Array) -> Array:
        """Inverts `gather`, summing the partial products of row-sharded kernels.

        Used also for arrays that another model shares (a prompt's mask), which keep the batch's
        layout there.
        """
        return self.spread(self._placed(x, self.batch))

    def _placed(self, x, axes):
        if not self.spread_over:
            return x
        rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
        return self.sharding.place(x, PartitionSpec(axes, *rest))


def row_sharding(sharding: ModelSharding, num_heads: int, prompts: int) -> RowSharding:
    """Chooses the sharding of rows inside layers: also over the heads' axis if it divides no heads.

    Otherwise every chip along that axis would compute the same attention.

    Args:
      sharding: the model's mesh and rules.
      num_heads: attention heads of the model.
      prompts: B; the rows of a prompt stay together.

    Returns:
      The row sharding. Rows keep the batch's layout without a mesh, where the heads divide, and
      where the prompts do not divide over all chips.
    """
    batch, heads = sharding.mesh_axis("batch"), sharding.mesh_axis("heads")
    if batch is None or heads is None:
        return RowSharding()
    shape = sharding.mesh.shape
    if num_heads % shape[heads] == 0 or prompts % (shape[batch] * shape[heads]):
        return RowSharding()
    return RowSharding(sharding, batch, (batch, heads))


def copy_per_shard(x: Array, sharding: ModelSharding, num_heads: int, prompts: int) -> Array:
    """Copies an array that all rows share, once for each shard of the rows.

    Its gradient is then summed over a chip's own rows in every layer, and over chips once.

    Args:
      x: the array.
      sharding, num_heads, prompts: as in `row_sharding`.

    Returns:
      [shards, *x.shape], and [1, *x.shape] where the rows are not sharded.
    """
    axes = row_sharding(sharding, num_heads, prompts).spread_over
    axes = axes or (sharding.mesh_axis("batch"),)
    shards = 1 if axes == (None,) else math.prod(sharding.mesh.shape[axis] for axis in axes)
    if shards == 1 or prompts % shards:
        return x[None]
    copies = jnp.broadcast_to(x, (shards, *x.shape))
    return sharding.place(copies, PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * x.ndim))
