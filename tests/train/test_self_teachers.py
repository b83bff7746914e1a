"""Runs whose teacher is the student itself: its start, its present, or its moving average."""

import json

import jax
import numpy as np
import pytest

from tests.step_programs import program_of
from tests.teacher_prompts import OVERRIDES
from tests.train.training import fails, train, train_whole_and_in_parts

SELF = ("DIVERGENCE=@divergences.forward_kl", "LAMBDA=1.0", *OVERRIDES)
SHORT = ("EVALUATE_EVERY=0", "CHECKPOINT_EVERY=2", "TRAIN_STEPS=4")


@pytest.mark.parametrize("weights", ["average", pytest.param("initial", marks=pytest.mark.slow)])
def test_a_run_continues_with_the_very_teacher_it_had(weights, tmp_path):
    settings = (*SELF, f"TEACHER_WEIGHTS='{weights}'", "TEACHER_DECAY=0.5")
    rows, _, _ = train_whole_and_in_parts(tmp_path, *settings)
    assert rows[0]["train/loss"] > 1e-3  # it reads what the student does not


@pytest.mark.slow
def test_the_start_of_a_checkpoint_is_the_teacher_also_after_a_resume(tmp_path, teacher):
    """And the run records which step it was, though the student's own checkpoints have moved on."""
    run = tmp_path / "run"
    settings = (
        *SELF, "TEACHER_WEIGHTS='initial'", f"STUDENT='{teacher}'", "STUDENT_MODEL=None", *SHORT,
    )  # fmt: skip
    assert train(run, *settings, "TRAIN_STEPS=2") == 0
    record = json.loads((run / "teacher.json").read_text())
    assert record["teacher"] == str(teacher) and record["step_folder"].startswith(str(teacher))
    assert train(run, *settings) == 0
    assert json.loads((run / "teacher.json").read_text()) == record


def test_a_frozen_start_stays_bit_for_bit_and_costs_one_copy():
    program = program_of(*SELF, "TEACHER_WEIGHTS='initial'", read=True)
    before = jax.device_get(program.teacher.params)
    state = program.state.make()
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))
    assert program.frozen_teacher is program.teacher and state.average is None


def test_a_current_teacher_has_no_parameters_of_its_own():
    sizes = {}
    for weights in ("initial", "current", "average"):
        program = program_of(*SELF, f"TEACHER_WEIGHTS='{weights}'")
        given = program.frozen_teacher and program.frozen_teacher.shapes
        held = (given, program.state.abstract.average)
        sizes[weights] = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in held]
        count = sum(leaf.size for leaf in jax.tree.leaves(program.state.abstract.params))
    assert sizes == {"initial": [count, 0], "current": [0, 0], "average": [0, count]}


@pytest.mark.parametrize(
    ("setting", "message", "code"),
    [
        ("TEACHER='a'", "TEACHER is 'a', but TEACHER_WEIGHTS is 'average'", 1),
        ("TEACHER_TOP_K_FILE='a'", "TEACHER_TOP_K_FILE is 'a', but", 1),
        ("TEACHER_DECAY=1.0", "TEACHER_DECAY is 1.0: use less than 1", 2),
        ("TEACHER_WEIGHTS='mean'", "TEACHER_WEIGHTS is 'mean': choose one of checkpoint", 2),
    ],
)
def test_what_does_not_fit_is_one_line(capfd, tmp_path, setting, message, code):
    own = (*SELF, "TEACHER_WEIGHTS='average'")
    assert message in fails(capfd, tmp_path / "run", *own, setting, code=code)


def test_a_self_teacher_that_reads_what_the_student_reads_is_refused(capfd, tmp_path):
    message = fails(
        capfd, tmp_path / "run", "DIVERGENCE=@divergences.forward_kl", "TEACHER_WEIGHTS='current'"
    )
    assert "their divergence is 0" in message and "teacher_inputs" in message
