"""A mesh and its logical rules as one hashable value, which model code takes as an argument."""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class ModelSharding:
    """The sharding of a model's activations; made by `gkd.parallel.mesh.model_sharding`.

    Attributes:
      mesh: the mesh; None on a single device, where nothing is constrained.
      rules: pairs of logical axis and mesh axis (None: not sharded).
    """

    mesh: Mesh | None = None
    rules: tuple[tuple[str, str | None], ...] = ()

    def mesh_axis(self, logical_axis: str) -> str | None:
        """Returns the mesh axis over which a logical axis is sharded, or None."""
        name = dict(self.rules).get(logical_axis)
        return name if self.mesh is not None and name in self.mesh.shape else None

    def constrain(self, x: Array, logical_axes: tuple[str, ...]) -> Array:
        """Constrains an array's sharding inside a traced function.

        Args:
          x: an array with one dimension per logical axis.
          logical_axes: e.g. ('batch', 'length', 'activation_embed').

        Returns:
          The same values. A dimension that its mesh axis does not divide is not sharded.
        """
        if self.mesh is None:
            return x
        names = [
            name if name and size % self.mesh.shape[name] == 0 else None
            for name, size in zip(map(self.mesh_axis, logical_axes), x.shape, strict=True)
        ]
        return self.place(x, PartitionSpec(*names))

    def place(self, x: Array, spec: PartitionSpec) -> Array:
        """Constrains an array to a partition spec of the mesh; without a mesh returns it as is."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


UNSHARDED = ModelSharding()
