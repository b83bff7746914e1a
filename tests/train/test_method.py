"""The runs that new methods make."""

import json
import shutil

import jax
import numpy as np

from gkd.checkpoints.params import restore_params
from gkd.cli import command_line
from gkd.runs.metrics_log import read_metrics
from tests.paths import TINY
from tests.train.training import train


def logged(run, name):
    rows = read_metrics(run)
    return [row[name] for row in rows if name in row]


def test_rewards_of_texts_come_from_the_outputs_texts(folder, teacher, one_device, no_evaluations):
    """Through both programs; the first step's mean reward is that of its outputs, in [0, 1]."""
    run = folder / "reward"
    assert train(
        run, f"TEACHER='{teacher}'", "DIVERGENCE=@divergences.reverse_kl", "LAMBDA=1.0",
        "REWARD=@reward_functions.rouge", "reward_functions.rouge.name='rouge1'",
        "ALPHA=0.5", "SAMPLES=2", "ADVANTAGE='group'", "TRAIN_STEPS=3", "EVALUATE_EVERY=0",
    ) == 0  # fmt: skip
    values = logged(run, "train/reward")
    assert len(values) == 3 and all(0 <= value <= 1 for value in values)
    assert logged(run, "train/on_policy") == [1, 1, 1]
    losses, divergence, policy = (
        np.array(logged(run, f"train/{name}")) for name in ("loss", "divergence", "policy_gradient")
    )
    np.testing.assert_allclose(losses, 0.5 * divergence + 0.5 * policy, atol=1e-4)


def test_a_replay_goes_on_where_it_stopped_bit_for_bit(folder, teacher, one_device, no_evaluations):
    """Its share rises at steps 2 and 4, after which what is measured is higher than before."""
    options = (
        f"TEACHER='{teacher}'", "DIVERGENCE=@divergences.skew_reverse_kl",
        "REPLAY=@replay.Replay()", "replay.Replay.capacity=50", "replay.Replay.share=0.95",
        "replay.Replay.metric='exact_match'", "EVALUATE_EVERY=2", "CHECKPOINT_EVERY=2",
    )  # fmt: skip
    assert train(folder / "whole", *options, "TRAIN_STEPS=4") == 0
    shutil.copytree(folder / "whole", folder / "parts")
    shutil.rmtree(folder / "parts" / "checkpoints" / "4")  # as if it had been killed at step 3
    assert train(folder / "parts", *options, "TRAIN_STEPS=4") == 0
    whole, parts = (restore_params(folder / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert logged(folder / "whole", "train/remembered")[-1] > 0


def test_an_offline_teacher_of_all_ids_gives_the_losses_of_the_teacher_itself(
    folder, teacher, one_device, no_evaluations
):
    file = folder / "scored.jsonl"
    assert command_line.main([
        "infer", "--model", str(teacher), "--task", TINY, "--split", "train", "--output", str(file),
        "--gin.MODEL_DIR='unused'", "--score", "--top_k_log_probs", "50", "--input_length", "24",
        "--max_length", "12",
    ]) == 0  # fmt: skip
    assert len(json.loads(file.read_text().splitlines()[0])["target_top_ids"][0]) == 50
    short = ("DIVERGENCE=@divergences.forward_kl", "TRAIN_STEPS=3", "EVALUATE_EVERY=0")
    assert train(folder / "offline", f"TEACHER_TOP_K_FILE='{file}'", *short) == 0
    assert train(folder / "online", f"TEACHER='{teacher}'", *short) == 0
    offline, online = (logged(folder / name, "train/loss") for name in ("offline", "online"))
    np.testing.assert_allclose(offline, online, atol=2e-5)
