"""Runs whose numbers stop being finite: they fail, and name the cause."""

import numpy as np
import pytest
import safetensors.numpy

from gkd.cli import command_line
from tests.train.training import fails, no_evaluations, saved_steps, train

pytestmark = pytest.mark.usefixtures("one_device")


def test_a_run_that_ends_with_losses_that_are_not_finite_is_not_complete(tmp_path, capfd):
    run = tmp_path / "nan_at_the_end"
    with no_evaluations():
        message = fails(capfd, run, "TRAIN_STEPS=3", "LEARNING_RATE=1e30")
    assert "not finite in the last" in message and "LEARNING_RATE" in message
    assert not saved_steps(run) and not (run / "summary.json").exists()
    run = tmp_path / "nan_after_the_end"  # one step: its loss and its update are finite
    message = fails(capfd, run, "TRAIN_STEPS=1", "LEARNING_RATE=1e15")
    assert "the student's probabilities are NaN after step 1" in message
    assert not saved_steps(run) and not (run / "summary.json").exists()


@pytest.mark.slow
def test_a_teacher_that_overflows_is_named_and_not_the_learning_rate(tmp_path, capfd):
    """Every parameter is finite; the products are not: 1e25 · 1e25 > 3.4e38."""
    teacher = tmp_path / "teacher"
    with no_evaluations():
        assert train(teacher, "TRAIN_STEPS=1") == 0
    big = tmp_path / "overflowing_teacher"
    converted = tmp_path / "overflowing_hf"
    assert command_line.main(["convert", str(teacher), str(converted)]) == 0
    file = next(converted.glob("*.safetensors"))
    tensors = safetensors.numpy.load_file(file)
    for name in tensors:
        if "wi_" in name or ".wo." in name:
            tensors[name] = np.full_like(tensors[name], 1e25)
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    assert command_line.main(["convert", str(converted), str(big), "--to", "gkd"]) == 0
    capfd.readouterr()
    with no_evaluations():
        message = fails(
            capfd, tmp_path / "taught", f'TEACHER="{big}"', "DIVERGENCE=@divergences.forward_kl",
            "TRAIN_STEPS=8", "experiment.Schedule.stop_after_skipped=3",
        )  # fmt: skip
    assert "TEACHER" in message and "overflowing_teacher" in message
    assert "LEARNING_RATE" not in message
