"""The interface to every sequence-to-sequence model: pure functions and a few small pytrees."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gkd.errors import InvalidValue
from gkd.parallel.model_sharding import ModelSharding


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Token ids with a meaning of their own; the defaults are T5's.

    Attributes:
      start: the decoder's first input, where it does not depend on the prompt.
      end: ends inputs and outputs (EOS).
      padding: follows the end of a row. It must differ from the ends: the last token of a row is
        the last one that is not padding. −1 where every id is a token.
      ends: all ids that end an output, `end` among them; () is `end` alone.
    """

    start: int = 0
    end: int = 1
    padding: int = 0
    ends: tuple[int, ...] = ()

    def __post_init__(self):
        if self.ends and self.end not in self.ends:
            raise InvalidValue(f"SpecialIds: end {self.end} is not among the ends {self.ends}")
        if self.padding in (self.end, *self.ends):
            raise InvalidValue(
                f"SpecialIds: end and padding are both {self.padding}, so a row's EOS would "
                "look like its padding: choose an id that is never generated as padding"
            )


T5_IDS = SpecialIds()


def is_one_of(tokens: Int[Array, "..."], ids: Sequence[int]) -> Bool[Array, "..."]:
    """Compares tokens with a few ids: true where one of them is.

    >>> is_one_of(jnp.array([3, 1, 5]), (1, 5)).tolist()
    [False, True, True]
    """
    return functools.reduce(jnp.logical_or, [tokens == each for each in ids])


