"""Matrix-product FLOPs of training adapters in place of all parameters, in closed form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from gkd.models.flops import (
    MatrixSizes,
    ShardCounts,
    cross_flops,
    decoder_flops,
    encoder_flops,
    repeated_scores,
)

_CROSS = "encoder_decoder_attention"


def update_flops(
    adapters: Any,
    sizes: MatrixSizes,
    prompts: tuple[int, int],
    encoded: Sequence[tuple[int, int]],
    outputs: int,
    tokens: int,
    shards: ShardCounts,
    remat: bool = False,
) -> float:
    """Counts the FLOPs of forward and backward pass, the head apart, on one chip.

    A product of the backward pass is formed where an adapter is before it: the gradient goes no
    further back than the first adapter, and that of a kernel is formed where it is adapted.

    Args:
      adapters: shapes of the adapters, the tree of `gkd.models.lora.new_adapters`.
      sizes: the student's.
      prompts: the prompts, and tokens of each to the decoder.
      encoded: the same of every part of them, to the encoder.
      outputs, tokens: sequences to learn from, and tokens of each.
      shards: the division among chips.
      remat: True where layers are rematerialised as a whole, which is not counted here.
    """
    rows, source = prompts
    forward = sum(encoder_flops(sizes, *part, shards) for part in encoded)
    forward += cross_flops(sizes, rows, source, shards)
    forward += decoder_flops(sizes, outputs, tokens, tokens + source, shards)
    adapted = dict(kernels(adapters))
    stacked = any("layers" in path for path in adapted)
    back = _Backward(adapted, sizes, shards, stacked, stacked and not remat)
    for count, length in encoded:
        depends = back.stack("encoder", sizes.encoder_layers, count * length, length, None)
    back.stack("decoder", sizes.decoder_layers, outputs * tokens, tokens, (depends, rows, source))
    return forward + back.flops


@dataclasses.dataclass
class _Backward:
    """The products of a backward pass, summed up along the forward pass."""

    adapted: dict[tuple[str, ...], int]
    sizes: MatrixSizes
    shards: ShardCounts
    stacked: bool
    repeats_scores: bool
    flops: float = 0.0

    def stack(self, side, layers, tokens, attended, encoded) -> bool:
        """Adds the layers of a side; returns whether its output depends on an adapter."""
        depends = self.stacked and any(path[0] == side for path in self.adapted)
        for i in range(layers):
            layer = side, "layers" if self.stacked else f"layers_{i}"
            name = "attention" if side == "encoder" else "self_attention"
            reads = tokens, tokens, attended, attended
            depends |= self._attention((*layer, name), depends, depends, *reads)
            if encoded is not None:
                of_prompts, rows, source = encoded
                reads = tokens, rows * source, source, tokens // rows
                depends |= self._attention((*layer, _CROSS), depends, of_prompts, *reads)
            depends |= self._mlp((*layer, "mlp"), depends, tokens)
        return depends

    def _attention(self, path, queries, keys, tokens, key_tokens, attended, per_row) -> bool:
        """Adds a block whose queries' and keys' inputs depend on an adapter or not."""
        emb, heads = self.sizes.emb_dim, self.shards.heads
        wide, narrow = emb * self.sizes.query_width, emb * self.sizes.key_width
        query = self._kernel((*path, "query"), queries, tokens, wide, heads)
        key = self._kernel((*path, "key"), keys, key_tokens, narrow, heads)
        value = self._kernel((*path, "value"), keys, key_tokens, narrow, heads)
        products = query + key + value + (query or key)  # of queries, keys, values, weights
        self._add(products * tokens * attended * self.sizes.query_width, heads)
        if query or key or value:
            rows, repeats = tokens // per_row, self.repeats_scores
            self._add(repeated_scores(self.sizes, rows, per_row, attended, repeats), heads)
        return self._kernel((*path, "out"), query or key or value, tokens, wide, heads)

    def _mlp(self, path, depends, tokens) -> bool:
        numbers, parts = self.sizes.emb_dim * self.sizes.mlp_dim, self.shards.mlp
        inner = False
        for name in ("wi_0", "wi_1") if self.sizes.mlp_kernels == 3 else ("wi",):
            inner |= self._kernel((*path, name), depends, tokens, numbers, parts)
        return self._kernel((*path, "wo"), inner, tokens, numbers, parts)

    def _kernel(self, path, depends, tokens, numbers, parts) -> bool:
        """Adds the gradients of a kernel and its input; returns whether its output depends."""
        self._add((depends + (path in self.adapted)) * tokens * numbers, parts)
        return depends or path in self.adapted

    def _add(self, products, parts):
        self.flops += 2 * products / self.shards.rows / parts


def adding_flops(adapters: Any) -> float:
    """Counts the FLOPs of multiplying out all adapters once: 2 · in · rank · out each.

    The backward pass of a loss takes twice as many besides.
    """
    leaves = jax.tree_util.tree_leaves_with_path(adapters)
    rank = next(leaf.shape[-1] for path, leaf in leaves if path[-1].key == "a")
    return 2.0 * rank * sum(numbers for _, numbers in kernels(adapters))


def kernels(adapters: Any) -> Iterator[tuple[tuple[str, ...], int]]:
    """The path of every adapted module, and the numbers of its kernel, of all stacked layers."""
    shapes = {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(adapters)
    }
    for path, shape in shapes.items():
        if path[-1] == "a":
            columns = shapes[(*path[:-1], "b")][-1]
            yield path[:-2], math.prod(shape[:-1]) * columns
