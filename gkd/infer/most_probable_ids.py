"""A model's K most probable ids at every token, block by block along T."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gkd.distill.fused import automatic_block_size
from gkd.distill.logits import ProjectedLogits, dense, logits_shape, take_block


def most_probable_ids(
    logits: ProjectedLogits,
    valid: Bool[Array, " vocabulary"],
    k: int,
    *,
    top_k: Callable = jax.lax.top_k,
    data_shards: int = 1,
    block_size: int | None = None,
) -> tuple[Int[Array, "rows length k"], Float[Array, "rows length k"]]:
    """Returns the K most probable valid ids of every token, exactly, and their log-probabilities.

    Args:
      logits: projected logits of N rows of T tokens; never multiplied out at full length.
      valid: bool [V], ids that carry probability; at least K are true.
      k: number of ids.
      top_k: `jax.lax.top_k`, or the same over rows that are spread over devices (`jax.shard_map`),
        where XLA would gather all rows on every device.
      data_shards: number of devices that share the rows.
      block_size: positions a block; by default as `fused_token_loss` chooses.

    Returns:
      ids int32 and log-probabilities float32 [N, T, K], the most probable first, of equals the
      lower id. Temperature 1, normalised over all valid ids.
    """
    rows, length, vocabulary = logits_shape(logits)
    size = block_size or automatic_block_size(rows // data_shards, length, vocabulary)
    count = -(-length // size)
    # Whole blocks only: what is added costs less than it would to treat the last one apart.
    longer = ((0, 0), (0, count * size - length), (0, 0))
    logits = logits.replace(hidden=jnp.pad(logits.hidden, longer))
    everything = jnp.ones((rows, size), bool)

    def block(index):
        values = dense(take_block(logits, index * size, size, everything))
        log_probs = jax.nn.log_softmax(jnp.where(valid, values, -jnp.inf))
        return top_k(log_probs, k)

    def joined(blocks):  # [count, N, size, K] -> [N, T, K]
        return jnp.moveaxis(blocks, 0, 1).reshape(rows, count * size, k)[:, :length]

    log_probs, ids = jax.tree.map(joined, jax.lax.map(block, jnp.arange(count)))
    return ids, log_probs
