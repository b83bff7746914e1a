"""Decoder-only models as an encoder and a decoder: the prefill of prompts, and their continuation.

`encode` computes every layer's keys and values of a prompt. The prompt's last token is the first
input of the continuation, which attends to these keys and to itself under one softmax.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gkd.decoders import cached
from gkd.decoders.attention import Keys
from gkd.decoders.blocks import embed, norm, rotations, run_layers
from gkd.decoders.layer import Place, apply_layer, own_keys, positions_of, text_of
from gkd.models.attention_sharding import row_sharding
from gkd.models.interface import Encoded, Hidden
from gkd.models.row_parts import RowParts
from gkd.parallel.model_sharding import ModelSharding


def encode(
    config: Any,
    sharding: ModelSharding,
    params: Any,
    tokens: Int[Array, "batch source"],
    parts: RowParts | None = None,
    dropout_rng: Any = None,
) -> Encoded:
    """Prefills prompts, see `text_of`."""
    del dropout_rng  # these models have no dropout
    params = nn.meta.unbox(params)
    text = text_of(tokens, config.special_ids.padding, parts)
    rows = row_sharding(sharding, config.num_kv_heads, len(text.tokens))
    mask = tokens != config.special_ids.padding
    index = jnp.arange(tokens.shape[1])
    last = jnp.max(jnp.where(mask, index, 0), axis=1)
    start_tokens = jnp.take_along_axis(tokens, last[:, None], axis=1)[:, 0]
    visible = rows.scatter(text.mask)

    def layer(params, x, turn, window):
        place = Place(text.positions, visible, turn, window, lengths=text.lengths)
        return apply_layer(config, sharding, rows, params, x, place)

    def last_layer(params, x, turn, window):  # nothing reads what it makes of them
        return x, own_keys(config, params, x, turn)

    x = rows.scatter(embed(config, params["token_embedder"]["embedding"], text.tokens))
    turns = rotations(config, text.positions)
    _, hidden = run_layers(config, params["decoder"], layer, x, turns, last=last_layer)
    whole = jax.vmap(text.whole) if config.stacked_layers else text.whole
    hidden = jax.tree.map(whole, hidden)
    # The last token is the continuation's first input, and has its key there.
    return Encoded(hidden, mask & (index != last[:, None]), jnp.maximum(start_tokens, 0))


def decode_hidden(
    config: Any,
    sharding: ModelSharding,
    params: Any,
    encoded: Encoded,
    tokens: Int[Array, "rows length"],
    dropout_rng: Any = None,
) -> Hidden:
    """Continues prompts by given tokens, G rows per prompt, in one pass."""
    del dropout_rng
    params = nn.meta.unbox(params)
    rows = row_sharding(sharding, config.num_kv_heads, len(encoded.mask))
    visible = rows.scatter(encoded.mask)
    prompt_positions = positions_of(encoded.mask)
    start = jnp.sum(encoded.mask, axis=1, dtype=jnp.int32)
    start = jnp.repeat(start, tokens.shape[0] // len(encoded.mask))
    positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)  # [N, T]
    everywhere = jnp.ones(tokens.shape, bool)

    def layer(params, x, turn, window, prompt):
        before = Keys(*map(rows.spread, prompt), visible, prompt_positions)
        place = Place(positions, everywhere, turn, window)
        x, _ = apply_layer(config, sharding, rows, params, x, place, before)
        return x, None

    x = rows.scatter(embed(config, params["token_embedder"]["embedding"], tokens))
    turns = rotations(config, positions)
    x, _ = run_layers(config, params["decoder"], layer, x, turns, encoded.hidden)
    return Hidden(rows.gather(norm(config, x, params["decoder"]["decoder_norm"]["scale"])))


def init_cache(config, sharding, params, encoded, max_length, samples=1):
    """Prepares the loop, see `gkd.decoders.cached.init_cache`."""
    params = nn.meta.unbox(params)
    prompt = cached.Prompt(
        encoded.hidden,
        encoded.mask,
        positions_of(encoded.mask),
        jnp.repeat(jnp.sum(encoded.mask, axis=1, dtype=jnp.int32), samples),
    )
    return cached.init_cache(config, sharding, params, prompt, None, max_length, samples)
