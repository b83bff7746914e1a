"""The optimizer's settings change the parameters after a step as their closed forms say."""

import jax
import numpy as np
import pytest

from tests.train import step_by_hand, wiring
from tests.train.step_by_hand import ByHand

SFT = {"TEACHER_MODEL": None}


def close(got, want, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), got, want)


def test_the_learning_rate_rises_stays_and_falls():
    """Without memory and ε AdamW moves every parameter by the learning rate of the step."""
    settings = {
        "LEARNING_RATE": 0.02, "WARMUP_STEPS": 2, "COOLDOWN_STEPS": 3, "TRAIN_STEPS": 6,
        "optimizers.adamw.b1": 0.0, "optimizers.adamw.b2": 0.0, "optimizers.adamw.eps": 1e-20,
    }  # fmt: skip
    program = wiring.step_program(SFT | settings)
    compiled, state, moved = program.compile(), wiring.state_of(program), []
    for _ in range(6):
        before = jax.device_get(state.params)
        state, _ = compiled(state, None, wiring.batch())
        steps = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, before)
        moved.append(max(jax.tree.leaves(steps)))
    want = [0, 0.01, 0.02, 0.02, 0.04 / 3, 0.02 / 3]
    np.testing.assert_allclose(moved, want, atol=1e-6)


def test_gradients_are_clipped_to_their_norm_and_weights_decay():
    settings = {"MAX_GRADIENT_NORM": 0.2, "optimizers.adamw.weight_decay": 0.5}
    program = wiring.step_program(SFT | settings)
    after, metrics = wiring.take_step(program)
    expected = ByHand({})
    gradient = expected.gradient()
    norm = step_by_hand.global_norm(gradient)
    assert norm > 0.4
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4), "before clipping"
    clipped = jax.tree.map(lambda g: g * 0.2 / norm, gradient)
    new = step_by_hand.first_update(expected.params, clipped)

    def decay(path, updated, old):  # norm scales keep their size
        return updated - (0 if path[-1].key == "scale" else wiring.RATE * 0.5 * old)

    close(after.params, jax.tree_util.tree_map_with_path(decay, new, expected.params))


def test_adafactor_moves_by_the_sign_relative_to_each_parameter():
    """Its first second moment is the squared gradient: the update is the sign, then scaled."""
    settings = {
        "OPTIMIZER": "@optimizers.adafactor", "LEARNING_RATE": 0.05,
        "optimizers.adafactor.weight_decay": 0.125,
        "optimizers.adafactor.clipping_threshold": 0.5,
    }  # fmt: skip
    program = wiring.step_program(SFT | settings)
    after, _ = wiring.take_step(program)
    expected = ByHand({})

    def move(path, old, gradient):
        sign = np.where(np.abs(gradient) > 1e-7, np.sign(gradient), np.nan)
        size = np.sqrt(np.mean(np.float64(old) ** 2))
        clip = max(1.0, np.sqrt(np.mean(np.nan_to_num(sign) ** 2)) / 0.5)
        decay = 0 if path[-1].key == "scale" else 0.125
        return old - 0.05 * size * sign / clip - decay * old

    new = jax.tree_util.tree_map_with_path(move, expected.params, expected.gradient())
    kinds = jax.tree.map(
        lambda got, want: np.testing.assert_allclose(
            np.where(np.isnan(want), np.nan, got), want, atol=1e-4
        ),
        after.params, new,
    )  # fmt: skip
    assert kinds is not None
    sure = [np.isfinite(leaf).mean() for leaf in jax.tree.leaves(new)]
    assert np.mean(sure) > 0.7, "most gradients are far enough from 0 to have a sign"
