"""Fits a student with one mode to a teacher with two, under every divergence.

    python examples/sweep_divergences.py [--updates=2000]

The student is a discretised Gaussian over 64 ids, the teacher a mixture of two. Forward KL covers
both modes (its optimum matches the teacher's mean and standard deviation), reverse KL settles on
one of them, and JSD(β) moves from the former to the latter with β. Takes seconds on a CPU.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from gkd.distill import divergences

IDS = jnp.arange(64.0)
DIVERGENCES: dict[str, Callable[..., jax.Array]] = {
    "forward_kl": divergences.forward_kl,
    "skew_forward_kl": divergences.skew_forward_kl,
    "jsd_0.1": functools.partial(divergences.generalized_jsd, beta=0.1),
    "jsd_0.5": functools.partial(divergences.generalized_jsd, beta=0.5),
    "jsd_0.9": functools.partial(divergences.generalized_jsd, beta=0.9),
    "total_variation": divergences.total_variation,
    "skew_reverse_kl": divergences.skew_reverse_kl,
    "reverse_kl": divergences.reverse_kl,
}


def gaussian_logits(mean: jax.Array, log_deviation: jax.Array) -> jax.Array:
    """Compute the logits [64] of a discretised Gaussian.

    Args:
      mean: its centre, in ids.
      log_deviation: natural logarithm of its standard deviation, in ids.
    """
    return -0.5 * ((IDS - mean) / jnp.exp(log_deviation)) ** 2


def teacher_logits() -> jax.Array:
    """Compute the logits [64] of the teacher: 60% around id 20, 40% around id 44."""
    modes = [jax.nn.softmax(gaussian_logits(mean, jnp.log(3.0))) for mean in (20.0, 44.0)]
    return jnp.log(0.6 * modes[0] + 0.4 * modes[1])


def fit(divergence: Callable[..., jax.Array], updates: int) -> tuple[float, float]:
    """Minimise a divergence over the student's mean and standard deviation.

    Args:
      divergence: function of student and teacher logits.
      updates: number of updates by Adam, from each of six initialisations.

    Returns:
      Mean and standard deviation, in ids, of the best of the six fitted students.
    """
    teacher, optimizer = teacher_logits(), optax.adam(optax.cosine_decay_schedule(0.1, updates))

    def loss(params):
        return divergence(gaussian_logits(params[0], params[1]), teacher)

    def fit_from(params):
        def update(carry, _):
            params, state = carry
            change, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, change), state), None

        (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), None, updates)
        return params, loss(params)

    means, deviations = jnp.meshgrid(jnp.array([20.0, 30.0, 44.0]), jnp.array([3.0, 12.0]))
    starts = jnp.stack([means.ravel(), jnp.log(deviations.ravel())], axis=1)  # [6, 2]
    params, values = jax.jit(jax.vmap(fit_from))(starts)
    mean, log_deviation = params[jnp.argmin(values)]
    return float(mean), float(jnp.exp(log_deviation))


def main(arguments: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Fit and print; return mean and standard deviation for each divergence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=2000)
    given = parser.parse_args(arguments)
    results = {}
    print(f"{'divergence':<18}{'mean':>7}{'standard deviation':>21}")
    for name, divergence in DIVERGENCES.items():
        results[name] = fit(divergence, given.updates)
        print(f"{name:<18}{results[name][0]:7.2f}{results[name][1]:21.2f}")
    return results


if __name__ == "__main__":
    main()
