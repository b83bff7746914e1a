"""One layer applied to whole rows: prompts, continuations, an encoder's or a decoder's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gkd.decoders.attention import Keys, attend
from gkd.decoders.blocks import CROSS, SELF, add_attention, add_mlp, heads, pre_norm
from gkd.models.attention_sharding import RowSharding
from gkd.models.row_parts import RowParts, apart, divided, joined, side_by_side
from gkd.parallel.model_sharding import ModelSharding

RESIDUAL = ("batch", "length", "activation_embed")


class Place(NamedTuple):
    """The place of a layer's input in its text.

    Attributes:
      positions: int32 [N, L].
      visible: bool [N, L], false on padding.
      turn: rotation of the positions.
      window: the layer's window, in tokens.
      both_ways, centred: in an encoder, whose tokens also see those after them; see `Keys`.
      lengths: tokens of the texts that lie side by side on the length axis; () for one text.
    """

    positions: Any
    visible: Any
    turn: Any
    window: Any
    both_ways: bool = False
    centred: bool = False
    lengths: tuple[int, ...] = ()


class Text(NamedTuple):
    """Prompts; where they are in parts, a row of every part lies beside the others.

    Attributes:
      tokens: int32 [N, L], L the sum of the parts' lengths.
      mask: bool [N, L], false on padding.
      positions: int32 [N, L], from 0 in every part.
      lengths: tokens of the rows of each part.
      whole: a function that undoes the layout, [N, L, …] -> [B, S, …].
    """

    tokens: Any
    mask: Any
    positions: Any
    lengths: tuple[int, ...]
    whole: Callable


def text_of(
    tokens: Int[Array, "batch source"], padding: int, parts: RowParts | None = None
) -> Text:
    """Lays prompts out, which are padded on the right or on the left; those in parts on the right.

    Args:
      tokens: the prompts.
      padding: id of the padding.
      parts: the division of their rows; None leaves them as they are.
    """
    each = (tokens,) if parts is None else divided(tokens, parts)
    masks = [part != padding for part in each]
    lengths = tuple(part.shape[1] for part in each)

    def whole(x):
        return x if parts is None else joined(apart(x, lengths), tokens.shape[1], parts.shards)

    positions = side_by_side([positions_of(mask) for mask in masks])
    return Text(side_by_side(each), side_by_side(masks), positions, lengths, whole)


def positions_of(mask: Bool[Array, "rows length"]) -> Int[Array, "rows length"]:
    """Numbers the tokens of rows from 0, wherever their padding is.

    >>> positions_of(jnp.array([[False, True, True, False]])).tolist()
    [[0, 0, 1, 1]]
    """
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def apply_layer(
    config: Any,
    sharding: ModelSharding,
    rows: RowSharding,
    params: Any,
    x: Array,
    place: Place,
    before: Keys | None = None,
    context: Any = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Applies one layer to whole rows, which attend to themselves and to what is before them.

    Args:
      config: the stack's `DecoderConfig`.
      sharding, rows: the mesh on which the model runs, and the layout of its rows.
      params: parameters of the layer.
      x: [N, L, E].
      place: positions of the rows.
      before: keys and values of B prompts that each row continues; None: there are none.
      context: (states [B, S, E'], visible bool [B, S]) of B encoded prompts that a layer with
        cross-attention reads; None: it has none.

    Returns:
      The layer's result [N, L, E]; the keys and values [N, L, K, D] of its self-attention.
    """
    y = pre_norm(config, params, SELF, x)
    query = heads(config, params[SELF], "query", y, place.turn)
    keys, values = _keys_of(config, params, y, place.turn)
    mixed = _attend_to_own(config, query, keys, values, place, before)
    x = add_attention(config, params, SELF, x, mixed)
    if context is not None:
        query = heads(config, params[CROSS], "query", pre_norm(config, params, CROSS, x), None)
        group = Keys(*context_keys(config, params[CROSS], context[0]), context[1])
        cap, scale = config.attention_soft_cap, config.attention_scale
        mixed = attend(query, place.positions, (group,), scale=scale, soft_cap=cap)
        x = add_attention(config, params, CROSS, x, mixed)
    x = add_mlp(config, params, x, rows)
    x = rows.spread(x) if rows.spread_over else sharding.constrain(x, RESIDUAL)
    return x, (keys, values)


def _attend_to_own(config, query, keys, values, place, before):
    """Self-attention, of texts that lie side by side each to itself: [N, L, H·D]."""
    arrays = (query, place.positions, keys, values, place.visible)
    mixed = []
    for query, positions, *own in zip(*(apart(x, place.lengths) for x in arrays), strict=True):
        groups = (Keys(*own, positions, place.both_ways, place.centred),)
        mixed.append(
            attend(
                query, positions, groups if before is None else (before, *groups),
                scale=config.attention_scale, soft_cap=config.attention_soft_cap,
                window=place.window,
            )
        )  # fmt: skip
    return side_by_side(mixed)


def own_keys(config: Any, params: Any, x: Array, turn: Any) -> tuple[Array, Array]:
    """The keys and values [N, L, K, D] of a layer's self-attention, of its input [N, L, E]."""
    return _keys_of(config, params, pre_norm(config, params, SELF, x), turn)


def _keys_of(config, params, y, turn):
    own = params[SELF]
    return heads(config, own, "key", y, turn), heads(config, own, "value", y, None)


def context_keys(config: Any, attention: Any, states: Array) -> tuple[Array, Array]:
    """The keys and values [B, S, K, D] of an attention block for an encoder's states [B, S, E']."""
    return tuple(heads(config, attention, name, states, None) for name in ("key", "value"))
