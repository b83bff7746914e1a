"""λ-mixing: who writes the sequences of a step, the data set or the student."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Bool, Float, Int

# Keys of a step that are no row's: far above any row number.
COIN = 0x7FFFFFFF
DROPOUT = 0x7FFFFFFE

Fraction = int | float | Callable[[Array], Array]


def step_key(seed: Array, step: Int[Array, ""]) -> Array:
    """The key from which all randomness of a step comes: the same on every host and resume."""
    return jax.random.fold_in(seed, step)


def coin_is_on_policy(
    key: Array, on_policy_fraction: int | float | Float[Array, ""]
) -> Bool[Array, ""]:
    """Tosses the step's coin (Algorithm 1 of arXiv 2306.13649): true with probability λ.

    Args:
      key: the step's key.
      on_policy_fraction: λ in [0, 1].

    Returns:
      Whether this step trains on the student's own samples.
    """
    return jax.random.uniform(jax.random.fold_in(key, COIN)) < on_policy_fraction


def check_fraction(on_policy_fraction: Fraction) -> None:
    """Raises ValueError for a λ outside of [0, 1]; a schedule is checked by nobody."""
    if not callable(on_policy_fraction) and not 0 <= on_policy_fraction <= 1:
        raise ValueError(
            f"the on-policy fraction λ is {on_policy_fraction}: use a number in [0, 1] "
            "(0 is supervised distillation, 1 is on-policy)"
        )
