"""Cached decoding of T5, one token per step, as pure functions of its parameter tree.

`init_cache` runs once before the decoding loop: it gathers every product that does not depend on
the step (fused kernels in the compute dtype, the keys and values of the encoder's states, the
relative bias by distance). `decode_step` then touches only those and the self-attention cache.

Kernels are used in place, in their own orientation [in, out]: a sampler that is called every step
would otherwise copy the whole decoder every step.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gkd.models.attention_sharding import row_sharding
from gkd.models.interface import Encoded
from gkd.models.layers import (
    MASKED,
    activate,
    padding_bias,
    relative_position_bucket,
    rms_norm,
)
from gkd.parallel.model_sharding import ModelSharding


@flax.struct.dataclass
class LayerWeights:
    """One decoder layer, prepared for the loop (H heads of D, prompts of S tokens).

    Attributes:
      norms: the three pre-norm scales [E] each.
      query_key_value: three [E, H·D] self-attention projections.
      self_out: [H·D, E].
      cross_query, cross_out: [E, H·D], [H·D, E].
      cross_keys, cross_values: [B, H, D, S] of the encoded prompts.
      mlp_in: one [E, F], or two (gated); mlp_out: [F, E].
      bias_by_distance: [H, 2·T-1], see `_bias_by_distance`.
    """

    norms: Any
    query_key_value: Any
    self_out: Any
    cross_query: Any
    cross_out: Any
    cross_keys: Any
    cross_values: Any
    mlp_in: Any
    mlp_out: Any
    bias_by_distance: Any


@flax.struct.dataclass
class Weights:
    """The loop's invariants: layers, final norm, embeddings and the prompts' padding bias."""

    layers: tuple
    final_norm: Any
    embedding: Any
    prompt_bias: Any


def unstack(side):
    """Splits one side's stacked layers into `layers_0`, `layers_1`, …; others are unchanged."""
    if "layers" not in side:
        return side
    rest = {name: value for name, value in side.items() if name != "layers"}
    count = jax.tree.leaves(side["layers"])[0].shape[0]
    for i in range(count):
        rest[f"layers_{i}"] = jax.tree.map(lambda leaf: leaf[i], side["layers"])  # noqa: B023
    return rest


def _bias_by_distance(table, length):
    """[H, 2·T-1]: entry T-1-d is the bias of a key d tokens back; later entries mask the future.

    The row of position p is the window of T entries that starts at T-1-p.
    """
    buckets = relative_position_bucket(-np.arange(length), bidirectional=False)
    by_distance = jnp.take(table.astype(jnp.float32), buckets, axis=1)  # [H, T]
    future = jnp.full((table.shape[0], length - 1), MASKED, jnp.float32)
    return jnp.concatenate([by_distance[:, ::-1], future], axis=1)


def _prepare_layer(config, sharding, layer, table, encoded, length):
    dtype = jnp.dtype(config.dtype)
    own, cross, mlp = layer["self_attention"], layer["encoder_decoder_attention"], layer["mlp"]
    norms = ("pre_self_attention", "pre_cross_attention", "pre_mlp")
    rows = row_sharding(sharding, config.num_heads, len(encoded.mask))

    def kernel(part, name):
        return part[name]["kernel"].astype(dtype)

    def kernels(part, *names):
        return tuple(kernel(part, name) for name in names)

    def of_prompts(name):
        heads = cross[name]["kernel"].astype(dtype).reshape(-1, config.num_heads, config.head_dim)
        return rows.spread(jnp.einsum("bse,ehd->bhds", encoded.hidden.astype(dtype), heads))

    gates = ("wi",) if "wi" in mlp else ("wi_0", "wi_1")
    return LayerWeights(
        norms=tuple(layer[f"{name}_layer_norm"]["scale"] for name in norms),
        query_key_value=kernels(own, "query", "key", "value"),
        self_out=kernel(own, "out"),
        cross_query=kernel(cross, "query"),
        cross_out=kernel(cross, "out"),
        cross_keys=of_prompts("key"),
        cross_values=of_prompts("value"),
        mlp_in=kernels(mlp, *gates),
        mlp_out=kernel(mlp, "wo"),
        bias_by_distance=_bias_by_distance(table, length),
    )


