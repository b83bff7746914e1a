"""A model behind the interface from `encode` and `decode` alone: decoding without a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gkd.errors import InvalidValue
from gkd.models.interface import T5_IDS, Encoded, Head, Hidden, Seq2SeqModel, SpecialIds

LARGEST_IDENTITY = 4096  # ids; above it an identity as the head costs more than 64 MB


def encoder_decoder(
    *,
    init: Callable,
    encode: Callable,
    decode: Callable,
    head: Callable | None = None,
    vocab_size: int,
    dtype: str = "float32",
    special_ids: SpecialIds = T5_IDS,
) -> Seq2SeqModel:
    """Builds a model that decodes every new token by running `decode` on all tokens before it.

    Sampling T tokens costs T teacher-forced passes: right for any causal decoder, slow for long
    outputs. A model of your own starts here; `init_cache` and `decode_step` of `Seq2SeqModel`,
    written by hand, make it fast.

    Args:
      init: (rng) -> params; boxed with logical axes where the model is to be sharded.
      encode: (params, encoder_input_tokens [B, S]) -> the encoder's states: an array [B, S, E], or
        any tree of arrays whose first axis is B.
      decode: (params, states of N rows, mask bool [N, S], decoder_input_tokens [N, T]) -> the last
        hidden states [N, T, E], or the logits [N, T, V] where `head` is None. The mask is true on
        prompt tokens. Position t may depend on the inputs 0 … t only (a causal decoder).
      head: (params) -> the output kernel [E, V], or a `Head`. None: `decode` returns logits, for
        vocabularies of at most 4096 ids.
      vocab_size: V.
      dtype: compute dtype of the hidden states.
      special_ids: start, end and padding.

    Both functions receive the keyword dropout_rng where a run trains with dropout, and only there.

    Raises:
      InvalidValue: the vocabulary is too large to do without a head.
    """
    if head is None and vocab_size > LARGEST_IDENTITY:
        raise InvalidValue(
            f"encoder_decoder: a model of {vocab_size} ids needs its head: let decode return the "
            "hidden states before it, and pass head=lambda params: its kernel [E, V]"
        )

    def encode_prompts(params, tokens, dropout_rng=None):
        states = encode(params, tokens, **_dropout(dropout_rng))
        return Encoded(hidden=states, mask=tokens != special_ids.padding)

    def decode_hidden(params, encoded, tokens, dropout_rng=None):
        samples = tokens.shape[0] // encoded.mask.shape[0]
        states, mask = _repeated((encoded.hidden, encoded.mask), samples)
        return Hidden(last=decode(params, states, mask, tokens, **_dropout(dropout_rng)))

    def init_cache(params, encoded, max_length, samples=1):
        states, mask = _repeated((encoded.hidden, encoded.mask), samples)
        so_far = jnp.full((mask.shape[0], max_length), special_ids.padding, jnp.int32)
        return (params, states, mask), so_far

    def decode_step(weights, so_far, tokens, position):
        so_far = jax.lax.dynamic_update_slice(so_far, tokens[:, None], (0, position))  # [N, T]
        hidden = decode(*weights, so_far)  # [N, T, E]
        return jax.lax.dynamic_index_in_dim(hidden, position, axis=1, keepdims=False), so_far

    def output_head(params):
        if head is None:
            return Head(jnp.eye(vocab_size, dtype=jnp.float32))
        kernel = head(params)
        return kernel if isinstance(kernel, Head) else Head(kernel)

    return Seq2SeqModel(
        init=init, encode=encode_prompts, decode_hidden=decode_hidden, init_cache=init_cache,
        decode_step=decode_step, head=output_head, vocab_size=vocab_size, dtype=dtype,
        special_ids=special_ids,
    )  # fmt: skip


def _dropout(rng: Any) -> dict[str, Any]:
    return {} if rng is None else {"dropout_rng": rng}


def _repeated(tree, samples):
    """Repeats the rows of every array of a tree: row = prompt·samples + sample."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, samples, axis=0), tree)
