"""Sampling from a model: one compiled `lax.while_loop` that stops when every row has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gkd.errors import InvalidValue
from gkd.models.interface import (
    Encoded,
    Seq2SeqModel,
    end_ids,
    head_for_loop,
    is_one_of,
    project_token,
)
from gkd.models.scoring import first_inputs

_IMPOSSIBLE = -jnp.inf


@flax.struct.dataclass
class Samples:
    """Sampled completions.

    Attributes:
      tokens: int32 [N, T], through EOS, then padding; N = B·G rows, row = prompt·G + sample.
      log_probs: float32 [N, T], log Q(token | prefix) over the valid ids, 0 after the end.
      lengths: int32 [N], tokens through EOS, or T where a row is truncated.
    """

    tokens: Any
    log_probs: Any
    lengths: Any


def truncate_logits(
    logits: Float[Array, "batch vocab"], top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "batch vocab"]:
    """Truncates distributions to their most probable ids.

    Args:
      logits: [B, V], already divided by the temperature.
      top_k: keeps the k most probable ids and those that tie with the k-th; 0 keeps all.
      top_p: keeps, of these, the smallest set of most probable ids with at least this mass (at
        least one id); 1 keeps all.

    Returns:
      The logits [B, V], −inf at the other ids.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    >>> jnp.exp(truncate_logits(logits, top_k=2)).round(3).tolist()  # not renormalised
    [[0.5, 0.30000001192092896, 0.0]]
    >>> jnp.isfinite(truncate_logits(logits, top_p=0.7)).tolist()  # 0.5 < 0.7 <= 0.5 + 0.3
    [[True, True, False]]
    >>> jnp.isfinite(truncate_logits(logits, top_p=0.4)).tolist()
    [[True, False, False]]
    """
    if top_k:
        kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, _IMPOSSIBLE, logits)
    if top_p < 1.0:
        ordered = -jnp.sort(-logits, axis=-1)
        mass = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
        index, end = jnp.arange(logits.shape[-1]), logits.shape[-1] - 1
        # The first id that reaches p; a rounded sum may be non-monotone, and may never reach it.
        last = jnp.min(jnp.where(mass >= top_p, index, end), axis=-1, keepdims=True)
        threshold = jnp.take_along_axis(ordered, last, axis=-1)
        logits = jnp.where(logits < threshold, _IMPOSSIBLE, logits)
    return logits


def row_keys(rng: Array, rows: Int[Array, " batch"]) -> Array:
    """Derives a key per row from its global number, independent of its device and its batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, rows)


def _choose(logits, keys, step, temperature, top_k, top_p):
    """Chooses the next token of each row of logits [B, V]; returns it with its log-probability."""
    peak, mass, view = _mass(logits)
    log_total = peak + jnp.log(jnp.sum(mass, axis=(1, 2)))
    if temperature == 0.0:
        ids = jnp.arange(logits.shape[1], dtype=jnp.int32)
        token = jnp.min(jnp.where(logits == peak[:, None], ids, ids[-1]), axis=1)
    else:
        if temperature != 1.0 or top_k or top_p < 1.0:
            peak, mass, view = _mass(truncate_logits(logits / temperature, top_k, top_p))
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(step_keys)  # [B, 2]
        token = _draw(peak, mass, view, uniforms)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    return token, chosen - log_total


