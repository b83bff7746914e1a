"""Several samples a prompt, mixed rows, partial rollouts, and what is said of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, mixing, step_functions, train_step
from gkd.distill.rollouts import repeated_ngrams, rollout_metrics
from gkd.distill.types import Rollout
from tests.distill import references
from tests.distill.small_step import (
    LENGTH,
    ROWS,
    STUDENT,
    TEACHER,
    TEACHER_PARAMS,
    VALID,
    build,
    make_batch,
    start,
    value,
)


def sampling(samples=1, longest=None):
    return step_functions.make_sample_fn(STUDENT, sample, VALID, samples, longest)


def test_both_models_encode_a_prompt_once_for_all_its_samples():
    rows = {}

    def counted(model, name):
        def encode(params, tokens, **options):
            rows.setdefault(name, []).append(tokens.shape[0])
            return model.encode(params, tokens, **options)

        return dataclasses.replace(model, encode=encode)

    student = counted(STUDENT, "student")
    parts = train_step.make_train_step(
        student,
        optax.sgd(1.0),
        divergence_loss_fn=losses.make_divergence_loss(divergences.forward_kl, valid=VALID),
        teacher_logits_fn=step_functions.make_teacher_logits_fn(counted(TEACHER, "teacher")),
        sample_fn=step_functions.make_sample_fn(student, sample, VALID, 3),
        on_policy_fraction=1.0,
        samples=3,
    )
    _, metrics = jax.eval_shape(parts.step, start(), TEACHER_PARAMS, make_batch())
    assert rows == {"student": [ROWS], "teacher": [ROWS]}
    assert "divergence" in metrics


def test_samples_of_a_prompt_differ_and_are_those_of_its_row_number():
    parts, state, batch = build(1.0), start(), make_batch()
    key = mixing.step_key(state.seed, state.step)
    parts = dataclasses.replace(parts, sample_fn=sampling(4), samples=4)
    tokens = np.asarray(parts.rollout(state, batch, key).target_tokens)
    assert tokens.shape == (4 * ROWS, LENGTH)
    assert (tokens[0::4] != tokens[1::4]).any()
    # The sampler alone, with each prompt four times and rows numbered through.
    four = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), batch)
    encoded = STUDENT.encode(state.params, four.encoder_input_tokens)
    want = sample(STUDENT, state.params, encoded, key, max_length=LENGTH, valid=VALID)
    np.testing.assert_array_equal(tokens, want.tokens)


@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_mixed_rows_are_the_data_or_the_samples(microbatches):
    state, batch = start(), make_batch()
    key = mixing.step_key(state.seed, state.step)
    parts = build(0.4, mix_rows=True, microbatches=microbatches)
    parts = dataclasses.replace(parts, sample_fn=sampling(2, longest=4), samples=2)
    got = parts.rollout(state, batch, key)
    own = np.asarray(got.on_policy)
    assert 0 < own.sum() < len(own)
    np.testing.assert_array_equal(own[0::2], own[1::2])  # one coin a prompt
    data = np.repeat(np.asarray(batch.decoder_target_tokens), 2, axis=0)
    np.testing.assert_array_equal(got.target_tokens[~own], data[~own])
    assert not np.asarray(got.target_tokens[own])[:, 4:].any(), "partial: four tokens at most"
    assert np.asarray(got.target_tokens[own])[:, 0].all()
    coins = np.asarray(mixing.rows_on_policy(key, jnp.arange(4000), 0.4))
    np.testing.assert_array_equal(own[0::2], coins[:ROWS])
    assert abs(coins.mean() - 0.4) < 4 * np.sqrt(0.24 / 4000)


def test_partial_rollouts_are_the_first_tokens():
    state, batch = start(), make_batch()
    key = mixing.step_key(state.seed, state.step)
    whole = build(1.0).rollout(state, batch, key)
    parts = dataclasses.replace(build(1.0), sample_fn=sampling(longest=3))
    first = parts.rollout(state, batch, key)
    np.testing.assert_array_equal(first.target_tokens, whole.target_tokens[:, :3])
    np.testing.assert_allclose(first.log_probs, whole.log_probs[:, :3], atol=1e-6)


def test_repeated_ngrams_by_hand():
    rows = [
        [5, 6, 7, 8, 5, 6, 7, 8, 1],  # 6 four-grams, 5678 twice
        [5, 5, 5, 5, 5, 5, 1, 0, 0],  # 4 four-grams, 5555 three times
        [5, 6, 7, 0, 0, 0, 0, 0, 0],  # none
    ]
    repeated, grams = repeated_ngrams(jnp.array(rows))
    assert (repeated.tolist(), grams.tolist()) == ([1, 2, 0], [6, 4, 0])


def test_what_is_logged_of_a_rollout_by_hand():
    tokens = jnp.array(
        [[5, 5, 5, 5, 5, 1], [7, 8, 1, 0, 0, 0], [7, 8, 9, 6, 5, 4], [3, 1, 0, 0, 0, 0]]
    )
    weights = (tokens > 0).astype(jnp.float32) * jnp.array([1.0, 1.0, 1.0, 0.0])[:, None]
    log_probs = -jnp.array([[1.0] * 6, [2.0] * 3 + [0.0] * 3, [0.0] * 6, [9.0, 9, 0, 0, 0, 0]])
    written = Rollout(tokens, weights, log_probs, jnp.array([True, True, False, True]))
    metrics = rollout_metrics(written, 1)
    got = {name: value(metrics, name) for name in metrics}
    want = {
        "on_policy": 2 / 3,
        "target_length": 15 / 3,
        "cut_off": 1 / 3,
        "repetition": 1 / 6,  # 5555 again; 3, 0 and 3 four-grams
        "sample_entropy": 12 / 9,
    }
    assert got == pytest.approx(want)


def test_sampled_token_reverse_kl_is_right_on_average():
    """Averaged over the student's own tokens, value and gradient are the reverse KL's."""
    student, teacher = references.normal(3, 6), references.normal(4, 6)
    ids = jnp.arange(6)
    q = references.probabilities(student)

    def losses_of(logits):
        tiled = jnp.broadcast_to(logits, (6, 6))
        return divergences.sampled_token_reverse_kl(tiled, jnp.broadcast_to(teacher, (6, 6)), ids)

    values = losses_of(jnp.asarray(student))
    assert float(values @ q) == pytest.approx(
        references.divergence("reverse_kl", student, teacher), abs=1e-5
    )
    gradient = q @ np.asarray(jax.jacobian(losses_of)(jnp.asarray(student)))
    want = references.divergence_gradient("reverse_kl", student, teacher)
    np.testing.assert_allclose(gradient, want, atol=1e-5)
