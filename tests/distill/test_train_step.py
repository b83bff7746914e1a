"""The whole step: devices, microbatches and λ change what they should and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, mixing, step_functions, train_step
from gkd.distill.types import TrainState
from gkd.parallel import mesh as meshes
from tests.distill.small_step import (
    STUDENT,
    STUDENT_PARAMS,
    TEACHER,
    TEACHER_PARAMS,
    VALID,
    build,
    close,
    make_batch,
    one_device,
    small_models,
    start,
    t5_models,
    value,
)


def test_the_loss_is_the_papers_equation_two():
    """Against float64 NumPy: each row's tokens are averaged first, then the rows with weight."""
    batch = make_batch()
    _, metrics = one_device(0.0)
    shifted = jnp.pad(batch.decoder_target_tokens, ((0, 0), (1, 0)))[:, :-1]

    def log_probs(model, params):
        encoded = model.encode(params, batch.encoder_input_tokens)
        hidden = np.asarray(model.decode_hidden(params, encoded, shifted).last, np.float64)
        logits = hidden @ np.asarray(model.head(params).kernel, np.float64)
        logits[..., 0] = -np.inf
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    p, q = log_probs(TEACHER, TEACHER_PARAMS), log_probs(STUDENT, STUDENT_PARAMS)
    kl = np.sum(np.exp(p[..., 1:]) * (p[..., 1:] - q[..., 1:]), axis=-1)
    mask = np.asarray(batch.decoder_target_tokens) > 0
    by_row = (kl * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(value(metrics, "loss"), by_row[:-1].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "fraction, on_mesh, microbatches, models",
    [
        (0.5, True, 2, small_models),
        (1.0, False, 4, small_models),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (0.0, True, 2, t5_models),
                (0.5, True, 2, t5_models),
                (1.0, False, 4, t5_models),
                (1.0, True, 1, t5_models),
                (1.0, True, 2, t5_models),
            )
        ),
    ],
)
def test_eight_devices_and_microbatches_change_neither_loss_nor_gradient(
    fraction, on_mesh, microbatches, models
):
    (student, params), (teacher, teacher_params) = models()
    # SGD at rate 1: the new parameters show the gradient.
    want_state, want = one_device(fraction, models)
    moved = optax.global_norm(jax.tree.map(jnp.subtract, want_state.params, params))
    assert moved > 1e-2, "nothing was learnt, so the comparison would show nothing"
    step = build(fraction, student=student, teacher=teacher, microbatches=microbatches).step
    state, batch = start(params=params), make_batch()
    if on_mesh:
        mesh = meshes.make_mesh()
        whole = meshes.replicated(mesh)
        state, teacher_params = jax.device_put((state, teacher_params), whole)
        step = meshes.compile_step(step, mesh, jax.tree.map(lambda _: whole, state), whole)
        batch = meshes.place_batch(batch, mesh)
    got_state, got = (step if on_mesh else jax.jit(step))(state, teacher_params, batch)
    close(value(got, "loss"), value(want, "loss"))
    close(got_state.params, want_state.params)


def test_model_parallel_parameters_change_neither_loss_nor_gradient():
    (student, params), (teacher, teacher_params) = t5_models()
    want_state, want = one_device(1.0, t5_models)
    mesh = meshes.make_mesh(data=4, model=2)
    boxed = jax.eval_shape(student.init, jax.random.key(0))
    rules = meshes.rules_for(fully_sharded=True)
    shardings = meshes.parameter_shardings(mesh, boxed, rules)
    split = shardings["decoder"]["logits_dense"]["kernel"].spec
    assert split == jax.sharding.PartitionSpec("data", "model")
    teacher_shardings = meshes.parameter_shardings(
        mesh, jax.eval_shape(teacher.init, jax.random.key(0)), rules
    )
    state = start(params=params)
    state_shardings = meshes.shardings_like(mesh, jax.eval_shape(lambda: state), params, shardings)
    step = build(1.0, student=student, teacher=teacher).step
    step = meshes.compile_step(step, mesh, state_shardings, teacher_shardings)
    got_state, got = step(
        jax.device_put(state, state_shardings),
        jax.device_put(teacher_params, teacher_shardings),
        meshes.place_batch(make_batch(), mesh),
    )
    close(value(got, "loss"), value(want, "loss"))
    close(got_state.params, want_state.params)


