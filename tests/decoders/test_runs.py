"""Runs with decoder-only models go on bit for bit, and cached log-probabilities teach alike."""

import json

import numpy as np
import pytest

from gkd.cli import command_line
from gkd.runs.metrics_log import read_metrics
from tests.compilation import devices
from tests.teacher_prompts import OVERRIDES
from tests.train import training

GIN = "tests/decoders/tiny.gin"
GEMMA = "STUDENT_MODEL=@t5gemma.T5GemmaConfig()"
FORWARD = "DIVERGENCE=@divergences.forward_kl"
GROUPS = (
    "REWARD=@reward_functions.exact_number", "ALPHA=0.0", "LAMBDA=1.0", "SAMPLES=2",
    "POLICY_LOSS='grpo'", "UPDATES_PER_ROLLOUT=2", "RATIO_CLIP=0.2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def decoder_only(monkeypatch):
    monkeypatch.setattr(training, "TINY", GIN)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        (FORWARD, "LAMBDA=1.0", "TEACHER_WEIGHTS='average'", "TEACHER_DECAY=0.5", *OVERRIDES),
        (FORWARD, "LAMBDA=1.0", "TEACHER_WEIGHTS='initial'", "LORA=@lora.LoRA()", *OVERRIDES),
        GROUPS,
        (GEMMA, *GROUPS),
    ],
    ids=["average", "adapters", "groups", "T5Gemma's groups"],
)
def test_a_run_goes_on_bit_for_bit(settings, tmp_path):
    if "LORA=@lora.LoRA()" in settings:
        with devices(1), training.no_evaluations():
            assert training.train(tmp_path / "start", "TRAIN_STEPS=1") == 0
        settings = (*settings, f"STUDENT='{tmp_path}/start'", "STUDENT_MODEL=None")
    rows, _, _ = training.train_whole_and_in_parts(tmp_path, *settings)
    assert len({row["train/loss"] for row in rows}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("memory", [False, True])
def test_a_run_with_a_teacher_goes_on_bit_for_bit(memory, tmp_path):
    with devices(1), training.no_evaluations():
        assert training.train(tmp_path / "teacher", "TRAIN_STEPS=2", "SEED=1") == 0
    replay = ("REPLAY=@replay.Replay()",) if memory else ("LAMBDA=0.5", "SAMPLES=2")
    settings = ("DIVERGENCE=@divergences.reverse_kl", f"TEACHER='{tmp_path}/teacher'", *replay)
    rows, _, _ = training.train_whole_and_in_parts(tmp_path, *settings)
    assert min(row["train/loss"] for row in rows) > 1e-4


@pytest.mark.slow
def test_cached_log_probabilities_of_all_ids_teach_as_the_teacher_does(tmp_path):
    teacher, file = tmp_path / "teacher", tmp_path / "scored.jsonl"
    short = (FORWARD, "TRAIN_STEPS=2", "EVALUATE_EVERY=0")
    with devices(1), training.no_evaluations():
        assert training.train(teacher, "TRAIN_STEPS=2", "SEED=1") == 0
        assert command_line.main([
            "infer", "--model", str(teacher), "--task", GIN, "--split", "train", "--output",
            str(file), "--gin.MODEL_DIR='unused'", "--score", "--top_k_log_probs", "50",
            "--input_length", "24", "--max_length", "12",
        ]) == 0  # fmt: skip
        assert len(json.loads(file.read_text().splitlines()[0])["target_top_ids"][0]) == 50
        assert training.train(tmp_path / "a", f"TEACHER_TOP_K_FILE='{file}'", *short) == 0
        assert training.train(tmp_path / "b", f"TEACHER='{teacher}'", *short) == 0
    losses = [
        [row["train/loss"] for row in read_metrics(tmp_path / name) if "train/loss" in row]
        for name in "ab"
    ]
    np.testing.assert_allclose(*losses, atol=2e-5)
