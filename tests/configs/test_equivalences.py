"""Methods that are special cases of others are the same program: the same settings, or weights."""

import json

import jax
import numpy as np
import pytest

from gkd.checkpoints.params import restore_params
from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.runs.setting_changes import settings_of
from tests.paths import TINY

NONE = ("MODEL_DIR='none'",)


def settings(method, *overrides):
    """The method's settings in the end, and its teacher, as text."""
    command = Command("train", (TINY, f"configs/methods/{method}.gin"), (*NONE, *overrides))
    flat = settings_of(command_line.read_configuration(command), "train")
    return {name: repr(setting.value) for name, setting in flat.items()}


@pytest.mark.parametrize(
    "special, general, overrides",
    [
        ("supervised_kd", "gkd", ["LAMBDA=0.0"]),
        ("imitkd", "gkd", ["LAMBDA=0.5"]),
        ("f_distill", "gkd", ["LAMBDA=0.5", "DIVERGENCE=@divergences.total_variation"]),
        ("skew_kl", "gkd", ["DIVERGENCE=@divergences.skew_forward_kl"]),
        ("sft", "gkd", ["METHOD=@experiment.Method()", "TEACHER=None", "TEACHER_MODEL=None"]),
    ],
)
def test_a_special_case_has_the_same_settings(special, general, overrides):
    assert settings(special) == settings(general, *overrides)
    assert settings(special) != settings(general)


def run(folder, *arguments):
    values = [f"MODEL_DIR={str(folder)!r}", "TRAIN_STEPS=2", "EVALUATE_EVERY=0", "LOG_EVERY=1"]
    command = ["train", *arguments, *(f"--gin.{value}" for value in values)]
    assert command_line.main(command) == 0
    params = restore_params(folder / "checkpoints")
    return jax.tree.map(np.asarray, params)


@pytest.mark.slow
def test_seqkd_is_fine_tuning_on_what_the_teacher_wrote(tmp_path):
    """A file of outputs, and a data set of the same words: the same weights, bit for bit."""
    rows = [
        (f"Tom has {a} coins, finds {b}.", f"{a + b} #### {a + b}")
        for a in range(5)
        for b in range(8)
    ]
    written = [{"index": i, "sample": 0, "input": x, "text": y} for i, (x, y) in enumerate(rows)]
    (tmp_path / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    plain = [{"input": x, "target": y} for x, y in rows]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    outputs = f"--gin.TEACHER_OUTPUTS={str(tmp_path / 'outputs.jsonl')!r}"
    seqkd = run(
        tmp_path / "seqkd", f"--gin_file={TINY}", "--gin_file=configs/methods/seqkd.gin", outputs
    )
    files = {split: str(tmp_path / "plain.jsonl") for split in ("train", "validation")}
    fine_tuned = run(
        tmp_path / "sft",
        "--gin_file=configs/tasks/local_text.gin",
        f"--gin_file={TINY}",
        f"--gin.FILES={files!r}",
        "--gin.VOCABULARY=@vocabularies.arithmetic()",
        "--gin.TASK=@tasks.local_text()",
        "--gin.BEST_METRIC='rouge2'",
    )
    start = run(tmp_path / "other", f"--gin_file={TINY}")
    jax.tree.map(np.testing.assert_array_equal, seqkd, fine_tuned)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (seqkd, start)), strict=True))
