"""The layer of decoder-only models and of T5Gemma: its parameters, and what it computes from them.

A layer is a function of its parameters, its input and a function that attends, so that the prefill
of a prompt, the continuation, an encoder and a decoding step are all made of the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, Int

from gkd.decoders.rotary import Rotation, inverse_frequencies, rotate, rotation
from gkd.models.attention_sharding import RowSharding
from gkd.models.layers import ATTENTION, activate

SELF, CROSS, MLP = "self_attention", "encoder_decoder_attention", "mlp"
_NORMED = {SELF: "self_attention", CROSS: "cross_attention", MLP: "mlp"}  # names of their norms
_INITIAL = nn.initializers.normal(0.02)

# A parameter: its shape, the logical axes of its dimensions, and its initialiser.
Parameter = tuple[tuple[int, ...], tuple[str, ...], Callable]


def layer_parameters(config: Any, context_dim: int | None = None) -> dict[str, Parameter]:
    """Lists the parameters of one layer.

    Args:
      config: the stack's `DecoderConfig`.
      context_dim: width of the encoder that the layer also attends to; None: it does not.

    Returns:
      Parameters by name, as 'self_attention/query/kernel'.
    """
    attention = _attention_parameters(config, config.emb_dim)
    found = {f"{SELF}/{name}": each for name, each in attention.items()}
    if context_dim is not None:
        attention = _attention_parameters(config, context_dim)
        found.update({f"{CROSS}/{name}": each for name, each in attention.items()})
    for name in ("wi_0", "wi_1"):
        found[f"{MLP}/{name}/kernel"] = _kernel(config.emb_dim, config.mlp_dim, "embed", "mlp")
    found[f"{MLP}/wo/kernel"] = _kernel(config.mlp_dim, config.emb_dim, "mlp", "embed")
    blocks = (SELF, MLP) if context_dim is None else (SELF, CROSS, MLP)
    for place in ("pre", "post") if config.post_norms else ("pre",):
        for name in map(_NORMED.get, blocks):
            found[f"{place}_{name}_layer_norm/scale"] = norm_parameter(config, config.emb_dim)
    return found


def _attention_parameters(config, context_dim):
    """Parameters of self-attention, or of attention to a context of another width."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    found = {
        "query/kernel": _kernel(config.emb_dim, queries, "embed", "joined_kv"),
        "key/kernel": _kernel(context_dim, keys, "embed", "joined_kv"),
        "value/kernel": _kernel(context_dim, keys, "embed", "joined_kv"),
        "out/kernel": _kernel(queries, config.emb_dim, "joined_kv", "embed"),
    }
    if config.attention_biases:
        for name, width in (("query", queries), ("key", keys), ("value", keys)):
            found[f"{name}/bias"] = ((width,), ("joined_kv",), nn.initializers.zeros)
    if config.qk_norms:
        for name in ("query_norm", "key_norm"):
            found[f"{name}/scale"] = norm_parameter(config, config.head_dim)
    return found


def _kernel(rows, columns, *axes) -> Parameter:
    return (rows, columns), axes, _INITIAL


def norm_parameter(config: Any, width: int) -> Parameter:
    """The scale of a norm, which starts without effect."""
    initial = nn.initializers.zeros if config.unit_offset_norms else nn.initializers.ones
    return (width,), ("embed",), initial


def stack_parameters(config: Any, context_dim: int | None = None) -> dict[str, Parameter]:
    """Lists the parameters of a stack: its layers one by one, or stacked along a first axis."""
    layer = layer_parameters(config, context_dim)
    if not config.stacked_layers:
        return {
            f"layers_{i}/{name}": each
            for i in range(config.num_layers)
            for name, each in layer.items()
        }
    return {
        f"layers/{name}": ((config.num_layers, *shape), ("layers", *axes), init)
        for name, (shape, axes, init) in layer.items()
    }


def initialise(parameters: Mapping[str, Parameter], rng: Any) -> dict[str, Any]:
    """Makes parameters at random, boxed with their logical axes.

    Args:
      parameters: by name.
      rng: a key.

    Returns:
      A nested dictionary of float32 arrays.
    """
    keys = jax.random.split(rng, len(parameters))
    drawn = {
        name: nn.LogicallyPartitioned(init(key, shape, jnp.float32), axes)
        for (name, (shape, axes, init)), key in zip(parameters.items(), keys, strict=True)
    }
    return unflatten_dict(drawn, sep="/")


def norm(config: Any, x: Float[Array, "*rows width"], scale: Float[Array, " width"]) -> Array:
    """Root-mean-square norm, in float32, of the last axis: x / √(mean(x²) + ε) · scale.

    Args:
      config: gives ε, the dtype of the result, and if the factor is 1 + scale (Gemma).
      x: [..., E].
      scale: [E].
    """
    dtype = jnp.dtype(config.dtype)
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + config.norm_epsilon)
    if config.unit_offset_norms:
        return (x * (1.0 + scale.astype(jnp.float32))).astype(dtype)
    return x.astype(dtype) * scale.astype(dtype)


def dense(config: Any, x: Float[Array, "*rows width"], module: Mapping[str, Any]) -> Array:
    """x @ kernel (+ bias), in the compute dtype."""
    dtype, kernel = jnp.dtype(config.dtype), module["kernel"]
    flat = x.astype(dtype).reshape(-1, x.shape[-1]) @ kernel.astype(dtype)
    if "bias" in module:
        flat = flat + module["bias"].astype(dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[1])


