"""Matrix products of transformers in closed form, to compare with a compiled program's count."""

from __future__ import annotations

import dataclasses
import math

from gkd.models.layers import query_block


@dataclasses.dataclass(frozen=True)
class MatrixSizes:
    """Sizes that determine the matrix products of an encoder-decoder or a decoder-only model.

    Attributes:
      vocab_size: V, columns of the head.
      emb_dim: E, width of the residual stream.
      num_heads: attention (query) heads.
      query_width: columns of all query heads, num_heads · head_dim.
      key_width: columns of all key heads; less than query_width where query heads share them.
      mlp_dim: F, width of the feed-forward layers.
      mlp_kernels: kernels of a feed-forward layer: 2, or 3 where it is gated.
      encoder_layers: layers that a prompt passes; of a decoder-only model those of the decoder.
      decoder_layers: layers that an output token passes.
      cross_attention: True where decoder layers project the encoder's states to keys and values.
      merged_attention: True where they do so by the kernels of self-attention (T5Gemma 2).
      attends_in_blocks: True where the backward pass repeats the scores of long attention, and of
        all attention in stacked layers, see `gkd.models.layers.attend_in_blocks`.
      key_heads: heads of the keys and values, by which attention is divided; 0: num_heads.
      encoder: sizes of an encoder that differ from the decoder's; None: they are the same.
      keys_only: True where the last layer of a prompt forms its keys and values only: nothing reads
        a prefill's last states (in stacked layers it does all the same).
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    query_width: int
    key_width: int
    mlp_dim: int
    mlp_kernels: int
    encoder_layers: int
    decoder_layers: int
    cross_attention: bool
    attends_in_blocks: bool = False
    key_heads: int = 0
    encoder: MatrixSizes | None = None
    keys_only: bool = False
    merged_attention: bool = False

    @property
    def has_cross_block(self) -> bool:
        """True where decoder layers have an attention block of their own for the encoder."""
        return self.cross_attention and not self.merged_attention

    @property
    def divided_heads(self) -> int:
        """Heads by which chips divide attention: they divide all of a model's attention, or none.

        >>> layers = MatrixSizes(64, 16, 4, 32, 32, 32, 3, 1, 1, True)
        >>> dataclasses.replace(layers, key_heads=2, encoder=layers).divided_heads  # 2 chips, not 4
        2
        """
        heads = self.key_heads or self.num_heads
        return heads if self.encoder is None else math.gcd(heads, self.encoder.divided_heads)


@dataclasses.dataclass(frozen=True)
class ShardCounts:
    """Numbers of equal shards into which chips divide the work, by kind of work.

    Attributes:
      rows: shards of the batch.
      heads, mlp, vocab: shards of attention, of feed-forward layers, of the head's columns.
    """

    rows: int = 1
    heads: int = 1
    mlp: int = 1
    vocab: int = 1


def encoder_flops(
    sizes: MatrixSizes, rows: float | int, source: int, shards: ShardCounts = ShardCounts()
) -> float:
    """Counts the FLOPs per chip of encoding prompts [rows, source], padding included.

    Args:
      sizes: the model's.
      rows: prompts on all chips.
      source: tokens per prompt.
      shards: the division among chips.

    Returns:
      Multiplications and additions.

    >>> small = MatrixSizes(32128, 512, 6, 384, 384, 1024, 3, 8, 8, True)  # T5 v1.1 small
    >>> encoder_flops(small, rows=1, source=1)  # 2 · 8 layers · (4·512·384 + 3·512·1024 + 2·384)
    37761024.0
    """
    own = sizes.encoder or sizes
    attention = _projections(own) + 2 * source * own.query_width
    layer = attention / shards.heads + _mlp(own, shards)
    layers = sizes.encoder_layers * layer
    if sizes.keys_only:
        layers += 2 * own.emb_dim * own.key_width / shards.heads - layer
    return 2 * rows * source * layers / shards.rows


def cross_flops(
    sizes: MatrixSizes, rows: float | int, source: int, shards: ShardCounts = ShardCounts()
) -> float:
    """Counts the FLOPs per chip of projecting encoded prompts to cross-attention keys and values.

    Args:
      sizes, rows, source, shards: as in `encoder_flops`.

    Returns:
      Multiplications and additions; 0 for a decoder-only model.
    """
    width = (sizes.encoder or sizes).emb_dim
    kernels = 2 * width * sizes.key_width * sizes.cross_attention / shards.heads
    return 2 * rows * source * sizes.decoder_layers * kernels / shards.rows


def decoder_flops(
    sizes: MatrixSizes,
    rows: float | int,
    tokens: float | int,
    attended: float | int,
    shards: ShardCounts = ShardCounts(),
) -> float:
    """Counts the FLOPs per chip of decoder layers on outputs [rows, tokens].

    The head and `cross_flops` are not included.

    Args:
      sizes, rows, shards: as in `encoder_flops`.
      tokens: tokens per output.
      attended: positions that each token attends to: those of the output (the whole target or the
        whole cache, because masks save nothing) and those of the prompt.

    Returns:
      Multiplications and additions.
    """
    kernels = _projections(sizes) + 2 * sizes.emb_dim * sizes.query_width * sizes.has_cross_block
    attention = kernels + 2 * attended * sizes.query_width
    layer = attention / shards.heads + _mlp(sizes, shards)
    return 2 * rows * tokens * sizes.decoder_layers * layer / shards.rows


def repeated_scores(
    sizes: MatrixSizes, rows: float | int, queries: int, keys: int, stacked: bool
) -> float:
    """Counts the multiplications of attention scores that a layer's backward pass forms again.

    Args:
      sizes: the model's.
      rows: rows of queries.
      queries, keys: tokens per row.
      stacked: True in stacked layers that are not rematerialised as a whole.

    Returns:
      0 where they are saved.
    """
    if not sizes.attends_in_blocks or (query_block(queries) == queries and not stacked):
        return 0.0
    return float(rows * queries * keys * sizes.query_width)


def head_flops(
    sizes: MatrixSizes,
    rows: float | int,
    tokens: float | int,
    shards: ShardCounts = ShardCounts(),
) -> float:
    """Counts the FLOPs per chip of one product with the head, for tokens [rows, tokens].

    Args:
      sizes, rows, tokens, shards: as in `decoder_flops`.

    Returns:
      Multiplications and additions.
    """
    return 2 * rows * tokens * sizes.emb_dim * sizes.vocab_size / shards.rows / shards.vocab


def _projections(sizes):
    """Multiplications per token of self-attention's query, key, value and output kernels."""
    return 2 * sizes.emb_dim * (sizes.query_width + sizes.key_width)


def _mlp(sizes, shards):
    """Multiplications per token of a feed-forward layer."""
    return sizes.mlp_kernels * sizes.emb_dim * sizes.mlp_dim / shards.mlp
