"""The worked examples of docs/extending.md are short, and a run takes them as they are."""

import pathlib
import re
import sys

import gin
import numpy as np
import pytest

from gkd.cli import command_line
from gkd.configuration.configured_experiment import experiment_of
from gkd.configuration.task_files import read_task
from gkd.data import pipeline
from gkd.distill.divergence_records import registered_divergences
from gkd.train.build import build_step_program
from tests.docs import pages

PAGE = "docs/extending.md"
TINY = (
    "STUDENT=None",
    "STUDENT_MODEL=@student/t5.T5Config()",
    "TEACHER_MODEL=@teacher/t5.T5Config()",
    "DRY_RUN=True",
)


@pytest.fixture
def place(one_device, tmp_path, monkeypatch):
    """The files that the page shows, in the current directory."""
    for block in pages.blocks(PAGE):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield pathlib.Path(tmp_path)
    gin.clear_config()  # the modules stay imported: gin remembers their functions


def traced(gin_files, modules, overrides=()):
    """The facts of a run's step, traced without data or checkpoints."""
    values = (*TINY, "MODEL_DIR='none'", *overrides)
    return command_line.configure(command_line.Command("train", gin_files, values, modules))()


def test_every_example_is_at_most_forty_lines():
    sizes = {}
    for block in pages.blocks(PAGE):
        if block.file:
            lines = [line for line in block.text.splitlines() if line.strip()]
            sizes[block.file] = len(lines)
    assert len(sizes) >= 5
    assert all(size <= 40 for size in sizes.values()), sizes


def test_the_divergence_trains_and_is_reported(place):
    facts = traced(
        ("configs/runs/small_arithmetic/student.gin", "jeffreys.gin"), ("my_divergences",)
    )
    assert "divergence" in facts["metrics"]
    records = {record.name: record for record in registered_divergences()}
    assert records["jeffreys"].reported == {"jeffreys": {"weight": 0.5}}


def test_the_method_gives_the_teacher_its_own_prompt(place):
    files = ("configs/runs/small_arithmetic/student.gin", "privileged.gin")
    command = command_line.Command("train", files, (*TINY, "MODEL_DIR='none'"), ("my_prompts",))
    experiment = experiment_of(command_line.configure(command))
    program = build_step_program(experiment, from_shapes=True)
    assert program.batch.encoder_input_tokens.shape == (64, 22)
    assert program.batch.teacher_encoder_input_tokens.shape == (64, 40)
    task = experiment.method.training_task
    batch = next(pipeline.training_batches(task, "train", 4, 22, 16, seed=0))
    vocabulary = task.vocabulary
    columns = ("encoder_input_tokens", "decoder_target_tokens", "teacher_encoder_input_tokens")
    for rows in zip(*(batch[name].tolist() for name in columns), strict=True):
        prompt, solution, teachers = (vocabulary.decode(row) for row in rows)
        assert teachers == f"{prompt} {solution}"


def test_the_task_has_the_rows_and_lengths_that_it_says(place):
    task = read_task("reversal.gin", allowed=("my_tasks",))
    batch = next(pipeline.training_batches(task, "train", 8, 14, 5, seed=0))
    assert not batch["inputs_cut"] and not batch["targets_cut"]
    # Bytes: byte b is id b + 3; 1 ends the sequence.
    inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    prefix = np.frombuffer(b"reverse: ", np.uint8) + 3
    np.testing.assert_array_equal(inputs[:, :9], np.tile(prefix, (8, 1)))
    np.testing.assert_array_equal(inputs[:, 9:13], targets[:, 3::-1])
    assert (targets[:, 4] == 1).all() and (inputs[:, 13] == 1).all()
    assert task.evaluate(["abc"], ["abc"])["exact_match"] == 100


def test_the_page_names_what_an_addition_to_the_repository_touches():
    text = pages.read(PAGE)
    named = re.findall(r"`(gkd/[\w/]+\.py)`", text)
    assert "gkd/distill/divergences.py" in named and "gkd/cli/arguments.py" in named
