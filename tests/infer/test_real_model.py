"""A real pretrained FLAN-T5-small on real prompts against transformers, through infer and evaluate.

Slow: set GKD_FLAN_T5_SMALL to the Hugging Face directory that the fixtures' tool writes.
"""

import json
import os
import pathlib

import numpy as np
import pytest

from gkd.cli import command_line

pytestmark = pytest.mark.slow
SAFE_MARGIN = 1e-3  # below it two implementations may choose different tokens


@pytest.fixture(scope="module")
def model():
    """The Hugging Face directory."""
    folder = os.environ.get("GKD_FLAN_T5_SMALL", "")
    if not pathlib.Path(folder, "config.json").is_file():
        pytest.skip(
            "needs a FLAN-T5-small: python SHARED/tools/flan_t5_small.py DIR, then set "
            "GKD_FLAN_T5_SMALL=DIR"
        )
    return pathlib.Path(folder)


@pytest.fixture
def golden(shared, tmp_path):
    """The completions of transformers, and its prompts and targets as a file."""
    text = (shared / "golden" / "flan_t5_small" / "greedy.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    lines = [json.dumps({"input": row["input"], "target": row["target"]}) for row in rows]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return rows


def _check(rows, tokens, log_probs):
    assert len(tokens) == len(rows) == 24
    for row, got, scores in zip(rows, tokens, log_probs, strict=True):
        close = np.flatnonzero(np.array(row["greedy_margins"]) < SAFE_MARGIN)
        certain = len(row["greedy_ids"]) if not len(close) else close[0]
        assert got[:certain] == row["greedy_ids"][:certain]
        np.testing.assert_allclose(scores, row["target_log_probs"], atol=1e-3)


def test_infer(model, golden, tmp_path, optimized):
    arguments = [
        "infer", f"--model={model}", f"--input={tmp_path}/prompts.jsonl", "--dtype=float32",
        f"--output={tmp_path}/out.jsonl", "--max_length=80", "--batch_size=8", "--score",
    ]  # fmt: skip
    assert command_line.main(arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    scores = [line["target_log_probs"] for line in lines]
    _check(golden, [line["tokens"] for line in lines], scores)


def test_evaluate_and_train_take_it_as_it_is(model, golden, tmp_path, monkeypatch, optimized):
    monkeypatch.setenv("GKD_VOCABULARY", str(model / "spiece.model"))
    settings = {
        "MODEL_DIR": f"{tmp_path}/run", "STUDENT": str(model), "TEACHER": str(model),
        "FILES": dict.fromkeys(("train", "validation"), f"{tmp_path}/prompts.jsonl"),
        "INPUT_LENGTH": 256, "TARGET_LENGTH": 80, "BATCH_SIZE": 8, "TRAIN_STEPS": 1,
        "LEARNING_RATE": 1e-9, "EVALUATION_EXAMPLES": 8,
        "TEACHER_STEP": "newest",  # or else a teacher that is the student is refused
    }  # fmt: skip
    files = ["configs/tasks/local_text.gin", "configs/methods/supervised_kd.gin"]
    arguments = [f"--gin_file={name}" for name in files]
    arguments += [f"--gin.{name}={value!r}" for name, value in settings.items()]
    evaluate = [*arguments, f"--gin.evaluate.evaluate.checkpoint={str(model)!r}"]
    evaluate += [f"--gin.evaluate.evaluate.output='{tmp_path}/e.json'"]
    evaluate += ["--gin.EVALUATION_EXAMPLES=None", "--gin.TEACHER=None"]
    assert command_line.main(["evaluate", *evaluate]) == 0
    lines = [
        json.loads(line)["student"] for line in (tmp_path / "e.jsonl").read_text().splitlines()
    ]
    scores = [line["reference_log_probs"] for line in lines]
    _check(golden, [line["greedy"][0]["tokens"] for line in lines], scores)
    assert command_line.main(["train", *arguments]) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["train/loss"] for row in map(json.loads, rows) if "train/loss" in row]
    assert losses and abs(losses[0]) < 1e-5  # the teacher is the student
