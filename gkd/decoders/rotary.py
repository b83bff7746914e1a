"""Rotary positions: the frequencies of each pair of features, and the rotation by an angle."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotation = tuple[Float[Array, "rows length half"], Float[Array, "rows length half"]]


@dataclasses.dataclass(frozen=True)
class Rope:
    """The rule by which positions become angles.

    Attributes:
      theta: base of the frequencies.
      factor: stretches the positions: frequencies are divided by it; with `original_length` only
        the low ones are (Llama 3).
      original_length: tokens of the context before it was stretched; 0: all frequencies are alike.
      low_frequency_factor, high_frequency_factor: waves longer than original_length / low are
        stretched wholly, waves shorter than original_length / high are kept, others are between.
    """

    theta: float | int = 10000.0
    factor: float | int = 1.0
    original_length: int = 0
    low_frequency_factor: float | int = 1.0
    high_frequency_factor: float | int = 4.0


def inverse_frequencies(rope: Rope, head_dim: int) -> Float[np.ndarray, " half"]:
    """Computes the angle per position of each pair of a head's features.

    Args:
      rope: settings.
      head_dim: D, features of a head.

    Returns:
      float32 [D/2], in radians per token.

    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2; for `original_length` the Llama 3.1
    release.

    >>> inverse_frequencies(Rope(theta=100.0), head_dim=4).round(3).tolist()
    [1.0, 0.10000000149011612]
    """
    frequencies = float(rope.theta) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    stretched = frequencies / rope.factor
    if rope.original_length:
        low, high = rope.low_frequency_factor, rope.high_frequency_factor
        turns = rope.original_length * frequencies / (2 * math.pi)  # within the original context
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        stretched = kept * frequencies + (1 - kept) * stretched
    return stretched.astype(np.float32)


def rotation(
    positions: Int[Array, "rows length"], frequencies: Float[np.ndarray, " half"]
) -> Rotation:
    """Computes cosine and sine of every position's angles.

    Args:
      positions: int32 [N, L].
      frequencies: [D/2], from `inverse_frequencies`.

    Returns:
      (cosines, sines), float32 [N, L, D/2].
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "rows length heads dim"], turn: Rotation
) -> Float[Array, "rows length heads dim"]:
    """Rotates the pairs (i, i + D/2) of every head's features, in float32.

    Args:
      x: [N, L, H, D].
      turn: the rotation of the same positions.

    Returns:
      [N, L, H, D] in the dtype of `x`.
    """
    cosines, sines = (part[:, :, None] for part in turn)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
