"""Teacher forcing: the next-token logits of given tokens, the same for every caller."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gkd.models.architecture import Architecture
from gkd.models.interface import Encoded, ProjectedLogits, Seq2SeqModel, project


def shift_right(
    target_tokens: Int[Array, "rows length"], start_id: int = 0
) -> Int[Array, "rows length"]:
    """Shifts targets right by one, into the decoder's inputs.

    Args:
      target_tokens: int32 [N, T].
      start_id: the first input of every row.

    Returns:
      int32 [N, T]; the last target is dropped.

    >>> import jax.numpy as jnp
    >>> shift_right(jnp.array([[7, 8, 1]])).tolist()
    [[0, 7, 8]]
    """
    return jnp.pad(target_tokens, ((0, 0), (1, 0)), constant_values=start_id)[:, :-1]


def first_inputs(model: Seq2SeqModel, encoded: Encoded, samples: int = 1) -> Int[Array, " rows"]:
    """Returns the decoder's first input of every row.

    Args:
      model: the model that encoded the prompts.
      encoded: B encoded prompts.
      samples: G, rows per prompt; row = prompt·G + sample.

    Returns:
      int32 [B·G].
    """
    if encoded.start_tokens is None:
        rows = encoded.mask.shape[0] * samples
        return jnp.full(rows, model.special_ids.start, jnp.int32)
    return jnp.repeat(encoded.start_tokens, samples)


def score_tokens(
    model: Seq2SeqModel,
    params: Any,
    encoded: Encoded,
    tokens: Int[Array, "rows length"],
    dropout_rng: Array | None = None,
) -> ProjectedLogits:
    """Computes the logits of every next token of given outputs, not yet multiplied out.

    Args:
      model: the model.
      params: its parameters.
      encoded: B prompts, encoded by the same model with the same parameters.
      tokens: int32 [N, T], outputs through EOS, then padding; N = B·G rows, the G rows of a prompt
        adjacent.
      dropout_rng: key of the decoder's dropout; None runs without dropout.

    Returns:
      Logits of N rows and T positions: those at position t are conditioned on tokens before t;
      with an inner layer where the model gives one (`with_inner_layer`).
    """
    if encoded.start_tokens is None:
        inputs = shift_right(tokens, model.special_ids.start)
    else:
        first = first_inputs(model, encoded, tokens.shape[0] // encoded.mask.shape[0])
        inputs = jnp.concatenate([first[:, None], tokens[:, :-1]], axis=1)
    hidden = model.decode_hidden(params, encoded, inputs, dropout_rng=dropout_rng)
    return ProjectedLogits(hidden.last, model.head(params), hidden.inner)


def teacher_forced_logits(
    config: Architecture,
    params: Any,
    inputs: Int[Array | np.ndarray, "batch source"],
    targets: Int[Array | np.ndarray, "batch length"],
    input_lengths: Int[Array | np.ndarray, " batch"],
) -> Float[Array, "batch length vocab"]:
    """Computes the logits that predict each target token after its prompt, in one pass.

    Args:
      config: an architecture: an encoder-decoder, or a decoder-only model.
      params: its parameters, as `gkd.checkpoints.load_hf` returns them.
      inputs: int32 [B, S], prompts; what follows their lengths is not read.
      targets: int32 [B, T], outputs; what follows their end does not change the logits before it.
      input_lengths: int32 [B], tokens of each prompt.

    Returns:
      float32 [B, T, V], raw: no id is excluded.
    """
    model = config.build()
    params, inputs, targets = jax.tree.map(jnp.asarray, (params, inputs, targets))
    input_lengths = jnp.asarray(input_lengths)
    inside = jnp.arange(inputs.shape[1]) < input_lengths[:, None]
    prompts = jnp.where(inside, inputs, model.special_ids.padding)
    encoded = model.encode(params, prompts)
    logits = score_tokens(model, params, encoded, targets)
    return project(logits.hidden, logits.head)
