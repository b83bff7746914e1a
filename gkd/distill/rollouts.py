"""Rollouts from the data set's targets and from samples, and their statistics."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gkd.distill.types import Batch, Rollout
from gkd.models.interface import is_one_of


def rollout_from_targets(batch: Batch, samples: int = 1, padding_id: int = 0) -> Rollout:
    """Makes a rollout of the data set's targets: every token through the last that is not padding.

    The last token is found from the end: a padding id inside a row leaves no gap in the mask, and a
    row that was truncated before its EOS is supervised to its end.

    Args:
      batch: B prompts with their targets.
      samples: G, repetitions of each target, where the student would generate G samples per prompt.
      padding_id: the id that fills rows after their end.

    Returns:
      B·G rows.
    """
    tokens = jnp.repeat(batch.decoder_target_tokens, samples, axis=0)
    example_weights = jnp.repeat(batch.example_weights, samples)
    # [N, T]: is there a token here or anywhere to the right?
    mask = jax.lax.cummax((tokens != padding_id).astype(jnp.float32), axis=1, reverse=True)
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


def padded_to(rollout: Rollout, length: int, padding_id: int = 0) -> Rollout:
    """Lengthens a rollout's rows to `length` tokens with padding of weight 0."""
    missing = ((0, 0), (0, length - rollout.target_tokens.shape[1]))
    return rollout.replace(
        target_tokens=jnp.pad(rollout.target_tokens, missing, constant_values=padding_id),
        weights=jnp.pad(rollout.weights, missing),
        log_probs=jnp.pad(rollout.log_probs, missing),
    )


def rollout_metrics(
    rollout: Rollout, eos_id: int | Sequence[int], padding_id: int = 0
) -> dict[str, tuple[Array, Array]]:
    """Summarises a step's sequences as (sum, weight) pairs.

    Args:
      rollout: the step's rollout.
      eos_id: the id or ids that end an output.
      padding_id: the id that fills rows after their end.

    Returns:
      on_policy, target_length and cut_off (no EOS) as means over rows; repetition, the share of a
      row's 4-grams that it repeats; and sample_entropy, −log Q of the sampled tokens on
      average: what the student's entropy is, estimated at no cost.
    """
    counted = (jnp.sum(rollout.weights, axis=-1) > 0).astype(jnp.float32)  # [N]
    tokens = rollout.target_tokens
    lengths = jnp.sum(tokens != padding_id, axis=-1).astype(jnp.float32)
    ends = (eos_id,) if isinstance(eos_id, int) else eos_id
    ended = jnp.any(is_one_of(tokens, ends), axis=-1)
    rows = jnp.sum(counted)
    own = counted * rollout.on_policy
    repeated, grams = repeated_ngrams(tokens, padding_id=padding_id)
    return {
        "on_policy": (jnp.sum(own), rows),
        "target_length": (jnp.sum(lengths * counted), rows),
        "cut_off": (jnp.sum(counted * ~ended * (lengths > 0)), rows),
        "repetition": (jnp.sum(repeated * counted), jnp.sum(grams * counted)),
        "sample_entropy": (-jnp.sum(rollout.log_probs * own[:, None]), jnp.sum(lengths * own)),
    }


def repeated_ngrams(
    tokens: Int[Array, "rows length"], n: int = 4, padding_id: int = 0
) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
    """Counts the n-grams of each row that occur earlier in the same row, and all its n-grams.

    Args:
      tokens: int32 [N, T], through EOS, then padding; n-grams with padding do not count.
      n: tokens per n-gram.
      padding_id: the id that fills rows after their end.

    Returns:
      Two counts, float32 [N].

    >>> import jax.numpy as jnp
    >>> repeated, total = repeated_ngrams(jnp.array([[5, 6, 5, 6, 5, 1, 0]]), n=2)
    >>> (repeated.tolist(), total.tolist())  # 5 6 and 6 5 come twice
    ([2.0], [5.0])
    """
    count = tokens.shape[1] - n + 1
    if count < 1:
        return jnp.zeros(tokens.shape[0]), jnp.zeros(tokens.shape[0])
    same = jnp.ones((tokens.shape[0], count, count), bool)
    for i in range(n):
        part = tokens[:, i : i + count]
        same &= part[:, :, None] == part[:, None, :]
    earlier = jnp.arange(count)[:, None] > jnp.arange(count)[None, :]
    exists = tokens[:, n - 1 :] != padding_id
    repeated = jnp.any(same & earlier, axis=-1) & exists
    return (
        jnp.sum(repeated, axis=-1).astype(jnp.float32),
        jnp.sum(exists, axis=-1).astype(jnp.float32),
    )
