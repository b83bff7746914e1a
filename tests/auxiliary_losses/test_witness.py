"""SSOPD's loss: the teacher's prompts in plain Python, value and gradient in float64 NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.auxiliary_losses.groups import sample_of_each, verified_groups
from gkd.auxiliary_losses.witness import (
    VictimLogits,
    WitnessLoss,
    WitnessTeacher,
    with_witness_loss,
    witness_loss,
)
from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, mixing, step_functions, train_step
from gkd.distill.logits import DenseLogits
from gkd.distill.types import Batch, Rollout
from gkd.errors import InvalidValue
from gkd.parallel import mesh as meshes
from tests.distill import references
from tests.distill.small_step import (
    STUDENT,
    STUDENT_PARAMS,
    VALID,
    close,
    make_batch,
    start,
    value,
)

SAMPLES, LENGTH, IDS, CLIP = 3, 5, 6, 0.05
USABLE = np.arange(IDS) > 0
CLIPPED = functools.partial(divergences.forward_kl, clip=CLIP)

# Mixed (ties in length), all right, mixed with half a weight, all wrong, a row that only fills up.
REWARDS = np.array([[0, 1, 0], [1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 1]], np.float32)
LENGTHS = np.array([[4, 2, 4], [3, 2, 5], [2, 5, 1], [1, 3, 2], [4, 4, 4]])
PROMPTS = np.array([1.0, 1.0, 0.5, 1.0, 0.0])


def rollout_of(rewards=REWARDS):
    mask = np.arange(LENGTH) < LENGTHS.reshape(-1, 1)
    ids = np.random.default_rng(3).integers(1, IDS, mask.shape) * mask
    weights = np.float32(mask * np.repeat(PROMPTS, SAMPLES)[:, None])
    return Rollout(
        jnp.asarray(ids), jnp.asarray(weights), jnp.zeros(mask.shape), jnp.ones(len(ids), bool),
        jnp.asarray(rewards.reshape(-1)), jnp.zeros(len(ids)),
    )  # fmt: skip


def logits_of(tokens):
    """The student's [N, T, V], and the teacher's of the victims [B, K, V]."""
    student = references.normal(1, REWARDS.size, LENGTH, IDS)
    return student, references.normal(2, len(REWARDS), min(tokens, LENGTH), IDS)


def by_definition(student, teacher, settings, rewards=REWARDS):
    """λ0 · 4p(1−p) · mean over K tokens of Σ min(P log P/Q, τ), a weighted mean over prompts."""
    total = 0.0
    for prompt, (group, lengths) in enumerate(zip(rewards, LENGTHS, strict=True)):
        wrong = [i for i in range(SAMPLES) if group[i] <= 0.5]
        rate = 1 - len(wrong) / SAMPLES
        if not 0 < rate < 1:
            continue
        victim = max(wrong, key=lambda i: (lengths[i], -i))
        terms = []
        for place in range(min(settings.tokens, lengths[victim])):
            p = references.probabilities(teacher[prompt, place], USABLE)[1:]
            q = references.probabilities(student[prompt * SAMPLES + victim, place], USABLE)[1:]
            terms.append(np.minimum(p * np.log(p / q), CLIP).sum())
        total += PROMPTS[prompt] * settings.weight * 4 * rate * (1 - rate) * np.mean(terms)
    return total / PROMPTS.sum()


@functools.partial(jax.jit, static_argnames="settings")
def loss_of(student, teacher, settings, rewards=REWARDS, cut=np.zeros(len(REWARDS), bool)):  # noqa: B008
    total, weight, metrics = witness_loss(
        DenseLogits(student), VictimLogits(DenseLogits(jnp.asarray(teacher)), jnp.asarray(cut)),
        rollout_of(rewards), settings=settings, divergence=CLIPPED, samples=SAMPLES,
        valid=jnp.asarray(USABLE), block_size=2,
    )  # fmt: skip
    return total / weight, metrics


@functools.partial(jax.jit, static_argnames="settings")
def value_and_gradient(student, teacher, settings, rewards=REWARDS):
    loss = loss_of.__wrapped__  # a gradient through a jit is refused: the loss has its own
    return jax.value_and_grad(loss, has_aux=True)(student, teacher, settings, rewards)


@pytest.mark.parametrize(("weight", "tokens"), [(0.5, 3), (2.0, 1), (1.0, 64)])
def test_value_and_gradient_are_those_of_the_definition(weight, tokens):
    settings = WitnessLoss(weight=weight, tokens=tokens)
    student, teacher = logits_of(tokens)
    (got, metrics), gradient = value_and_gradient(jnp.asarray(student), teacher, settings)
    want = by_definition(student, teacher, settings)
    assert abs(want) > 1e-2 and float(got) == pytest.approx(want, abs=1e-6)
    assert value(metrics, "auxiliary_loss") == pytest.approx(want, abs=1e-6)
    step, slopes = 1e-6, np.zeros(student.shape)
    for place in np.ndindex(student.shape):
        shift = np.zeros(student.shape)
        shift[place] = step
        above, below = (
            by_definition(np.float64(student) + sign * shift, teacher, settings) for sign in (1, -1)
        )
        slopes[place] = (above - below) / (2 * step)
    np.testing.assert_allclose(gradient, slopes, atol=1e-6)
    touched = {tuple(place) for place in np.argwhere(np.abs(slopes).max(-1) > 1e-9)}
    first = range(min(tokens, 4))
    assert touched == {(0, t) for t in first} | {(7, t) for t in range(min(tokens, 5))}


def test_metrics_count_mixed_groups_passes_and_cut_witnesses():
    student, teacher = logits_of(3)
    cut = np.array([True, True, False, True, True])  # the first and the third prompt are mixed
    settings = WitnessLoss(weight=0.25, tokens=3)
    _, metrics = loss_of(jnp.asarray(student), teacher, settings, cut=cut)
    assert value(metrics, "mixed_groups") == pytest.approx(1.5 / 3.5)
    assert value(metrics, "pass_rate") == pytest.approx(6 / 12)
    assert value(metrics, "witness_cut") == pytest.approx(1 / 1.5)
    without_factors = by_definition(student, teacher, dataclasses.replace(settings, weight=1))
    # Both have 4p(1−p) = 8/9.
    assert value(metrics, "witness_divergence") == pytest.approx(
        without_factors * 3.5 / 1.5 / (8 / 9), abs=1e-6
    )


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_groups_that_are_not_mixed_give_neither_loss_nor_gradient(reward):
    student, teacher = logits_of(3)
    rewards = np.full(REWARDS.shape, reward, np.float32)
    teacher[:] = np.nan  # enters no product
    (got, metrics), gradient = value_and_gradient(
        jnp.asarray(student), teacher, WitnessLoss(tokens=3), rewards
    )
    assert float(got) == 0 and not np.any(gradient)
    assert value(metrics, "pass_rate") == reward and float(metrics["mixed_groups"][0]) == 0


def test_a_teacher_of_the_same_distributions_gives_zero():
    student, _ = logits_of(LENGTH)
    groups = verified_groups(rollout_of(), SAMPLES)
    same = sample_of_each(jnp.asarray(student), groups.victims)
    (got, _), gradient = value_and_gradient(jnp.asarray(student), same, WitnessLoss())
    assert float(got) == 0 and float(jnp.abs(gradient).max()) < 1e-7


TEMPLATE = ((40, 41), (42,), (43, 44))


def teacher_of(**settings):
    return WitnessTeacher(STUDENT, WitnessLoss(**settings), TEMPLATE, SAMPLES)


def prompts_of(prompts, witnesses, **settings):
    joined = functools.partial(teacher_of(**settings).prompts, target_length=9)
    return jax.jit(joined)(jnp.asarray(prompts), jnp.asarray(witnesses))


def test_prompts_are_the_joined_lists_and_cut_witnesses_are_counted():
    generator = np.random.default_rng(5)
    prompts, witnesses = generator.integers(2, 40, (60, 6)), generator.integers(2, 40, (60, 5))
    for rows in (prompts, witnesses):
        for row, length in zip(rows, generator.integers(1, rows.shape[1] + 1, 60), strict=True):
            row[length - 1], row[length:] = 1, 0
    prompts[0] = 7  # no EOS: it was truncated in the batch
    got, cut = prompts_of(prompts, witnesses, input_length=13)
    cuts = 0
    for row, is_cut, prompt, witness in zip(got, cut, prompts, witnesses, strict=True):
        asked, written = ([int(x) for x in ids if x > 1] for ids in (prompt, witness))
        kept = written[: 13 - len(asked) - 5 - 1]
        want = [40, 41, *asked, 42, *kept, 43, 44, 1]
        assert row.tolist() == want + [0] * (13 - len(want))
        assert bool(is_cut) == (len(kept) < len(written))
        cuts += bool(is_cut)
    assert 2 < cuts < 40


def test_by_default_a_prompt_has_room_for_input_and_target():
    given = np.ones((2, 6), int), np.ones((2, 5), int)
    assert prompts_of(*given)[0].shape == (2, 15)
    with pytest.raises(InvalidValue, match="12 tokens.*set WitnessLoss.input_length to more than"):
        prompts_of(*given, input_length=12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight is -1.0"),
        ({"tokens": 0}, "tokens is 0"),
        ({"template": "{witness} {inputs}"}, "template is '{witness} {inputs}'"),
        ({"template": "{inputs} {witness} {targets}"}, "no other braces"),
    ],
)
def test_settings_out_of_range_are_one_line(settings, message):
    with pytest.raises(InvalidValue, match=message):
        WitnessLoss(**settings)


def test_the_teacher_scores_the_victims_behind_their_witnesses():
    """As if each prompt had been one batch of one row, and without gradient."""
    rollout, batch = rollout_of(), make_batch(len(REWARDS))
    teacher = teacher_of(tokens=3)
    plain = jax.jit(step_functions.make_teacher_logits_fn(STUDENT))
    got = jax.jit(teacher)(STUDENT_PARAMS, batch, rollout)
    assert got.logits.hidden.shape[:2] == (len(REWARDS), 3)
    tokens = np.asarray(rollout.target_tokens).reshape(len(REWARDS), SAMPLES, LENGTH)
    for prompt, victim, witness in ((0, 0, 1), (2, 1, 2)):
        ids = [int(x) for x in batch.encoder_input_tokens[prompt] if x > 0]
        answer = [int(x) for x in tokens[prompt, witness] if x > 1]
        row = jnp.array([[40, 41, *ids, 42, *answer, 43, 44, 1]])
        row = jnp.pad(row, ((0, 0), (0, 17 - row.shape[1])))  # positions are relative to the width
        alone = Batch(row, batch.decoder_target_tokens[:1], jnp.ones(1))
        one = jax.tree.map(lambda x: x[:1], rollout).replace(
            target_tokens=jnp.asarray(tokens[prompt, victim][None, :3])
        )
        want = plain(STUDENT_PARAMS, alone, one)
        np.testing.assert_allclose(got.logits.hidden[prompt], want.hidden[0], atol=1e-5)

    def through(params):
        return jnp.sum(teacher(params, batch, rollout).logits.hidden)

    assert not any(np.any(x) for x in jax.tree.leaves(jax.jit(jax.grad(through))(STUDENT_PARAMS)))


def build(microbatches=1, reward_fn=True):
    """GRPO and the witness's distillation, the teacher's template of the ids above."""
    settings = WitnessLoss(weight=3.0, tokens=4)
    policy = functools.partial(
        losses.reward_and_divergence_loss, alpha=0.0, divergence=None, valid=VALID,
        policy_loss="grpo",
    )  # fmt: skip

    def rewards(params, batch, written):
        return jnp.float32(written.target_tokens[:, 0] % 2 == 0)

    return train_step.make_train_step(
        STUDENT,
        optax.sgd(1.0),
        divergence_loss_fn=with_witness_loss(
            policy, settings=settings, divergence=CLIPPED, samples=SAMPLES, valid=VALID
        ),
        teacher_logits_fn=WitnessTeacher(STUDENT, settings, TEMPLATE, SAMPLES),
        sample_fn=step_functions.make_sample_fn(STUDENT, sample, VALID, SAMPLES),
        on_policy_fraction=1.0,
        samples=SAMPLES,
        reward_fn=rewards if reward_fn else None,
        advantage="group_standardised",
        microbatches=microbatches,
    )


@functools.cache
def one_batch():
    return jax.jit(build().step)(start(), STUDENT_PARAMS, make_batch())


def test_microbatches_and_devices_change_nothing():
    want_state, want = one_batch()
    assert value(want, "mixed_groups") > 0.3 and abs(value(want, "auxiliary_loss")) > 1e-2
    mesh = meshes.make_mesh()
    whole = meshes.replicated(mesh)
    state, teacher = jax.device_put((start(), STUDENT_PARAMS), whole)
    step = meshes.compile_step(
        build(microbatches=2).step, mesh, jax.tree.map(lambda _: whole, state), whole
    )
    batch = meshes.place_batch(make_batch(), mesh)
    compiled = step.lower(state, teacher, batch).compile()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in compiled.as_text(), "a sample leaves its device"
    got_state, got = compiled(state, teacher, batch)
    for name in ("loss", "auxiliary_loss", "witness_divergence", "pass_rate", "policy_gradient"):
        assert value(got, name) == pytest.approx(value(want, name), abs=1e-5), name
    close(got_state.params, want_state.params)


def test_rewards_from_texts_are_those_of_the_program():
    want_state, want = one_batch()
    outside, state, batch = build(reward_fn=False), start(), make_batch()
    written = jax.jit(outside.rollout)(state, batch, mixing.step_key(state.seed, state.step))
    rewards = np.float32(np.asarray(written.target_tokens)[:, 0] % 2 == 0)
    written = written.replace(rewards=jnp.asarray(rewards))
    got_state, got = jax.jit(outside.update)(state, STUDENT_PARAMS, batch, written)
    assert value(got, "auxiliary_loss") == pytest.approx(value(want, "auxiliary_loss"), abs=1e-6)
    close(got_state.params, want_state.params)