def test_rollout_and_update_are_the_step():
    parts, state, batch = build(1.0), start(), make_batch()
    key = mixing.step_key(state.seed, state.step)
    written = jax.jit(parts.rollout)(state, batch, key)
    got_state, got = jax.jit(parts.update)(state, TEACHER_PARAMS, batch, written)
    want_state, want = one_device(1.0)
    close(value(got, "loss"), value(want, "loss"))
    close(got_state.params, want_state.params)
    assert written.on_policy.all()
    assert value(want, "on_policy") == 1


def branches_in(fraction):
    """Branches and loops of a step beyond its update's own, which skips what is not finite."""
    parts, state, batch = build(fraction), start(), make_batch()
    written = jax.eval_shape(parts.rollout, state, batch, state.seed)
    step = str(jax.make_jaxpr(parts.step)(state, TEACHER_PARAMS, batch))
    update = str(jax.make_jaxpr(parts.update)(state, TEACHER_PARAMS, batch, written))
    return tuple(step.count(name) - update.count(name) for name in ("cond[", "while["))


def test_lambda_zero_and_one_are_programs_without_a_branch():
    assert branches_in(0.0) == (0, 0), "λ=0 neither branches nor samples"
    assert branches_in(0) == (0, 0)
    conditions, loops = branches_in(1.0)
    assert (conditions, loops) == (0, 1), "λ=1 samples once and does not branch"
    assert branches_in(0.5) == (1, 1)


def test_the_coin_has_probability_lambda_and_survives_a_restart():
    def tosses(seed, steps):
        seed = jax.random.PRNGKey(seed)
        return [
            bool(mixing.coin_is_on_policy(mixing.step_key(seed, jnp.int32(i)), 0.25)) for i in steps
        ]

    everything = tosses(5, range(400))
    assert 70 < sum(everything) < 130  # 100 ± 3.5 standard deviations
    assert tosses(5, range(200, 400)) == everything[200:], "a restart at 200 tosses the same coins"
    assert tosses(6, range(400)) != everything

    step, batch = jax.jit(build(0.25).step), make_batch()
    state, seen = start(seed=5), []
    for _ in range(12):
        saved = jax.tree.map(np.asarray, state)
        state, metrics = step(state, TEACHER_PARAMS, batch)
        seen.append(value(metrics, "on_policy") == 1)
    assert seen == everything[:12]
    again, metrics = step(jax.tree.map(jnp.asarray, saved), TEACHER_PARAMS, batch)
    assert (value(metrics, "on_policy") == 1) == everything[11]
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_a_schedule_of_lambda_is_traced():
    step = jax.jit(build(lambda step: jnp.where(step < 2, 0.0, 1.0)).step)
    state, seen = start(), []
    for _ in range(4):
        state, metrics = step(state, TEACHER_PARAMS, make_batch())
        seen.append(value(metrics, "on_policy"))
    assert seen == [0, 0, 1, 1]


def test_every_step_samples_with_its_own_noise():
    parts, state, batch = build(1.0), start(), make_batch()
    tokens = []
    for number in (0, 1):
        key = mixing.step_key(state.seed, jnp.int32(number))
        tokens.append(np.asarray(parts.rollout(state, batch, key).target_tokens))
    assert (tokens[0] != tokens[1]).any()


