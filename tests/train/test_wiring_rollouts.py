"""What the student writes under the sampling settings, and what a replay makes of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.distill.train_step import init_state
from gkd.models.t5 import as_seq2seq
from tests.train import step_by_hand, wiring
from tests.train.step_by_hand import COIN, ByHand
from tests.train.wiring import IDS

REVERSE = {"DIVERGENCE": "@divergences.reverse_kl"}
MANY = 400  # samples of each of six prompts
DRAW = 0x7FFFFFFD


def frequencies(settings):
    """How often each id is the first token of a prompt's samples: [B, IDS]."""
    settings = REVERSE | {"LAMBDA": 1.0, "SAMPLES": MANY, "ROLLOUT_LENGTH": 1} | settings
    step = wiring.step_program(settings).step
    params, key = jax.tree.map(jnp.asarray, wiring.student_params()), jax.random.PRNGKey(8)
    state = init_state(params, step.optimizer, 0)
    batch = jax.tree.map(jnp.asarray, wiring.batch())
    tokens = np.asarray(jax.jit(step.rollout)(state, batch, key).target_tokens)
    assert tokens.shape == (6 * MANY, 1)
    return np.stack([(rows == IDS).mean(0) for rows in tokens.reshape(6, MANY, 1)])


def first_probabilities(temperature=1.0):
    logits = ByHand({}).student_logits[:, 0, IDS]
    return np.exp(step_by_hand.log_softmax(logits / temperature))


def unlikely(found, wanted):
    """The largest deviation in standard deviations of a frequency; infinite where P is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(found - wanted) / np.sqrt(wanted * (1 - wanted) / MANY)
    return np.nanmax(np.where(wanted * MANY < 5, np.where(wanted > 0, 0, z), z))


def test_samples_have_the_tempered_distribution():
    wanted = first_probabilities(0.5)
    found = frequencies({"SAMPLING_TEMPERATURE": 0.5})
    assert unlikely(found, wanted) < 4.5 < unlikely(found, first_probabilities())


def test_samples_are_of_the_most_probable_ids_only():
    plain = first_probabilities()
    kept = plain >= np.sort(plain)[:, -3:-2]
    wanted = np.where(kept, plain, 0) / np.where(kept, plain, 0).sum(1, keepdims=True)
    found = frequencies({"SAMPLING_TOP_K": 3})
    assert unlikely(found, wanted) < 4.5


def test_samples_are_of_the_smallest_set_with_the_mass():
    plain = first_probabilities()
    wanted = np.zeros_like(plain)
    for row, probabilities in enumerate(plain):
        order = np.argsort(-probabilities)
        size = int(np.sum(np.cumsum(probabilities[order]) < 0.6)) + 1
        wanted[row, order[:size]] = probabilities[order[:size]]
    wanted /= wanted.sum(1, keepdims=True)
    found = frequencies({"SAMPLING_TOP_P": 0.6})
    assert unlikely(found, wanted) < 4.5 < unlikely(found, plain)


@pytest.fixture(scope="module")
def replay():
    """A program with room for eight rows, compiled, and a function that makes states for it."""
    settings = REVERSE | {
        "REPLAY": "@replay.Replay()", "replay.Replay.capacity": 8, "replay.Replay.share": 0.7,
        "TRAIN_STEPS": 20, "SEED": 7,
    }  # fmt: skip
    program = wiring.step_program(settings)
    fresh = jax.device_get(program.state.make())
    compiled = program.compile()

    def run(seed, step, share=None):
        memory = fresh.replay if share is None else fresh.replay.replace(share=np.float32(share))
        state = fresh.replace(
            params=wiring.student_params(), seed=np.asarray(jax.random.PRNGKey(seed)),
            step=np.int32(step), replay=memory,
        )  # fmt: skip
        return wiring.take_step(program, compiled, jax.device_put(state))

    run.fresh = fresh
    return run


def coin(seed, step):
    key = jax.random.fold_in(jax.random.PRNGKey(seed), step)
    return float(jax.random.uniform(jax.random.fold_in(key, COIN)))


def test_a_run_begins_with_the_parameters_and_the_key_of_its_seed(replay):
    key = jax.random.PRNGKey(7)
    np.testing.assert_array_equal(replay.fresh.seed, key)
    params = nn.meta.unbox(as_seq2seq(wiring.STUDENT).init(key))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), replay.fresh.params, params
    )


def test_a_memory_begins_empty_with_the_share_and_room_asked_for(replay):
    memory = replay.fresh.replay
    assert memory.inputs.shape == (8, 6) and memory.rows.target_tokens.shape == (8, 5)
    assert float(memory.share) == np.float32(0.7) and int(memory.written) == 0


def test_a_step_from_memory_learns_what_the_student_wrote(replay):
    """λ is 0 beside a replay, which samples all the same: the loss is that of the rows drawn."""
    seed = next(seed for seed in range(20) if coin(seed, 0) < 0.5)
    after, got = replay(seed, 0)
    own = ByHand(REVERSE | {"LAMBDA": 1.0, "SEED": seed})
    np.testing.assert_array_equal(after.replay.rows.target_tokens[:6], own.rollout.tokens)
    np.testing.assert_array_equal(after.replay.inputs[:6], own.data.encoder_input_tokens)
    drawn = np.asarray(jax.random.randint(jax.random.fold_in(own.key, DRAW), (6,), 0, 6))
    rows = step_by_hand.Rollout(*(column[drawn] for column in own.rollout))
    for name in ("student_logits", "teacher_logits"):
        setattr(own, name, getattr(own, name)[drawn])
    own.rollout = rows
    assert got["on_policy"] == 1 and got["remembered"] == 6
    assert got["student_share"] == pytest.approx(0.7)
    assert got["loss"] == pytest.approx(own.loss(), rel=2e-4)


def test_the_share_says_how_many_steps_are_the_students(replay):
    """New outputs give way to old ones over the run's steps: at the end none are written."""
    high = next(seed for seed in range(40) if 0.4 < coin(seed, 10) < 0.65)
    for seed, step, share, written in (
        (high, 10, None, 0),  # 0.7 · (1 − 10/20) = 0.35
        (high, 10, 1.0, 0 if coin(high, 10) >= 0.5 else 6),
        (next(s for s in range(20) if coin(s, 3) > 0.75), 3, None, 0),
        (next(s for s in range(20) if coin(s, 3) < 0.5), 3, None, 6),
    ):
        _, got = replay(seed, step, share)
        assert (got["remembered"], got["on_policy"]) == (written, written > 0)
        if not written:
            assert got["loss"] == pytest.approx(ByHand(REVERSE).loss(), rel=2e-4)
