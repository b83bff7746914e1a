"""DistiLLM's memory and its share of the student, by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, replay, step_functions, train_step
from gkd.distill.replay import Replay
from tests.distill.small_step import (
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
        teacher_logits_fn=step_functions.make_teacher_logits_fn(TEACHER),
        sample_fn=step_functions.make_sample_fn(STUDENT, sample, VALID),
        on_policy_fraction=1.0,
    )
    state = start().replace(replay=replay.empty_memory(settings, make_batch()))
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
    memory = replay.empty_memory(settings, make_batch())
    rows = train_step.rollout_from_targets(batch)
    for number in range(3):
        marked = batch.replace(encoder_input_tokens=batch.encoder_input_tokens * 0 + number + 1)
        memory = replay.remember(memory, marked, rows)
    assert memory.inputs[:, 0].tolist() == [3, 3, 1, 1, 2, 2, 2, 2, 3, 3]
    assert int(memory.written) == 12


def test_only_what_was_written_is_drawn_with_its_own_prompt():
    settings, batch = Replay(capacity=100), make_batch(6)
    rows = train_step.rollout_from_targets(batch)
    memory = replay.remember(replay.empty_memory(settings, make_batch()), batch, rows)
    drawn, rollout = replay.draw(memory, jax.random.PRNGKey(0), batch)
    pairs = {
        (tuple(prompt.tolist()), tuple(row.tolist()))
        for prompt, row in zip(batch.encoder_input_tokens, rows.target_tokens, strict=True)
    }
    for prompt, row in zip(drawn.encoder_input_tokens, rollout.target_tokens, strict=True):
        assert (tuple(prompt.tolist()), tuple(row.tolist())) in pairs


def test_a_remembered_row_keeps_the_prompt_of_the_teacher_too():
    batch = make_batch(6)
    numbers = jnp.arange(1, 7, dtype=jnp.int32)[:, None]
    batch = batch.replace(
        encoder_input_tokens=batch.encoder_input_tokens * 0 + numbers,
        teacher_encoder_input_tokens=jnp.tile(10 * numbers, (1, 11)),
    )
    memory = replay.empty_memory(Replay(capacity=100), jax.eval_shape(lambda: batch))
    memory = replay.remember(memory, batch, train_step.rollout_from_targets(batch))
    other = batch.replace(teacher_encoder_input_tokens=batch.teacher_encoder_input_tokens * 0)
    drawn, _ = replay.draw(memory, jax.random.PRNGKey(0), other)
    prompts = np.asarray(drawn.teacher_encoder_input_tokens)
    assert prompts.shape == (6, 11) and len(set(prompts[:, 0])) > 1
    np.testing.assert_array_equal(prompts[:, 0], 10 * drawn.encoder_input_tokens[:, 0])


def _numbered(count):
    """A memory of 100 rows with `count` written, whose prompts are their numbers from 1."""
    batch = make_batch(count)
    numbers = jnp.arange(1, count + 1, dtype=jnp.int32)[:, None]
    batch = batch.replace(encoder_input_tokens=batch.encoder_input_tokens * 0 + numbers)
    memory = replay.empty_memory(Replay(capacity=100, share=1.0), make_batch())
    return replay.remember(memory, batch, train_step.rollout_from_targets(batch)), batch


def test_every_remembered_row_is_drawn_equally_often():
    memory, batch = _numbered(6)
    keys = jax.random.split(jax.random.PRNGKey(1), 500)
    drawn = jax.vmap(lambda key: replay.draw(memory, key, batch)[0].encoder_input_tokens[:, 0])
    counts = np.bincount(np.asarray(drawn(keys)).ravel(), minlength=7)
    # 3000 draws among 6: 500 each, with a standard deviation of √(3000·1/6·5/6) = 20.4.
    assert counts[0] == 0 and np.abs(counts[1:] - 500).max() < 5 * 20.4
    by_place = np.asarray(drawn(keys))
    assert all(len(set(column)) == 6 for column in by_place.T), "no place has rows of its own"


def test_every_step_draws_anew():
    memory, batch = _numbered(6)

    base = types.SimpleNamespace(
        rollout=lambda state, batch, key, base: train_step.rollout_from_targets(batch),
        update=lambda state, teacher, batch, rollout, base: (
            state, {"drawn": batch.encoder_input_tokens[:, 0]},
        ),
    )  # fmt: skip
    stepper = types.SimpleNamespace(train_step=base, train_steps=1, padding_id=0)  # writes no more
    state = start().replace(replay=memory)

    @jax.jit
    def drawn(at, seed):
        now = state.replace(step=at, seed=seed)
        return replay.ReplayStep.step(stepper, now, None, batch)[1]["drawn"]

    by_step = [tuple(drawn(jnp.int32(t), state.seed).tolist()) for t in range(1, 41)]
    # Two draws of 6 out of 6 agree with probability 6**-6: among 40 hardly ever.
    assert len(set(by_step)) > 35
    assert tuple(drawn(jnp.int32(1), state.seed).tolist()) == by_step[0]
    assert tuple(drawn(jnp.int32(1), state.seed + 1).tolist()) != by_step[0]


def test_a_step_writes_or_remembers_as_often_as_its_share_says():
    """Of 400 seeds at share 0.8 and T = 4: 0.8·(1 − t/T) write; after T, 0.8 draw from memory."""
    memory, batch = _numbered(6)
    memory = memory.replace(share=jnp.float32(0.8))
    batch = batch.replace(encoder_input_tokens=batch.encoder_input_tokens * 0 + 50)  # no memory's
    base = types.SimpleNamespace(
        rollout=lambda state, batch, key, base: train_step.rollout_from_targets(batch),
        update=lambda state, teacher, batch, rollout, base: (
            state, {"written": state.replay.written, "first": batch.encoder_input_tokens[0, 0]},
        ),
    )  # fmt: skip
    stepper = types.SimpleNamespace(train_step=base, train_steps=4, padding_id=0)
    state = start().replace(replay=memory)

    @jax.jit
    def outcomes(at):
        def one(number):
            now = state.replace(step=at, seed=state.seed + number)
            metrics = replay.ReplayStep.step(stepper, now, None, batch)[1]
            return metrics["written"] > 6, metrics["first"] < 50, metrics["student_share"][0]

        return jax.vmap(one)(jnp.arange(400, dtype=jnp.uint32))

    for at, wanted in ((0, 0.8), (1, 0.6), (3, 0.2), (4, 0.0)):
        wrote, _, share = outcomes(jnp.int32(at))
        assert abs(float(jnp.mean(wrote)) - wanted) < 4 * 0.025  # the standard deviation is 0.025
        np.testing.assert_allclose(share, 0.8)
    _, fifth, _ = outcomes(jnp.int32(5))
    _, sixth, _ = outcomes(jnp.int32(6))
    assert abs(float(jnp.mean(fifth)) - 0.8) < 4 * 0.02
    # Coins of two steps are independent: they differ in 2·0.8·0.2 of the seeds.
    assert abs(float(jnp.mean(fifth != sixth)) - 0.32) < 4 * 0.024


def test_an_empty_memory_is_not_drawn_from():
    _, batch = _numbered(6)
    base = types.SimpleNamespace(
        update=lambda state, teacher, batch, rollout, base: (
            state, {"inputs": batch.encoder_input_tokens, "weights": rollout.weights},
        ),
        rollout=lambda state, batch, key, base: train_step.rollout_from_targets(batch),
    )  # fmt: skip
    stepper = types.SimpleNamespace(
        train_step=base, train_steps=1, padding_id=0
    )  # step 5: no writes
    memory = replay.empty_memory(Replay(capacity=9, share=1.0), make_batch())
    state = start().replace(replay=memory, step=jnp.int32(5))
    _, seen = replay.ReplayStep.step(stepper, state, None, batch)
    np.testing.assert_array_equal(seen["inputs"], batch.encoder_input_tokens)
    np.testing.assert_array_equal(seen["weights"], train_step.rollout_from_targets(batch).weights)


def test_the_loss_compared_with_is_the_last_one_not_the_smallest():
    settings = Replay(capacity=1, increase=0.1)
    memory, shares = replay.empty_memory(settings, make_batch()), []
    for loss in (2.0, 1.0, 1.5, 1.4, 1.45):
        memory = replay.adapt(settings, memory, jnp.float32(loss))
        shares.append(round(float(memory.share), 4))
    assert shares == [0, 0, 0.1, 0.1, 0.2]  # 1.4 is over the smallest loss, but has not risen


def test_the_share_rises_when_the_validation_loss_does():
    settings = Replay(capacity=1, share=0.85, increase=0.1, margin=0.05)
    memory, shares = replay.empty_memory(settings, make_batch()), []
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
