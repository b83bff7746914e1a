"""A teacher with a prompt of its own, online, offline and from a memory, through whole runs."""

import json

import numpy as np
import pytest

from gkd.cli import command_line
from gkd.runs.metrics_log import read_metrics
from tests.paths import TINY
from tests.teacher_prompts import OVERRIDES
from tests.train.training import train

pytestmark = pytest.mark.usefixtures("one_device")

SHORT = ("DIVERGENCE=@divergences.forward_kl", "TRAIN_STEPS=3")


def logged(run, name):
    return [row[name] for row in read_metrics(run) if name in row]


@pytest.fixture(scope="module")
def online(folder, teacher, one_device):
    run = folder / "online"
    assert train(run, f"TEACHER='{teacher}'", *SHORT, *OVERRIDES, "EVALUATE_EVERY=0") == 0
    return run


def test_training_and_evaluation_ask_the_teacher_about_its_own_prompts(folder, teacher, online):
    plain = folder / "plain"
    assert train(plain, f"TEACHER='{teacher}'", *SHORT, "EVALUATE_EVERY=0") == 0
    own, students = (np.array(logged(run, "train/loss")) for run in (online, plain))
    assert (np.abs(own - students) > 1e-4).all()
    name = "evaluation/reference_forward_kl"
    assert abs(logged(online, name)[0] - logged(plain, name)[0]) > 1e-4
    # The student has the same parameters and prompts at step 0: its own outputs are the same.
    assert (
        logged(online, "evaluation/output_length")[0]
        == logged(plain, "evaluation/output_length")[0]
    )
    assert logged(online, "data/teacher_inputs_cut") == [0, 0, 0]
    assert not logged(plain, "data/teacher_inputs_cut")


def test_an_offline_teacher_scores_with_its_own_prompts(folder, teacher, online, no_evaluations):
    file = folder / "scored.jsonl"
    options = [f"--gin.{value}" for value in OVERRIDES]
    assert command_line.main([
        "infer", "--model", str(teacher), "--task", TINY, "--split", "train", "--output", str(file),
        "--gin.MODEL_DIR='unused'", *options, "--score", "--top_k_log_probs", "50",
        "--input_length", "37", "--max_length", "12",
    ]) == 0  # fmt: skip
    row = json.loads(file.read_text().splitlines()[0])
    assert row["teacher_input"] == f"{row['input']} {row['target']}"
    offline = folder / "offline"
    assert train(
        offline, f"TEACHER_TOP_K_FILE='{file}'", *SHORT, *OVERRIDES, "EVALUATE_EVERY=0"
    ) == 0  # fmt: skip
    losses = (logged(run, "train/loss") for run in (offline, online))
    np.testing.assert_allclose(*losses, atol=2e-5)


@pytest.mark.slow
def test_a_replay_goes_on_with_the_teachers_prompts(folder, teacher, no_evaluations):
    run = folder / "replay"
    options = (
        f"TEACHER='{teacher}'", *SHORT, *OVERRIDES, "REPLAY=@replay.Replay()",
        "replay.Replay.capacity=50", "replay.Replay.share=1.0", "CHECKPOINT_EVERY=2",
        "replay.Replay.metric='exact_match'",
    )  # fmt: skip
    assert train(run, *options) == 0
    assert train(run, *options, "TRAIN_STEPS=4") == 0  # its memory is read back
    assert logged(run, "train/remembered")[-1] >= 16
