"""T5's encoder and decoder stacks as Flax Linen modules."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gkd.models.attention_sharding import copy_per_shard, row_sharding
from gkd.models.interface import Hidden, InnerLayer
from gkd.models.layers import (
    ATTENTION,
    MASKED,
    Attention,
    Dense,
    Mlp,
    RelativeBias,
    RMSNorm,
    padding_bias,
    query_block,
)
from gkd.models.row_parts import row_dropout
from gkd.parallel.model_sharding import ModelSharding

_RESIDUAL = ("batch", "length", "activation_embed")


def _dropout(config, deterministic, lengths=(0,)):
    """Returns dropout with one mask for all positions of a row, as in T5.

    `lengths` are those of rows that are side by side; `(0,)` of any length.
    """
    return partial(row_dropout, config.dropout_rate, deterministic, lengths)


def _norm(config, name):
    return RMSNorm(jnp.dtype(config.dtype), name=name)


def _attention(config, deterministic, name, pooled=False):
    dtype = jnp.dtype(config.dtype)
    sizes = (config.num_heads, config.head_dim, dtype, config.dropout_rate)
    return Attention(*sizes, deterministic, pooled, name=name)


def _mlp(config, deterministic, name, lengths=(0,)):
    sizes = (config.mlp_dim, config.mlp_activations, jnp.dtype(config.dtype), config.dropout_rate)
    return Mlp(*sizes, deterministic, lengths, name=name)


def _relative_bias(config, sharding, prompts, lengths, bidirectional):
    """The biases of rows of these lengths, in a copy for each shard of the rows."""
    copied = partial(copy_per_shard, sharding=sharding, num_heads=config.num_heads, prompts=prompts)
    bias = RelativeBias(config.num_heads, bidirectional, name="relpos_bias")
    found = {length: bias(length, copied) for length in dict.fromkeys(lengths)}
    return tuple(found[length] for length in lengths)


def _as_residual(x, rows, sharding):
    """Constrains a layer's result to the layout of the next layer's input."""
    return rows.spread(x) if rows.spread_over else sharding.constrain(x, _RESIDUAL)


class EncoderLayer(nn.Module):
    """Self-attention and MLP; returns (states, None) so that `nn.scan` can carry it."""

    config: Any  # T5Config
    deterministic: bool
    sharding: ModelSharding

    @nn.compact
    def __call__(self, x, padding, relative):
        """Maps x [B, S, E] to (like x, None) under biases [B, 1, 1, s] and [1, H, s, s] or None.

        Both are tuples, of one bias for each of the rows that are side by side.
        """
        cfg, deterministic = self.config, self.deterministic
        rows = row_sharding(self.sharding, cfg.num_heads, len(x))
        lengths = tuple(bias.shape[-1] for bias in padding)
        dropout = _dropout(cfg, deterministic, lengths)
        if cfg.relative_bias_per_layer:
            relative = _relative_bias(cfg, self.sharding, len(x), lengths, bidirectional=True)
        y = _norm(cfg, "pre_attention_layer_norm")(x)
        x = x + dropout(_attention(cfg, deterministic, "attention")(y, y, relative, padding))
        y = rows.gather(_norm(cfg, "pre_mlp_layer_norm")(x))
        x = x + dropout(rows.scatter(_mlp(cfg, deterministic, "mlp", lengths)(y)))
        return _as_residual(x, rows, self.sharding), None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, MLP; returns (states, attention or None).

    With `pooled`, the self-attention's mean over the heads, float32 [B·G, T, T], is the second.
    """

    config: Any  # T5Config
    deterministic: bool
    sharding: ModelSharding
    pooled: bool = False

    @nn.compact
    def __call__(self, x, bias, context, context_bias):
        """Maps x [B·G, T, E] to (like x, …); bias [1, H|1, T, T], context [B, S, E]."""
        cfg, deterministic = self.config, self.deterministic
        rows = row_sharding(self.sharding, cfg.num_heads, len(context))
        dropout = _dropout(cfg, deterministic)
        if cfg.relative_bias_per_layer:
            (relative,) = _relative_bias(
                cfg, self.sharding, len(context), x.shape[1:2], bidirectional=False
            )
            bias = bias + relative
        y = _norm(cfg, "pre_self_attention_layer_norm")(x)
        mixed = _attention(cfg, deterministic, "self_attention", self.pooled)(y, y, bias)
        mixed, attention = mixed if self.pooled else (mixed, None)
        x = x + dropout(mixed)
        y = _norm(cfg, "pre_cross_attention_layer_norm")(x)
        cross = _attention(cfg, deterministic, "encoder_decoder_attention")
        # The G rows of a prompt as one long row: its keys and values are computed and read once.
        together = y.reshape(len(context), -1, y.shape[-1])
        x = x + dropout(cross(together, context, context_bias).reshape(y.shape))
        y = rows.gather(_norm(cfg, "pre_mlp_layer_norm")(x))
        x = x + dropout(rows.scatter(_mlp(cfg, deterministic, "mlp")(y)))
        return _as_residual(x, rows, self.sharding), attention


# What a scan's backward pass reads of a layer from main memory; all else it repeats: norms,
# activation functions and attention weights. Without a scan, the compiler chooses.
_SAVED = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # results of kernels
    jax.checkpoint_policies.save_only_these_names(ATTENTION),
)


