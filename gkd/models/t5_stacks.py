"""T5's encoder and decoder stacks as Flax Linen modules."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gkd.models.attention_sharding import row_sharding
from gkd.models.layers import (
    MASKED,
    Attention,
    Dense,
    Mlp,
    RelativeBias,
    RMSNorm,
    padding_bias,
)
from gkd.parallel.model_sharding import ModelSharding

_RESIDUAL = ("batch", "length", "activation_embed")


def _dropout(config, deterministic):
    """Returns dropout with one mask for all positions of a row, as in T5."""
    return partial(
        nn.Dropout(config.dropout_rate, broadcast_dims=(-2,)), deterministic=deterministic
    )


def _norm(config, name):
    return RMSNorm(jnp.dtype(config.dtype), name=name)


def _attention(config, deterministic, name):
    dtype = jnp.dtype(config.dtype)
    sizes = (config.num_heads, config.head_dim, dtype, config.dropout_rate)
    return Attention(*sizes, deterministic, name=name)


def _mlp(config, deterministic, name):
    sizes = (config.mlp_dim, config.mlp_activations, jnp.dtype(config.dtype), config.dropout_rate)
    return Mlp(*sizes, deterministic, name=name)


def _relative_bias(config, length, bidirectional):
    return RelativeBias(config.num_heads, bidirectional, name="relpos_bias")(length)


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
        """Maps x [B, S, E] to (like x, None) under biases [B, 1, 1, S] and [1, H, S, S] or None."""
        cfg, deterministic = self.config, self.deterministic
        rows = row_sharding(self.sharding, cfg.num_heads, len(x))
        dropout = _dropout(cfg, deterministic)
        if cfg.relative_bias_per_layer:
            relative = _relative_bias(cfg, x.shape[1], bidirectional=True)
        y = _norm(cfg, "pre_attention_layer_norm")(x)
        x = x + dropout(_attention(cfg, deterministic, "attention")(y, y, relative, padding))
        y = rows.gather(_norm(cfg, "pre_mlp_layer_norm")(x))
        x = x + dropout(rows.scatter(_mlp(cfg, deterministic, "mlp")(y)))
        return _as_residual(x, rows, self.sharding), None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, MLP; returns (states, None)."""

    config: Any  # T5Config
    deterministic: bool
    sharding: ModelSharding

    @nn.compact
    def __call__(self, x, bias, context, context_bias):
        """Maps x [B·G, T, E] to (like x, None); bias [1, H|1, T, T], context [B, S, E]."""
        cfg, deterministic = self.config, self.deterministic
        rows = row_sharding(self.sharding, cfg.num_heads, len(context))
        dropout = _dropout(cfg, deterministic)
        if cfg.relative_bias_per_layer:
            bias = bias + _relative_bias(cfg, x.shape[1], bidirectional=False)
        y = _norm(cfg, "pre_self_attention_layer_norm")(x)
        x = x + dropout(_attention(cfg, deterministic, "self_attention")(y, y, bias))
        y = _norm(cfg, "pre_cross_attention_layer_norm")(x)
        cross = _attention(cfg, deterministic, "encoder_decoder_attention")
        # The G rows of a prompt as one long row: its keys and values are computed and read once.
        together = y.reshape(len(context), -1, y.shape[-1])
        x = x + dropout(cross(together, context, context_bias).reshape(y.shape))
        y = rows.gather(_norm(cfg, "pre_mlp_layer_norm")(x))
        x = x + dropout(rows.scatter(_mlp(cfg, deterministic, "mlp")(y)))
        return _as_residual(x, rows, self.sharding), None


def _run_layers(layer, attributes, depth, x, *inputs):
    """Applies `depth` layers, stacked or one by one; called inside a compact method."""
    config = attributes[0]
    if config.remat:
        layer = nn.remat(layer, prevent_cse=not config.stacked_layers)
    if not config.stacked_layers:
        for i in range(depth):
            x, _ = layer(*attributes, name=f"layers_{i}")(x, *inputs)
        return x
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(*attributes, name="layers")(x, *inputs)[0]


class Encoder(nn.Module):
    """Encoder layers and the final norm."""

    config: Any  # T5Config
    sharding: ModelSharding

    @nn.compact
    def __call__(self, x, mask, deterministic):
        """Encodes embedded prompts [B, S, E] with mask [B, S]: [B, S, E]."""
        cfg = self.config
        attributes = (cfg, deterministic, self.sharding)
        rows = row_sharding(self.sharding, cfg.num_heads, len(x))
        dropout = _dropout(cfg, deterministic)
        relative = None
        if not cfg.relative_bias_per_layer:
            relative = _relative_bias(cfg, x.shape[1], bidirectional=True)
        inputs = rows.scatter(padding_bias(mask)), relative
        x = rows.scatter(dropout(x))
        x = _run_layers(EncoderLayer, attributes, cfg.num_encoder_layers, x, *inputs)
        return dropout(_norm(cfg, "encoder_norm")(x))


class Decoder(nn.Module):
    """Decoder layers, the final norm and, where it is not tied, the head."""

    config: Any  # T5Config
    sharding: ModelSharding

    @nn.compact
    def __call__(self, x, encoded, deterministic):
        """Decodes embedded inputs [B·G, T, E]: hidden states [B·G, T, E], ready for the head."""
        cfg = self.config
        attributes = (cfg, deterministic, self.sharding)
        rows = row_sharding(self.sharding, cfg.num_heads, len(encoded.mask))
        dropout = _dropout(cfg, deterministic)
        length = x.shape[1]
        positions = jnp.arange(length)  # a constant [T, T] would take memory while tracing
        causal = positions[:, None] >= positions
        bias = jnp.where(causal, 0.0, MASKED)[None, None].astype(jnp.float32)  # [1, 1, T, T]
        if not cfg.relative_bias_per_layer:
            bias = bias + _relative_bias(cfg, length, bidirectional=False)  # [1, H, T, T]
        inputs = (bias, rows.spread(encoded.hidden), rows.scatter(padding_bias(encoded.mask)))
        x = rows.scatter(dropout(x))
        x = _run_layers(DecoderLayer, attributes, cfg.num_decoder_layers, x, *inputs)
        x = rows.gather(dropout(_norm(cfg, "decoder_norm")(x)))
        if not cfg.logits_via_embedding and self.is_initializing():
            Dense(cfg.vocab_size, ("embed", "vocab"), name="logits_dense")(x)
        return x