def test_the_state_is_donated_and_the_teacher_is_not():
    mesh = meshes.make_mesh()
    whole = meshes.replicated(mesh)
    state, teacher = jax.device_put((start(), TEACHER_PARAMS), whole)
    shardings = jax.tree.map(lambda _: whole, state)
    compiled = meshes.compile_step(build(1.0).step, mesh, shardings, whole)
    compiled(state, teacher, meshes.place_batch(make_batch(), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(teacher))


def test_no_gradient_reaches_the_teacher():
    parts, batch = build(1.0), make_batch()

    def loss(teacher_params):
        _, metrics = parts.step(start(), teacher_params, batch)
        return metrics["loss"][0]

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(TEACHER_PARAMS))
    assert all(not np.asarray(g).any() for g in gradients)


@pytest.fixture(params=["cpu", "default"])
def platform(request, monkeypatch):
    """Takes the way of one platform, whatever this one is."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *given, **ways: ways[request.param](*given)
    )


@pytest.mark.usefixtures("platform")
def test_an_update_that_is_not_finite_is_skipped_and_counted():
    optimizer = optax.adam(1e-2)
    parts = build(0.0, optimizer)
    step, good = jax.jit(parts.step), TEACHER_PARAMS
    bad = jax.tree.map(lambda x: x * jnp.nan, good)
    state, _ = step(start(optimizer), good, make_batch())
    for streak in (1, 2):
        before, (state, metrics) = state, step(state, bad, make_batch())
        assert not np.isfinite(value(metrics, "loss"))
        jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
        jax.tree.map(np.testing.assert_array_equal, state.opt_state, before.opt_state)
        assert (int(state.skipped), int(state.skipped_in_a_row)) == (streak, streak)
        assert int(state.step) == int(before.step) + 1, "the step still counts: new data, new noise"
    before, (state, _) = state, step(state, good, make_batch())
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (2, 0)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, before.params)
    assert any(jax.tree.leaves(moved))


@pytest.mark.usefixtures("platform")
def test_a_learning_rate_that_overflows_changes_nothing():
    optimizer = optax.sgd(1e30)
    before = start(optimizer)
    state, metrics = jax.jit(build(0.0, optimizer).step)(before, TEACHER_PARAMS, make_batch())
    assert np.isfinite(value(metrics, "gradient_norm")) and int(state.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, before.params)


def test_a_teacher_equal_to_the_student_teaches_nothing():
    parts = train_step.make_train_step(
        STUDENT,
        optax.sgd(1.0),
        divergence_loss_fn=losses.make_divergence_loss(divergences.reverse_kl, valid=VALID),
        teacher_logits_fn=step_functions.make_teacher_logits_fn(STUDENT),
        sample_fn=step_functions.make_sample_fn(STUDENT, sample, VALID),
        on_policy_fraction=1.0,
    )
    state, metrics = jax.jit(parts.step)(start(), STUDENT_PARAMS, make_batch())
    assert abs(value(metrics, "loss")) < 1e-6
    close(state.params, STUDENT_PARAMS, 1e-6)


def test_fine_tuning_learns_the_targets():
    optimizer = optax.adam(1e-2)
    parts = train_step.make_train_step(
        STUDENT, optimizer, divergence_loss_fn=losses.make_cross_entropy_loss()
    )
    step, state, batch = jax.jit(parts.step), start(optimizer), make_batch()
    assert isinstance(state, TrainState)
    curve = []
    for _ in range(60):
        state, metrics = step(state, None, batch)
        curve.append(value(metrics, "loss"))
    assert curve[0] > 3.5  # about log 64
    assert curve[-1] < 0.5 * curve[0]


def test_an_impossible_lambda_is_refused():
    with pytest.raises(ValueError, match="λ is 1.5"):
        build(1.5)
    with pytest.raises(ValueError, match="no sample_fn"):
        train_step.make_train_step(
            STUDENT,
            optax.sgd(1.0),
            divergence_loss_fn=losses.make_cross_entropy_loss(),
            on_policy_fraction=1,
        )


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a batch of 12 does not divide over 8 devices"):
        meshes.place_batch(make_batch(12), meshes.make_mesh())