def _rematerialised(layer, config):
    """The layer's class; with `remat`, its activations are recomputed in the backward pass."""
    if config.remat:
        return nn.remat(layer, prevent_cse=not config.stacked_layers)
    return nn.remat(layer, prevent_cse=False, policy=_SAVED) if config.stacked_layers else layer


def _scan(target, depth, in_axes):
    """Lifts a layer, or a function of one, to a scan over stacked parameters."""
    return nn.scan(
        target,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def _run_layers(layer, attributes, depth, x, *inputs):
    """Applies `depth` layers, stacked or one by one; called inside a compact method."""
    config = attributes[0]
    layer = _rematerialised(layer, config)
    if not config.stacked_layers:
        for i in range(depth):
            x, _ = layer(*attributes, name=f"layers_{i}")(x, *inputs)
        return x
    return _scan(layer, depth, nn.broadcast)(*attributes, name="layers")(x, *inputs)[0]


def _run_decoder_layers(attributes, inner, x, *inputs):
    """As `_run_layers`; returns an `InnerLayer`, its states before the final norm, too."""
    config = attributes[0]
    depth, layer = config.num_decoder_layers, _rematerialised(DecoderLayer, config)
    if not config.stacked_layers:
        for i in range(1, depth + 1):
            pooled = i in (inner, depth)
            x, attention = layer(*attributes, pooled, name=f"layers_{i - 1}")(x, *inputs)
            if i == inner:
                kept = x, attention
        return x, InnerLayer(*kept, attention)

    def run(layer, carry, number, *inputs):
        x, *kept = carry[:3]
        x, attention = layer(x, *inputs)
        # Carried, not stacked: one layer's states are held, instead of all.
        kept = jax.tree.map(partial(jnp.where, number == inner), (x, attention), tuple(kept))
        return (x, *kept, attention), None

    attention = jnp.zeros((*x.shape[:2], x.shape[1]), jnp.float32)
    scanned = _scan(run, depth, (0, *[nn.broadcast] * len(inputs)))
    stack = layer(*attributes, True, name="layers")
    carry = (x, jnp.zeros_like(x), attention, attention)
    (x, *kept), _ = scanned(stack, carry, jnp.arange(1, depth + 1), *inputs)
    return x, InnerLayer(*kept)


class Encoder(nn.Module):
    """Encoder layers and the final norm."""

    config: Any  # T5Config
    sharding: ModelSharding

    @nn.compact
    def __call__(self, x, masks, deterministic):
        """Encodes embedded prompts [B, S, E], rows side by side with masks [B, S_k]: like x."""
        cfg = self.config
        attributes = (cfg, deterministic, self.sharding)
        rows = row_sharding(self.sharding, cfg.num_heads, len(x))
        lengths = tuple(mask.shape[1] for mask in masks)
        dropout = _dropout(cfg, deterministic, lengths)
        relative = None
        if not cfg.relative_bias_per_layer:
            relative = _relative_bias(cfg, self.sharding, len(x), lengths, bidirectional=True)
        inputs = tuple(rows.scatter(padding_bias(mask)) for mask in masks), relative
        x = rows.scatter(dropout(x))
        x = _run_layers(EncoderLayer, attributes, cfg.num_encoder_layers, x, *inputs)
        return dropout(_norm(cfg, "encoder_norm")(x))


class Decoder(nn.Module):
    """Decoder layers, the final norm and, where it is not tied, the head."""

    config: Any  # T5Config
    sharding: ModelSharding

    @nn.compact
    def __call__(self, x, encoded, deterministic, inner_layer=None):
        """Decodes embedded inputs [B·G, T, E] to `Hidden`, with one inner layer if it is given."""
        cfg = self.config
        attributes = (cfg, deterministic, self.sharding)
        rows = row_sharding(self.sharding, cfg.num_heads, len(encoded.mask))
        dropout = _dropout(cfg, deterministic)
        length = x.shape[1]
        block = query_block(length)
        # Constants [T, T] would take memory while tracing. Of a block it is a window as its bias.
        causal = length - block + jnp.arange(block)[:, None] >= jnp.arange(2 * length - block)
        bias = jnp.where(causal, 0.0, MASKED)[None, None].astype(jnp.float32)  # [1, 1, T, T]
        if not cfg.relative_bias_per_layer:
            (relative,) = _relative_bias(
                cfg, self.sharding, len(encoded.mask), (length,), bidirectional=False
            )  # [C, H, T, T]
            bias = bias + relative
        inputs = (bias, rows.spread(encoded.hidden), rows.scatter(padding_bias(encoded.mask)))
        x = rows.scatter(dropout(x))
        norm, inner = _norm(cfg, "decoder_norm"), None
        if inner_layer is None:
            x = _run_layers(DecoderLayer, attributes, cfg.num_decoder_layers, x, *inputs)
        else:
            x, inner = _run_decoder_layers(attributes, inner_layer, x, *inputs)
        x = rows.gather(dropout(norm(x)))
        if inner is not None:
            hidden = dropout(norm(inner.hidden))
            inner = jax.tree.map(rows.gather, inner.replace(hidden=hidden))
        if not cfg.logits_via_embedding and self.is_initializing():
            Dense(cfg.vocab_size, ("embed", "vocab"), name="logits_dense")(x)
        return Hidden(x, inner)
