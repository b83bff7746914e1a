"""λ-mixing: who writes the sequences of a step, the data set or the student."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gkd.errors import InvalidValue

# Keys of a step that are no row's: far above any row number.
COIN = 0x7FFFFFFF
DROPOUT = 0x7FFFFFFE

Fraction = int | float | Callable[[Array], Array]


def student_generates(on_policy_fraction: Fraction) -> bool:
    """Returns whether the student generates sequences at any step: λ is above 0 or a schedule.

    >>> student_generates(0.0), student_generates(0.5), student_generates(lambda step: step / 100)
    (False, True, True)
    """
    return callable(on_policy_fraction) or on_policy_fraction > 0


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


def rows_on_policy(
    key: Array, rows: Int[Array, " rows"], on_policy_fraction: int | float | Float[Array, ""]
) -> Bool[Array, " rows"]:
    """A coin for every prompt instead of one for the batch: true with probability λ.

    Args:
      key: the step's key.
      rows: the prompts' numbers in the whole batch.
      on_policy_fraction: λ in [0, 1].

    Returns:
      Which prompts the student answers itself, wherever they are computed.
    """
    coin = jax.random.fold_in(key, COIN)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(coin, rows)
    return jax.vmap(jax.random.uniform)(keys) < on_policy_fraction


def linear_schedule(start: float, end: float, steps: int, after: int = 0) -> Callable:
    """Makes a schedule of λ: `start`, then linear to `end` over `steps` steps, then constant.

    Args:
      start: λ before the change, in [0, 1].
      end: λ after the change, in [0, 1].
      steps: duration of the change, 1 or more.
      after: steps before the change begins, 0 or more.

    Returns:
      A function of the step.

    Raises:
      InvalidValue: λ outside [0, 1], or a number of steps out of range.

    >>> schedule = linear_schedule(0.0, 1.0, steps=10, after=5)
    >>> [float(schedule(step)) for step in (0, 5, 10, 15, 20)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    for fraction in (start, end):
        check_fraction(fraction)
    if steps < 1 or after < 0:
        raise InvalidValue(f"a λ schedule of {steps} steps after {after}: use 1 or more, after 0")

    def fraction_at(step):
        return start + (end - start) * jnp.clip((step - after) / steps, 0.0, 1.0)

    return fraction_at


def check_fraction(on_policy_fraction: Fraction) -> None:
    """Raises ValueError for a λ outside of [0, 1]; a schedule is checked by nobody."""
    if not callable(on_policy_fraction) and not 0 <= on_policy_fraction <= 1:
        raise InvalidValue(
            f"the on-policy fraction λ is {on_policy_fraction}: use a number in [0, 1] "
            "(0 is supervised distillation, 1 is on-policy)"
        )
