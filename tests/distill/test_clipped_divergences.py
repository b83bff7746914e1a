"""Clipped terms: forward KL and JSD whose vocabulary terms are bounded before the sum (OPSD)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.distill import divergences, losses
from gkd.distill.logits import DenseLogits
from gkd.distill.types import Rollout
from gkd.errors import InvalidValue
from tests.distill import references

CLIP, BETA = 0.05, 0.3
STUDENT, TEACHER = (jnp.asarray(references.normal(seed, 4, 6, 11)) for seed in (1, 2))
VALID = np.arange(11) < 9
CASES = {
    "forward_kl": functools.partial(divergences.forward_kl, clip=CLIP),
    "jsd": functools.partial(divergences.generalized_jsd, beta=BETA, clip=CLIP),
    "rescaled jsd": functools.partial(
        divergences.generalized_jsd, beta=BETA, rescale=True, clip=CLIP
    ),
}


def terms(name, p, q):
    """Every id's term, in float64."""
    if name == "forward_kl":
        return p * np.log(p / q)
    mixture = BETA * p + (1 - BETA) * q
    each = BETA * p * np.log(p / mixture) + (1 - BETA) * q * np.log(q / mixture)
    return each / (BETA * (1 - BETA)) if name == "rescaled jsd" else each


def by_hand(name, student, teacher, temperature=1.0):
    """The clipped divergence over the valid ids, float64."""
    logits = (np.float64(x)[..., VALID] / temperature for x in (teacher, student))
    p, q = map(references.probabilities, logits)
    return np.minimum(terms(name, p, q), CLIP).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_clipped_terms(name, temperature):
    function = functools.partial(CASES[name], temperature=temperature, valid=jnp.asarray(VALID))
    want = by_hand(name, STUDENT, TEACHER, temperature)
    got, pull_back = jax.vjp(lambda student: function(student, TEACHER), STUDENT)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    unclipped = (
        references.probabilities(TEACHER[..., VALID]),
        references.probabilities(STUDENT[..., VALID]),
    )
    above = terms(name, *unclipped) > CLIP
    assert 0.02 < above.mean() < 0.9, "some terms must be clipped and some not"
    (gradient,) = pull_back(jnp.ones_like(got))
    step, slopes = 1e-6, np.zeros(STUDENT.shape)
    for index in range(STUDENT.shape[-1]):
        shift = step * (np.arange(STUDENT.shape[-1]) == index)
        up, down = (by_hand(name, np.float64(STUDENT) + s * shift, TEACHER, temperature)
                    for s in (1, -1))  # fmt: skip
        slopes[..., index] = (up - down) / (2 * step)
    np.testing.assert_allclose(gradient, slopes, atol=2e-5)


def test_the_sum_may_be_negative_and_is_not_cut_off_at_zero():
    want = by_hand("forward_kl", STUDENT, TEACHER)
    assert (want < -0.05).any()
    got = CASES["forward_kl"](STUDENT, TEACHER, valid=jnp.asarray(VALID))
    assert float(jnp.min(got)) == pytest.approx(want.min(), rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_bound_that_no_term_reaches_changes_nothing(name):
    free = functools.partial(CASES[name], clip=1e6)
    plain = functools.partial(CASES[name], clip=None)
    for one, other in zip(*(jax.value_and_grad(lambda s, f=f: f(s, TEACHER).sum())(STUDENT)
                            for f in (free, plain)), strict=True):  # fmt: skip
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_the_loss_takes_it_block_by_block():
    """Through the fused loss: the same sum and gradient as from all logits at once."""
    weights = np.float32(np.random.default_rng(0).random((4, 6)) < 0.7)
    rollout = Rollout(
        jnp.ones((4, 6), jnp.int32), jnp.asarray(weights), 0 * weights, jnp.ones(4, bool)
    )

    def loss(student, block_size):
        total, weight, _ = losses.divergence_loss(
            DenseLogits(student), DenseLogits(TEACHER), rollout,
            divergence=CASES["forward_kl"], normalisation="token", block_size=block_size,
        )  # fmt: skip
        return total / weight

    p, q = references.probabilities(TEACHER), references.probabilities(STUDENT)
    each = np.minimum(p * np.log(p / q), CLIP).sum(-1)
    values = [jax.value_and_grad(loss)(STUDENT, size) for size in (3, 24)]
    assert float(values[0][0]) == pytest.approx((each * weights).sum() / weights.sum(), rel=1e-5)
    np.testing.assert_allclose(values[0][1], values[1][1], atol=1e-7)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_means_nothing_is_refused(clip):
    for function in (
        divergences.forward_kl,
        functools.partial(divergences.generalized_jsd, beta=0.5),
    ):
        with pytest.raises(InvalidValue, match=f"clip is {clip}"):
            function(STUDENT, TEACHER, clip=clip)
