"""How the rest of the code sees an encoder-decoder: seven functions and three small pytrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EOS_ID = 1  # ends inputs and outputs; 0 is padding and the decoder's start


@flax.struct.dataclass
class Encoded:
    """What the encoder leaves for the decoder.

    Attributes:
      hidden: [B, S, E] the encoder's last hidden states, in the model's compute dtype.
      mask: bool [B, S], true on prompt tokens, false on padding.
    """

    hidden: Any
    mask: Any


@flax.struct.dataclass
class Hidden:
    """What the teacher-forced decoder returns: `last`, [N, T, E] states ready for the head."""

    last: Any


@flax.struct.dataclass
class Head:
    """The projection from hidden states to logits, used in place in its own orientation.

    Attributes:
      kernel: [E, V], or [V, E] where `transposed` (the tied embedding table).
      scale: what the logits are multiplied with (T5 1.0: E**-0.5, else 1).
      transposed: whether `kernel` is [V, E].
    """

    kernel: Any
    scale: float = flax.struct.field(pytree_node=False, default=1.0)
    transposed: bool = flax.struct.field(pytree_node=False, default=False)


def project(hidden: Float[Array, "*batch embed"], head: Head) -> Float[Array, "*batch vocab"]:
    """Logits of `hidden`, the one place where hidden states meet the head.

    float32 states are multiplied at full float32 precision (TPU would otherwise round the operands
    to bfloat16); bfloat16 states at the default precision, accumulated in float32.

    Args:
      hidden: [..., E] states, any float dtype.
      head: the projection; its kernel is used in place, in its own orientation.

    Returns:
      float32 logits [..., V].
    """
    precision = jax.lax.Precision.HIGHEST
    if hidden.dtype == jnp.bfloat16:
        precision = jax.lax.Precision.DEFAULT
    contract = 1 if head.transposed else 0
    logits = jax.lax.dot_general(
        hidden.astype(jnp.float32),
        head.kernel.astype(jnp.float32),
        (((hidden.ndim - 1,), (contract,)), ((), ())),
        precision=precision,
    )
    return logits if head.scale == 1.0 else logits * head.scale


def head_for_loop(head: Head, dtype: Any) -> Head:
    """The same head with its kernel in the dtype that a decoding loop's products round to."""
    return head.replace(kernel=head.kernel.astype(dtype))


def project_token(hidden: Float[Array, "batch embed"], head: Head) -> Float[Array, "batch vocab"]:
    """Logits of one token a row, in a loop: the head's kernel is read in its own dtype.

    Args:
      hidden: [B, E] states.
      head: from `head_for_loop`.

    Returns:
      float32 logits [B, V]: those of `project`, where `hidden` is float32.
    """
    full = hidden.dtype == jnp.float32
    logits = jax.lax.dot_general(
        hidden,
        head.kernel,
        (((1,), (1 if head.transposed else 0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if full else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
    return logits if head.scale == 1.0 else logits * head.scale


@dataclasses.dataclass(frozen=True)
class Seq2SeqModel:
    """An encoder-decoder as pure functions of its parameter tree.

    Attributes:
      init: (rng) -> params, boxed with the logical axes of every parameter.
      encode: (params, encoder_input_tokens [B, S], dropout_rng=None) -> Encoded.
      decode_hidden: (params, Encoded, decoder_input_tokens [N, T], dropout_rng=None) -> Hidden of
        N = B·G rows, G for every prompt, one after the other.
      init_cache: (params, Encoded, max_length, samples=1) -> (weights, cache) for `decode_step`, of
        N = B·samples rows, prompt·samples + sample; `weights` are loop-invariant, `cache` is what a
        step changes.
      decode_step: (weights, cache, tokens [N], position []) -> (hidden [N, E], cache).
      head: (params) -> Head.
      vocab_size: V, the number of rows in the embedding table.
    """

    init: Callable
    encode: Callable
    decode_hidden: Callable
    init_cache: Callable
    decode_step: Callable
    head: Callable
    vocab_size: int
