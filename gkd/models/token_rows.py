"""Model inputs joined from pieces of token ids inside a program, with static shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from gkd.models.interface import SpecialIds

# (token ids, the first of them that is used, how many are); the last two may be traced.
Piece = tuple[Int[Array, "_"], Any, Any]


def text_length(tokens: Int[Array, " size"], ids: SpecialIds) -> Int[Array, ""]:
    """Counts the tokens of a row before its first EOS or padding.

    >>> text_length(jnp.array([7, 8, 1, 0]), SpecialIds()).item()
    2
    """
    return jnp.sum(jnp.cumprod((tokens != ids.end) & (tokens != ids.padding)))


def fixed_piece(ids: Sequence[int]) -> Piece:
    """Makes a piece of ids that are the same in every row."""
    return jnp.array(ids, jnp.int32), 0, len(ids)


def joined_row(pieces: Sequence[Piece], length: int, ids: SpecialIds) -> Int[Array, " length"]:
    """Joins pieces into one row, through EOS, then padding.

    Args:
      pieces: token ids of one row, in their order.
      length: tokens of the row; the caller cuts the pieces so that they fit with the EOS.
      ids: EOS and padding.

    Returns:
      int32 [length].

    >>> prompt = jnp.array([5, 6, 1, 0])
    >>> joined_row([(prompt, 0, 2), fixed_piece([9])], 6, SpecialIds()).tolist()
    [5, 6, 9, 1, 0, 0]
    """
    position = jnp.arange(length)
    row, before = jnp.full(length, ids.padding, jnp.int32), 0
    for tokens, first, count in [*pieces, fixed_piece([ids.end])]:
        if tokens.shape[0]:  # nothing can be taken from an empty piece
            inside = (position >= before) & (position < before + count)
            place = jnp.clip(position - before + first, 0, tokens.shape[0] - 1)
            row = jnp.where(inside, tokens[place], row)
        before += count
    return row