def init_cache(
    config, sharding: ModelSharding, params, encoded: Encoded, max_length: int, samples: int = 1
) -> tuple[Weights, tuple]:
    """Prepares the weights of the loop and an empty self-attention cache.

    Args:
      config: the `T5Config`; layers may be stacked or not.
      sharding: the mesh on which the model runs.
      params: the parameter tree, boxed or not.
      encoded: B encoded prompts.
      max_length: T, the greatest number of tokens to decode.
      samples: G, rows per prompt; they share its keys and values.

    Returns:
      (weights, cache): the loop's invariants; per layer (keys, values), each [B·G, H, D, T].
    """
    params, dtype = nn.meta.unbox(params), jnp.dtype(config.dtype)
    decoder = unstack(params["decoder"])
    prompts = len(encoded.mask)
    rows = row_sharding(sharding, config.num_heads, prompts)
    shared = decoder.get("relpos_bias")

    def layer_weights(i):
        layer = decoder[f"layers_{i}"]
        table = layer.get("relpos_bias", shared)["rel_embedding"]
        return _prepare_layer(config, sharding, layer, table, encoded, max_length)

    weights = Weights(
        layers=tuple(layer_weights(i) for i in range(config.num_decoder_layers)),
        final_norm=decoder["decoder_norm"]["scale"],
        embedding=params["token_embedder"]["embedding"],
        prompt_bias=rows.scatter(padding_bias(encoded.mask)[:, :, 0, :]),  # [B, 1, S]
    )
    shape = (prompts * samples, config.num_heads, config.head_dim, max_length)
    empty = rows.spread(jnp.zeros(shape, dtype))
    return weights, tuple((empty, empty) for _ in weights.layers)


def _attend(query, keys, values, bias):
    """query [B·G, H, D], keys and values [B, H, D, L], bias [B|1, H|1, L] -> [B·G, H·D].

    L, and not D, comes last: TPU tiles of 128 lanes would be half empty with heads of 64.
    """
    grouped = query.reshape(len(keys), -1, *query.shape[1:])  # [B, G, H, D]
    scores = jnp.einsum("bghd,bhdl->bhgl", grouped, keys, preferred_element_type=jnp.float32)
    attention = jax.nn.softmax(scores + bias[:, :, None]).astype(values.dtype)
    return jnp.einsum("bhgl,bhdl->bghd", attention, values).reshape(query.shape[0], -1)


def _layer_step(config, sharding, layer, prompt_bias, cache, x, position):
    """One layer on one token: x [B, E] -> ([B, E], the layer's cache with this token in it)."""
    dtype = jnp.dtype(config.dtype)
    heads, length = config.num_heads, cache[0].shape[3]
    rows = row_sharding(sharding, heads, len(layer.cross_keys))

    def by_heads(y):
        return y.reshape(len(y), heads, config.head_dim)

    y = rms_norm(x, layer.norms[0], dtype)
    query, key, value = (by_heads(y @ kernel) for kernel in layer.query_key_value)  # [B, H, D]
    at = (0, 0, 0, position)
    keys = jax.lax.dynamic_update_slice(cache[0], key[..., None], at)  # [B, H, D, T]
    values = jax.lax.dynamic_update_slice(cache[1], value[..., None], at)
    window = (0, length - 1 - position)
    bias = jax.lax.dynamic_slice(layer.bias_by_distance, window, (heads, length))[None]
    x = x + _attend(query, keys, values, bias) @ layer.self_out

    query = by_heads(rms_norm(x, layer.norms[1], dtype) @ layer.cross_query)
    x = x + _attend(query, layer.cross_keys, layer.cross_values, prompt_bias) @ layer.cross_out

    y = rows.gather(rms_norm(x, layer.norms[2], dtype))
    pieces = [y @ kernel for kernel in layer.mlp_in]  # of [B, F]
    x = x + rows.scatter(activate(pieces, config.mlp_activations) @ layer.mlp_out)
    return x, (keys, values)


def decode_step(
    config,
    sharding: ModelSharding,
    weights: Weights,
    cache: tuple,
    tokens: Int[Array, " batch"],
    position: Int[Array, ""] | int,
) -> tuple[Float[Array, "batch embed"], tuple]:
    """Feeds one token per row and returns the hidden states that predict the next.

    Args:
      config: the `T5Config`.
      sharding: the mesh on which the model runs.
      weights: loop invariants, from `init_cache`.
      cache: cache of the previous step, at first from `init_cache`.
      tokens: the decoder's input at `position` (0, the start token, at position 0).
      position: the step's number, the same for every row.

    Returns:
      (hidden [B, E] ready for the head, the cache with this token's keys and values).
    """
    dtype = jnp.dtype(config.dtype)
    rows = row_sharding(sharding, config.num_heads, len(weights.prompt_bias))
    x = rows.scatter(jnp.take(weights.embedding, tokens, axis=0).astype(dtype))  # [B, E]
    updated = []
    for layer, layer_cache in zip(weights.layers, cache, strict=True):
        x, layer_cache = _layer_step(
            config, sharding, layer, weights.prompt_bias, layer_cache, x, position
        )
        updated.append(layer_cache)
    return rows.gather(rms_norm(x, weights.final_norm, dtype)), tuple(updated)
