"""Where a model's rows lie while its layers run on a mesh that does not divide its heads."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class LayerRows:
    """How the layers of one model share out rows among chips; made by `layer_rows`.

    Attributes:
      batch: the mesh axis, or axes, of the batch outside of the layers.
      spread_over: the mesh axes of the rows inside of them; () where they are those of the batch.
    """

    batch: Any = None
    spread_over: tuple[str, ...] = ()

    def spread(self, x: Array) -> Array:
        """`x` [rows, …] with every chip's own rows only: what attention and the residual take."""
        return self._placed(x, self.spread_over)

    def gather(self, x: Array) -> Array:
        """`x`, spread, with the rows of the batch's axis: what kernels split by columns take.

        Both places are said, here and in `scatter`, so that a gradient takes the same way back.
        """
        return self._placed(self.spread(x), self.batch)

    def scatter(self, x: Array) -> Array:
        """The reverse of `gather`; parts of sums, of kernels split by rows, are added up here.

        Also for what another model may take too (a prompt's mask): it keeps the batch's rows there.
        """
        return self.spread(self._placed(x, self.batch))

    def _placed(self, x, axes):
        if not self.spread_over:
            return x
        rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *rest))


def layer_rows(num_heads: int, prompts: int) -> LayerRows:
    """Whether layers spread their rows over the heads' mesh axis too: where it divides no heads.

    Every chip would else repeat the attention of all chips along that axis.

    Args:
      num_heads: of the model's attention.
      prompts: B; rows of a prompt stay together.

    Returns:
      By the mesh and the logical rules in force (`gkd.parallel.mesh.on_mesh`). Rows stay as they
      are where there are none, where the heads divide, or where the prompts do not.
    """
    shape, rules = dict(jax.sharding.get_abstract_mesh().shape), dict(nn.get_logical_axis_rules())
    batch, heads = rules.get("batch"), rules.get("heads")
    if batch not in shape or heads not in shape:
        return LayerRows()
    if num_heads % shape[heads] == 0 or prompts % (shape[batch] * shape[heads]):
        return LayerRows()
    return LayerRows(batch, (batch, heads))
