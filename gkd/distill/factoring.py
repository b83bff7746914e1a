"""Adafactor's second moments factored as T5X factors them: by name and shape of a parameter.

T5X's `standard_logical_factor_rules` apply to parameters of three axes and more; those of two fall
back to the paper's heuristic (both sides at least 128). So T5X factors the kernels [embed, joined]
of examples/t5 by their size, but the attention kernels [embed, heads, kv] of scalable_t5 always: as
the matrix of `embed` and of heads and kv together. Here these kernels are joined, too, and told by
the relative bias that every layer of a scalable_t5 has. Scanned, T5X also factors a small MLP.
Source: t5x/adafactor.py at https://github.com/google-research/t5x.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

_INWARD = ("query", "key", "value")


def scale_by_factored_rms(
    decay_rate: float = 0.8, min_dim_size_to_factor: int = 128
) -> optax.GradientTransformation:
    """`optax.scale_by_factored_rms` with T5X's choice of what is factored.

    Args:
      decay_rate: exponent of the second moment's decay, 1 − t**−decay_rate.
      min_dim_size_to_factor: parameters of two axes are factored from this size of both.

    Returns:
      The transformation; its state is an `optax.FactoredState` of trees like the parameters.
    """
    by_size = optax.scale_by_factored_rms(
        decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor
    )
    always = optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=1)

    def each(tree):
        """(transformation, the matrix's shape or None) of every parameter of a tree."""
        paths = jax.tree_util.tree_flatten_with_path(tree)[0]
        names = [_names(path) for path, _ in paths]
        biases = {name[:-2] for name in names if name[-2:-1] == ("relpos_bias",)}
        matrices = [
            _attention_matrix(name, leaf.shape, biases)
            for name, (_, leaf) in zip(names, paths, strict=True)
        ]
        return [(by_size if matrix is None else always, matrix) for matrix in matrices]

    def init(params):
        leaves, structure = jax.tree.flatten(params)
        states = [
            rule.init(_as_matrix(leaf, matrix))
            for leaf, (rule, matrix) in zip(leaves, each(params), strict=True)
        ]
        return _joined(states, structure, jax.numpy.zeros([], jax.numpy.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("Adafactor needs the parameters beside their gradients")
        leaves, structure = jax.tree.flatten(updates)
        old = zip(*(structure.flatten_up_to(tree) for tree in state[1:]), strict=True)
        new_leaves, states = [], []
        for leaf, param, moments, (rule, matrix) in zip(
            leaves, structure.flatten_up_to(params), old, each(params), strict=True
        ):
            before = optax.FactoredState(state.count, *moments)
            scaled, after = rule.update(_as_matrix(leaf, matrix), before, _as_matrix(param, matrix))
            new_leaves.append(scaled.reshape(leaf.shape))
            states.append(after)
        count = optax.safe_increment(state.count)
        return jax.tree.unflatten(structure, new_leaves), _joined(states, structure, count)

    return optax.GradientTransformation(init, update)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _attention_matrix(
    name: tuple[str, ...], shape: tuple[int, ...], biases: set[tuple[str, ...]]
) -> tuple[int, int] | None:
    """[rows, columns] of an attention kernel that T5X factors whatever its size; None of others."""
    if len(name) < 2 or name[-1] != "kernel" or name[-2] not in (*_INWARD, "out"):
        return None
    if len(shape) == 3:  # [embed, heads, kv], or for `out` [heads, kv, embed]
        rows = 1 if name[-2] in _INWARD else 2
        return math.prod(shape[:rows]), math.prod(shape[rows:])
    return tuple(shape) if len(shape) == 2 and name[:-3] in biases else None


def _as_matrix(leaf: jax.Array, matrix: tuple[int, int] | None) -> jax.Array:
    return leaf if matrix is None else leaf.reshape(matrix)


def _joined(states: list[Any], structure: Any, count: jax.Array) -> optax.FactoredState:
    """The states of single parameters as one state of trees."""
    trees = zip(*(state[1:] for state in states), strict=True) if states else ((), (), ())
    return optax.FactoredState(count, *(jax.tree.unflatten(structure, tree) for tree in trees))
