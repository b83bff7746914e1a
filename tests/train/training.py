"""Runs of the tiny configuration through the command line."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from gkd.cli import command_line
from gkd.runs.metrics_log import read_metrics
from gkd.train.training_loop import TrainingLoop
from tests.compilation import FLAGS, devices
from tests.paths import REPOSITORY, TINY

DISTIL = ("DIVERGENCE=@divergences.generalized_jsd", "BETA=0.1", "LAMBDA=0.5")


def arguments(model_dir, *overrides):
    values = [f'MODEL_DIR="{model_dir}"', *overrides]
    return ["train", f"--gin_file={TINY}", *(f"--gin.{value}" for value in values)]


def train(model_dir, *overrides):
    return command_line.main(arguments(model_dir, *overrides))


def train_whole_and_in_parts(folder, *settings, steps=4):
    """A run on one device, and one that goes on from its half: the same; their rows and folders."""
    settings = ("EVALUATE_EVERY=0", f"CHECKPOINT_EVERY={steps // 2}", *settings)
    settings = (*settings, f"TRAIN_STEPS={steps}")
    whole, parts = folder / "whole", folder / "parts"
    with devices(1):
        assert train(whole, *settings) == 0
        shutil.copytree(whole, parts)
        shutil.rmtree(parts / "checkpoints" / str(steps))
        forget_rows(parts, steps // 2)
        assert train(parts, *settings) == 0
    rows = [[row for row in read_metrics(run) if "train/loss" in row] for run in (whole, parts)]
    assert len(rows[0]) == steps and rows[0] == rows[1]
    return rows[0], whole, parts


def forget_rows(model_dir, step):
    """Leaves the rows up to this step, as in a run that was killed then."""
    path = model_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


@contextlib.contextmanager
def no_evaluations():
    """Runs whose measurements nobody looks at, the step's number: evaluations compile nothing."""

    def measure(self, params, number):
        return {self.schedule.best_metric: float(number)}, [""] * len(
            self.evaluation.examples.inputs
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "_measure", measure)
        patch.setattr(TrainingLoop, "_evaluate_teacher", lambda self, step: [])
        yield


def launch(model_dir, *overrides, optimized=False):
    """The same in a process of its own, on one device; compiled as users do, or as tests do."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "" if optimized else FLAGS,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if optimized else "1",
    }
    command = [sys.executable, "-m", "gkd", *arguments(model_dir, *overrides)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True
    )


def saved_steps(model_dir):
    folders = (model_dir / "checkpoints").glob("*")
    return [int(path.name) for path in folders if path.name.isdigit()]


def wait_for_step(process, model_dir, step):
    path = model_dir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and f'{{"step": {step}, "train' in path.read_text():
            return
        time.sleep(0.005)


def fails(capfd, model_dir, *overrides, code=1):
    """Runs, expects failure, returns the one line."""
    assert train(model_dir, *overrides) == code
    lines = capfd.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("gkd: error:")]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    return errors[0]
