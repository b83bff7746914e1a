"""The layers of T5 as Flax Linen modules, with T5X's parameter names, shapes and initialisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gkd.errors import InvalidValue

MASKED = -1e10  # added to attention logits that must not be attended to
RELATIVE_BUCKETS = 32
RELATIVE_MAX_DISTANCE = 128

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
def for_rows(bias: Float[Array, "1 *rest"], rows: int) -> Float[Array, "rows *rest"]:
    """Broadcasts a bias over rows.

    Its gradient is the sum over rows, computed on CPUs as a matrix product: XLA's own sum takes
    thirty times as long there (8.6 ms against 0.26 ms for 8 rows of 1.6 MB on two cores).
    """
    return jnp.broadcast_to(bias, (rows, *bias.shape[1:]))


def _sum_of_rows(rows, _, gradient):
    def product(x):
        return (np.ones((1, rows), x.dtype) @ x.reshape(rows, -1)).reshape(1, *x.shape[1:])

    total = partial(jnp.sum, axis=0, keepdims=True)
    return (jax.lax.platform_dependent(gradient, cpu=product, default=total),)


for_rows.defvjp(lambda bias, rows: (for_rows(bias, rows), None), _sum_of_rows)


def attention_weights(
    query: Float[Array, "batch query heads dim"],
    key: Float[Array, "batch key heads dim"],
    biases: Sequence[Float[Array, "..."]],
) -> Float[Array, "batch heads query key"]:
    """Computes attention weights without the factor 1/√dim, which T5's initialisation contains.

    Args:
      query, key: projected heads.
      biases: added to the logits one by one, each broadcastable to [batch, heads, query, key]:
        relative positions, shared by all rows, and padding, shared by all heads. Their sum would be
        as large as the attention weights.

    Returns:
      Probabilities over the keys, float32.
    """
    weights = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    for bias in biases:
        weights = weights + (for_rows(bias, len(weights)) if len(bias) == 1 else bias)
    return jax.nn.softmax(weights)


def attend(
    weights: Float[Array, "batch heads query key"], value: Float[Array, "batch key heads dim"]
) -> Float[Array, "batch query heads dim"]:
    """Weights the values of every head by its attention; all have one dtype."""
    # Heads first, as the product is computed: otherwise XLA's CPU library takes the weights as its
    # right factor, three times as slowly.
    return jnp.swapaxes(jnp.einsum("bhqk,bkhd->bhqd", weights, value), 1, 2)


class Dense(nn.Module):
    """x @ kernel: [..., in] -> [..., features], kernel [in, features], no bias."""

    features: int
    axes: tuple[str, str]
    dtype: Any = jnp.float32
    kernel_init: Callable = _fan_in_truncated

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Multiplies the last axis of `x` by the kernel."""
        init = nn.with_logical_partitioning(self.kernel_init, self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
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
        init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        return rms_norm(x, self.param("scale", init, (x.shape[-1],), jnp.float32), self.dtype)


class Embed(nn.Module):
    """Token ids -> rows of a table [vocab, features]."""

    num_embeddings: int
    features: int
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the table."""
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
        self.embedding = self.param(
            "embedding", init, (self.num_embeddings, self.features), jnp.float32
        )

    def __call__(self, tokens: Int[Array, "..."]) -> Float[Array, "..."]:
        """Looks up token ids [...] in the table: [..., features]."""
        return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)


class RelativeBias(nn.Module):
    """Learned attention bias per head and bucket of relative position."""

    num_heads: int
    bidirectional: bool

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 heads length length"]:
        """Computes the bias of every (query, key) pair of `length` tokens, float32."""
        init = nn.with_logical_partitioning(_fan_average, ("heads", "relpos_buckets"))
        table = self.param(
            "rel_embedding", init, (self.num_heads, RELATIVE_BUCKETS), jnp.float32
        )  # [H, buckets]
        distances = np.r_[0:length, -length:0]  # a ring [H, 2L] that serves every query
        by_distance = jnp.take(
            table, relative_position_bucket(distances, self.bidirectional), axis=1
        )
        # Rows of 2L−1 out of copies of 2L: each starts one distance earlier than the one before.
        skewed = jnp.tile(by_distance, (1, length))[:, : length * (2 * length - 1)]
        skewed = skewed.reshape(-1, length, 2 * length - 1)
        return skewed[None, :, :, :length].astype(jnp.float32)  # [1, H, length, length]


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
        *biases: Float[Array, "..."],
    ) -> Float[Array, "batch query embed"] | tuple[Array, Array]:
        """`x` attends to `context` under additive biases [batch|1, heads|1, query|1, key]."""

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
        dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))
        weights = attention_weights(query, key, biases)  # [B, H, Q, K]
        mixed = attend(dropout(weights.astype(value.dtype), self.deterministic), value)
        joined = mixed.reshape(*x.shape[:-1], -1)  # [B, Q, H·D]
        out = Dense(x.shape[-1], ("joined_kv", "embed"), self.dtype, _fan_in_normal, name="out")
        return (out(joined), jnp.mean(weights, axis=1)) if self.pooled else out(joined)


class Mlp(nn.Module):
    """The feed-forward block: `wi` (v1.0) or `wi_0`, `wi_1` (gated, v1.1), then `wo`."""

    mlp_dim: int
    activations: tuple[str, ...]
    dtype: Any
    dropout_rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """Applies the block to every position."""
        names = ["wi"] if len(self.activations) == 1 else ["wi_0", "wi_1"]
        pieces = [Dense(self.mlp_dim, ("embed", "mlp"), self.dtype, name=name)(x) for name in names]
        product = activate(pieces, self.activations)  # [B, L, F]
        dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))
        product = dropout(product, self.deterministic)
        return Dense(x.shape[-1], ("mlp", "embed"), self.dtype, name="wo")(product)


def padding_bias(mask: Bool[Array, "batch key"]) -> Float[Array, "batch 1 1 key"]:
    """Makes the additive bias that masks padding keys."""
    return jnp.where(mask, 0.0, MASKED)[:, None, None, :].astype(jnp.float32)
