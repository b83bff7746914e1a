"""Encoding of a batch whose rows are in parts, each part padded to a length of its own.

The parts are encoded side by side: a row of every part after the other on the length axis, so that
a kernel is read, and its gradient formed and summed over devices, once for all of them. Attention
alone is computed for each part by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from gkd.models.interface import Encoded, Seq2SeqModel


@dataclasses.dataclass(frozen=True)
class RowParts:
    """The division of a batch's rows: those of every shard are K adjacent blocks of equal size.

    This holds for the microbatches of such a batch too (`gkd.distill.microbatches`).

    Attributes:
      lengths: tokens of every part's rows at most; the tokens after them are padding.
      shards: D, shards of the rows.
    """

    lengths: tuple[int, ...]
    shards: int = 1

    def shapes(self, rows: int) -> tuple[tuple[int, int], ...]:
        """Lists the shape of every part: its rows, and their length.

        Args:
          rows: B, rows of the batch.

        >>> RowParts((64, 16)).shapes(8)
        ((4, 64), (4, 16))
        """
        return tuple((rows // len(self.lengths), length) for length in self.lengths)


def shorter_parts(lengths: Sequence[int], longest: int, shards: int = 1) -> RowParts | None:
    """Returns the parts of rows in arrays of a length; None where no part is shorter.

    >>> shorter_parts((64, 64), longest=64) is None
    True
    """
    return RowParts(tuple(lengths), shards) if min(lengths) < longest else None


def apart(x: Array, lengths: Sequence[int], axis: int = 1) -> list[Array]:
    """Splits rows that are side by side; inverts `side_by_side`."""
    return [x] if len(lengths) <= 1 else jnp.split(x, np.cumsum(lengths)[:-1], axis)


def side_by_side(parts: Sequence[Array], axis: int = 1) -> Array:
    """Joins equally many rows of every part along their length."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def row_dropout(rate: float | int, deterministic: bool, lengths: Sequence[int], x: Array) -> Array:
    """Drops out states with one mask for all positions of a row; called inside a Flax module.

    Args:
      rate: share of the states that are dropped.
      deterministic: drops none.
      lengths: lengths of the rows that are side by side; one number is any length.
      x: [B, L, E], the states.
    """
    if deterministic:
        return x
    dropout = nn.Dropout(rate, broadcast_dims=(-2,), deterministic=False)
    return side_by_side([dropout(row) for row in apart(x, lengths)])


def encode_rows(
    model: Seq2SeqModel,
    params: Any,
    tokens: Int[Array, "batch source"],
    parts: RowParts | None = None,
    dropout_rng: Any = None,
) -> Encoded:
    """Encodes prompts, each part of the rows at its own length.

    Args:
      model: the model; one without `encode_parts` encodes the padding too.
      params: its parameters.
      tokens: prompts, padded to one length.
      parts: the division of the rows; None encodes all of them at this length.
      dropout_rng: a key where the model trains with dropout.

    Returns:
      The prompts' states as of `encode`, but zeros at padding after a part's length.
    """
    options = {} if dropout_rng is None else {"dropout_rng": dropout_rng}
    if parts is None or model.encode_parts is None:
        return model.encode(params, tokens, **options)
    return model.encode_parts(params, tokens, parts, **options)


def divided(tokens: Int[Array, "batch source"], parts: RowParts) -> tuple[Array, ...]:
    """Divides prompts [B, S] into the tokens of every part, [B/K, s]."""
    blocks = tokens.reshape(parts.shards, len(parts.lengths), -1, tokens.shape[1])  # [D, K, n, S]
    return tuple(
        blocks[:, k, :, :length].reshape(-1, length) for k, length in enumerate(parts.lengths)
    )


def joined(arrays: Sequence[Array], length: int, shards: int) -> Array:
    """Joins the arrays of all parts, [B/K, s, …], to one of rows in their order; inverts `divided`.

    Args:
      arrays: one of every part.
      length: S, to which they are padded with zeros.
      shards: number of shards of the rows, see `RowParts`.

    Returns:
      An array [B, S, …].
    """

    def padded(x):
        return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

    blocks = [padded(x).reshape(shards, -1, length, *x.shape[2:]) for x in arrays]
    return jnp.stack(blocks, axis=1).reshape(-1, length, *arrays[0].shape[2:])
