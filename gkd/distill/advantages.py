"""Advantages: the rewards of sequences beyond a baseline of their prompt or batch."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gkd.errors import InvalidValue

KINDS = ("batch", "group", "group_standardised", "none")


def check_kind(kind: str, samples: int) -> None:
    """Raises ValueError for an unknown kind, or one of several samples where there is one."""
    if kind not in KINDS:
        raise InvalidValue(f"ADVANTAGE is {kind!r}: choose one of {', '.join(KINDS)}")
    if kind.startswith("group") and samples < 2:
        raise InvalidValue(
            f"ADVANTAGE is {kind!r}, which compares a prompt's samples: set SAMPLES to 2 or more"
        )


def advantages(
    rewards: Float[Array, " rows"],
    counted: Bool[Array, " rows"],
    samples: int,
    kind: str = "batch",
) -> Float[Array, " rows"]:
    """Subtracts from every reward a baseline that does not depend on its own row.

    Args:
      rewards: [N], row = prompt·G + sample.
      counted: bool [N], the student's own rows that weigh something; the others neither get an
        advantage nor enter a baseline.
      samples: G.
      kind: "batch", minus the mean of all other rows; "group", minus the mean of the prompt's other
        samples (RLOO); "group_standardised", minus the mean and over the standard deviation of the
        prompt's samples (GRPO; the row itself is in both); "none", the rewards themselves.

    Returns:
      float32 [N], 0 where a row is not counted and where it has no other row to compare with.

    Raises:
      ValueError: another kind.

    Source: Williams 1992; Kool et al. 2019; Shao et al. 2024 (arXiv 2402.03300), equation 3.1.

    Two prompts with two samples each:

    >>> rewards, counted = jnp.array([1.0, 3.0, 0.0, 0.5]), jnp.ones(4, bool)
    >>> advantages(rewards, counted, samples=2, kind="group").tolist()
    [-2.0, 2.0, -0.5, 0.5]
    >>> advantages(rewards, counted, samples=2, kind="group_standardised").tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    check_kind(kind, samples)
    weights = counted.astype(jnp.float32)
    rewards = jnp.where(counted, rewards, 0.0).astype(jnp.float32)
    if kind == "none":
        return rewards
    groups = (1, -1) if kind == "batch" else (-1, samples)
    reward, weight = rewards.reshape(groups), weights.reshape(groups)
    total = jnp.sum(reward, axis=1, keepdims=True)
    count = jnp.sum(weight, axis=1, keepdims=True)
    if kind == "group_standardised":
        mean = total / jnp.maximum(count, 1)
        centred = (reward - mean) * weight
        variance = jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(count, 1)
        # Equal rewards teach nothing: their tiny differences by rounding must not be blown up.
        differ = variance > 1e-12 * jnp.maximum(mean**2, 1.0)
        relative = centred / jnp.where(differ, jnp.sqrt(variance), 1.0)
        return jnp.where(differ, relative, 0.0).reshape(-1)
    others = (total - reward) / jnp.maximum(count - 1, 1)
    return jnp.where((weight > 0) & (count > 1), reward - others, 0.0).reshape(-1)
