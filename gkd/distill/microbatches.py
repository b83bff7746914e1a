"""Division of a batch's rows into microbatches, its inverse, and sums over microbatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split_rows(tree: Any, microbatches: int, samples: int = 1) -> Any:
    """Splits rows into microbatches, each of every M-th prompt, so that no row changes its device.

    Args:
      tree: a pytree of arrays [B·G, …], row = prompt·G + sample.
      microbatches: M, a divisor of B.
      samples: G, rows per prompt.

    Returns:
      The same pytree of arrays [M, B/M·G, …].

    >>> import jax.numpy as jnp
    >>> split_rows(jnp.arange(8), microbatches=2, samples=2).tolist()  # prompts 0, 2 and 1, 3
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """

    def split(x):
        rows = x.reshape(-1, microbatches, samples, *x.shape[1:])
        return jnp.swapaxes(rows, 0, 1).reshape(microbatches, -1, *x.shape[1:])

    return jax.tree.map(split, tree)


def join_rows(tree: Any, samples: int = 1) -> Any:
    """Inverts `split_rows`."""

    def join(x):
        rows = x.reshape(x.shape[0], -1, samples, *x.shape[2:])
        return jnp.swapaxes(rows, 0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(join, tree)


def sum_over(function: Callable[..., Any], *parts: Any) -> Any:
    """Adds up a function's results over the microbatches, one after the other.

    Args:
      function: function of one microbatch's pytrees to a pytree of arrays.
      parts: pytrees of arrays [M, …], as from `split_rows`.

    >>> import jax.numpy as jnp
    >>> sum_over(lambda x: {"squares": x @ x}, jnp.array([[1.0, 2.0], [3.0, 0.0]]))
    {'squares': Array(14., dtype=float32)}
    """

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(*part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(function, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts)
    return total
