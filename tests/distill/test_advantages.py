"""Advantages: rewards minus a baseline, worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from gkd.distill.advantages import advantages


@pytest.mark.parametrize(
    "kind, want",
    [
        ("none", [1, 0, 0, 4, 0, 0]),
        ("batch", [1 - 4 / 3, -5 / 3, -5 / 3, 4 - 1 / 3, 0, 0]),
        ("group", [1, -1, -4, 4, 0, 0]),
        ("group_standardised", [1, -1, -1, 1, 0, 0]),
    ],
)
def test_advantages_by_hand(kind, want):
    """Two prompts of two samples; a third prompt has one row of data and one of weight 0."""
    rewards = jnp.array([1.0, 0.0, 0.0, 4.0, 9.0, jnp.nan])
    counted = jnp.array([True, True, True, True, False, False])
    got = advantages(rewards, counted, 2, kind)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    "rewards, counted, samples, kind, want",
    [
        ([3.0], [True], 1, "batch", [0]),
        ([3.0, 1.0, 2.0], [False, True, False], 1, "batch", [0, 0, 0]),
        ([3.0, 1.0, 2.0, 4.0], [True, False, True, True], 2, "group", [0, 0, -2, 2]),
        ([1.0, 0.0, 2.0, 3.0, 3.0, 0.0], [True] * 6, 3, "group", [0, -1.5, 1.5, 1.5, 1.5, -3]),
        ([3.0, 1.0], [True, False], 2, "group_standardised", [0, 0]),
        ([3.0], [True], 1, "none", [3]),
    ],
)
def test_advantages_of_few_and_of_three_rows_by_hand(rewards, counted, samples, kind, want):
    got = advantages(jnp.array(rewards), jnp.array(counted), samples, kind)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("reward", [0.1, 97.3, -12345.6])
@pytest.mark.parametrize("samples", [2, 3])
def test_equal_rewards_have_no_advantage(reward, samples):
    """The mean of three equal numbers differs from them by rounding, in proportion to them."""
    rewards, counted = jnp.full(6, reward, jnp.float32), jnp.ones(6, bool)
    for kind in ("batch", "group", "group_standardised"):
        got = advantages(rewards, counted, samples, kind)
        np.testing.assert_allclose(got, 0, atol=1e-6 * max(1, abs(reward)))
    np.testing.assert_array_equal(advantages(rewards, counted, samples, "group_standardised"), 0)


def test_unknown_advantages_are_refused():
    with pytest.raises(ValueError, match="ADVANTAGE is 'mean': choose one of batch, group"):
        advantages(jnp.ones(2), jnp.ones(2, bool), 1, "mean")
    with pytest.raises(ValueError, match="compares a prompt's samples: set SAMPLES to 2"):
        advantages(jnp.ones(2), jnp.ones(2, bool), 1, "group")