def end_ids(ids: SpecialIds, given: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """Returns the ids that end an output: those that are given, or else the model's own."""
    if given is None:
        return ids.ends or (ids.end,)
    return (given,) if isinstance(given, int) else tuple(given)


@flax.struct.dataclass
class Encoded:
    """Encoded prompts, as the decoder reads them.

    Attributes:
      hidden: [B, S, E] the encoder's last hidden states, in the model's compute dtype. A
        decoder-only model puts the keys and values of its layers here (any pytree).
      mask: bool [B, S], true on prompt tokens, false on padding. Of a decoder-only model also false
        on the last token, which is the decoder's first input.
      start_tokens: int32 [B], the decoder's first input where it depends on the prompt (the last
        prompt token of a decoder-only model). None: `SpecialIds.start` for every prompt.
    """

    hidden: Any
    mask: Any
    start_tokens: Any = None


@flax.struct.dataclass
class InnerLayer:
    """An inner layer of the decoder and the attention of the last, for losses that compare them.

    Attributes:
      hidden: [N, T, E] the layer's states after the decoder's final norm, ready for the head.
      attention: float32 [N, T, T], the layer's self-attention weights, (query, key), before
        dropout; mean over the heads.
      last_attention: float32 [N, T, T], those of the last layer.
    """

    hidden: Any
    attention: Any
    last_attention: Any


@flax.struct.dataclass
class Hidden:
    """The teacher-forced decoder's result.

    Attributes:
      last: [N, T, E] last hidden states, ready for the head.
      inner: an inner layer, where one is asked for (`with_inner_layer`); else None.
    """

    last: Any
    inner: InnerLayer | None = None


@flax.struct.dataclass
class Head:
    """The projection from hidden states to logits; the kernel keeps its own orientation.

    Attributes:
      kernel: [E, V], or [V, E] where `transposed` (the tied embedding table).
      scale: factor of the logits (T5 1.0: E**-0.5, else 1).
      transposed: true where `kernel` is [V, E].
      soft_cap: c of logits c · tanh(product / c) (T5Gemma); None: they are not capped.
    """

    kernel: Any
    scale: float = flax.struct.field(pytree_node=False, default=1.0)
    transposed: bool = flax.struct.field(pytree_node=False, default=False)
    soft_cap: float | None = flax.struct.field(pytree_node=False, default=None)

    def split_by_vocabulary(self, sharding: ModelSharding) -> Head:
        """The same head, on a mesh with its kernel split over the vocabulary only.

        A fully sharded kernel is split over the width too; used as it is, the devices of a TPU
        slice exchange it again for every block of positions of the loss.
        """
        if sharding.mesh is None:
            return self
        axes = ("vocab", "activation_embed")
        ordered = axes if self.transposed else axes[::-1]
        return self.replace(kernel=sharding.constrain(self.kernel, ordered))

    def with_size(self, size: int) -> Head:
        """The same head for the first `size` ids; those that it lacks get logits of 0."""
        axis = 0 if self.transposed else 1
        kept = jax.lax.slice_in_dim(self.kernel, 0, min(size, self.kernel.shape[axis]), axis=axis)
        more = [(0, 0), (0, 0)]
        more[axis] = (0, size - kept.shape[axis])
        return self.replace(kernel=jnp.pad(kept, more))

    def finish(self, products: Any) -> Any:
        """Scales and caps products of hidden states and kernel: the logits."""
        logits = products if self.scale == 1.0 else products * self.scale
        if self.soft_cap is None:
            return logits
        return self.soft_cap * jnp.tanh(logits / self.soft_cap)


@flax.struct.dataclass
class ProjectedLogits:
    """Logits as an unevaluated product of hidden states and head.

    Attributes:
      hidden: [N, T, E] last hidden states, in the model's compute dtype.
      head: the projection to [N, T, V], its kernel used in place.
      inner: an inner layer of the same pass, where one is asked for; else None.
    """

    hidden: Any
    head: Head
    inner: InnerLayer | None = None


def project(hidden: Float[Array, "*batch embed"], head: Head) -> Float[Array, "*batch vocab"]:
    """Multiplies hidden states with the head.

    float32 states are multiplied at full float32 precision (TPU would otherwise round the operands
    to bfloat16); bfloat16 states at the default precision, accumulated in float32.

    Args:
      hidden: [..., E] states, any float dtype.
      head: the projection; its kernel is used in place, in its own orientation.

    Returns:
      float32 logits [..., V].

    >>> import jax.numpy as jnp
    >>> table = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # a tied head: [V, E]
    >>> project(jnp.array([2.0, 4.0]), Head(table, scale=2**-0.5, transposed=True)).round(3)
    Array([1.414, 2.828, 4.243], dtype=float32)
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
    return head.finish(logits)


def head_for_loop(head: Head, dtype: Any) -> Head:
    """Casts the head's kernel to the dtype that the products of a decoding loop round to."""
    return head.replace(kernel=head.kernel.astype(dtype))


def project_token(hidden: Float[Array, "batch embed"], head: Head) -> Float[Array, "batch vocab"]:
    """Projects one token per row inside a decoding loop, reading the kernel in its own dtype.

    Args:
      hidden: [B, E] states.
      head: head cast by `head_for_loop`.

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
    return head.finish(logits)


@dataclasses.dataclass(frozen=True)
class Seq2SeqModel:
    """A model as pure functions of its parameter tree, with all it does on a mesh bound in.

    An encoder-decoder encodes its prompts. For a decoder-only model, `encode` is the prefill and
    `decode_hidden` the teacher-forced continuation against its keys and values.

    Attributes:
      init: (rng) -> params, boxed with the logical axes of every parameter.
      encode: (params, encoder_input_tokens [B, S], dropout_rng=None) -> Encoded.
      decode_hidden: (params, Encoded, decoder_input_tokens [N, T], dropout_rng=None) -> Hidden of
        N = B·G rows, the G rows of a prompt adjacent.
      init_cache: (params, Encoded, max_length, samples=1) -> (weights, cache) for `decode_step`, of
        N = B·samples rows, row = prompt·samples + sample. `weights` are loop-invariant, `cache` is
        the loop's state.
      decode_step: (weights, cache, tokens [N], position []) -> (hidden [N, E], cache).
      head: (params) -> Head.
      vocab_size: V, rows of the embedding table.
      dtype: compute dtype of the hidden states.
      special_ids: start, end and padding.
      inner_layers: decoder layers below the last that `decode_hidden` can return, as the keyword
        inner_layer: 1 … inner_layers; 0 for a model without that keyword.
      encode_parts: (params, encoder_input_tokens [B, S], `row_parts.RowParts`, dropout_rng=None) ->
        Encoded, that of `encode` but for zeros after the end of a part. None: padding is encoded.
    """

    init: Callable
    encode: Callable
    decode_hidden: Callable
    init_cache: Callable
    decode_step: Callable
    head: Callable
    vocab_size: int
    dtype: str = "float32"
    special_ids: SpecialIds = T5_IDS
    inner_layers: int = 0
    encode_parts: Callable | None = None


def with_inner_layer(model: Seq2SeqModel, layer: int) -> Seq2SeqModel:
    """Makes `decode_hidden` return an inner layer of the decoder beside the last.

    Args:
      model: the model; sampling with it is unchanged.
      layer: number of decoder layers up to and including the inner one, from 1.

    Returns:
      The model, whose `Hidden.inner` is an `InnerLayer`.

    Raises:
      InvalidValue: the model gives no inner layers, or has no such layer below its last.
    """
    if not model.inner_layers:
        raise InvalidValue(
            "an inner layer is compared with the last, but this model gives none: it needs a T5 of "
            "two decoder layers or more (T5X modules and models of your own give their last only)"
        )
    if not 1 <= layer <= model.inner_layers:
        raise InvalidValue(
            f"InnerLayerLoss.layer is {layer}: choose from 1 to {model.inner_layers}, below "
            f"the decoder's last layer, which is {model.inner_layers + 1}"
        )
    decode_hidden = functools.partial(model.decode_hidden, inner_layer=layer)
    return dataclasses.replace(model, decode_hidden=decode_hidden)
