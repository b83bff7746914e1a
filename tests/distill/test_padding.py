"""Padding never enters a product: huge advantages, scales and rewards leave losses finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.distill import divergences, losses
from gkd.distill.fused import fused_token_loss
from gkd.distill.logits import DenseLogits, token_log_prob
from gkd.distill.types import Rollout
from tests.distill import references

ROWS, LENGTH, VOCABULARY = 4, 512, 8
VALID = np.array([False, True, True, True, True, True, True, False])
LENGTHS = np.array([512, 511, 130, 0])  # a full row, two padded ones, an empty one
MASK = np.arange(LENGTH) < LENGTHS[:, None]
IDS = np.where(MASK, np.random.default_rng(0).integers(1, 7, (ROWS, LENGTH)), 0).astype(np.int32)
STUDENT = references.normal(1, ROWS, LENGTH, VOCABULARY)
TEACHER = references.normal(2, ROWS, LENGTH, VOCABULARY)


def log_probabilities(logits):
    return np.log(references.probabilities(logits, VALID) + 1e-300)


def chosen(log_probs):
    return np.take_along_axis(log_probs, IDS[..., None], axis=-1)[..., 0]


def rollout_of(advantages):
    rewards = np.asarray(advantages, np.float32)
    return Rollout(
        jnp.asarray(IDS), jnp.asarray(MASK, jnp.float32), jnp.zeros(MASK.shape),
        jnp.ones(ROWS, bool), jnp.asarray(rewards), jnp.asarray(rewards),
    )  # fmt: skip


@pytest.mark.parametrize("size", [1e3, -1e3, 3e4])
@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_the_rl_loss_and_its_gradient_are_the_float64_ones(alpha, size):
    advantages = size * np.array([1.0, -0.5, 0.25, 1.0])
    loss_fn = functools.partial(
        losses.reward_and_divergence_loss, alpha=alpha, divergence=divergences.reverse_kl,
        valid=jnp.asarray(VALID), block_size=100,
    )  # fmt: skip

    def loss(student):
        teacher = DenseLogits(jnp.asarray(TEACHER))
        total, weight, metrics = loss_fn(DenseLogits(student), teacher, rollout_of(advantages))
        return total / weight, metrics

    (got, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(STUDENT))
    log_q = log_probabilities(STUDENT)
    rows = 3  # the empty row counts in no mean
    policy = -(advantages[:, None] * np.where(MASK, chosen(log_q), 0.0)).sum() / rows
    distance = references.divergence("reverse_kl", STUDENT, TEACHER, valid=VALID)
    distance = (distance * MASK / np.maximum(LENGTHS, 1)[:, None]).sum() / rows
    assert float(got) == pytest.approx(alpha * distance + (1 - alpha) * policy, rel=1e-5)
    assert float(metrics["policy_gradient"][0] / metrics["policy_gradient"][1]) == pytest.approx(
        policy, rel=1e-5
    )
    if alpha:  # a small number beside the policy gradient's: not what is left of a difference
        assert float(metrics["divergence"][0] / 3) == pytest.approx(distance, rel=1e-4)
    one_hot = np.eye(VOCABULARY)[IDS]
    q = np.exp(log_q)
    want = -(1 - alpha) * advantages[:, None, None] * (one_hot - q * VALID) / rows
    if alpha:
        log_ratio = np.where(VALID, log_q - log_probabilities(TEACHER), 0.0)
        centred = log_ratio - (q * log_ratio).sum(-1, keepdims=True)
        want += alpha * q * centred / np.maximum(LENGTHS, 1)[:, None, None] / rows
    want = np.where(MASK[..., None], want, 0.0)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=abs(size) * 1e-6)


def test_the_sampled_token_loss_is_finite_where_padding_has_no_probability():
    """Log-probabilities of −10³⁴ at padding, students that disagree by 10³ nats per token."""
    student, teacher = STUDENT * 1e3, -TEACHER * 1e3

    def loss(student):
        total, weight, _ = losses.divergence_loss(
            DenseLogits(student), DenseLogits(jnp.asarray(teacher)), rollout_of(np.ones(ROWS)),
            divergence=divergences.sampled_token_reverse_kl, valid=jnp.asarray(VALID),
            normalisation="token",
        )  # fmt: skip
        return total / weight

    got, gradient = jax.value_and_grad(loss)(jnp.asarray(student))

    def log_probs(logits):  # in float64, without underflow
        usable = np.where(VALID, logits.astype(np.float64), -np.inf)
        return usable - np.logaddexp.reduce(usable, axis=-1, keepdims=True)

    log_q = log_probs(student)
    ratio = chosen(np.where(VALID, log_q - log_probs(teacher), 0.0))
    assert float(got) == pytest.approx((ratio * MASK).sum() / MASK.sum(), rel=1e-4)
    want = ratio[..., None] * (np.eye(VOCABULARY)[IDS] - np.exp(log_q))
    want = np.where(MASK[..., None], want, 0.0) / MASK.sum()
    np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=np.abs(want).max() * 1e-5)


def test_what_a_loss_or_metric_makes_of_padding_is_dropped():
    """A token loss that is infinite or NaN at padding, whatever its form."""
    coefficients = jnp.asarray(MASK, jnp.float32)
    scale = jnp.asarray(np.where(MASK, 2.0, np.inf), jnp.float32)

    def token_loss(student, teacher, targets):
        ids, scale = targets
        return scale * token_log_prob(student, ids, jnp.asarray(VALID)) / (ids > 0)

    def total(student):
        value, per_token, metrics = fused_token_loss(
            token_loss, DenseLogits(student), None, (jnp.asarray(IDS), scale), coefficients,
            token_metrics=lambda student, teacher, targets: {"again": 1.0 / targets[0]},
        )  # fmt: skip
        return value, (per_token, metrics)

    (value, (per_token, metrics)), gradient = jax.value_and_grad(total, has_aux=True)(
        jnp.asarray(STUDENT)
    )
    log_q = log_probabilities(STUDENT)
    assert float(value) == pytest.approx(2 * (chosen(log_q) * MASK)[MASK].sum(), rel=1e-5)
    assert not np.asarray(per_token)[~MASK].any()
    assert not np.asarray(metrics["again"])[~MASK].any()
    want = np.where(MASK[..., None], 2 * (np.eye(VOCABULARY)[IDS] - np.exp(log_q)), 0.0)
    np.testing.assert_allclose(gradient, want, atol=1e-5)
