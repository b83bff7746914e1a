"""GRPO's policy loss against float64 NumPy, and several updates on one rollout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.decode.sampling import sample
from gkd.distill import losses, mixing, optimizers, step_functions, train_step
from gkd.distill.logits import DenseLogits
from gkd.distill.types import Rollout
from gkd.parallel import mesh as meshes
from tests.distill import references
from tests.distill.small_step import STUDENT, VALID, close, make_batch, start, value

ROWS, LENGTH, IDS = 5, 4, 7
USABLE = np.arange(IDS) > 0
LENGTHS = np.array([4, 2, 1, 3, 4])
WEIGHTS = np.array([1.0, 1.0, 0.5, 1.0, 0.0])  # the last row only fills the batch
ADVANTAGES = np.array([1.5, -0.7, 2.0, 0.0, 9.0])


def case(seed):
    """Logits, ids and old log-probabilities some of whose ratios lie outside of any small clip."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, IDS, (ROWS, LENGTH))
    logits = references.normal(seed, ROWS, LENGTH, IDS, scale=1.5)
    chosen = np.take_along_axis(log_q(logits), ids[..., None], -1)[..., 0]
    return logits, ids, np.float32(chosen + generator.normal(0, 0.3, ids.shape))


def log_q(logits):
    with np.errstate(divide="ignore"):
        return np.log(references.probabilities(logits, USABLE))


def by_definition(logits, ids, old, clip):
    """Token by token from equation 3 of arXiv 2402.03300: the loss, and the share clipped."""
    total, removed = 0.0, 0.0
    for row in range(ROWS):
        terms, outside = [], []
        for place in range(LENGTHS[row]):
            advantage, token = ADVANTAGES[row], ids[row, place]
            ratio = np.exp(log_q(logits[row, place])[token] - np.float64(old[row, place]))
            bounded = ratio if clip is None else min(max(ratio, 1 - clip), 1 + clip)
            terms.append(-min(ratio * advantage, bounded * advantage))
            outside.append(bounded * advantage < ratio * advantage)
        total += WEIGHTS[row] * np.mean(terms)
        removed += WEIGHTS[row] * np.mean(outside)
    return total / WEIGHTS.sum(), removed / WEIGHTS.sum()


def loss_of(logits, ids, old, clip, block_size=3):
    mask = np.arange(LENGTH) < LENGTHS[:, None]
    rollout = Rollout(
        jnp.where(mask, ids, 0), jnp.float32(mask * WEIGHTS[:, None]),
        jnp.where(mask, old, 0.0), jnp.ones(ROWS, bool), jnp.zeros(ROWS), jnp.float32(ADVANTAGES),
    )  # fmt: skip
    total, weight, metrics = losses.reward_and_divergence_loss(
        DenseLogits(logits), None, rollout, alpha=0.0, divergence=None, valid=jnp.asarray(USABLE),
        policy_loss="grpo", ratio_clip=clip, block_size=block_size,
    )  # fmt: skip
    return total / weight, {name: pair[0] / pair[1] for name, pair in metrics.items()}


value_and_gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True), static_argnums=3)


@pytest.mark.parametrize("clip", [None, 0.2, 0.05])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_are_those_of_the_definition(clip, seed):
    logits, ids, old = case(seed)
    (got, metrics), gradient = value_and_gradient(logits, ids, old, clip)
    want, removed = by_definition(logits, ids, old, clip)
    assert float(got) == pytest.approx(want, abs=1e-6)
    assert float(metrics["policy_gradient"]) == pytest.approx(want, abs=1e-6)
    if clip is None:
        assert "clipped_ratios" not in metrics
    else:
        assert 0.1 < removed < 0.9
        assert float(metrics["clipped_ratios"]) == pytest.approx(removed, abs=1e-6)
    step, slopes = 1e-6, np.zeros(logits.shape)
    for place in np.ndindex(logits.shape):
        shift = np.zeros(logits.shape)
        shift[place] = step
        above, below = (
            by_definition(np.float64(logits) + sign * shift, ids, old, clip)[0] for sign in (1, -1)
        )
        slopes[place] = (above - below) / (2 * step)
    np.testing.assert_allclose(gradient, slopes, atol=1e-5)
    assert np.abs(slopes).max() > 1e-2


SAMPLES, UPDATES = 2, 3
SCHEDULE = optimizers.warmup_constant_cooldown(0.5, 4, total_steps=20)


def build(optimizer=None, **options):
    """GRPO on a reward that is the share of even ids in a row."""

    def reward_fn(params, batch, written):
        even = (written.target_tokens % 2 == 0) & (written.target_tokens > 0)
        return even.mean(axis=1)

    step = train_step.make_train_step(
        STUDENT,
        optimizer or optax.sgd(0.5),
        divergence_loss_fn=functools.partial(
            losses.reward_and_divergence_loss, alpha=0.0, divergence=None, valid=VALID,
            policy_loss="grpo", ratio_clip=0.02,
        ),
        sample_fn=step_functions.make_sample_fn(STUDENT, sample, VALID, SAMPLES),
        on_policy_fraction=1.0,
        samples=SAMPLES,
        reward_fn=reward_fn,
        advantage="group_standardised",
        microbatches=options.pop("microbatches", 1),
    )  # fmt: skip
    return dataclasses.replace(step, **options)


@functools.cache
def several():
    """The step of three updates, as one program."""
    return jax.jit(build(updates=UPDATES).step)(start(), None, make_batch())


@functools.cache
def written():
    before = start()
    key = mixing.step_key(before.seed, before.step)
    return jax.jit(build().rollout)(before, make_batch(), key)


def test_updates_on_one_rollout_are_single_updates_one_after_the_other():
    state, metrics = several()
    batch, rollout, after = make_batch(), written(), start()
    update, each = jax.jit(build().update), []
    for _ in range(UPDATES):
        after, found = update(after, None, batch, rollout)
        each.append(found)
    close(state.params, after.params, 1e-6)
    for name in ("loss", "policy_gradient", "clipped_ratios", "gradient_norm", "reward"):
        mean = np.mean([value(found, name) for found in each])
        assert value(metrics, name) == pytest.approx(mean, abs=1e-5), name
    first, *_, last = (value(found, "clipped_ratios") for found in each)
    assert first == 0 and last > 0.05, "the first update is at the sampler's own parameters"
    tokens = float(np.sum(np.asarray(rollout.weights) > 0))
    assert float(metrics["target_length"][0]) == pytest.approx(tokens), "they are written once"
    assert (int(state.step), int(after.step)) == (1, UPDATES)


def test_every_update_that_is_skipped_counts():
    batch, state = make_batch(), start()
    bad = written().replace(log_probs=written().log_probs.at[0, 0].set(jnp.nan))
    after, metrics = jax.jit(build(updates=UPDATES).update)(state, None, batch, bad)
    close(after.params, state.params, 0)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (1, 3, 3)
    assert value(metrics, "skipped") == value(metrics, "skipped_in_a_row") == UPDATES


def test_microbatches_and_devices_change_nothing():
    want_state, want = several()
    mesh = meshes.make_mesh()
    whole = meshes.replicated(mesh)
    state = jax.device_put(start(), whole)
    step = build(updates=UPDATES, microbatches=2).step
    compiled = meshes.compile_step(step, mesh, jax.tree.map(lambda _: whole, state), None)
    got_state, got = compiled(state, None, meshes.place_batch(make_batch(), mesh))
    for name in ("loss", "reward", "clipped_ratios"):
        assert value(got, name) == pytest.approx(value(want, name), abs=1e-5), name
    close(got_state.params, want_state.params)
