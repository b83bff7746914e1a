"""Rows of a batch cut into microbatches and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def split_rows(tree: Any, microbatches: int, samples: int = 1) -> Any:
    """[B·G, …] -> [M, B/M·G, …]; a part takes every M-th prompt: each device keeps its own."""

    def split(x):
        rows = x.reshape(-1, microbatches, samples, *x.shape[1:])
        return jnp.swapaxes(rows, 0, 1).reshape(microbatches, -1, *x.shape[1:])

    return jax.tree.map(split, tree)


def join_rows(tree: Any, samples: int = 1) -> Any:
    """The inverse of `split_rows`."""

    def join(x):
        rows = x.reshape(x.shape[0], -1, samples, *x.shape[2:])
        return jnp.swapaxes(rows, 0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(join, tree)
