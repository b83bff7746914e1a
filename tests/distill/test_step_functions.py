"""Teachers that are the student: which parameters score, no gradient through them, the average."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, step_functions, train_step
from gkd.distill.step_functions import StudentTeacher, next_average
from tests.distill.small_step import STUDENT, STUDENT_PARAMS, VALID, close, make_batch, value

DECAY, RATE = 0.75, 0.5


@functools.cache
def privileged_batch():
    """A batch whose teacher reads other prompts, of another length."""
    prompts = np.random.default_rng(5).integers(2, 60, (16, 11)).astype(np.int32)
    prompts[:, 9:] = 0
    return make_batch().replace(teacher_encoder_input_tokens=jnp.asarray(prompts))


def build(teacher, fraction=1.0, rate=RATE, **options):
    return train_step.make_train_step(
        STUDENT,
        optax.sgd(rate),
        divergence_loss_fn=losses.make_divergence_loss(divergences.forward_kl, valid=VALID),
        teacher_logits_fn=teacher,
        sample_fn=step_functions.make_sample_fn(STUDENT, sample, VALID),
        on_policy_fraction=fraction,
        **options,
    )


def start(averaged=False):
    params = jax.tree.map(jnp.copy, STUDENT_PARAMS)
    return train_step.init_state(params, optax.sgd(RATE), 3, averaged)


SCORE = step_functions.make_teacher_logits_fn(STUDENT)


@functools.cache
def stepped(decay):
    """Three steps: the states from the start on, and the last step's metrics."""
    weights = ("current",) if decay is None else ("average", decay)
    step = jax.jit(build(StudentTeacher(SCORE, *weights)).step)
    states = [start(averaged=decay is not None)]
    for _ in range(3):
        state, metrics = step(states[-1], None, privileged_batch())
        states.append(state)
    return states, metrics


@functools.cache
def given_params_step():
    return jax.jit(build(SCORE).step)


@pytest.mark.parametrize("decay", [None, DECAY])
def test_a_step_is_that_of_a_teacher_with_these_very_parameters(decay):
    """Hence no gradient flows through it: given parameters are constants."""
    states, metrics = stepped(decay)
    before = states[2]
    teacher = before.params if decay is None else before.average
    plain = before.replace(average=None)
    after, wanted = given_params_step()(plain, teacher, privileged_batch())
    close(states[3].params, after.params, 1e-6)
    assert value(metrics, "loss") == pytest.approx(value(wanted, "loss"), rel=1e-5)
    assert value(metrics, "loss") > 0.01


def test_a_teacher_of_the_students_prompt_in_a_longer_array_gives_the_loss_of_gkd():
    """Its scores belong to the same tokens, whatever its prompts are padded to."""
    random = np.random.default_rng(7)
    teacher = jax.tree.map(
        lambda leaf: leaf + 0.3 * random.standard_normal(leaf.shape).astype(np.float32),
        STUDENT_PARAMS,
    )
    prompts, found = make_batch().encoder_input_tokens, []
    for batch in (
        make_batch(),
        make_batch().replace(teacher_encoder_input_tokens=jnp.pad(prompts, ((0, 0), (0, 5)))),
        privileged_batch(),
    ):
        state, metrics = given_params_step()(start(), teacher, batch)
        found.append((state.params, value(metrics, "loss")))
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)
    close(found[1][0], found[0][0], 1e-6)
    assert abs(found[2][1] - found[0][1]) > 1e-3  # another prompt has another loss


def test_the_average_moves_by_its_decay():
    states, _ = stepped(DECAY)
    average = jax.tree.map(np.float64, STUDENT_PARAMS)
    close(states[0].average, average, 0)
    for state in states[1:]:
        average = jax.tree.map(
            lambda old, new: DECAY * old + (1 - DECAY) * np.float64(new), average, state.params
        )
        close(state.average, average, 1e-6)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[3].average, states[3].params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_a_current_teacher_of_the_same_prompt_teaches_nothing():
    step = jax.jit(build(StudentTeacher(SCORE)).step)
    state, metrics = step(start(), None, make_batch())
    assert value(metrics, "loss") == 0
    close(state.params, STUDENT_PARAMS, 0)


def test_a_skipped_update_leaves_the_average():
    def overflow(*arguments):
        total, weight, metrics = losses.make_divergence_loss(divergences.forward_kl)(*arguments)
        return total * jnp.inf, weight, metrics

    step = build(StudentTeacher(SCORE, "average", DECAY))
    step = dataclasses.replace(step, divergence_loss_fn=overflow)
    state, _ = jax.jit(step.step)(start(averaged=True), None, privileged_batch())
    assert int(state.skipped) == 1
    close(state.average, STUDENT_PARAMS, 0)
    kept = next_average({"a": jnp.ones(2)}, {"a": jnp.full(2, jnp.nan)}, 0.5, jnp.bool_(False))
    assert kept["a"].tolist() == [1, 1]


def test_microbatches_score_with_the_parameters_of_the_steps_start():
    step = jax.jit(build(StudentTeacher(SCORE, "average", DECAY), microbatches=2).step)
    state, _ = step(start(averaged=True), None, privileged_batch())
    close(state.params, stepped(DECAY)[0][1].params, 1e-5)
    close(state.average, stepped(DECAY)[0][1].average, 1e-5)
