"""Runs of several updates per rollout: rewards of texts, the schedule, and a resume."""

import jax
import numpy as np

from gkd.runs.metrics_log import read_metrics
from tests.step_programs import program_of
from tests.train import wiring
from tests.train.training import train

UPDATES = (
    "REWARD=@reward_functions.rouge", "reward_functions.rouge.name='rouge1'", "LAMBDA=1.0",
    "ALPHA=0.0", "SAMPLES=2", "ADVANTAGE='group_standardised'", "POLICY_LOSS='grpo'",
    "RATIO_CLIP=0.001", "UPDATES_PER_ROLLOUT=2",
)  # fmt: skip


def test_a_run_goes_on_bit_for_bit_and_later_updates_have_ratios(tmp_path, no_evaluations):
    settings = (*UPDATES, "EVALUATE_EVERY=0", "CHECKPOINT_EVERY=2", "TRAIN_STEPS=4")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, *settings) == 0
    assert train(parts, *settings, "TRAIN_STEPS=2") == 0
    assert train(parts, *settings) == 0
    rows = [[row for row in read_metrics(run) if "train/loss" in row] for run in (whole, parts)]
    assert len(rows[0]) == 4 and rows[0] == rows[1]
    # The first of two updates is at the sampler's own parameters: nothing of it can be clipped.
    assert all(0 < row["train/clipped_ratios"] <= 0.5 for row in rows[0])


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
