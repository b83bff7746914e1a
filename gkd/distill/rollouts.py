"""Rollouts from the data set's targets and from samples, and the decoder's inputs for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gkd.distill.types import Batch, Rollout


def rollout_from_targets(batch: Batch) -> Rollout:
    """The data set's own outputs as a rollout: every token through the last non-zero one counts.

    The last token is looked for from the end, so a 0 inside a row punches no hole into the mask,
    and a row that was cut before its EOS is supervised to its end.
    """
    tokens = batch.decoder_target_tokens
    # [N, T]: is there a token here or anywhere to the right?
    mask = jax.lax.cummax((tokens != 0).astype(jnp.float32), axis=1, reverse=True)
    return Rollout(
        target_tokens=tokens,
        weights=mask * batch.example_weights.astype(jnp.float32)[:, None],
        log_probs=jnp.zeros(tokens.shape, jnp.float32),
        on_policy=jnp.zeros(tokens.shape[:1], bool),
    )


def rollout_from_samples(
    tokens: Int[Array, "rows length"],
    log_probs: Float[Array, "rows length"],
    lengths: Int[Array, " rows"],
    example_weights: Float[Array, " rows"],
) -> Rollout:
    """Sampled outputs as a rollout.

    Args:
      tokens: int32 [N, T], through EOS, then 0.
      log_probs: [N, T], the sampler's log-probability of each token.
      lengths: [N], tokens in each row with its EOS.
      example_weights: [N], the weight of each row's prompt.

    Returns:
      The rollout; no gradient flows through any of it.
    """
    mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
    rollout = Rollout(
        target_tokens=tokens,
        weights=mask * example_weights.astype(jnp.float32)[:, None],
        log_probs=jnp.where(mask, log_probs, 0.0).astype(jnp.float32),
        on_policy=jnp.ones(tokens.shape[:1], bool),
    )
    return jax.lax.stop_gradient(rollout)


def shift_right(target_tokens: Int[Array, "rows length"]) -> Int[Array, "rows length"]:
    """The decoder's inputs for these targets: a 0 first, the last token dropped."""
    return jnp.pad(target_tokens, ((0, 0), (1, 0)))[:, :-1]
