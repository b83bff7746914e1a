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

_BLOCKS = {"mlp": "mlp", "encoder_decoder_attention": "cross"}  # all others attend to themselves


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
      encoded: the same of every part of them, to the encoder or to a decoder-only model's prefill.
      outputs, tokens: sequences to learn from, and tokens of each.
      shards: the division among chips.
      remat: True where layers are rematerialised as a whole, which is not counted here.
    """
    rows, source = prompts
    forward = sum(encoder_flops(sizes, *part, shards) for part in encoded)
    forward += cross_flops(sizes, rows, source, shards)
    forward += decoder_flops(sizes, outputs, tokens, tokens + source, shards)
    layers = _adapted_layers(adapters)
    stacked = any(layer == "layers" for _, layer in layers)
    side = "encoder" if sizes.cross_attention else "decoder"
    stack = _Stack(sizes.encoder or sizes, shards, stacked, stacked and not remat)
    adapted = [layers.get((side, name), set()) for name in stack.names(sizes.encoder_layers)]
    for count, length in encoded:
        states, keys = stack.run(adapted, count, length, keys_only=sizes.keys_only)
    own = dataclasses.replace(stack, sizes=sizes, context_dim=stack.sizes.emb_dim)
    adapted = [layers.get(("decoder", name), set()) for name in own.names(sizes.decoder_layers)]
    if sizes.cross_attention:
        own.run(adapted, outputs, tokens, context=(states, rows, source))
    else:
        own.run(adapted, outputs, tokens, before=(keys, source))
    return forward + own.flops


def _adapted_layers(adapters) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """The adapted (block, kernel) of every layer, by its side and name."""
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for path, _ in kernels(adapters):
        if len(path) == 4:  # the head is in no layer
            side, layer, block, kernel = path
            found.setdefault((side, layer), set()).add((_BLOCKS.get(block, "self"), kernel))
    return found


@dataclasses.dataclass
class _Stack:
    """The products of the backward pass of a stack of layers, summed up along its forward pass."""

    sizes: MatrixSizes
    shards: ShardCounts
    stacked: bool
    repeats_scores: bool
    context_dim: int = 0
    flops: float = 0.0

    def names(self, count) -> list[str]:
        return ["layers" if self.stacked else f"layers_{i}" for i in range(count)]

    def run(self, layers, rows, length, before=None, context=None, keys_only=False):
        """Adds a stack's layers.

        Args:
          layers: adapted (block, kernel) of every layer.
          rows, length: the input's.
          before: prompts that the rows continue: by layer, true where their keys and values depend
            on an adapter; and tokens of each.
          context: encoded prompts: true where they depend on an adapter; their number; and tokens
            of each.
          keys_only: True where the last layer forms its keys and values only.

        Returns:
          Whether the output depends on an adapter; the same of every layer's keys and values.
        """
        tokens, found = rows * length, []
        depends = self.stacked and (any(layers) or bool(context and context[0]))
        for i, self._adapted in enumerate(layers):
            keys = self._keys("self", depends, tokens, self.sizes.emb_dim)
            found.append(keys)
            if keys_only and i == len(layers) - 1:
                break
            groups = [(*keys, length)]
            if before is not None:
                groups.append((*before[0][i], before[1]))
            if context is not None:
                of_prompts, prompts, source = context
                block = "self" if self.sizes.merged_attention else "cross"
                keys = self._keys(block, of_prompts, prompts * source, self.context_dim)
            if self.sizes.merged_attention and context is not None:
                groups.append((*keys, source))
            depends |= self._attention("self", depends, rows, length, groups)
            if self.sizes.has_cross_block and context is not None:
                queries = tokens // prompts  # all of a prompt's
                depends |= self._attention("cross", depends, prompts, queries, [(*keys, source)])
            depends |= self._mlp(depends, tokens)
        return depends, found

    def _keys(self, block, depends, tokens, emb_dim) -> tuple[bool, bool]:
        numbers, parts = emb_dim * self.sizes.key_width, self.shards.heads
        key, value = (
            self._kernel((block, name), depends, tokens, numbers, parts)
            for name in ("key", "value")
        )
        return key, value

    def _attention(self, block, depends, rows, length, groups) -> bool:
        """Adds attention to groups of (key depends, value depends, keys per row)."""
        sizes, parts, tokens = self.sizes, self.shards.heads, rows * length
        again = self.repeats_scores
        wide = sizes.emb_dim * sizes.query_width
        query = self._kernel((block, "query"), depends, tokens, wide, parts)
        scores = query or any(key for key, _, _ in groups)  # all groups have one softmax
        mixed = scores or any(value for _, value, _ in groups)
        for key, value, attended in groups:
            products = query + key + value + scores  # of queries, keys, values, weights
            self._add(products * tokens * attended * sizes.query_width, parts)
            if mixed:
                self._add(repeated_scores(sizes, rows, length, attended, again), parts)
        return self._kernel((block, "out"), mixed, tokens, wide, parts)

    def _mlp(self, depends, tokens) -> bool:
        numbers, parts = self.sizes.emb_dim * self.sizes.mlp_dim, self.shards.mlp
        inner = False
        for name in ("wi_0", "wi_1") if self.sizes.mlp_kernels == 3 else ("wi",):
            inner |= self._kernel(("mlp", name), depends, tokens, numbers, parts)
        return self._kernel(("mlp", "wo"), inner, tokens, numbers, parts)

    def _kernel(self, name, depends, tokens, numbers, parts) -> bool:
        """Adds the gradients of a kernel and its input; returns whether its output depends."""
        self._add((depends + (name in self._adapted)) * tokens * numbers, parts)
        return depends or name in self._adapted

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
