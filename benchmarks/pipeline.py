"""Measures the cost of the input pipeline: steps on real batches against one batch; start-up.

    python -m benchmarks.pipeline [--gin_file=FILE] [--steps=100] [--rounds=5] [--gin.NAME=VALUE …]

The same compiled step runs in turn on the pipeline's batches and on one batch that is already on
the device. Start-up is a process of `train` with one step, less the time that it compiled for.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax

from benchmarks.arguments import parse
from benchmarks.machine import spread
from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.data import pipeline
from gkd.evaluate.evaluation import host_batch
from gkd.parallel import mesh as meshes
from gkd.train.build import build_step_program

START = "configs/runs/quickstart/start.gin"
RUN = "configs/runs/quickstart/gkd.gin"
MODELS = ("STUDENT_MODEL=@student/t5.T5Config()", "TEACHER_MODEL=@teacher/t5.T5Config()")


def main(arguments: list[str]) -> None:
    """Measures and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gin_file", default=RUN)
    parser.add_argument("--steps", type=int, default=100, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=5)
    given, overrides = parse(parser, arguments)
    feeding(given, (*MODELS, "MODEL_DIR='none'", *overrides))
    starting(given)


def feeding(given, overrides) -> None:
    """Measures seconds per step on real batches and on a constant one, round by round."""
    command = Command("train", (given.gin_file,), overrides)
    program = build_step_program(command_line.configured_experiment(command), from_shapes=True)
    rows, source = program.batch.encoder_input_tokens.shape
    target = program.batch.decoder_target_tokens.shape[1]
    batches = pipeline.training_batches(program.task, "train", rows, source, target, seed=0)
    compiled, state = program.compile(), program.state.make()
    teacher_params = program.teacher and jax.jit(
        lambda: jax.tree.map(lambda leaf: 0.01 * jax.numpy.ones(leaf.shape, leaf.dtype),
                             program.teacher.shapes),
        out_shardings=program.teacher.shardings,
    )()  # fmt: skip
    constant = meshes.place_batch(host_batch(next(batches)), program.mesh)

    def steps(make):
        nonlocal state
        begin, pending = time.perf_counter(), None
        for _ in range(given.steps):
            state, metrics = compiled(state, teacher_params, make())
            if pending is not None:  # as the training loop: a step is read while the next one runs
                jax.device_get(pending)
            pending = metrics
        jax.block_until_ready((state, pending))
        return (time.perf_counter() - begin) / given.steps

    def real():
        return meshes.place_batch(host_batch(next(batches)), program.mesh)

    for make in (real, lambda: constant):
        steps(make)
    taken = [(steps(real), steps(lambda: constant)) for _ in range(given.rounds)]
    ratio = spread([ours / same for ours, same in taken])
    for name, seconds in zip(("real batches", "one batch"), zip(*taken, strict=True), strict=True):
        print(f"{name}: {1e3 * spread(list(seconds))['median']:.2f} ms a step")
    print(f"ratio {ratio['median']:.3f} ({ratio['min']:.3f}–{ratio['max']:.3f})")


def starting(given) -> None:
    """Measures the seconds of a process that trains one step, less compilation, cold and warm."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "again, cached programs"):
            place = pathlib.Path(folder, name)
            command = [
                sys.executable, "-m", "gkd", "train", f"--gin_file={START}",
                f"--gin.MODEL_DIR={str(place)!r}", "--gin.TRAIN_STEPS=1", "--gin.WARMUP_STEPS=0",
                "--gin.COOLDOWN_STEPS=0",
            ]  # fmt: skip
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - begin
            compiling = json.loads((place / "summary.json").read_text())["compilation_seconds"]
            print(
                f"start-up, {name}: {seconds:.1f} s with two evaluations and a checkpoint, "
                f"compilation {compiling:.1f} s, without it {seconds - compiling:.1f} s"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