def heads(
    config: Any, module: Mapping[str, Any], name: str, x: Array, turn: Rotation | None
) -> Float[Array, "rows length heads dim"]:
    """Projects states to queries, keys or values: [N, L, H, D], normed and rotated where they are.

    Args:
      config: the stack's `DecoderConfig`.
      module: parameters of the attention.
      name: 'query', 'key' or 'value'.
      x: [N, L, E].
      turn: the positions' rotation; None does not rotate. Values are neither normed nor rotated.
    """
    projected = dense(config, x, module[name]).reshape(*x.shape[:-1], -1, config.head_dim)
    if name == "value":
        return projected
    if config.qk_norms:
        projected = norm(config, projected, module[f"{name}_norm"]["scale"])
    return projected if turn is None else rotate(projected, turn)


def pre_norm(config: Any, layer: Mapping[str, Any], block: str, x: Array) -> Array:
    """Norms the input [N, L, E] of one of a layer's blocks, SELF, CROSS or MLP."""
    return norm(config, x, layer[f"pre_{_NORMED[block]}_layer_norm"]["scale"])


def add(config: Any, layer: Mapping[str, Any], block: str, x: Array, y: Array) -> Array:
    """Adds a block's result, normed where the family does that, to the residual [N, L, E]."""
    if config.post_norms:
        y = norm(config, y, layer[f"post_{_NORMED[block]}_layer_norm"]["scale"])
    return x + y


def add_attention(config: Any, layer: Mapping[str, Any], block: str, x: Array, mixed: Array):
    """Projects what the heads gathered, [N, L, H·D], and adds it to the residual [N, L, E]."""
    return add(config, layer, block, x, dense(config, mixed, layer[block]["out"]))


def add_mlp(config: Any, layer: Mapping[str, Any], x: Array, rows: RowSharding) -> Array:
    """Adds the gated feed-forward block to the residual stream.

    Args:
      config: the stack's `DecoderConfig`.
      layer: parameters of the layer.
      x: [N, L, E].
      rows: layouts of the block's input and result on a mesh.
    """
    y = rows.gather(pre_norm(config, layer, MLP, x))
    pieces = [dense(config, y, layer[MLP][name]) for name in ("wi_0", "wi_1")]
    y = dense(config, activate(pieces, (config.mlp_activation, "linear")), layer[MLP]["wo"])
    return add(config, layer, MLP, x, rows.scatter(y))


def embed(config: Any, table: Float[Array, "vocab embed"], tokens: Int[Array, "*rows"]) -> Array:
    """Looks up token ids; padding, whose id may be negative, becomes an arbitrary row."""
    dtype = jnp.dtype(config.dtype)
    rows = jnp.take(table, jnp.maximum(tokens, 0), axis=0).astype(dtype)
    if not config.scale_embeddings:
        return rows
    return rows * jnp.asarray(config.emb_dim**0.5, dtype)


def rotations(config: Any, positions: Int[Array, "rows length"]) -> tuple[Rotation, Rotation]:
    """Rotations in layers that see everything, and in those with a window (Gemma's differ)."""
    whole = rotation(positions, inverse_frequencies(config.rope, config.head_dim))
    if config.local_rope is None:
        return whole, whole
    return whole, rotation(positions, inverse_frequencies(config.local_rope, config.head_dim))


# What a scan's backward pass reads of a layer from main memory; all else it repeats.
_SAVED = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # results of kernels
    jax.checkpoint_policies.save_only_these_names(ATTENTION),
)


def rematerialised(config: Any, layer: Callable) -> Callable:
    """With `remat`, a layer's activations are computed again in the backward pass."""
    if config.remat:
        return jax.checkpoint(layer, prevent_cse=not config.stacked_layers)
    if config.stacked_layers:
        return jax.checkpoint(layer, prevent_cse=False, policy=_SAVED)
    return layer


def run_layers(
    config: Any,
    stack: Mapping[str, Any],
    layer: Callable,
    x: Array,
    turns: tuple,
    *per_layer: Any,
    last: Callable | None = None,
) -> tuple[Array, Any]:
    """Applies the layers of a stack, one by one or in a scan.

    Args:
      config: the stack's `DecoderConfig`.
      stack: its parameters.
      layer: (layer's parameters, x, rotation, window, *its own) -> (x, result).
      x: [N, L, E], the embedded input.
      turns: rotations of the positions, see `rotations`.
      *per_layer: further inputs; each is a tuple with an entry per layer, or stacked.
      last: takes the place of `layer` in the last of layers that are not stacked.

    Returns:
      x after the last layer; the results of the layers, as a tuple or stacked.
    """
    windows, layer = config.windows, rematerialised(config, layer)
    if not config.stacked_layers:
        results = []
        for i, window in enumerate(windows):
            own = [each[i] for each in per_layer]
            turn = turns[config.is_local(i)]
            apply = last if last is not None and i == config.num_layers - 1 else layer
            x, result = apply(stack[f"layers_{i}"], x, turn, window, *own)
            results.append(result)
        return x, tuple(results)
    local = jnp.array([config.is_local(i) for i in range(config.num_layers)])
    alike = turns[0] is turns[1]

    def step(x, of_layer):
        params, window, is_local, own = of_layer
        turn = turns[0]
        if not alike:
            turn = jax.tree.map(partial(jnp.where, is_local), turns[1], turns[0])
        return layer(params, x, turn, window, *own)

    return jax.lax.scan(step, x, (stack["layers"], jnp.array(windows), local, per_layer))
