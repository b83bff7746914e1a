"""The layers of T5 as Flax Linen modules, with T5X's parameter names, shapes and initialisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from gkd.errors import InvalidValue
from gkd.models.parameters import parameter
from gkd.models.row_parts import apart, row_dropout, side_by_side

MASKED = -1e10  # added to attention logits that must not be attended to
RELATIVE_BUCKETS = 32
RELATIVE_MAX_DISTANCE = 128
ATTENTION = "attention"  # name of its result, for policies of `jax.checkpoint`
BLOCKED_FROM = 512  # queries from which on attention is computed in blocks of them
LARGEST_BLOCK, SMALLEST_BLOCK = 128, 32

_fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_fan_in_truncated = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_fan_average = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def relative_position_bucket(
    relative_position: np.ndarray,
    bidirectional: bool,
    num_buckets: int = RELATIVE_BUCKETS,
    max_distance: int = RELATIVE_MAX_DISTANCE,
) -> np.ndarray:
    """Maps relative positions to buckets: one per distance when near, logarithmic when far.

    Args:
      relative_position: integers of any shape, key position minus query position.
      bidirectional: True for the encoder, whose directions have half of the buckets each; False for
        the decoder, which attends to the past only.
      num_buckets: number of buckets.
      max_distance: distances from here on share the last bucket.

    Returns:
      int32 buckets of the same shape.

    Source: Raffel et al. 2020 (arXiv 1910.10683), section 2.1.

    >>> import numpy as np
    >>> relative_position_bucket(np.array([-3, 0, 3]), bidirectional=True).tolist()
    [3, 0, 19]
    >>> relative_position_bucket(-np.array([15, 16, 32, 128, 500]), bidirectional=False).tolist()
    [15, 16, 21, 31, 31]
    """
    distance = -np.asarray(relative_position)
    bucket = np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        bucket += np.where(distance < 0, num_buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(distance, 0)
    exact = num_buckets // 2
    # float32 throughout: the bucket borders must fall where T5's own do.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact + np.finfo(np.float32).eps)
    far = exact + (ratio / np.log(max_distance / exact) * (num_buckets - exact)).astype(np.int32)
    far = np.minimum(far, num_buckets - 1)
    return (bucket + np.where(distance < exact, distance, far)).astype(np.int32)


def rms_norm(x: Float[Array, "*batch embed"], scale: Float[Array, " embed"], dtype: Any) -> Array:
    """Normalises by the root mean square: x / sqrt(mean(x²) + 1e-6) · scale.

    Args:
      x: [..., E].
      scale: [E].
      dtype: dtype of the result; the computation is in float32.

    >>> import jax.numpy as jnp
    >>> normed = rms_norm(jnp.array([3.0, 4.0]), jnp.ones(2), jnp.float32)  # ÷ sqrt(12.5)
    >>> [round(float(x), 4) for x in normed]
    [0.8485, 1.1314]
    """
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return x.astype(dtype) * scale.astype(dtype)


def activate(pieces: Sequence[Array], activations: Sequence[str]) -> Array:
    """Multiplies the MLP's branches, each after its own activation ('linear', 'gelu', …)."""
    functions = {"linear": lambda x: x, "gelu": nn.gelu, "relu": nn.relu, "silu": nn.silu}
    unknown = [name for name in activations if name not in functions]
    if unknown:
        raise InvalidValue(
            f"unknown MLP activation {unknown[0]!r}: choose from {sorted(functions)}"
        )
    product = functions[activations[0]](pieces[0])
    for name, piece in zip(activations[1:], pieces[1:], strict=True):
        product = product * functions[name](piece)
    return product


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def for_rows(bias: Float[Array, "copies *rest"], rows: int) -> Float[Array, "rows *rest"]:
    """Repeats each copy of a bias for its share of the rows, which are adjacent.

    The gradient is the sum over those rows, computed on CPUs as a matrix product: XLA's own sum
    takes thirty times as long there (8.6 ms against 0.26 ms for 8 rows of 1.6 MB on two cores).
    """
    shape = (len(bias), rows // len(bias), *bias.shape[1:])
    return jnp.broadcast_to(bias[:, None], shape).reshape(rows, *bias.shape[1:])


def _sum_of_rows(rows, copies, gradient):
    rest = gradient.shape[1:]

    def product(x):
        ones = np.ones((1, rows // copies), x.dtype)
        return (ones @ x.reshape(copies, rows // copies, -1)).reshape(copies, *rest)

    def total(x):
        return jnp.sum(x.reshape(copies, rows // copies, *rest), axis=1)

    return (jax.lax.platform_dependent(gradient, cpu=product, default=total),)


for_rows.defvjp(lambda bias, rows: (for_rows(bias, rows), len(bias)), _sum_of_rows)


def attention_weights(
    query: Float[Array, "batch query heads dim"],
    key: Float[Array, "batch key heads dim"],
    biases: Sequence[Float[Array, "..."]],
) -> Float[Array, "batch heads query key"]:
    """Computes attention weights without the factor 1/√dim, which T5's initialisation contains.

    Args:
      query, key: projected heads.
      biases: added to the logits one by one, each broadcastable to [batch, heads, query, key]:
        relative positions, in one copy for all rows or several for equal shares of them, and
        padding, shared by all heads. Their sum would be as large as the attention weights.

    Returns:
      Probabilities over the keys, float32.
    """
    weights = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    for bias in biases:
        weights = weights + (bias if len(bias) == len(weights) else for_rows(bias, len(weights)))
    return jax.nn.softmax(weights)


def attend(
    weights: Float[Array, "batch heads query key"], value: Float[Array, "batch key heads dim"]
) -> Float[Array, "batch query heads dim"]:
    """Weights the values of every head by its attention; all have one dtype."""
    # Heads first, as the product is computed: otherwise XLA's CPU library takes the weights as its
    # right factor, three times as slowly.
    return jnp.swapaxes(jnp.einsum("bhqk,bkhd->bhqd", weights, value), 1, 2)


def query_block(queries: int) -> int:
    """Returns the queries that attention is computed for at a time; all, where they are few.

    Args:
      queries: queries of a row.

    Returns:
      A divisor of them.

    >>> [query_block(queries) for queries in (256, 1024, 544)]
    [256, 128, 68]
    """
    if queries < BLOCKED_FROM:
        return queries
    sizes = range(LARGEST_BLOCK, SMALLEST_BLOCK - 1, -1)
    return next((size for size in sizes if queries % size == 0), queries)


def attend_in_blocks(
    attend_to: Callable[..., Any],
    query: Float[Array, "batch query heads dim"],
    key: Float[Array, "batch key heads dim"],
    value: Float[Array, "batch key heads dim"],
    biases: Sequence[Float[Array, "..."]],
) -> Any:
    """Attention for one block of queries after the other, whose weights the backward pass repeats.

    The weights of all queries, float32 [B, H, Q, K], would pass through main memory several times.

    Args:
      attend_to: the attention of a block of queries: (query, key, value, biases) -> [B, Q, …].
      query, key, value: projected heads.
      biases: [batch|copies, heads|1, query|1, key] as in `attention_weights`; where there are
        blocks, those that depend on the query are windows, see `RelativeBias`.

    Returns:
      The results of `attend_to` for all queries.
    """
    queries, keys, dtype = query.shape[1], key.shape[1], key.dtype
    size = query_block(queries)
    if size == queries:
        return attend_to(query, key, value, biases)

    def block(key, value, biases, query, start):
        of_block = [
            bias if bias.shape[2] == 1 else jax.lax.dynamic_slice_in_dim(bias, start, keys, axis=3)
            for bias in biases
        ]
        return attend_to(query, key.astype(dtype), value.astype(dtype), of_block)

    # float32, so that the blocks' gradients are summed in float32.
    whole = key.astype(jnp.float32), value.astype(jnp.float32), biases
    blocks = jnp.moveaxis(query.reshape(query.shape[0], -1, size, *query.shape[2:]), 1, 0)
    starts = queries - size - size * jnp.arange(len(blocks))
    block = jax.checkpoint(partial(block, *whole), prevent_cse=False)
    results = jax.lax.map(lambda xs: block(*xs), (blocks, starts))
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), results
    )


class Dense(nn.Module):
    """x @ kernel: [..., in] -> [..., features], kernel [in, features], no bias."""

    features: int
    axes: tuple[str, str]
    dtype: Any = jnp.float32
    kernel_init: Callable = _fan_in_truncated

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Multiplies the last axis of `x` by the kernel."""
        kernel = parameter(self, "kernel", self.kernel_init, self.axes, x.shape[-1], self.features)
        # As one matrix, so that the kernel's gradient is a plain product too: with more axes, XLA's
        # CPU compiler transposes what flows into it, and an activation's gradient on the way.
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
        return (flat @ kernel.astype(self.dtype)).reshape(*x.shape[:-1], self.features)


class RMSNorm(nn.Module):
    """Root-mean-square layer norm with a scale and no bias."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Normalises the last axis."""
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), x.shape[-1])
        return rms_norm(x, scale, self.dtype)


class Embed(nn.Module):
    """Token ids -> rows of a table [vocab, features]."""

    num_embeddings: int
    features: int
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the table."""
        init, axes = nn.initializers.normal(1.0), ("vocab", "embed")
        self.embedding = parameter(
            self, "embedding", init, axes, self.num_embeddings, self.features
        )

    def __call__(self, tokens: Int[Array, "..."]) -> Float[Array, "..."]:
        """Looks up token ids [...] in the table: [..., features]."""
        return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)


class RelativeBias(nn.Module):
    """Learned attention bias per head and bucket of relative position."""

    num_heads: int
    bidirectional: bool

    @nn.compact
    def __call__(
        self, length: int, copied: Callable[[Array], Array] = lambda table: table[None]
    ) -> Float[Array, "copies heads block keys"]:
        """Computes the bias of every (query, key) pair of `length` tokens, float32.

        Args:
          length: L, tokens of a row.
          copied: copies an array for equal shares of the rows.

        Returns:
          [copies, H, L, L]. Where attention is computed in blocks of b queries, it is a window
          [copies, H, b, 2L - b]: the block that begins at query i has the L columns from L - b - i.
        """
        rows = query_block(length)
        before = length - rows
        axes, shape = ("heads", "relpos_buckets"), (self.num_heads, RELATIVE_BUCKETS)
        table = parameter(self, "rel_embedding", _fan_average, axes, *shape)  # [H, buckets]
        # A ring [H, 2L] that serves every query.
        distances = np.r_[-before:length, -length:-before]
        buckets = relative_position_bucket(distances, self.bidirectional)
        by_distance = jnp.take(copied(table), buckets, axis=2)  # [C, H, 2L]
        # Rows of 2L−1 out of copies of 2L: each starts one distance earlier than the one before.
        skewed = jnp.tile(by_distance, (1, 1, rows))[..., : rows * (2 * length - 1)]
        skewed = skewed.reshape(*by_distance.shape[:2], rows, 2 * length - 1)
        return skewed[..., : length + before].astype(jnp.float32)  # [C, H, b, 2L-b]


class Attention(nn.Module):
    """Multi-head attention of T5: kernels [embed, heads·dim] and [heads·dim, embed].

    With `pooled`, it returns the mean of the heads' attention too: (result, [batch, query, key]).
    """

    num_heads: int
    head_dim: int
    dtype: Any
    dropout_rate: float
    deterministic: bool
    pooled: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch query embed"],
        context: Float[Array, "batch key embed"],
        *biases: Float[Array, "..."] | Sequence[Float[Array, "..."]],
    ) -> Float[Array, "batch query embed"] | tuple[Array, Array]:
        """`x` attends to `context` under additive biases, see `attend_in_blocks`.

        Tuples of biases are those of rows that are side by side, each of which attends to itself.
        """

        def heads(name, inputs, scale=1.0):
            def init(*args):
                return _fan_in_normal(*args) * scale

            dense = Dense(
                self.num_heads * self.head_dim, ("embed", "joined_kv"), self.dtype, init, name=name
            )
            projected = dense(inputs)  # [B, L, H·D]
            return projected.reshape(*inputs.shape[:-1], self.num_heads, self.head_dim)

        query = heads("query", x, self.head_dim**-0.5)
        key, value = heads("key", context), heads("value", context)  # [B, K, H, D]
        # One mask for all queries, as in T5, and for all of their blocks.
        kept = jnp.ones((len(x), self.num_heads, 1, context.shape[1]), jnp.float32)
        kept = nn.Dropout(self.dropout_rate)(kept, self.deterministic)

        def attend_to(kept, query, key, value, biases):
            weights = used = attention_weights(query, key, biases)  # [B, H, Q, K]
            if self.dropout_rate and not self.deterministic:
                used = weights * kept
            mixed = attend(used.astype(value.dtype), value)
            return mixed, jnp.mean(weights, axis=1) if self.pooled else None

        if isinstance(biases[0], tuple):
            lengths = [bias.shape[-1] for bias in biases[-1]]
            rows = zip(*(apart(part, lengths) for part in (query, key, value)), strict=True)
            masks = zip(apart(kept, lengths, axis=3), zip(*biases, strict=True), strict=True)
            mixed = side_by_side(
                [
                    attend_in_blocks(partial(attend_to, kept), *row, each)[0]
                    for row, (kept, each) in zip(rows, masks, strict=True)
                ]
            )
        else:
            attend_row = partial(attend_to, kept)
            mixed, pooled = attend_in_blocks(attend_row, query, key, value, biases)
        mixed = checkpoint_name(mixed, ATTENTION)
        joined = mixed.reshape(*x.shape[:-1], -1)  # [B, Q, H·D]
        out = Dense(x.shape[-1], ("joined_kv", "embed"), self.dtype, _fan_in_normal, name="out")
        return (out(joined), pooled) if self.pooled else out(joined)


class Mlp(nn.Module):
    """The feed-forward block: `wi` (v1.0) or `wi_0`, `wi_1` (gated, v1.1), then `wo`."""

    mlp_dim: int
    activations: tuple[str, ...]
    dtype: Any
    dropout_rate: float
    deterministic: bool
    lengths: tuple[int, ...] = (0,)  # of rows that are side by side

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """Applies the block to every position."""
        names = ["wi"] if len(self.activations) == 1 else ["wi_0", "wi_1"]
        pieces = [Dense(self.mlp_dim, ("embed", "mlp"), self.dtype, name=name)(x) for name in names]
        product = activate(pieces, self.activations)  # [B, L, F]
        product = row_dropout(self.dropout_rate, self.deterministic, self.lengths, product)
        return Dense(x.shape[-1], ("mlp", "embed"), self.dtype, name="wo")(product)


def padding_bias(mask: Bool[Array, "batch key"]) -> Float[Array, "batch 1 1 key"]:
    """Makes the additive bias that masks padding keys."""
    return jnp.where(mask, 0.0, MASKED)[:, None, None, :].astype(jnp.float32)
