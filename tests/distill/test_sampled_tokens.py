"""Losses of sampled tokens: temperatures, valid ids, data rows and truncated teachers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.distill import divergences, losses
from gkd.distill.fused import fused_token_loss
from gkd.distill.logits import DenseLogits, TopKLogits, entropy
from gkd.distill.types import Rollout
from tests.distill import references

VALID = np.array([False, True, True, True, True, True, False])
STUDENT, TEACHER = references.normal(1, 2, 3, 7), references.normal(2, 2, 3, 7)
IDS = np.array([[1, 2, 5], [4, 3, 1]], np.int32)


def log_softmax(logits, temperature=1.0):
    logits = np.where(VALID, np.float64(logits) / temperature, -np.inf)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def chosen(values):
    return np.take_along_axis(values, IDS[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("temperature", [1.0, 0.5, (0.5, 1.0), (1.0, 2.0), (2.0, 0.7)])
def test_the_sampled_token_estimate_and_its_gradient(temperature):
    """log Q − log P of the token, its gradient (log Q − log P) ∇ log Q: nothing through log P/Q."""
    own, other = temperature if isinstance(temperature, tuple) else (temperature, temperature)

    def values(student):
        return divergences.sampled_token_reverse_kl(
            student, jnp.asarray(TEACHER), jnp.asarray(IDS),
            temperature=temperature, valid=jnp.asarray(VALID),
        )  # fmt: skip

    log_q, log_p = log_softmax(STUDENT, own), log_softmax(TEACHER, other)
    ratio = chosen(np.where(VALID, log_q, 0)) - chosen(np.where(VALID, log_p, 0))
    np.testing.assert_allclose(values(jnp.asarray(STUDENT)), ratio, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda x: values(x).sum())(jnp.asarray(STUDENT))
    want = ratio[..., None] * (np.eye(7)[IDS] - np.exp(log_q)) / own
    np.testing.assert_allclose(gradient, want, atol=2e-5)
    teachers = jax.grad(
        lambda x: divergences.sampled_token_reverse_kl(
            jnp.asarray(STUDENT), x, jnp.asarray(IDS), temperature=temperature
        ).sum()
    )(jnp.asarray(TEACHER))
    assert not np.asarray(teachers).any()


def rollout_of(on_policy, rewards, advantages):
    return Rollout(
        jnp.asarray(IDS), jnp.ones(IDS.shape), jnp.zeros(IDS.shape), jnp.asarray(on_policy),
        jnp.asarray(rewards, jnp.float32), jnp.asarray(advantages, jnp.float32),
    )  # fmt: skip


@pytest.mark.parametrize("on_policy, mean", [([True, False], 2.0), ([True, True], 5.0)])
def test_the_reward_in_the_log_is_the_mean_over_the_students_rows(on_policy, mean):
    advantages = np.where(on_policy, [0.5, -0.5], 0.0)
    total, weight, metrics = losses.reward_and_divergence_loss(
        DenseLogits(jnp.asarray(STUDENT)), None, rollout_of(on_policy, [2.0, 8.0], advantages),
        alpha=0.0, divergence=None, valid=jnp.asarray(VALID),
    )  # fmt: skip
    assert float(metrics["reward"][0] / metrics["reward"][1]) == pytest.approx(mean)
    log_q = chosen(np.where(VALID, log_softmax(STUDENT), 0))
    policy = -(advantages[:, None] * log_q).sum() / 2  # data rows count in the mean, with 0
    assert float(total / weight) == pytest.approx(policy, rel=1e-5)
    got = metrics["policy_gradient"]
    assert float(got[0] / got[1]) == pytest.approx(policy, rel=1e-5)


def test_an_examples_weight_counts_once_in_the_policy_gradient():
    """Rows of weight 2 and ½ with 3 and 2 tokens: Σ w·A·Σ log Q over Σ w."""
    weights = np.array([[2.0, 2.0, 2.0], [0.5, 0.5, 0.0]])
    rollout = rollout_of([True, True], [1.0, 3.0], [0.7, -1.1])
    total, weight, metrics = losses.reward_and_divergence_loss(
        DenseLogits(jnp.asarray(STUDENT)), None,
        rollout.replace(weights=jnp.asarray(weights, jnp.float32)),
        alpha=0.0, divergence=None, valid=jnp.asarray(VALID),
    )  # fmt: skip
    log_q = (chosen(np.where(VALID, log_softmax(STUDENT), 0)) * (weights > 0)).sum(axis=1)
    want = -(2.0 * 0.7 * log_q[0] + 0.5 * -1.1 * log_q[1]) / 2.5
    assert float(total / weight) == pytest.approx(want, rel=1e-5)
    assert float(metrics["reward"][0] / metrics["reward"][1]) == pytest.approx(3.5 / 2.5)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_a_truncated_teacher_leaves_the_students_temperature_in_the_loss(tail):
    """Three of the five usable ids; the student at ½ or 2, the teacher at its own 1."""
    log_p = log_softmax(TEACHER)
    ids = np.argsort(-log_p, axis=-1)[..., :3]
    kept = np.take_along_axis(log_p, ids, axis=-1)
    teacher = TopKLogits(jnp.asarray(ids, jnp.int32), jnp.asarray(kept, jnp.float32), tail)
    for own in (0.5, 2.0):
        total, weight, _ = losses.divergence_loss(
            DenseLogits(jnp.asarray(STUDENT)), teacher, rollout_of([True] * 2, [0.0] * 2, [0] * 2),
            divergence=divergences.forward_kl, temperature=(own, 1.0), valid=jnp.asarray(VALID),
        )  # fmt: skip
        q = np.exp(np.take_along_axis(log_softmax(STUDENT, own), ids, axis=-1))
        p = np.exp(kept)
        if tail == "bucket":
            p, q = (np.append(x, 1 - x.sum(-1, keepdims=True), axis=-1) for x in (p, q))
        else:
            p = p / p.sum(-1, keepdims=True)
        want = references.kullback_leibler(p, q).mean()
        assert float(total / weight) == pytest.approx(want, rel=1e-4), own


def test_a_renormalised_teacher_is_divided_by_its_own_temperature():
    log_p = log_softmax(TEACHER)
    ids = np.argsort(-log_p, axis=-1)[..., :3]
    kept = np.take_along_axis(log_p, ids, axis=-1)
    teacher = TopKLogits(jnp.asarray(ids, jnp.int32), jnp.asarray(kept, jnp.float32), "renormalise")
    total, weight, _ = losses.divergence_loss(
        DenseLogits(jnp.asarray(STUDENT)), teacher, rollout_of([True] * 2, [0.0] * 2, [0] * 2),
        divergence=divergences.forward_kl, temperature=(0.5, 2.0), valid=jnp.asarray(VALID),
    )  # fmt: skip
    p = np.exp(kept / 2)
    p = p / p.sum(-1, keepdims=True)
    q = np.exp(np.take_along_axis(log_softmax(STUDENT, 0.5), ids, axis=-1))
    want = references.kullback_leibler(p, q).mean()
    assert float(total / weight) == pytest.approx(want, rel=1e-4)


def test_only_the_sum_is_differentiated():
    """Values per token and metrics are for reading: their cotangents change no gradient."""
    coefficients = jnp.asarray([[0.5, 0.25, 0.0], [1.0, 2.0, 0.5]])
    loss = functools.partial(divergences.forward_kl, valid=jnp.asarray(VALID))

    def combined(student, factor, others):
        total, per_token, metrics = fused_token_loss(
            lambda student, teacher, _: loss(student, teacher), DenseLogits(student),
            DenseLogits(jnp.asarray(TEACHER)), jnp.asarray(IDS), coefficients,
            token_metrics=lambda student, teacher, _: {"entropy": entropy(student)},
        )  # fmt: skip
        return factor * total + others * (per_token.sum() + metrics["entropy"].sum())

    q, p = np.exp(log_softmax(STUDENT)), np.exp(log_softmax(TEACHER))
    want = -3.0 * np.asarray(coefficients)[..., None] * (q - p)
    for others in (0.0, 7.0):
        gradient = jax.grad(combined)(jnp.asarray(STUDENT), -3.0, others)
        np.testing.assert_allclose(gradient, want, atol=1e-5)
