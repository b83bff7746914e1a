"""Runs of several updates per rollout: rewards of texts, the schedule, and a resume."""

import jax
import numpy as np

from tests.step_programs import program_of
from tests.train import wiring
from tests.train.training import train_whole_and_in_parts

UPDATES = (
    "REWARD=@reward_functions.rouge", "reward_functions.rouge.name='rouge1'", "LAMBDA=1.0",
    "ALPHA=0.0", "SAMPLES=2", "ADVANTAGE='group_standardised'", "POLICY_LOSS='grpo'",
    "RATIO_CLIP=0.001", "UPDATES_PER_ROLLOUT=2",
)  # fmt: skip


def test_a_run_goes_on_bit_for_bit_and_later_updates_have_ratios(tmp_path, no_evaluations):
    rows, _, _ = train_whole_and_in_parts(tmp_path, *UPDATES)
    # The first of two updates is at the sampler's own parameters: nothing of it can be clipped.
    assert all(0 < row["train/clipped_ratios"] <= 0.5 for row in rows)


def test_the_learning_rate_is_that_of_the_step_in_all_of_its_updates():
    """The first step of a warm-up has the rate 0: a second update at the next would move."""
    program = program_of(*UPDATES, "WARMUP_STEPS=2", gin_file=wiring.GIN, devices=jax.devices()[:1])
    state = wiring.state_of(program)
    compiled, before = program.compile(), jax.device_get(state.params)
    first, _ = wiring.take_step(program, compiled, state)
    jax.tree.map(np.testing.assert_array_equal, first.params, before)
    placed = jax.device_put(first, program.state.shardings)
    second, _ = wiring.take_step(program, compiled, placed)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), second.params, before)
    assert max(jax.tree.leaves(moved)) > 1e-4 and int(second.step) == 2
