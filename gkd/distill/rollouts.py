"""Rollouts from the data set's targets and from samples, and the decoder's inputs for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gkd.distill.types import Batch, Rollout


def rollout_from_targets(batch: Batch, samples: int = 1) -> Rollout:
    """The data set's own outputs as a rollout: every token through the last non-zero one counts.

    The last token is looked for from the end, so a 0 inside a row punches no hole into the mask,
    and a row that was cut before its EOS is supervised to its end.

    Args:
      batch: B prompts with their outputs.
      samples: G, how often each output is repeated, where the student would write G samples.

    Returns:
      B·G rows.
    """
    tokens = jnp.repeat(batch.decoder_target_tokens, samples, axis=0)
    example_weights = jnp.repeat(batch.example_weights, samples)
    # [N, T]: is there a token here or anywhere to the right?
    mask = jax.lax.cummax((tokens != 0).astype(jnp.float32), axis=1, reverse=True)
    return Rollout(
        target_tokens=tokens,
        weights=mask * example_weights.astype(jnp.float32)[:, None],
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


def padded_to(rollout: Rollout, length: int) -> Rollout:
    """The same rollout with rows of `length` tokens, the new ones empty."""
    missing = ((0, 0), (0, length - rollout.target_tokens.shape[1]))
    return rollout.replace(
        target_tokens=jnp.pad(rollout.target_tokens, missing),
        weights=jnp.pad(rollout.weights, missing),
        log_probs=jnp.pad(rollout.log_probs, missing),
    )


def shift_right(target_tokens: Int[Array, "rows length"]) -> Int[Array, "rows length"]:
    """The decoder's inputs for these targets: a 0 first, the last token dropped."""
    return jnp.pad(target_tokens, ((0, 0), (1, 0)))[:, :-1]


def rollout_metrics(written: Rollout, eos_id: int) -> dict[str, tuple[Array, Array]]:
    """Who wrote a step's sequences and what they look like, as (sum, weight) pairs.

    Returns:
      on_policy, target_length and cut_off (no EOS) as means over rows; repetition, the share of a
      row's 4-grams that it has written before; and sample_entropy, −log Q of the sampled tokens on
      average: what the student's entropy is, estimated at no cost.
    """
    counted = (jnp.sum(written.weights, axis=-1) > 0).astype(jnp.float32)  # [N]
    tokens = written.target_tokens
    lengths = jnp.sum(tokens > 0, axis=-1).astype(jnp.float32)
    ended = jnp.any(tokens == eos_id, axis=-1)
    rows = jnp.sum(counted)
    own = counted * written.on_policy
    repeated, grams = repeated_ngrams(tokens)
    return {
        "on_policy": (jnp.sum(own), rows),
        "target_length": (jnp.sum(lengths * counted), rows),
        "cut_off": (jnp.sum(counted * ~ended * (lengths > 0)), rows),
        "repetition": (jnp.sum(repeated * counted), jnp.sum(grams * counted)),
        "sample_entropy": (-jnp.sum(written.log_probs * own[:, None]), jnp.sum(lengths * own)),
    }


def repeated_ngrams(
    tokens: Int[Array, "rows length"], n: int = 4
) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
    """How many of a row's n-grams stand earlier in the row too, and how many n-grams it has.

    Args:
      tokens: int32 [N, T], 0 after the end; an n-gram ends before it.
      n: tokens of an n-gram.

    Returns:
      Two counts, float32 [N].
    """
    count = tokens.shape[1] - n + 1
    if count < 1:
        return jnp.zeros(tokens.shape[0]), jnp.zeros(tokens.shape[0])
    same = jnp.ones((tokens.shape[0], count, count), bool)
    for i in range(n):
        part = tokens[:, i : i + count]
        same &= part[:, :, None] == part[:, None, :]
    earlier = jnp.arange(count)[:, None] > jnp.arange(count)[None, :]
    exists = tokens[:, n - 1 :] > 0
    repeated = jnp.any(same & earlier, axis=-1) & exists
    return (
        jnp.sum(repeated, axis=-1).astype(jnp.float32),
        jnp.sum(exists, axis=-1).astype(jnp.float32),
    )
