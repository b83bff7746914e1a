"""Victims and witnesses of random groups, beside plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.auxiliary_losses.groups import sample_of_each, verified_groups
from gkd.distill.types import Rollout

SAMPLES, LENGTH = 4, 5


def rollout_of(rewards, lengths, own, weights):
    mask = np.arange(LENGTH) < np.array(lengths)[:, None]
    zeros = np.zeros(mask.shape, np.float32)
    return Rollout(
        jnp.asarray(mask * 7), jnp.float32(mask * np.array(weights)[:, None]), jnp.asarray(zeros),
        jnp.asarray(own), jnp.float32(rewards),
    )  # fmt: skip


def by_hand(rewards, lengths, own, weights, threshold):
    """(victim, witness, p) of one group; None where there is none."""
    rows = [i for i in range(SAMPLES) if own[i] and weights[i] > 0]
    wrong = [i for i in rows if not rewards[i] > threshold]
    right = [i for i in rows if rewards[i] > threshold]
    victim = min(wrong, key=lambda i: (-lengths[i], i), default=None)
    witness = min(right, key=lambda i: (lengths[i], i), default=None)
    return victim, witness, len(right) / len(rows) if rows else 0.0


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_groups_are_those_of_plain_python(threshold):
    generator = np.random.default_rng(1)
    shape = (60, SAMPLES)
    rewards = generator.choice([0.0, 0.2, 0.5, 1.0], shape)
    lengths = generator.integers(1, LENGTH + 1, shape)
    own, weights = generator.random(shape) < 0.9, generator.choice([0.0, 0.5, 1.0], shape)
    flat = [values.reshape(-1) for values in (rewards, lengths, own, weights)]
    groups = jax.jit(lambda r: verified_groups(r, SAMPLES, threshold))(rollout_of(*flat))
    ties = mixed = 0
    for row, facts in enumerate(zip(rewards, lengths, own, weights, strict=True)):
        victim, witness, rate = by_hand(*facts, threshold)
        is_mixed = None not in (victim, witness)
        assert bool(groups.mixed[row]) == is_mixed
        assert float(groups.frontier[row]) == pytest.approx(4 * rate * (1 - rate), abs=1e-6)
        assert (float(groups.frontier[row]) > 0) == is_mixed
        counted = facts[2] & (facts[3] > 0)
        assert int(groups.counted[row]) == counted.sum()
        assert int(groups.passed[row]) == (counted & (facts[0] > threshold)).sum()
        if is_mixed:
            mixed += 1
            assert (int(groups.victims[row]), int(groups.witnesses[row])) == (victim, witness)
            alike = counted & (facts[1] == facts[1][victim]) & ~(facts[0] > threshold)
            ties += alike.sum() > 1
    assert 10 < mixed < 55 and ties > 2


def test_a_sample_of_each_prompt_is_taken_with_its_gradient():
    rows = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    rows[0, 0, 0] = np.nan  # of a sample that is not taken
    chosen = jnp.array([1, 0, 1])
    np.testing.assert_array_equal(sample_of_each(jnp.asarray(rows), chosen), rows[[1, 2, 5]])
    gradient = jax.grad(lambda x: jnp.sum(sample_of_each(x, chosen) ** 2))(jnp.asarray(rows))
    want = np.zeros_like(rows)
    want[[1, 2, 5]] = 2 * rows[[1, 2, 5]]
    np.testing.assert_array_equal(gradient, want)
