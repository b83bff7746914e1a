"""Cached decoding, one token per step, of decoder-only models and of T5Gemma's decoder.

`init_cache` runs once before the decoding loop and gathers what does not depend on the step: the
kernels in the compute dtype, and the keys and values of the prompt. `decode_step` touches only
those and the cache of the tokens that it wrote.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gkd.decoders.attention import EVERYWHERE
from gkd.decoders.blocks import (
    CROSS,
    SELF,
    add_attention,
    add_mlp,
    embed,
    heads,
    norm,
    pre_norm,
    rotations,
)
from gkd.models.attention_sharding import row_sharding
from gkd.models.cached import unstack
from gkd.models.layers import MASKED
from gkd.parallel.model_sharding import ModelSharding


@flax.struct.dataclass
class Prompt:
    """The part of B prompts that the loop reads, of decoder-only models in self-attention.

    Attributes:
      keys_and_values: a pair of arrays [B, S, K, D] for every layer; a tuple of pairs, or one pair
        stacked along a first axis.
      visible: bool [B, S].
      positions: int32 [B, S]; None: they are seen in every window.
      start: int32 [N], the position of every row's first input.
    """

    keys_and_values: Any
    visible: Any
    positions: Any
    start: Any


@flax.struct.dataclass
class Weights:
    """The loop's invariants.

    Attributes:
      layers: parameters of every layer, in the compute dtype.
      prompt: per layer (keys, values) [B, K, D, S] that self-attention reads beside the cache.
      context: per layer (keys, values) [B, K, D, S] that cross-attention reads; None without it.
      visible, positions, start: the prompt's, see `Prompt`.
      context_visible: bool [B, S], false on the context's padding.
      final_norm, embedding: [E], [V, E].
      divided_heads: heads by which chips divide the model's attention.
    """

    layers: Any
    prompt: Any
    context: Any
    visible: Any
    positions: Any
    start: Any
    context_visible: Any
    final_norm: Any
    embedding: Any
    divided_heads: int = flax.struct.field(pytree_node=False)


def init_cache(
    config: Any,
    sharding: ModelSharding,
    params: Any,
    prompt: Prompt | None,
    context: Prompt | None,
    max_length: int,
    samples: int = 1,
    divided_heads: int | None = None,
) -> tuple[Weights, tuple]:
    """Prepares the weights of the loop and an empty cache.

    Args:
      config: the decoder's `DecoderConfig`; layers may be stacked or not.
      sharding: the mesh on which the model runs.
      params: the parameter tree, not boxed.
      prompt: B prompts that self-attention reads; None: there are none.
      context: B encoded prompts that cross-attention reads; None: there is no cross-attention.
      max_length: T, the greatest number of tokens to decode.
      samples: G, rows per prompt.
      divided_heads: heads by which chips divide the whole model's attention; None: this stack's.

    Returns:
      (weights, cache): per layer (keys, values), each [B·G, K, D, T].
    """
    dtype, decoder = jnp.dtype(config.dtype), unstack(params["decoder"])
    given = prompt if prompt is not None else context
    divided_heads = divided_heads or config.num_kv_heads
    rows = row_sharding(sharding, divided_heads, len(given.visible))

    def by_layer(source):
        """[B, S, K, D] -> [B, K, D, S]: L, and not D, comes last, as in `gkd.models.cached`."""
        if source is None:
            return None
        found = source.keys_and_values
        if config.stacked_layers:
            found = [jax.tree.map(lambda x: x[i], found) for i in range(config.num_layers)]  # noqa: B023
        turned = [[jnp.transpose(x, (0, 2, 3, 1)).astype(dtype) for x in pair] for pair in found]
        return tuple(tuple(map(rows.spread, pair)) for pair in turned)

    weights = Weights(
        layers=tuple(_cast(decoder[f"layers_{i}"], dtype) for i in range(config.num_layers)),
        prompt=by_layer(prompt),
        context=by_layer(context),
        visible=None if prompt is None else rows.scatter(prompt.visible),
        positions=None if given.positions is None else rows.scatter(given.positions),
        start=given.start,
        context_visible=None if context is None else rows.scatter(context.visible),
        final_norm=decoder["decoder_norm"]["scale"],
        embedding=params["token_embedder"]["embedding"],
        divided_heads=divided_heads,
    )
    shape = len(given.visible) * samples, config.num_kv_heads, config.head_dim, max_length
    empty = rows.spread(jnp.zeros(shape, dtype))
    return weights, tuple((empty, empty) for _ in weights.layers)


def _cast(layer, dtype):
    """Kernels and biases in the compute dtype; scales of norms stay as they are."""

    def cast(path, leaf):
        return leaf if path[-1].key == "scale" else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, layer)


def decode_step(
    config: Any,
    sharding: ModelSharding,
    weights: Weights,
    cache: tuple,
    tokens: Int[Array, " rows"],
    position: Int[Array, ""] | int,
) -> tuple[Float[Array, "rows embed"], tuple]:
    """Feeds one token per row and returns the hidden states that predict the next.

    Args:
      config: the decoder's `DecoderConfig`.
      sharding: the mesh on which the model runs.
      weights: loop invariants, from `init_cache`.
      cache: cache of the previous step, at first from `init_cache`.
      tokens: [N], the decoder's inputs.
      position: the step's number, the same for every row.

    Returns:
      (hidden [N, E] ready for the head, the cache with this token's keys and values).
    """
    prompts = weights.visible if weights.context is None else weights.context_visible
    rows = row_sharding(sharding, weights.divided_heads, len(prompts))
    x = rows.scatter(embed(config, weights.embedding, tokens[:, None]))  # [N, 1, E]
    turns = rotations(config, (weights.start + position)[:, None])
    updated = []
    for i, (layer, pair) in enumerate(zip(weights.layers, cache, strict=True)):
        y, own, turn = pre_norm(config, layer, SELF, x), layer[SELF], turns[config.is_local(i)]
        query, key = (heads(config, own, name, y, turn) for name in ("query", "key"))
        new = key, heads(config, own, "value", y, None)  # [N, 1, K, D]
        pair = tuple(
            jax.lax.dynamic_update_slice(old, each[:, 0, :, :, None], (0, 0, 0, position))
            for old, each in zip(pair, new, strict=True)
        )
        mixed = _attend(config, query, _self_groups(config, weights, i, pair, position))
        x = add_attention(config, layer, SELF, x, mixed)
        if weights.context is not None:
            query = heads(config, layer[CROSS], "query", pre_norm(config, layer, CROSS, x), None)
            mixed = _attend(config, query, [(*weights.context[i], weights.context_visible)])
            x = add_attention(config, layer, CROSS, x, mixed)
        x = add_mlp(config, layer, x, rows)
        updated.append(pair)
    return rows.gather(norm(config, x[:, 0], weights.final_norm)), tuple(updated)


def _self_groups(config, weights, layer, pair, position):
    """(keys, values, seen bool [B|1, L]) of the prompt, where there is one, and of the output."""
    window = config.windows[layer]
    distance = position - jnp.arange(pair[0].shape[3])
    groups = [(*pair, ((distance >= 0) & (distance < window))[None])]
    if weights.prompt is None:
        return groups
    seen = weights.visible
    if window != EVERYWHERE and weights.positions is not None:
        start = weights.start.reshape(len(seen), -1)[:, :1]  # [B, 1], alike for all samples
        seen = seen & (start + position - weights.positions < window)
    return [(*weights.prompt[layer], seen), *groups]


def _attend(config, query, groups):
    """query [N, 1, H, D], groups of keys and values [B|N, K, D, L] -> [N, 1, H·D]."""
    rows, _, count, dim = query.shape
    scores = []
    for keys, _, seen in groups:
        kept, shared = keys.shape[:2]
        grouped = query.reshape(kept, -1, shared, count // shared, dim)  # [R, G, K, H/K, D]
        score = jnp.einsum("rgkhd,rkdl->rkghl", grouped, keys, preferred_element_type=jnp.float32)
        score = score * config.attention_scale
        if config.attention_soft_cap is not None:
            score = config.attention_soft_cap * jnp.tanh(score / config.attention_soft_cap)
        score = jnp.where(seen[:, None, None, None], score, MASKED)
        scores.append(jnp.swapaxes(score, 1, 2).reshape(rows, shared, count // shared, -1))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if scores[1:] else scores[0])
    mixed, first = 0, 0
    for _, values, _ in groups:
        kept, shared, dim, length = values.shape
        part = weights[..., first : first + length].astype(values.dtype)
        part = part.reshape(kept, -1, shared, count // shared, length)
        mixed += jnp.einsum("rgkhl,rkdl->rgkhd", part, values).reshape(rows, 1, -1)
        first += length
    return mixed