def _mass(logits):
    """Sums unnormalised probability by class of ids: the maximum [B], sums [B, G, L], the view.

    Id i is entry (g, w, l) of a view [B, G, W, L] of a row's logits, whose class is (g, l). The
    sums over W run side by side in L, and G divides like a sharded vocabulary.
    """
    batch, vocabulary = logits.shape
    lanes = math.gcd(vocabulary, 8)
    groups = math.gcd(vocabulary // lanes, 16)
    view = logits.reshape(batch, groups, -1, lanes)
    peak = jnp.max(jnp.max(view, axis=2), axis=(1, 2))  # [B]
    return peak, jnp.sum(jnp.exp(view - peak[:, None, None, None]), axis=2), view


def _draw(peak, mass, view, uniforms):
    """Draws ids from the view's softmax by inversion in two stages: first the class, then the id.

    It takes two uniform numbers per row instead of Gumbel noise for every id.
    """
    batch, _, width, lanes = view.shape
    chosen = _invert(mass.reshape(batch, -1), uniforms[:, 0])  # [B]
    group, lane = chosen // lanes, chosen % lanes
    members = jax.vmap(lambda row, g, lane: row[g, :, lane])(view, group, lane)  # [B, W]
    place = _invert(jnp.exp(members - peak[:, None]), uniforms[:, 1])
    return ((group * width + place) * lanes + lane).astype(jnp.int32)


def _invert(mass, uniform):
    """The first index of mass [B, N] whose cumulative share exceeds uniform [B]; none of mass 0.

    A float32 `cumsum` over blocks is not monotone (XLA on CPU beyond 256 entries, TPUs elsewhere):
    an entry of mass 0 may seem to add to the sum. So only entries that have mass are looked at,
    and the last of them is chosen where rounding lets none exceed the target.
    """
    reached = jnp.cumsum(mass, axis=1)
    target = uniform * reached[:, -1]
    index = jnp.arange(mass.shape[1])
    possible = mass > 0
    last = jnp.max(jnp.where(possible, index, 0), axis=1)  # [B]
    return jnp.min(jnp.where(possible & (reached > target[:, None]), index, last[:, None]), axis=1)


def _check(max_length, temperature, top_k, top_p):
    if max_length < 1:
        raise InvalidValue(f"max_length is {max_length}: sample at least one token")
    if temperature < 0:
        raise InvalidValue(f"temperature is {temperature}: use 0 (greedy) or more")
    if top_k < 0:
        raise InvalidValue(f"top_k is {top_k}: use 0 (all ids) or more")
    if not 0 < top_p <= 1:
        raise InvalidValue(f"top_p is {top_p}: use a probability in (0, 1]")


def sample(
    model: Seq2SeqModel,
    params: Any,
    encoded: Encoded,
    rng: Array,
    *,
    max_length: int,
    valid: Bool[Array, " vocab"],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_id: int | Sequence[int] | None = None,
    samples: int = 1,
    rows: Int[Array, " rows"] | None = None,
) -> Samples:
    """Samples completions of every prompt, by default exactly from the model's distribution.

    The noise of row r at token t comes from fold_in(fold_in(rng, r), t), so the division of prompts
    over devices or microbatches changes nothing, as long as `rows` numbers them globally.

    Args:
      model: the model.
      params: its parameters; no gradient flows through the samples.
      encoded: B encoded prompts.
      rng: PRNG key of this call (a step, an evaluation).
      max_length: T, the greatest number of tokens; a row that is truncated there has no EOS.
      valid: bool [V], ids that may be sampled; false for padding and ids without a token.
      temperature: 0 is greedy; 1 samples the model's own distribution.
      top_k, top_p: see `truncate_logits`; off by default.
      eos_id: one id or several that end a row; it is kept, everything after it is padding. None:
        the model's own.
      samples: G, completions per prompt; row = prompt·G + sample.
      rows: global row numbers, 0…B·G−1 by default.

    Returns:
      The tokens, their lengths, and their log-probabilities under the model's own distribution
      over the valid ids (temperature 1, not truncated), equal to those of a teacher-forced pass.

    Raises:
      InvalidValue: a length, temperature, top_k or top_p out of range.
    """
    _check(max_length, temperature, top_k, top_p)
    batch = encoded.mask.shape[0] * samples
    params, encoded = jax.lax.stop_gradient((params, encoded))
    keys = row_keys(rng, jnp.arange(batch) if rows is None else rows)
    weights, cache = model.init_cache(params, encoded, max_length, samples)
    head = head_for_loop(model.head(params), model.dtype)
    ids = model.special_ids
    ends = end_ids(ids, eos_id)

    def unfinished(carry):
        step, _, ended, *_ = carry
        return (step < max_length) & ~jnp.all(ended)

    def sample_one(carry):
        step, last, ended, tokens, log_probs, cache = carry
        hidden, cache = model.decode_step(weights, cache, last, step)
        logits = jnp.where(valid, project_token(hidden, head), _IMPOSSIBLE)  # [B, V]
        token, log_prob = _choose(logits, keys, step, temperature, top_k, top_p)
        token = jnp.where(ended, ids.padding, token)
        log_prob = jnp.where(ended, 0.0, log_prob)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, step))
        log_probs = jax.lax.dynamic_update_slice(log_probs, log_prob[:, None], (0, step))
        return step + 1, token, ended | is_one_of(token, ends), tokens, log_probs, cache

    start = (
        jnp.int32(0),
        first_inputs(model, encoded, samples),
        jnp.zeros(batch, bool),
        jnp.full((batch, max_length), ids.padding, jnp.int32),
        jnp.zeros((batch, max_length), jnp.float32),
        cache,
    )
    _, _, _, tokens, log_probs, _ = jax.lax.while_loop(unfinished, sample_one, start)
    return Samples(tokens, log_probs, jnp.sum(tokens != ids.padding, axis=-1, dtype=jnp.int32))
