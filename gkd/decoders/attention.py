"""Attention whose query heads share keys and values, to several groups of keys at once.

A continuation attends to its prompt and to itself under one softmax. Masks are formed from
positions, for a block of queries at a time, and never exist for a whole row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from gkd.models.layers import ATTENTION, MASKED, query_block

EVERYWHERE = 1 << 30  # a window that no text fills


@flax.struct.dataclass
class Keys:
    """Keys and values of R rows, each of which serves N/R adjacent rows of queries.

    Attributes:
      keys, values: [R, L, K, D], K heads.
      visible: bool [R, L], false on padding.
      positions: int32 [R, L]: a query sees keys at its own position and before it. None: all.
      both_ways: a query also sees keys after it.
      centred: both ways, with the query in the middle of its window: ⌈w/2⌉ − 1 keys before it and
        ⌊w/2⌋ after it (T5Gemma 2).
    """

    keys: Any
    values: Any
    visible: Any
    positions: Any = None
    both_ways: bool = flax.struct.field(pytree_node=False, default=False)
    centred: bool = flax.struct.field(pytree_node=False, default=False)


def visible_keys(
    group: Keys, positions: Any, window: Any
) -> Bool[Array, "key_rows queries keys"] | Bool[Array, "key_rows 1 keys"]:
    """Determines which keys each query sees.

    Args:
      group: keys of R rows.
      positions: int32 [R, Q], of the queries.
      window: w: only keys less than w positions away are seen, or of w in all, see `centred`.

    Returns:
      bool [R, Q, L], or [R, 1, L] where positions have no influence.
    """
    if group.positions is None:
        return group.visible[:, None]
    distance = positions[:, :, None] - group.positions[:, None, :]
    if group.centred:
        near = (distance < (window + 1) // 2) & (-distance <= window // 2)
        return group.visible[:, None] & near
    if group.both_ways:
        distance = jnp.abs(distance)
    return group.visible[:, None] & (distance >= 0) & (distance < window)


def attend(
    query: Float[Array, "rows length heads dim"],
    positions: Any,
    groups: Sequence[Keys],
    *,
    scale: float | int,
    soft_cap: float | int | None = None,
    window: Any = EVERYWHERE,
) -> Float[Array, "rows length width"]:
    """Attends to all groups of keys under one softmax.

    Args:
      query: [N, T, H, D], H a multiple of the heads of the keys.
      positions: int32 [N, T], of the queries.
      groups: the keys.
      scale: factor of the scores.
      soft_cap: c of c · tanh(score / c); None: scores are not capped.
      window: keys further away than this are not seen, in groups with positions.

    Returns:
      [N, T, H·D]; of long rows, the backward pass forms the weights again, block by block.
    """
    rows, length, heads, dim = query.shape
    size = query_block(length)
    attend_block = partial(_attend_block, scale=scale, soft_cap=soft_cap, window=window)
    if size == length:
        mixed = attend_block(groups, query, positions)
    else:
        block = jax.checkpoint(partial(attend_block, groups), prevent_cse=False)
        blocks = [
            jnp.moveaxis(x.reshape(rows, -1, size, *x.shape[2:]), 1, 0) for x in (query, positions)
        ]
        mixed = jnp.moveaxis(jax.lax.map(lambda xs: block(*xs), tuple(blocks)), 0, 1)
    return checkpoint_name(mixed.reshape(rows, length, heads * dim), ATTENTION)


def _attend_block(groups, query, positions, *, scale, soft_cap, window):
    """[N, t, H, D] queries -> [N, t, H·D]."""
    scores = [
        _scores(group, query, positions, scale=scale, soft_cap=soft_cap, window=window)
        for group in groups
    ]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if scores[1:] else scores[0])
    mixed, first = 0, 0
    for group in groups:
        last = first + group.keys.shape[1]
        mixed = mixed + _mix(group, weights[..., first:last])
        first = last
    return mixed


def _scores(group, query, positions, *, scale, soft_cap, window):
    """float32 [N, K, H/K, t, L], the largest negative number where a key is not seen."""
    rows, length, heads, dim = query.shape
    kept, _, shared, _ = group.keys.shape
    by_keys = query.reshape(kept, -1, shared, heads // shared, dim)  # [R, N/R·t, K, H/K, D]
    scores = jnp.einsum(
        "rqkhd,rlkd->rkhql", by_keys, group.keys, preferred_element_type=jnp.float32
    )
    scores = scores * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    seen = visible_keys(group, positions.reshape(kept, -1), window)  # [R, N/R·t | 1, L]
    scores = jnp.where(seen[:, None, None], scores, MASKED)
    scores = scores.reshape(*scores.shape[:3], rows // kept, length, -1)
    return jnp.moveaxis(scores, 3, 1).reshape(rows, shared, heads // shared, length, -1)


def _mix(group, weights):
    """Weights [N, K, H/K, t, L] times values -> [N, t, H·D]."""
    rows, shared, each, length, _ = weights.shape
    kept, width = group.values.shape[0], group.values.shape[3]
    weights = weights.astype(group.values.dtype).reshape(
        kept, -1, shared, each, length, weights.shape[-1]
    )
    mixed = jnp.einsum("rgkhtl,rlkd->rgtkhd", weights, group.values)
    return mixed.reshape(rows, length, shared * each * width)
