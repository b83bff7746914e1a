"""What must not change a step: rows without weight, gradients that are not finite, shared noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, mixing, step_functions, train_step
from gkd.distill.types import Batch
from tests.distill.small_step import (
    LENGTH,
    STUDENT,
    STUDENT_PARAMS,
    TEACHER,
    TEACHER_PARAMS,
    VALID,
    make_batch,
    start,
    value,
)


@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_an_infinite_gradient_of_a_finite_loss_is_skipped(platform, monkeypatch):
    """√x at 0 is 0 and its slope is infinite; only the head's, not the smallest parameter's."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *given, **ways: ways[platform](*given)
    )

    def loss_fn(student, teacher, rollout):
        weight = jnp.sum(rollout.weights)
        return jnp.sum(jnp.sqrt(0.0 * jnp.abs(student.head.kernel))) + weight, weight, {}

    optimizer = optax.adam(1e-2)
    parts = train_step.make_train_step(STUDENT, optimizer, divergence_loss_fn=loss_fn)
    before = start(optimizer)
    after, metrics = jax.jit(parts.step)(before, None, make_batch())
    assert value(metrics, "loss") == pytest.approx(1.0)
    assert not np.isfinite(value(metrics, "gradient_norm"))
    assert (int(after.skipped), int(after.skipped_in_a_row), int(after.step)) == (1, 1, 1)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)


@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_row_without_weight_changes_nothing(microbatches):
    """Neither its prompt, nor its target, nor its reward: the last row has weight 0."""

    def reward_fn(params, batch, written):
        return jnp.sum(written.target_tokens, axis=1) / 100 + batch.encoder_input_tokens[:, 0]

    def loss(*arguments):
        return losses.reward_and_divergence_loss(
            *arguments, alpha=0.5, divergence=divergences.forward_kl, valid=VALID
        )

    parts = train_step.make_train_step(
        STUDENT,
        optax.sgd(1.0),
        divergence_loss_fn=loss,
        teacher_logits_fn=step_functions.make_teacher_logits_fn(TEACHER),
        sample_fn=step_functions.make_sample_fn(STUDENT, sample, VALID),
        on_policy_fraction=0.7,
        mix_rows=True,
        reward_fn=reward_fn,
        microbatches=microbatches,
    )
    batch = make_batch()
    inputs, targets = (
        np.array(tokens) for tokens in (batch.encoder_input_tokens, batch.decoder_target_tokens)
    )
    inputs[-1], targets[-1] = inputs[0][::-1], targets[1]
    other = batch.replace(
        encoder_input_tokens=jnp.asarray(inputs), decoder_target_tokens=jnp.asarray(targets)
    )
    step = jax.jit(parts.step)
    key = mixing.step_key(start().seed, jnp.int32(0))
    assert mixing.rows_on_policy(key, jnp.arange(16), 0.7)[-1], "a data row has no reward anyway"
    (state, metrics), (other_state, other_metrics) = (
        step(start(), TEACHER_PARAMS, rows) for rows in (batch, other)
    )
    for name in set(metrics) - {"repetition"}:
        np.testing.assert_allclose(value(metrics, name), value(other_metrics, name), rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), state.params, other_state.params
    )
    assert optax.global_norm(jax.tree.map(jnp.subtract, state.params, STUDENT_PARAMS)) > 1e-2


def test_no_two_uses_of_dropout_share_a_key():
    """Every step, microbatch and side of the model has its own, none of which samples anything."""
    seen = []

    def recording(function):
        def run(*arguments, dropout_rng=None):
            if dropout_rng is not None:
                jax.debug.callback(lambda key: seen.append(tuple(np.asarray(key))), dropout_rng)
            return function(*arguments)

        return run

    student = dataclasses.replace(
        STUDENT,
        encode=recording(STUDENT.encode),
        decode_hidden=recording(STUDENT.decode_hidden),
    )
    parts = train_step.make_train_step(
        student,
        optax.sgd(0.0),
        divergence_loss_fn=losses.make_cross_entropy_loss(),
        microbatches=4,
        dropout=True,
    )
    step, state = jax.jit(parts.step), start()
    for _ in range(3):
        state, _ = step(state, None, make_batch())
    jax.effects_barrier()
    keys = set(seen)
    assert len(keys) == 3 * 4 * 2
    for number in range(3):
        key = mixing.step_key(start().seed, jnp.int32(number))
        others = [key, *(jax.random.fold_in(key, name) for name in (*range(64), mixing.COIN))]
        assert not keys & {tuple(np.asarray(other)) for other in others}


def test_every_random_number_of_a_step_has_a_key_of_its_own():
    """Rows, coin and dropout of a step are told apart by what is folded into the step's key."""
    from gkd.distill import replay

    numbers = [mixing.COIN, mixing.DROPOUT, replay._DRAW]
    assert len(set(numbers)) == 3 and min(numbers) > 2**30, "no batch has so many rows"


def test_a_data_row_counts_through_its_last_token():
    """A 0 in the middle punches no hole, a cut row counts to its end, weights multiply."""
    tokens = jnp.array([[5, 0, 7, 1, 0], [5, 6, 7, 8, 9], [4, 1, 0, 0, 0]])
    batch = Batch(tokens, tokens, jnp.array([1.0, 0.5, 0.0]))
    rows = train_step.rollout_from_targets(batch, 2)
    each = [[1, 1, 1, 1, 0], [0.5] * 5, [0] * 5]
    assert rows.weights.tolist() == [row for row in each for _ in range(2)]
    np.testing.assert_array_equal(rows.target_tokens, np.repeat(tokens, 2, axis=0))
    assert not rows.on_policy.any()


def test_the_teacher_reads_its_own_prompt_where_there_is_one():
    batch = make_batch()
    fn = step_functions.make_teacher_logits_fn(TEACHER)
    rows = train_step.rollout_from_targets(batch)
    other = batch.encoder_input_tokens[:, ::-1]

    def hidden(tokens):
        encoded = TEACHER.encode(TEACHER_PARAMS, tokens)
        shifted = jnp.pad(rows.target_tokens, ((0, 0), (1, 0)))[:, :-1]
        return TEACHER.decode_hidden(TEACHER_PARAMS, encoded, shifted).last

    got = fn(TEACHER_PARAMS, batch.replace(teacher_encoder_input_tokens=other), rows).hidden
    np.testing.assert_allclose(got, hidden(other), atol=1e-5)
    usual = fn(TEACHER_PARAMS, batch, rows).hidden
    np.testing.assert_allclose(usual, hidden(batch.encoder_input_tokens), atol=1e-5)
    assert np.abs(np.asarray(got - usual)).max() > 1e-2


@pytest.mark.parametrize(("longest", "length"), [(None, LENGTH), (3, 3), (99, LENGTH)])
def test_a_rollout_is_no_longer_than_the_targets(longest, length):
    sample_fn = step_functions.make_sample_fn(STUDENT, sample, VALID, 2, longest)

    def tokens(params, batch):
        encoded = STUDENT.encode(params, batch.encoder_input_tokens)
        return sample_fn(params, encoded, batch, start().seed, jnp.arange(16)).target_tokens

    assert jax.eval_shape(tokens, STUDENT_PARAMS, make_batch()).shape == (32, length)
