"""T5's matrix products in closed form: what a compiled program's count is checked against."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class ShardCounts:
    """Into how many equal parts the work is divided among chips, by what it belongs to.

    Attributes:
      rows: the batch.
      heads, mlp, vocab: attention, the feed-forward layers, the head's columns.
    """

    rows: int = 1
    heads: int = 1
    mlp: int = 1
    vocab: int = 1


def encoder_flops(
    config: Any, rows: float | int, source: int, shards: ShardCounts = ShardCounts()
) -> float:
    """Of encoding prompts [rows, source], padding too, on one chip.

    Args:
      config: a `T5Config`.
      rows: of all chips.
      source: tokens of a row.
      shards: how many parts the chips divide the work into.
    """
    layer = _attention(config, 4, source, shards) + _mlp(config, shards)
    return 2 * rows * source * config.num_encoder_layers * layer / shards.rows


def cross_flops(
    config: Any, rows: float | int, source: int, shards: ShardCounts = ShardCounts()
) -> float:
    """Of the keys and values that the decoder's layers take from prompts [rows, source]."""
    kernels = 2 * config.emb_dim * _joined(config) / shards.heads
    return 2 * rows * source * config.num_decoder_layers * kernels / shards.rows


def decoder_flops(
    config: Any,
    rows: float | int,
    tokens: float | int,
    attended: float | int,
    shards: ShardCounts = ShardCounts(),
) -> float:
    """Of the decoder's layers on tokens [rows, tokens], its head and `cross_flops` left out.

    Args:
      config, rows, shards: as in `encoder_flops`.
      tokens: of a row.
      attended: what each token attends to: own positions (the whole target, or the whole cache;
        masks save nothing) and the prompt's.
    """
    layer = _attention(config, 6, attended, shards) + _mlp(config, shards)
    return 2 * rows * tokens * config.num_decoder_layers * layer / shards.rows


def head_flops(
    config: Any, rows: float | int, tokens: float | int, shards: ShardCounts = ShardCounts()
) -> float:
    """Of one product with the head, for tokens [rows, tokens]."""
    return 2 * rows * tokens * config.emb_dim * config.vocab_size / shards.rows / shards.vocab


def _joined(config):
    return config.num_heads * config.head_dim


def _attention(config, kernels, attended, shards):
    """Multiplications of a token with square-ish kernels and with what it attends to."""
    return _joined(config) * (kernels * config.emb_dim + 2 * attended) / shards.heads


def _mlp(config, shards):
    kernels = len(config.mlp_activations) + 1
    return kernels * config.emb_dim * config.mlp_dim / shards.mlp
