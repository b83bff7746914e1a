"""DistiLLM's memory and its share of the student, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, replay, train_step
from gkd.distill.replay import Replay
from tests.distill.test_train_step import (
    LENGTH,
    ROWS,
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

STEPS = 4


def build(settings):
    base = train_step.make_train_step(
        STUDENT,
        optax.sgd(1.0),
        divergence_loss_fn=losses.make_divergence_loss(divergences.forward_kl, valid=VALID),
        teacher_logits_fn=train_step.make_teacher_logits_fn(TEACHER),
        sample_fn=train_step.make_sample_fn(STUDENT, sample, VALID),
        on_policy_fraction=1.0,
    )
    state = start().replace(replay=replay.empty_memory(settings, 7, LENGTH))
    return jax.jit(replay.ReplayStep(base, STEPS).step), state


def test_without_a_share_it_is_supervised_distillation():
    step, state = build(Replay(capacity=40))
    state, metrics = step(state, TEACHER_PARAMS, make_batch())
    close(state.params, one_device(0.0)[0].params)
    assert (value(metrics, "on_policy"), int(state.replay.written)) == (0, 0)


def test_the_first_step_with_a_share_of_one_is_on_policy():
    """It writes the batch, and draws from what it has just written."""
    step, state = build(Replay(capacity=40, share=1.0))
    batch = make_batch()
    state, metrics = step(state, TEACHER_PARAMS, batch)
    assert (value(metrics, "on_policy"), int(state.replay.written)) == (1, ROWS)
    np.testing.assert_array_equal(state.replay.inputs[:ROWS], batch.encoder_input_tokens)
    assert not np.asarray(state.replay.inputs[ROWS:]).any()
    written = [int(state.replay.written)]
    for _ in range(20):  # beyond the last step nothing new is written
        state, metrics = step(state, TEACHER_PARAMS, batch)
        written.append(int(state.replay.written))
        assert value(metrics, "on_policy") == 1, "every row was the student's"
    assert written[-1] == written[STEPS] < 21 * ROWS


def test_the_oldest_rows_are_overwritten():
    settings, batch = Replay(capacity=10), make_batch(4)
    memory = replay.empty_memory(settings, 7, LENGTH)
    rows = train_step.rollout_from_targets(batch)
    for number in range(3):
        marked = batch.replace(encoder_input_tokens=batch.encoder_input_tokens * 0 + number + 1)
        memory = replay.remember(memory, marked, rows)
    assert memory.inputs[:, 0].tolist() == [3, 3, 1, 1, 2, 2, 2, 2, 3, 3]
    assert int(memory.written) == 12


def test_only_what_was_written_is_drawn_with_its_own_prompt():
    settings, batch = Replay(capacity=100), make_batch(6)
    rows = train_step.rollout_from_targets(batch)
    memory = replay.remember(replay.empty_memory(settings, 7, LENGTH), batch, rows)
    drawn, rollout = replay.draw(memory, jax.random.PRNGKey(0), batch)
    pairs = {
        (tuple(prompt.tolist()), tuple(row.tolist()))
        for prompt, row in zip(batch.encoder_input_tokens, rows.target_tokens, strict=True)
    }
    for prompt, row in zip(drawn.encoder_input_tokens, rollout.target_tokens, strict=True):
        assert (tuple(prompt.tolist()), tuple(row.tolist())) in pairs


def test_the_share_rises_when_the_validation_loss_does():
    settings = Replay(capacity=1, share=0.85, increase=0.1, margin=0.05)
    memory, shares = replay.empty_memory(settings, 7, LENGTH), []
    for loss in (2.0, 2.04, 2.1, 2.0, 2.06, 2.2):
        memory = replay.adapt(settings, memory, jnp.float32(loss))
        shares.append(round(float(memory.share), 4))
    # Rises of .04 and .1·, over the last loss each time: 2.04→2.1 and 2.0→2.06 are over .05.
    assert shares == [0.85, 0.85, 0.95, 0.95, 1.0, 1.0]


def test_settings_out_of_range_are_refused():
    for settings, message in [
        ({"capacity": 0}, "capacity of a replay is 0"),
        ({"share": 1.5}, "share of a replay is 1.5"),
        ({"margin": -1.0}, "margin of a replay is -1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Replay(**settings)
