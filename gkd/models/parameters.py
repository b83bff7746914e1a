"""Parameters of Flax modules, named by logical axes, without tracing how existing ones began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


def parameter(
    module: nn.Module, name: str, init: Callable[..., Any], axes: Sequence[str], *shape: int
) -> Any:
    """Declares a float32 parameter of a module.

    Flax traces the initialiser at every use, to compare shapes, which is a good part of a T5's
    tracing. Where the parameter is there, zeros stand for it.

    Args:
      module: the module that has the parameter, in `setup` or a compact method.
      name: its name in the tree.
      init: the initialiser: (key, shape, dtype) -> array.
      axes: a logical axis for each of its axes.
      *shape: its sizes.

    Returns:
      The value, without its box of axes.

    Raises:
      flax.errors.ScopeParamShapeError: if the tree's parameter has another shape.
    """
    if module.has_variable("params", name):
        return module.param(name, _zeros, shape)
    return module.param(name, nn.with_logical_partitioning(init, tuple(axes)), shape, jnp.float32)


def _zeros(key, shape):
    del key
    return jnp.zeros(shape)
