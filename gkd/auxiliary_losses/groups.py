"""Groups of verified samples: the pass rate of a prompt, its victim and its witness."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from gkd.distill.types import Rollout


@flax.struct.dataclass
class Groups:
    """The verified samples of B prompts, G of each.

    Attributes:
      passed: float32 [B], samples whose reward is above the threshold.
      counted: float32 [B], samples that count: the student's own that weigh something.
      mixed: bool [B], true where some of them passed and some failed.
      frontier: float32 [B], 4p(1 − p) with p = passed / counted: 1 where half of them passed, 0 in
        groups that are not mixed.
      victims: int32 [B], the longest sample that failed, by its number in the group.
      witnesses: int32 [B], the shortest sample that passed. Of equal lengths the first is taken;
        where there is none, it is sample 0.
    """

    passed: Any
    counted: Any
    mixed: Any
    frontier: Any
    victims: Any
    witnesses: Any


def verified_groups(rollout: Rollout, samples: int, threshold: float | int = 0.5) -> Groups:
    """Determines victim and witness of every prompt.

    Args:
      rollout: N = B·G rows with rewards, row = prompt·G + sample.
      samples: G.
      threshold: a sample passes with a reward above it.

    Returns:
      The groups.

    Source: arXiv 2605.17497 (SSOPD).

    One prompt with three samples, of 2, 3 and 1 tokens; the last one passed:

    >>> weights = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    >>> own, rewards = jnp.ones(3, bool), jnp.array([0.0, 0.0, 1.0])
    >>> rollout = Rollout(jnp.ones((3, 3), int), weights, 0 * weights, own, rewards)
    >>> groups = verified_groups(rollout, samples=3)
    >>> groups.victims.tolist(), groups.witnesses.tolist(), f"{groups.frontier[0]:.3f}"
    ([1], [2], '0.889')
    """
    lengths = jnp.sum(rollout.weights != 0, axis=1)
    counted = rollout.on_policy & (lengths > 0)
    right = rollout.rewards > threshold

    def grouped(rows):
        return rows.reshape(-1, samples)

    lengths, passed, failed = map(grouped, (lengths, counted & right, counted & ~right))
    passes, count = (
        jnp.sum(group, axis=1, dtype=jnp.float32) for group in (passed, grouped(counted))
    )
    rate = passes / jnp.maximum(count, 1)
    return Groups(
        passed=passes,
        counted=count,
        mixed=jnp.any(passed, axis=1) & jnp.any(failed, axis=1),
        frontier=4 * rate * (1 - rate),
        victims=jnp.argmax(jnp.where(failed, lengths, -1), axis=1),
        witnesses=jnp.argmin(jnp.where(passed, lengths, rollout.weights.shape[1] + 1), axis=1),
    )


def sample_of_each(
    rows: Shaped[Array, "rows ..."], chosen: Int[Array, " prompts"]
) -> Shaped[Array, "prompts ..."]:
    """Takes one sample of every prompt, by selection: no row leaves its device, and none scatters.

    Args:
      rows: [B·G, …], row = prompt·G + sample.
      chosen: int32 [B], the sample's number in its group.

    Returns:
      [B, …].

    >>> sample_of_each(jnp.array([1, 2, 3, 4, 5, 6]), jnp.array([2, 0])).tolist()
    [3, 4]
    """
    groups = rows.reshape(chosen.shape[0], -1, *rows.shape[1:])
    is_chosen = jnp.arange(groups.shape[1]) == chosen[:, None]
    is_chosen = is_chosen.reshape(*is_chosen.shape, *[1] * (rows.ndim - 1))
    return jnp.sum(jnp.where(is_chosen, groups, 0), axis=1, dtype=rows.dtype)
