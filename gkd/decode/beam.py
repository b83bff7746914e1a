"""Beam search: one compiled `lax.while_loop` that stops when no live beam can still improve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from gkd.errors import InvalidValue
from gkd.models.interface import Encoded, Seq2SeqModel, end_ids, is_one_of, project
from gkd.models.scoring import first_inputs

_IMPOSSIBLE = -jnp.inf
_BLOCK = 256


@flax.struct.dataclass
class Beams:
    """The K best completions of every prompt that the search found, best first.

    Where fewer than K exist, the last places are empty: padding, length 0, log-probability and
    score −inf.

    Attributes:
      tokens: int32 [B, K, T], through EOS, then padding.
      log_probs: float32 [B, K], log Q(completion | prompt) over the valid ids, EOS included.
      scores: float32 [B, K], log_probs ÷ ((5 + length) ÷ 6)**length_penalty.
      lengths: int32 [B, K], tokens through EOS (which counts), or T where a beam is truncated.
    """

    tokens: Any
    log_probs: Any
    scores: Any
    lengths: Any


@flax.struct.dataclass
class _Search:
    """The loop's state.

    Attributes:
      step: int32 [], number of tokens generated.
      tokens: int32 [B, K, T] of the live beams, most probable first.
      log_probs: float32 [B, K] of the live beams; −inf for a beam that does not exist.
      last: int32 [B·K], the decoder's next input.
      finished: the best `Beams` with an EOS.
      cache: the model's cache, row = prompt·K + beam.
    """

    step: Any
    tokens: Any
    log_probs: Any
    last: Any
    finished: Any
    cache: Any


def _check(max_length, beams, length_penalty, ends, vocab):
    if max_length < 1:
        raise InvalidValue(f"max_length is {max_length}: generate at least one token")
    if beams < 1:
        raise InvalidValue(f"beams is {beams}: use 1 or more")
    if not 0 <= length_penalty < math.inf:
        raise InvalidValue(f"length_penalty is {length_penalty}: use 0 (none) or more, T5's is 0.6")
    for eos_id in ends:
        if not 0 <= eos_id < vocab:
            raise InvalidValue(f"eos_id is {eos_id}: use one of the vocabulary's {vocab} ids")


def _score(log_probs, length, length_penalty):
    """Divides log-probabilities by the length penalty of Wu et al. 2016 (arXiv:1609.08144), Eq. 14.

    >>> _score(-6.0, 1, 0.6), _score(-6.0, 7, 1.0), _score(-6.0, 7, 0.0)  # ÷ 1, ÷ 2, ÷ 1
    (-6.0, -3.0, -6.0)
    >>> round(_score(-4.0, 7, 0.6), 3)  # ÷ 2**0.6 = 1.516
    -2.639
    """
    return log_probs / ((5.0 + length) / 6.0) ** length_penalty


def _take(tree, index):
    """Gathers entries [B, M] of every leaf [B, N, …]: [B, M, …]."""

    def take(leaf):
        return jax.vmap(lambda row, i: row.at[i].get(mode="clip"))(leaf, index)

    return jax.tree.map(take, tree)


def _top(x, count):
    """Computes `lax.top_k` of x [B, N] in `count` passes: (values, indices) [B, count].

    Of equal values the first comes first. XLA gathers all rows onto every device for its top_k,
    while maxima keep the sharding of the rows.
    """
    ids = jnp.arange(x.shape[-1], dtype=jnp.int32)

    def next_best(previous, _):
        value, index = jax.tree.map(lambda leaf: leaf[:, None], previous)
        left = (x < value) | ((x == value) & (ids > index))
        value = jnp.max(jnp.where(left, x, _IMPOSSIBLE), axis=-1)
        index = jnp.min(jnp.where(left & (x == value[:, None]), ids, len(ids)), axis=-1)
        return (value, index), (value, index)

    start = jnp.full_like(x[:, 0], jnp.inf), jnp.full_like(ids, -1, shape=x.shape[:1])
    values, indices = jax.lax.scan(next_best, start, length=count)[1]
    return values.T, indices.T


def _top_of_many(x, count):
    """Computes `_top` of long rows, within the `count` blocks with the largest maxima."""
    batch, size = x.shape
    if size <= count * _BLOCK:
        return _top(x, count)
    x = jnp.pad(x, ((0, 0), (0, -size % _BLOCK)), constant_values=_IMPOSSIBLE)
    blocks = x.reshape(batch, -1, _BLOCK)
    best = jnp.sort(_top(jnp.max(blocks, axis=-1), count)[1], axis=-1)  # in order, for the ties
    values, index = _top(_take(blocks, best).reshape(batch, -1), count)
    return values, _take(best, index // _BLOCK) * _BLOCK + index % _BLOCK


def _take_rows(cache, parents):
    """Gathers the caches of the parents [B, K] from leaves [B·K, …]; scalars are kept."""
    split = jax.tree.map(lambda x: x.reshape(*parents.shape, *x.shape[1:]) if x.ndim else x, cache)
    taken = jax.tree.map(lambda x: _take(x, parents) if x.ndim else x, split)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]) if x.ndim else x, taken)


def _merge(first, second, key):
    """Merges two `Beams` into the K best by key([B, N] scores); ties go to the first."""
    count = first.scores.shape[1]
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), first, second)
    return _take(both, _top(key(both.scores), count)[1])


def _start(first, beams, padding_id, max_length, cache):
    """One live beam per prompt, without tokens, given first inputs [B·K]; no finished beam."""
    batch = first.shape[0] // beams
    tokens = jnp.full((batch, beams, max_length), padding_id, jnp.int32)
    nothing = jnp.full((batch, beams), _IMPOSSIBLE, jnp.float32)
    return _Search(
        step=jnp.int32(0),
        tokens=tokens,
        log_probs=nothing.at[:, 0].set(0.0),
        last=first,
        finished=Beams(tokens, nothing, nothing, jnp.zeros((batch, beams), jnp.int32)),
        cache=cache,
    )


def _advance(search, log_probs, cache, ends, length_penalty):
    """Extends the live beams by log Q of the next token [B, K, V] and separates finished ones."""
    batch, beams, vocab = log_probs.shape
    log_probs = (search.log_probs[..., None] + log_probs).reshape(batch, beams * vocab)
    # Each beam has one EOS, so of twice as many candidates at least K are live; with two, of three
    # times as many.
    log_probs, index = _top_of_many(log_probs, (1 + len(ends)) * beams)  # [B, 2·K]
    parents, token = index // vocab, index % vocab
    tokens = _take(search.tokens, parents)  # [B, 2·K, T]
    tokens = jax.lax.dynamic_update_slice(tokens, token[..., None], (0, 0, search.step))

    ended, length = is_one_of(token, ends), search.step + 1
    scores = jnp.where(ended, _score(log_probs, length, length_penalty), _IMPOSSIBLE)
    new = Beams(tokens, log_probs, scores, jnp.full_like(token, length))

    live, chosen = _top(jnp.where(ended, _IMPOSSIBLE, log_probs), beams)  # [B, K]
    tokens, token, parents = _take((tokens, token, parents), chosen)
    return _Search(
        step=length,
        tokens=tokens,
        log_probs=live,
        last=token.reshape(-1),
        finished=_merge(search.finished, new, key=lambda scores: scores),
        cache=_take_rows(cache, parents),
    )


def _conclude(search, length_penalty, padding_id):
    """Finished beams, then in free places the live beams, truncated at the maximum length."""
    max_length = search.tokens.shape[-1]
    scores = _score(search.log_probs, max_length, length_penalty)
    lengths = jnp.full_like(search.finished.lengths, max_length)
    cut_off = Beams(search.tokens, search.log_probs, scores, lengths)
    found = _merge(
        search.finished, cut_off, key=lambda scores: jnp.isfinite(scores).astype(jnp.float32)
    )
    exists = jnp.isfinite(found.scores)
    return Beams(
        tokens=jnp.where(exists[..., None], found.tokens, padding_id),
        log_probs=jnp.where(exists, found.log_probs, _IMPOSSIBLE),
        scores=found.scores,
        lengths=jnp.where(exists, found.lengths, 0),
    )


def beam_search(
    model: Seq2SeqModel,
    params: Any,
    encoded: Encoded,
    *,
    max_length: int,
    valid: Bool[Array, " vocab"],
    beams: int = 4,
    length_penalty: float = 0.6,
    eos_id: int | Sequence[int] | None = None,
) -> Beams:
    """Searches for the K most probable completions of every prompt, as T5X's beam search does.

    Each step extends the K live beams and keeps the 2·K most probable candidates: those that end
    compete, by score, for K finished places, and the K best others stay live. A score is
    log Q(completion) ÷ ((5 + length) ÷ 6)**length_penalty, where length counts EOS, as in T5X
    (`decoding.brevity_penalty`). (Hugging Face's transformers divide by length**length_penalty, and
    an EOS ends a beam only if it is among the K most probable candidates.)

    The search of a prompt ends when its best live log-probability, scored at max_length, the most
    favourable length, does not exceed its worst of K finished scores; the loop ends with the last
    prompt's search. The other prompts of a batch do not affect a prompt's result.

    Beams truncated at max_length never displace one with an EOS: they fill the free places, best
    first, with their score taken at length max_length. (T5X returns them only where nothing
    finished, with their log-probability as the score.) So scores descend within either group only.

    With beams=1 and length_penalty=0 this is greedy search except for EOS as the second choice:
    that completion is kept too, and returned if the greedy one turns out to be less probable (as in
    T5X).

    Args:
      model: the model; the first axis of its cache's leaves is the row (prompt·K + beam), and
        leaves without axes are shared.
      params: its parameters; no gradient flows through the search.
      encoded: B encoded prompts.
      max_length: T, the greatest number of tokens, EOS included.
      valid: bool [V], ids that may be generated; false for padding and ids without a token.
      beams: K, number of live beams and of returned completions.
      length_penalty: exponent; 0 ranks by log-probability, larger values favour longer completions.
      eos_id: one id or several that end a completion; it is kept, everything after it is padding.
        None: the model's own.

    Returns:
      The completions, best first, with log-probabilities over the valid ids, scores and lengths.

    Raises:
      InvalidValue: a length, number of beams, penalty or EOS id out of range.
    """
    ids = model.special_ids
    ends = end_ids(ids, eos_id)
    _check(max_length, beams, length_penalty, ends, valid.shape[0])
    batch = encoded.mask.shape[0]
    params, encoded = jax.lax.stop_gradient((params, encoded))
    weights, cache = model.init_cache(params, encoded, max_length, beams)
    head = model.head(params)

    def unfinished(search):
        reachable = _score(search.log_probs[:, 0], max_length, length_penalty)
        improvable = reachable > search.finished.scores[:, -1]
        return (search.step < max_length) & jnp.any(improvable)

    def extend(search):
        hidden, cache = model.decode_step(weights, search.cache, search.last, search.step)
        logits = jnp.where(valid, project(hidden, head), _IMPOSSIBLE)  # [B·K, V]
        log_probs = jax.nn.log_softmax(logits).reshape(batch, beams, -1)
        return _advance(search, log_probs, cache, ends, length_penalty)

    first = first_inputs(model, encoded, beams)
    start = _start(first, beams, ids.padding, max_length, cache)
    found = jax.lax.while_loop(unfinished, extend, start)
    return _conclude(found, length_penalty, ids.padding)
