"""Rewards beside a divergence: closed forms, hand-computed advantages, and the whole step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, mixing, step_functions, train_step
from gkd.distill.logits import DenseLogits
from gkd.distill.types import Rollout
from gkd.parallel import mesh as meshes
from tests.distill import references
from tests.distill.small_step import (
    STUDENT,
    TEACHER,
    TEACHER_PARAMS,
    VALID,
    close,
    make_batch,
    one_device,
    start,
    value,
)

# Ids 2 and 3 are the two tokens; the policy writes 2 with probability 3/4 first and 1/2 second.
FIRST, SECOND = (0.75, 0.25), (0.5, 0.5)
TWO_TOKENS = jnp.array([False, False, True, True])
POLICY = jnp.log(jnp.array([[1e-9, 1e-9, *FIRST], [1e-9, 1e-9, *SECOND]], jnp.float32))
# Every output as often as the policy writes it in eight tries.
WRITTEN = np.array([[2, 2]] * 3 + [[2, 3]] * 3 + [[3, 2], [3, 3]])
REWARDS = np.all(WRITTEN == 2, axis=1).astype(np.float32)  # worth 1: both tokens are 2


def rollout_of(rewards, advantage):
    rows = len(WRITTEN)
    return Rollout(
        jnp.asarray(WRITTEN), jnp.ones(WRITTEN.shape), jnp.zeros(WRITTEN.shape),
        jnp.ones(rows, bool), jnp.asarray(rewards), jnp.asarray(advantage),
    )  # fmt: skip


def loss_of(policy, alpha, advantage=REWARDS, teacher=None, divergence=None):
    logits = DenseLogits(jnp.broadcast_to(policy, (len(WRITTEN), *policy.shape)))
    if teacher is not None:
        teacher = DenseLogits(jnp.broadcast_to(teacher, logits.values.shape))
    total, weight, metrics = losses.reward_and_divergence_loss(
        logits, teacher, rollout_of(REWARDS, advantage),
        alpha=alpha, divergence=divergence, valid=TWO_TOKENS, block_size=1,
    )  # fmt: skip
    return total / weight, {name: pair[0] / pair[1] for name, pair in metrics.items()}


@pytest.mark.parametrize("baseline", [0.0, 0.375, -2.0])
def test_the_gradient_is_that_of_the_expected_reward(baseline):
    """E[r] = q1·q2 with q1 = 3/4, q2 = 1/2: its gradient by the logits is known in closed form."""
    gradient, metrics = jax.grad(loss_of, has_aux=True)(POLICY, 0.0, REWARDS - baseline)
    # ∂E/∂logit of token 2: q2·q1(1−q1) first, q1·q2(1−q2) second; token 3's is the negative.
    want = np.array([[0, 0, 1, -1], [0, 0, 1, -1]]) * np.array([[0.5 * 0.1875], [0.75 * 0.25]])
    np.testing.assert_allclose(gradient, -want, atol=1e-6)
    assert float(metrics["reward"]) == pytest.approx(0.375)


def test_equation_five_weighs_both_terms():
    teacher = jnp.asarray(references.normal(0, 2, 4))
    alpha = 0.3
    got, metrics = loss_of(POLICY, alpha, REWARDS - 0.375, teacher, divergences.reverse_kl)
    distance = references.divergence("reverse_kl", POLICY, teacher, valid=TWO_TOKENS).mean()
    log_q = np.log([[FIRST[t1 - 2], SECOND[t2 - 2]] for t1, t2 in WRITTEN]).sum(axis=1)
    policy = -np.mean((REWARDS - 0.375) * log_q)
    assert float(got) == pytest.approx(alpha * distance + (1 - alpha) * policy, abs=1e-5)
    assert float(metrics["divergence"]) == pytest.approx(distance, abs=1e-5)
    assert float(metrics["policy_gradient"]) == pytest.approx(policy, abs=1e-5)


def build(alpha, samples=1, **options):
    """A step whose reward is the share of even ids in a row."""
    if alpha == 1:
        loss = losses.make_divergence_loss(divergences.forward_kl, valid=VALID)
    else:

        def loss(*arguments):
            return losses.reward_and_divergence_loss(
                *arguments, alpha=alpha, divergence=divergences.forward_kl, valid=VALID
            )

    def reward_fn(params, batch, written):
        even = (written.target_tokens % 2 == 0) & (written.target_tokens > 0)
        return params * even.mean(axis=1)

    return train_step.make_train_step(
        STUDENT,
        optax.sgd(1.0),
        divergence_loss_fn=loss,
        teacher_logits_fn=step_functions.make_teacher_logits_fn(TEACHER),
        sample_fn=step_functions.make_sample_fn(STUDENT, sample, VALID, samples),
        on_policy_fraction=1.0,
        samples=samples,
        reward_fn=reward_fn,
        **options,
    )


def test_alpha_one_is_on_policy_distillation():
    state, metrics = jax.jit(build(1.0).step)(start(), TEACHER_PARAMS, make_batch(), 1.0)
    want_state, want = one_device(1.0)
    assert value(metrics, "loss") == pytest.approx(value(want, "loss"), abs=1e-6)
    close(state.params, want_state.params, 1e-6)


@functools.cache
def two_samples():
    step = jax.jit(build(0.5, 2, advantage="group_standardised").step)
    return step(start(), TEACHER_PARAMS, make_batch(), 1.0)


def test_samples_of_a_prompt_stay_together_whatever_the_devices_and_microbatches():
    want_state, want = two_samples()
    moved = optax.global_norm(jax.tree.map(jnp.subtract, want_state.params, start().params))
    assert moved > 1e-2
    mesh = meshes.make_mesh()
    whole = meshes.replicated(mesh)
    state, teacher, scale = jax.device_put((start(), TEACHER_PARAMS, jnp.float32(1)), whole)
    step = build(0.5, 2, advantage="group_standardised", microbatches=2).step
    compiled = meshes.compile_step(
        step, mesh, jax.tree.map(lambda _: whole, state), whole, more_shardings=(whole,)
    )
    got_state, got = compiled(state, teacher, meshes.place_batch(make_batch(), mesh), scale)
    for name in ("loss", "reward", "policy_gradient"):
        assert value(got, name) == pytest.approx(value(want, name), abs=1e-5), name
    close(got_state.params, want_state.params)


def test_rewards_from_texts_are_those_of_the_program():
    """Rollout, rewards outside, update: the same step as the reward inside of the program."""
    want_state, _ = two_samples()
    outside = build(0.5, 2, advantage="group_standardised")
    outside = dataclasses.replace(outside, reward_fn=None)
    state, batch = start(), make_batch()
    written = jax.jit(outside.rollout)(state, batch, mixing.step_key(state.seed, state.step))
    assert written.rewards is None
    tokens = np.asarray(written.target_tokens)
    rewards = ((tokens % 2 == 0) & (tokens > 0)).mean(axis=1, dtype=np.float32)
    written = written.replace(rewards=jnp.asarray(rewards))
    got_state, _ = jax.jit(outside.update)(state, TEACHER_PARAMS, batch, written)
    close(got_state.params, want_state.params)
